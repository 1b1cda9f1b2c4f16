"""One way to name a network, for every key that takes one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autogaze.model import AutoGaze
from pipelines.errors import PipelineError
from pipelines.networks.find import Kind, find_network, on_disk
from pipelines.networks.open import open_policy, open_reconstructor
from tests.support import places

CONFIGS: dict[Kind, dict[str, object]] = {
    "policy": {"gaze_model_config": {}},
    "reconstructor": {"decoder_hidden_size": 512},
    "encoder": {"model_type": "dinov2"},
}


def a_run(folder: Path, kind: Kind = "policy", steps: tuple[int, ...] = (2, 4)) -> Path:
    """What a training run leaves, as far as a name leads."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text("kind: x\n")
    for step in steps:
        network = folder / "checkpoints" / f"step-{step:06d}" / kind
        network.mkdir(parents=True)
        (network / "config.json").write_text(json.dumps(CONFIGS[kind]))
        (network.parent / "state.json").write_text("{}")
        (folder / "checkpoints" / "latest").write_text(f"step-{step:06d}\n")
    return folder


@pytest.mark.parametrize("kind", ["policy", "reconstructor"])
def test_a_run_its_checkpoints_a_step_and_the_folder_itself_all_name_it(tmp_path: Path, kind: Kind) -> None:
    run = a_run(tmp_path / "run", kind)
    newest = run / "checkpoints" / "step-000004" / kind
    for name in (run, run / "checkpoints", run / "checkpoints" / "latest", newest.parent, newest):
        assert find_network(str(name), kind, "init") == str(newest)
    older = run / "checkpoints" / "step-000002"
    assert find_network(str(older), kind, "init") == str(older / kind)


def test_a_relative_path_or_a_home_is_absolute_and_what_is_no_place_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_network("run", "policy", "init") == find_network("~/run", "policy", "init")
    assert find_network("run", "policy", "init").startswith(str(run))
    assert find_network("nvidia/AutoGaze", "policy", "init") == "nvidia/AutoGaze"
    weights = tmp_path / "videomae.pt"
    weights.write_bytes(b"")
    assert find_network("videomae.pt", "reconstructor", "init") == str(weights)


@pytest.mark.parametrize(
    "made, wanted, told",
    [
        ("policy", "reconstructor", "is a run that trains a policy; give a reconstructor"),
        ("reconstructor", "policy", "is a run that trains a reconstructor; give a policy"),
    ],
)
def test_a_network_of_the_other_kind_is_named_as_such(tmp_path: Path, made: Kind, wanted: Kind, told: str) -> None:
    run = a_run(tmp_path / "run", made)
    with pytest.raises(PipelineError, match=rf"^key={run}: {told}"):
        find_network(str(run), wanted, "key")
    with pytest.raises(PipelineError, match=f": is a {made}; give a {wanted}"):
        find_network(str(run / "checkpoints" / "step-000004" / made), wanted, "key")


def test_a_place_without_a_network_is_one_line_that_says_what_is_missing(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    begun = a_run(tmp_path / "begun", steps=())
    torn = a_run(tmp_path / "torn")
    (torn / "checkpoints" / "step-000004" / "policy" / "config.json").unlink()
    for place, told in (
        (empty, "holds no network, checkpoint or run"),
        (begun, "has no checkpoint yet"),
        (torn, "its checkpoint is damaged"),
    ):
        with pytest.raises(PipelineError, match=told) as caught:
            find_network(str(place), "policy", "init")
        assert "\n" not in str(caught.value)


def test_real_networks_are_opened_by_the_same_names(tmp_path: Path) -> None:
    folder = places.GOLDEN / "autogaze_small_k4"
    run = a_run(tmp_path / "run", steps=(2,))
    step = run / "checkpoints" / "step-000002"
    for file in folder.iterdir():
        (step / "policy" / file.name).write_bytes(file.read_bytes())
    assert open_policy(str(run), "init").fingerprint == AutoGaze.from_pretrained(folder).fingerprint
    with pytest.raises(PipelineError, match=r"^reconstructor=.*: is a policy; give a reconstructor"):
        open_reconstructor(str(folder), "reconstructor")
    assert open_reconstructor("canvas", "reconstructor").name == "canvas"


def test_a_local_folder_is_not_copied(tmp_path: Path) -> None:
    with on_disk(str(tmp_path)) as folder:
        assert folder == str(tmp_path)
