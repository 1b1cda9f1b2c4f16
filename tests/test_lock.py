"""constraints.txt is a lock: it names every package that is installed for this one, at the version that is."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import places

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none, and the lock is written by a newer one")


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", places.ROOT / ".ci" / "lock.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pinned() -> dict[str, str]:
    lines = [line for line in (places.ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in ("#", "")]
    found = [Requirement(line) for line in lines]
    assert all(str(wanted.specifier).startswith("==") for wanted in found)
    here = [wanted for wanted in found if wanted.marker is None or wanted.marker.evaluate()]
    return {canonicalize_name(wanted.name): str(wanted.specifier)[2:] for wanted in here}


def test_everything_that_is_needed_is_pinned(lock: ModuleType) -> None:
    project = tomllib.loads((places.ROOT / "pyproject.toml").read_text())["project"]
    needed = set(lock.needed(project, "dev"))
    assert needed - set(pinned()) == set(), "run: make lock"
    assert {"torch", "ray", "omegaconf", "transformers", "moto", "ruff", "certifi"} <= needed


def test_a_line_says_where_it_does_not_hold(lock: ModuleType) -> None:
    project = {"name": "x", "dependencies": ["pandas", "certifi"], "optional-dependencies": {"dev": []}}
    found = lock.needed(project, "dev")
    assert lock.line(found["pandas"]).endswith('; python_version >= "3.11"') and ";" not in lock.line(found["certifi"])
