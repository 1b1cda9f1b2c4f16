"""How many actors each stage gets, and what each asks of the cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelines.errors import PipelineError
from pipelines.preprocess.config import PreprocessConfig

# What a worker asks of Ray. Decoding keeps a core busy; canvas gaze works a tenth of the time, and decoding actors fill
# what it leaves. A network works ten times as long on a clip as the decoder, and more, so on CPUs it is the other way
# round: a gaze actor on every CPU, and few decoding actors between them. All ask for less than a core: they fit.
_DECODE_CPUS, _GAZE_CPUS = 0.75, 0.5


_NETWORK_DECODE_CPUS, _NETWORK_GAZE_CPUS, _CPUS_PER_DECODER = 0.5, 0.75, 8


@dataclass(frozen=True)
class Workers:
    """Actors per stage, where gaze runs (cpu, cuda or mps), and the CPUs that an actor asks for."""

    decode: int
    gaze: int
    device: str
    decode_cpus: float = _DECODE_CPUS
    gaze_cpus: float = _GAZE_CPUS


def share_workers(config: PreprocessConfig, cpus: int, gpus: int, nodes: int = 1) -> Workers:
    """Share a cluster out among the stages.

    Raises PipelineError when the cluster is too small for what was asked (Ray would wait for ever) or lacks the device.
    """
    device = ("cuda" if gpus else "cpu") if config.device == "auto" else config.device
    on_gpu, on_cpus = device == "cuda", device == "cpu" and (config.gaze != "canvas" or config.targets.frames > 0)
    if on_gpu and gpus == 0:
        raise PipelineError("device=cuda: this cluster has no GPU; use device=cpu")
    if device == "mps":
        _require_mps(nodes)
    if config.policy.cuda_graphs == "on" and not on_gpu:
        raise PipelineError(f"policy.cuda_graphs=on: the policy runs on {device}; use auto or off")
    decode_cpus, gaze_cpus = (_NETWORK_DECODE_CPUS, _NETWORK_GAZE_CPUS) if on_cpus else (_DECODE_CPUS, _GAZE_CPUS)
    gaze_cpus = 0.0 if on_gpu else gaze_cpus
    decode = config.workers.decode or max(1, cpus // (_CPUS_PER_DECODER if on_cpus else 1))
    gaze = config.workers.gaze or {"cuda": gpus, "mps": 1, "cpu": max(1, cpus if on_cpus else cpus // 4)}[device]
    needed = decode * decode_cpus + gaze * gaze_cpus
    if needed > cpus or (on_gpu and gaze > gpus):
        raise PipelineError(
            f"workers.decode={decode} and workers.gaze={gaze} need {math.ceil(needed)} CPUs"
            + (f" and {gaze} GPUs" if on_gpu else "")
            + f"; the cluster has {cpus} CPUs and {gpus} GPUs (on one machine, ray.cpus= sets how many Ray counts)"
        )
    return Workers(decode, gaze, device, decode_cpus, gaze_cpus)


def _require_mps(nodes: int) -> None:
    import torch

    if nodes > 1:
        raise PipelineError(f"device=mps: is for one machine, and the cluster has {nodes} nodes; use device=cpu")
    if not torch.backends.mps.is_available():
        raise PipelineError("device=mps: this machine's torch has no mps; use device=cpu")
