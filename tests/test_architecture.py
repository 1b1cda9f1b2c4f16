"""The order of packages, rooms and modules that docs/architecture.md draws, read from the sources.

Every import counts: those inside functions and under TYPE_CHECKING too, since they tie modules together all the same.
"""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys

import pytest

from tests.support import modules, places
from tests.support.modules import all_modules, under

MAY_IMPORT = {
    "autogaze": {"autogaze"},
    "pipelines": {"pipelines", "autogaze"},
    "cluster": {"cluster"},
    "jobs": {"jobs", "cluster", "pipelines", "autogaze"},
}
NOT_IN_AUTOGAZE = {"ray", "fsspec", "s3fs", "rich", "omegaconf", "yaml", "av", "pandas", "pyarrow"}

# Top to bottom. The last ones are single files beside the rooms.
FLOORS = (
    *("rl", "train", "inspection", "sizing", "runs", "encode", "preprocess", "loading", "labels"),
    *("dataset", "corpus", "gazing", "networks", "video", "storage"),
    *("ray_data", "prometheus", "schema", "yaml_text", "errors"),
)

# What a decode actor imports before it decodes: no torch, which takes seconds and hundreds of MB in each, and no Ray of
# its own.
LIGHT = ("pipelines.corpus", "pipelines.video", "pipelines.storage")
# These load a library that a user chooses, and that brings torch; pipelines.video.backends imports them on demand.
NOT_LIGHT = {"pipelines.video.torchcodec", "pipelines.video.torchcodec_cuda"}

# Functions that modules of a package define under one name because each answers the same call.
INTERFACES = {
    "autogaze.vision": {"load"},  # its public face: `from autogaze.vision import load`
    "pipelines.video": {"fingerprint", "decode_into", "probe"},  # pipelines.video.backends.Backend; probe is PyAV's
    "cluster": {"render", "submit", "status", "logs", "cancel"},  # of a launcher
    "jobs": {"run", "render", "submit", "status", "logs"},  # of a job, and of the verbs of `autogaze cluster`
}


def room(module: str) -> str:
    """The room of a module of pipelines, or the file beside the rooms."""
    return module.split(".")[1]


@pytest.mark.parametrize("package", modules.PACKAGES)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    assert under(package)
    for module in under(package):
        imported = {name.partition(".")[0] for name in module.imports}
        assert imported & MAY_IMPORT.keys() <= MAY_IMPORT[package], module.name


def test_autogaze_needs_no_storage_no_cluster_and_no_command_line() -> None:
    for module in under("autogaze"):
        assert not {name.partition(".")[0] for name in module.imports} & NOT_IN_AUTOGAZE, module.name


def test_every_room_of_pipelines_has_its_floor() -> None:
    assert {room(module.name) for module in under("pipelines") if module.name != "pipelines"} == set(FLOORS)


@pytest.mark.parametrize("floor", FLOORS)
def test_a_room_imports_only_rooms_below_it(floor: str) -> None:
    below = FLOORS[FLOORS.index(floor) :]
    for module in under(f"pipelines.{floor}"):
        up = {name for name in module.ours if name.startswith("pipelines.") and room(name) not in below}
        assert not up, f"{module.name} imports {sorted(up)}"


def test_gazing_takes_arrays_and_knows_no_videos_and_no_storage() -> None:
    rooms = {room(name) for module in under("pipelines.gazing") for name in module.ours if "pipelines." in name}
    assert not rooms & {"corpus", "video", "storage"}


def test_policy_and_reconstruction_do_not_know_each_other() -> None:
    for one, other in (("model", "reconstruction"), ("reconstruction", "model")):
        for module in under(f"autogaze.{one}"):
            arrows = {name for name in module.ours if name.startswith(f"autogaze.{other}")}
            assert not arrows, f"{module.name} imports {sorted(arrows)}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert modules.circle({name: module.ours for name, module in all_modules().items()}) == []


def test_a_circle_of_imports_would_be_found() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"e"}, "e": {"b"}}
    assert modules.circle({name: frozenset(to) for name, to in graph.items()}) == ["b", "d", "e", "b"]


def test_decode_actors_load_neither_torch_nor_ray() -> None:
    light = [module.name for prefix in LIGHT for module in under(prefix) if module.name not in NOT_LIGHT]
    assert len(light) > 20
    assert loaded_by(*light, "pipelines.preprocess.decoding") & {"torch", "ray"} == set()


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    heavy = {"torch", "ray", "pandas", "pyarrow", "fsspec", "av", "transformers"}
    assert loaded_by("jobs.cli") & heavy == set()


def loaded_by(*names: str) -> set[str]:
    """Every module that a new process has loaded once it has imported these."""
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=places.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(names) <= set(done.stdout.split())
    return set(done.stdout.split())


@pytest.mark.parametrize("package", ["pipelines", "cluster", "jobs"])
def test_an_init_file_holds_a_docstring_only(package: str) -> None:
    """Those of autogaze may re-export: a user of the method writes `from autogaze.model import AutoGaze`."""
    for module in under(package):
        if module.path.name == "__init__.py":
            assert len(module.tree.body) == 1 and ast.get_docstring(module.tree), module.name


def test_a_file_holds_one_idea_and_says_which() -> None:
    for module in all_modules().values():
        assert module.lines <= 500, f"{module.path} has {module.lines} lines"
        assert ast.get_docstring(module.tree), f"{module.path} does not say what it is"
    assert statistics.median(module.lines for module in all_modules().values()) < 200


def test_a_public_class_or_constant_has_one_meaning() -> None:
    """A type variable has no meaning of its own, so T may be one in many modules."""
    assert modules.defined_twice("class", "constant") == {}


def test_a_function_defined_twice_is_named_with_its_module() -> None:
    """`npz.read` and `tables.read` may both exist; `from autogaze.npz import read` would hide which is meant."""
    ambiguous = {
        f"{home}.{name}"
        for name, homes in modules.defined_twice("function").items()
        for home in homes
        if not any(f"{home}.".startswith(f"{prefix}.") and name in names for prefix, names in INTERFACES.items())
    }
    bare = {name: sorted(module.imports & ambiguous - all_modules().keys()) for name, module in all_modules().items()}
    assert {name: functions for name, functions in bare.items() if functions} == {}


def test_what_imports_are_read_includes_those_inside_functions() -> None:
    decode = all_modules()["pipelines.video.decode"]
    assert "pipelines.video.pyav" in decode.ours and "pipelines.video.base" in decode.ours
