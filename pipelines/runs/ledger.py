"""The ledger of a run: which samples each step consumed, by attempt and rank.

ledger/attempt-000002.json describes an attempt; ledger/000002/r0001-s000000500.parquet lists what its rank 1 consumed
from step 500 on. Every file is written once. Steps count from 0: the checkpoint after step s is called s + 1. An
attempt resumes from a checkpoint, so whatever earlier attempts did from its first step on does not count.

pipelines/runs/audit.py proves from the ledger that the run used every sample as often as it should.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import PipelineError
from pipelines.storage import store
from pipelines.storage.location import Location

LEDGER_SCHEMA = pa.schema(
    [("step", pa.int64()), ("epoch", pa.int32()), ("id", pa.int64()), ("repeat", pa.bool_()), ("skipped", pa.bool_())]
)
RL_LEDGER_SCHEMA = pa.schema([*LEDGER_SCHEMA, ("version", pa.int64()), ("group", pa.int64())])
"""Of an RL run: also the policy version that sampled the group of each sample, and a hash of the group (0: skipped)."""
_FLUSH_ROWS = 1 << 18


@dataclass(frozen=True)
class Attempt:
    """One start of a run, and what fixes the order of its samples.

    number: from 1; one more than that of the attempt before. start: steps done when it began. world: its ranks.
    global_batch, seed, window: of the order (pipelines/loading/order.py).
    counts: usable samples of each shard, for each dataset. weights: of the datasets. datasets: their fingerprints.
    ids: `ids_hash` of the numbers of all samples the run is to use; "": unknown.
    lag: of an RL run, whose groups are recorded too; else None.
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
    """Writes what one rank of an attempt consumes; rank 0 also writes down the attempt.

    `add` keeps a step in memory, `flush` makes all steps durable. `flush` must have returned on every rank before a
    checkpoint of a later step may become the latest.

    attempt: the same on all ranks.
    Raises PipelineError if the run already has an attempt of this number: another job is at work on it.
    """

    def __init__(self, run_url: str, attempt: Attempt, rank: int) -> None:
        url = Location(run_url) / "ledger"
        self._folder, self._rank, self._next = url / f"{attempt.number:06d}", rank, attempt.start
        self._schema = LEDGER_SCHEMA if attempt.lag is None else RL_LEDGER_SCHEMA
        self._steps: list[pa.Table] = []
        self._rows = 0
        if rank == 0:
            file = url / f"attempt-{attempt.number:06d}.json"
            if store.exists(file):
                raise PipelineError(f"{file}: exists already; another job is at work on this run, stop one of them")
            store.publish(json.dumps(asdict(attempt)).encode() + b"\n", file)

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
            repeat: bool [b], which of them the epoch had before: they fill up its last batch, or replace skipped ones.
            skipped: numbers of the samples that were due in this step and could not be read.
            versions, groups: int64 [b] each, of an RL run: see RL_LEDGER_SCHEMA.
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
        if self._schema is RL_LEDGER_SCHEMA:
            columns["version"] = np.concatenate([np.asarray(versions, np.int64), np.full(len(skipped), -1, np.int64)])
            columns["group"] = np.concatenate([np.asarray(groups, np.int64), np.zeros(len(skipped), np.int64)])
        self._steps.append(pa.table(columns, self._schema))
        self._next, self._rows = step + 1, self._rows + count
        if self._rows >= _FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Make all added steps durable. Raises PipelineError if the store cannot take them."""
        if not self._steps:
            return
        sink = io.BytesIO()
        encoding = dict.fromkeys({"step", "id", "version"} & {*self._schema.names}, "DELTA_BINARY_PACKED")
        table = pa.concat_tables(self._steps)
        pq.write_table(table, sink, compression="zstd", use_dictionary=["epoch"], column_encoding=encoding)
        name = f"r{self._rank:04d}-s{self._next - len(self._steps):09d}.parquet"
        store.publish(sink.getvalue(), self._folder / name)
        self._steps, self._rows = [], 0


def ids_hash(ids: Iterable[np.ndarray]) -> str:
    """A hash of the numbers of a run's samples, ascending, in parts: int64 [n] each."""
    digest = hashlib.sha256()
    for part in ids:
        digest.update(part.astype("<i8").tobytes())
    return digest.hexdigest()


def attempts(run_url: str) -> list[Attempt]:
    """The attempts at a run, in order of their numbers. Raises PipelineError for a damaged one."""
    url = Location(run_url) / "ledger"
    begun = []
    for entry in store.list_objects(url):
        if re.fullmatch(r"attempt-\d+\.json", entry.url[len(url) + 1 :]):
            try:
                begun.append(Attempt(**json.loads(store.read(entry.url))))
            except (ValueError, TypeError) as error:
                raise PipelineError(f"{entry.url}: damaged, or not part of a ledger: {error}") from error
    return sorted(begun, key=lambda attempt: attempt.number)
