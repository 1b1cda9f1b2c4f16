"""What an actor says of a shard comes out of its flat row as it went in, and adds up."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from pipelines.preprocess.rows import CommittedShard
from pipelines.preprocess.totals import Totals


def committed_shard(shard: int, began: float, ended: float, failed: dict[str, int]) -> CommittedShard:
    return CommittedShard(
        shard=shard, clips=3, bytes=100, ok=2, frames=4, tokens=9, loss=0.5, met=1.5, failed=Counter(failed),
        restarts=1, seconds={"decode": 2.0, "gaze": 1.0}, began=began, ended=ended,
    )  # fmt: skip


def test_a_committed_shard_survives_its_row() -> None:
    shard = committed_shard(4, 1.0, 2.0, {"decode_error": 1, "missing": 2})
    assert CommittedShard.from_row(shard.to_row()) == shard


def test_totals_are_the_sums_over_shards_and_the_slowest_stage_sets_the_pace() -> None:
    totals = Totals()
    for shard in (committed_shard(0, 10.0, 14.0, {"missing": 1}), committed_shard(1, 11.0, 18.0, {"missing": 1})):
        totals.add(shard)
    assert (totals.clips, totals.ok, totals.tokens, totals.loss, totals.met) == (6, 4, 18, 1.0, 3.0)
    assert totals.failed == {"missing": 2} and totals.seconds == {"decode": 4.0, "gaze": 2.0}
    assert (totals.began, totals.first_commit, totals.last_commit, totals.span) == (10.0, 14.0, 18.0, 8.0)
    assert totals.speed_of_light({"decode": 2, "gaze": 1}) == ("decode", 0.25)


def test_a_shard_that_was_not_told_of_is_counted_by_its_index() -> None:
    rows = {"outcome": ["ok", "failed", "ok", "filtered"], "reason": [None, "missing", None, None]}
    rows |= {"frames": [16] * 4, "tokens": [5, None, 7, None]}
    totals = Totals()
    totals.add(committed_shard(0, 10.0, 14.0, {"missing": 1}))
    totals.add_index(1, pa.table(rows))
    assert totals.shards == {0, 1} and totals.failed == {"missing": 2}
    assert (totals.clips, totals.ok, totals.filtered, totals.frames, totals.tokens) == (7, 4, 1, 36, 21)
