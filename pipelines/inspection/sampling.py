"""Which clips of a dataset are looked at, where all would be too many. Nothing here imports torch."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from pipelines.dataset.shards import Dataset
from pipelines.errors import PipelineError


def sample_clips(dataset: Dataset, clips: int, seed: int) -> list[dict[str, Any]]:
    """Index rows of up to `clips` ok clips, in plan order. Shards in random order give one clip each in turn.

    At first only as many indexes are read as clips are wanted; more only if these hold too few.
    Raises PipelineError when no clip is ok.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(dataset.committed()).tolist()
    taken: list[dict[str, Any]] = []
    with ThreadPoolExecutor(8) as pool:
        for begin in range(0, len(order), clips):
            tables = pool.map(dataset.read_index, order[begin : begin + clips])
            queues = []
            for table in tables:
                rows = [row for row in table.to_pylist() if row["outcome"] == "ok"]
                queues.append([rows[place] for place in random.permutation(len(rows))])
            taken += [row for turn in itertools.zip_longest(*queues) for row in turn if row is not None]
            if len(taken) >= clips:
                break
    if not taken:
        raise PipelineError(f"{dataset.url}: no clip in it is ok, so there is nothing to evaluate")
    return sorted(taken[:clips], key=lambda row: (row["shard"], row["position"]))
