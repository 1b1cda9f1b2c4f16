"""kill -9 of a training run at any moment: the end has the bits of an undisturbed run, and the ledger is clean."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.runs.ledger import attempts
from tests.support.training import CHECKPOINT_EVERY, Ranks, end_of, policy_config, require_clean, run_ranks
from tests.support.waiting import wait_until


def lines(run: Path) -> int:
    """Steps in the events so far, of all attempts."""
    events = run / "events.jsonl"
    return events.read_bytes().count(b'"kind": "step"') if events.exists() else 0


def killed_when(ranks: Ranks, condition: Callable[[], object], seconds: float = 0.0) -> bool:
    """Wait for a moment, then a little, then kill -9; whether the run was still at work."""
    wait_until(lambda: condition() or not ranks.alive, every=0)
    wait_until(lambda: not ranks.alive, seconds=seconds, every=0.001)
    was_alive = bool(ranks.alive)
    ranks.kill()
    return was_alive


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_bits_of_one_that_was_not(
    gazes: str, smooth_run: Path, tmp_path: Path
) -> None:
    run, chance = tmp_path / "run", random.Random(5)
    config = policy_config(gazes, run)
    killed, done = 0, 0
    for _ in range(6):
        goal = lines(run) + chance.randint(1, 4)
        began = lines(run)
        killed += killed_when(
            Ranks(config, 1, tmp_path / "ranks"), lambda goal=goal: lines(run) >= goal, chance.uniform(0, 0.1)
        )
        done = max(done, attempts(str(run))[-1].start + lines(run) - began)
    assert killed >= 3
    assert run_ranks(config, 1, tmp_path / "ranks") in (["done"], ["finished"])  # a late kill finds nothing to stop
    assert end_of(run) == end_of(smooth_run)
    require_clean(run)
    # A save may be under way while the run goes on, up to where the next one is due.
    starts = [attempt.start for attempt in attempts(str(run))]
    assert starts == sorted(starts) and done - starts[-1] <= 2 * CHECKPOINT_EVERY


def test_a_run_killed_in_each_kind_of_write_ends_with_the_same_bits(
    gazes: str, smooth_run: Path, tmp_path: Path
) -> None:
    """The moment a file of a kind shows or changes, temporaries included: a save or a flush is then half done."""
    run = tmp_path / "run"
    config = policy_config(gazes, run, "every.keep=1")
    moments = ["config.yaml", "ledger/*", "checkpoints/*/policy/*", "checkpoints/step-*"]
    moments += ["checkpoints/*/*", "checkpoints/.tmp-*", "checkpoints/latest", "ledger/0*/*"]
    killed = 0
    for moment in moments:
        before = seen(run, moment)
        ranks = Ranks(config, 1, tmp_path / "ranks")
        killed += killed_when(ranks, lambda moment=moment, before=before: seen(run, moment) - before)
    assert killed >= 5
    assert run_ranks(config, 1, tmp_path / "ranks") in (["done"], ["finished"])
    assert end_of(run) == end_of(smooth_run)
    require_clean(run)


def seen(run: Path, moment: str) -> set[tuple[Path, int]]:
    """Files of a kind, and when they were last written."""
    found = set()
    try:
        for path in run.glob(moment):
            found.add((path, path.stat().st_mtime_ns))
    except FileNotFoundError:  # renamed or removed meanwhile: the next look sees the rest
        pass
    return found
