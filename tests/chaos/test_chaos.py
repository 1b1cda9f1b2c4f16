"""A short chaos: each job on three real nodes, with a few faults around it, ends as if there had been none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from chaos import Chaos

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    made = Chaos(tmp_path_factory.mktemp("chaos"), seed=3)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("job", "kinds"),
    [
        ("preprocess", ("actor", "storage", "node")),
        ("train", ("actor", "driver")),
        ("rl", ("actor", "driver", "hang")),
    ],
)
def test_a_job_under_faults_ends_as_if_there_had_been_none(chaos: Chaos, job: str, kinds: tuple[str, ...]) -> None:
    assert chaos.run(job, 2, kinds), "no fault came in time: nothing was tried"


def test_a_disk_that_is_full_for_a_while_costs_no_byte(chaos: Chaos) -> None:
    if not chaos.disk.mounted:
        pytest.skip("this process may not mount a small disk")
    assert chaos.run("preprocess", 1, ("disk",), local=True) == ["disk"]
