"""Merging index files while a job that makes shards goes on."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType

from pipelines.dataset.indexes import Indexes, block_of, blocks
from pipelines.dataset.merging import merge_block
from pipelines.preprocess.shard_job import ShardJob


class IndexMerger(AbstractContextManager["IndexMerger"]):
    """Merges the indexes of each thousand shards of a job's part when its last one is committed, in a thread.

    What it does not come to, `finish_dataset` does, of this run or the next. After an error of the job it ends with the
    thousand that it is at. Raises what a merge raised when it is closed.
    """

    def __init__(self, job: ShardJob) -> None:
        self._job = job
        mine = job.part
        self._blocks = {block_of(block.first): block for block in blocks(mine.stop) if block.first >= mine.start}
        self._left = Counter(map(block_of, job.missing))
        self._thread = ThreadPoolExecutor(1, "autogaze-merge")
        self._merges: list[Future[bool]] = []

    def committed(self, shard: int) -> None:
        """Count a shard that was committed, once; begin the merge that waited for it."""
        number = block_of(shard)
        self._left[number] -= 1
        if not self._left[number] and number in self._blocks:
            self._merges.append(self._thread.submit(self._merge, number))

    def _merge(self, number: int) -> bool:
        return merge_block(Indexes(self._job.output, self._job.schema), self._blocks[number])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for merge in self._merges:
                merge.result()
