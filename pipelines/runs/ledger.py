"""The ledger of a run: which samples each step consumed, by rank and attempt; and the audit that proves it right.

ledger/attempt-000002.json says what an attempt is; ledger/000002/r0001-s000000500.parquet what its rank 1 consumed from
step 500 on. Every file is written once. What an attempt did after the step at which a later one began does not count:
the later one went back to the checkpoint of that step and did it again. Steps count from 0 here: step s is the one
after which a checkpoint is called s + 1.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import PipelineError
from pipelines.storage import store, urls

LEDGER_SCHEMA = pa.schema(
    [("step", pa.int64()), ("epoch", pa.int32()), ("id", pa.int64()), ("repeat", pa.bool_()), ("skipped", pa.bool_())]
)
GROUPS = pa.schema([*LEDGER_SCHEMA, ("version", pa.int64()), ("group", pa.int64())])
"""Of an RL run: also the version of the policy that sampled each group, and a hash of the group (0: skipped)."""
_FLUSH_ROWS = 1 << 18


@dataclass(frozen=True)
class Attempt:
    """What one start of a run is: its number (from 1), the step it began at, its ranks, and what fixes the order.

    counts: usable samples of each shard, for each dataset. datasets: fingerprints of what is read. ids: hash of the
    numbers of all samples, ascending ("" = not told). lag: of an RL run; None: no groups are recorded.
    """

    number: int
    start: int
    world: int
    global_batch: int
    seed: int
    window: int
    counts: list[list[int]]
    weights: list[float]
    datasets: list[str]
    ids: str = ""
    lag: int | None = None


class Ledger:
    """What one rank of one attempt writes.

    `add` keeps a step in memory; `flush` makes all of them durable, and must have returned on every rank before a
    checkpoint of a later step may become the latest.

    Args:
        attempt: its number: one more than there are `attempts`; decided by one rank for all.
        start_step: steps done when it begins.
        world, global_batch, seed, window, counts, weights, datasets, lag: see Attempt; the same on all ranks.
        ids: int64 [n], numbers of all the samples that the run is to use, ascending: the audit then knows a stranger.
    Raises:
        PipelineError: the run has an attempt of this number: another job is at work on it.
    """

    def __init__(
        self,
        run_url: str,
        attempt: int,
        rank: int,
        start_step: int,
        *,
        world: int,
        global_batch: int,
        seed: int,
        window: int,
        counts: Sequence[np.ndarray],
        weights: Sequence[float],
        datasets: Sequence[str],
        ids: np.ndarray | None = None,
        lag: int | None = None,
    ) -> None:
        self._url, self._rank = urls.join(urls.normalise(run_url), "ledger"), rank
        self._folder, self._next = urls.join(self._url, f"{attempt:06d}"), start_step
        self._steps: list[pa.Table] = []
        self._rows, self._schema = 0, LEDGER_SCHEMA if lag is None else GROUPS
        if rank == 0:
            numbers = [[int(count) for count in shards] for shards in counts]
            told = (world, global_batch, seed, window, numbers, [float(w) for w in weights], list(datasets))
            hashed = "" if ids is None else ids_hash(ids)
            url = urls.join(self._url, f"attempt-{attempt:06d}.json")
            if store.exists(url):
                raise PipelineError(f"{url}: is there already; another job is at work on this run, stop one of them")
            store.publish(json.dumps(asdict(Attempt(attempt, start_step, *told, hashed, lag))).encode() + b"\n", url)

    def add(
        self,
        step: int,
        epoch: int,
        ids: np.ndarray,
        repeat: np.ndarray,
        skipped: Sequence[int] = (),
        versions: Sequence[int] = (),
        groups: Sequence[int] = (),
    ) -> None:
        """Record a step of this rank.

        Args:
            step: from 0; one more than the step before.
            ids: int64 [b], numbers of the samples, in order.
            repeat: bool [b], which of them this epoch had before: they complete its last batch, or stand for skipped.
            skipped: numbers of the samples that were due here and could not be read.
            versions, groups: b numbers each, of an RL run.
        """
        if step != self._next:
            raise ValueError(f"step {step} recorded after step {self._next - 1}")
        count = len(ids) + len(skipped)
        columns = {
            "step": np.full(count, step, np.int64),
            "epoch": np.full(count, epoch, np.int32),
            "id": np.concatenate([np.asarray(ids, np.int64), np.asarray(skipped, np.int64)]),
            "repeat": np.concatenate([np.asarray(repeat, bool), np.zeros(len(skipped), bool)]),
            "skipped": np.arange(count) >= len(ids),
        }
        if self._schema is GROUPS:
            columns["version"] = np.concatenate([np.asarray(versions, np.int64), np.full(len(skipped), -1, np.int64)])
            columns["group"] = np.concatenate([np.asarray(groups, np.int64), np.zeros(len(skipped), np.int64)])
        self._steps.append(pa.table(columns, self._schema))
        self._next, self._rows = step + 1, self._rows + count
        if self._rows >= _FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Make all that was added durable. Raises PipelineError when the store cannot take it."""
        if not self._steps:
            return
        sink = io.BytesIO()
        encoding = dict.fromkeys({"step", "id", "version"} & {*self._schema.names}, "DELTA_BINARY_PACKED")
        table = pa.concat_tables(self._steps)
        pq.write_table(table, sink, compression="zstd", use_dictionary=["epoch"], column_encoding=encoding)
        name = f"r{self._rank:04d}-s{self._next - len(self._steps):09d}.parquet"
        store.publish(sink.getvalue(), urls.join(self._folder, name))
        self._steps, self._rows = [], 0


def ids_hash(ids: np.ndarray) -> str:
    return hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()


def attempts(run_url: str) -> list[Attempt]:
    """The attempts at a run, in order. Raises PipelineError for a damaged one."""
    url = urls.join(urls.normalise(run_url), "ledger")
    found = []
    for entry in store.list_objects(url):
        if re.fullmatch(r"attempt-\d+\.json", entry.url[len(url) + 1 :]):
            try:
                found.append(Attempt(**json.loads(store.read(entry.url))))
            except (ValueError, TypeError) as error:
                raise PipelineError(f"{entry.url}: damaged, or not of a ledger: {error}") from error
    return sorted(found, key=lambda attempt: attempt.number)


# -- audit -----------------------------------------------------------------------------------------------------------
