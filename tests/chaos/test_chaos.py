"""A short chaos: each job on three real nodes, with a fault or two around it, ends as if there had been none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.chaos import Chaos

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    made = Chaos(tmp_path_factory.mktemp("chaos"), seed=3)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("job", "faults", "kinds"),
    [
        ("preprocess", 2, ("storage", "node")),
        ("train", 1, ("actor",)),
        ("rl", 2, ("actor", "driver")),
    ],
)
def test_a_job_under_faults_ends_as_if_there_had_been_none(
    chaos: Chaos, job: str, faults: int, kinds: tuple[str, ...]
) -> None:
    assert chaos.run(job, faults, kinds), "no fault came in time: nothing was tried"
