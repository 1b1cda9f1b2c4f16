"""Compares a decoder on GPUs with PyAV before a corpus is planned for it, on a node that has a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd
import pyarrow as pa

from pipelines.corpus.parity import Parity, compare, sampled
from pipelines.errors import PipelineError
from pipelines.preprocess.config import CorpusConfig
from pipelines.preprocess.description import decode_config
from pipelines.video.base import ON_GPU

_GPU = 0.1  # of one, for as long as the comparison takes


def parity_of(config: CorpusConfig, manifest: Iterable[pa.Table]) -> dict[str, Any]:
    """What dataset.json says of the comparison; nothing for decoders on CPUs. Needs a running Ray.

    manifest: its rows, of which some are in memory at a time.

    Raises PipelineError: the decoder's frames are not PyAV's, or no node has a GPU.
    """
    if config.decoder not in ON_GPU:
        return {}
    import ray
    from ray.exceptions import RayTaskError

    if not ray.cluster_resources().get("GPU"):
        raise PipelineError(f"decoder={config.decoder}: this cluster has no GPU; use decoder=pyav")
    rows: list[dict[str, Any]] = []
    for table in manifest:
        rows = sampled(pd.concat([pd.DataFrame(rows), table.to_pandas()]))
    task = ray.remote(compare).options(num_gpus=_GPU, num_cpus=1)
    try:
        parity: Parity = ray.get(task.remote(rows, decode_config(config)))
    except RayTaskError as error:
        if isinstance(error.cause, PipelineError):
            raise PipelineError(str(error.cause).splitlines()[0]) from error
        raise
    parity.require()
    return {"decoder_parity": parity.to_json()}
