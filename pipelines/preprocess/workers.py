"""How many workers each stage has, and how much CPU and GPU each asks Ray for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelines.errors import PipelineError
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.layout import Wanted
from pipelines.video.base import ON_GPU

# CPUs that a worker asks for, less than a core: a decoder for every CPU and a canvas gazer for every other one fit.
# Where videos are small, gaze takes as long as decoding; where they are large, it waits and decoders use the cores.
_CANVAS_CPUS = _DECODE_CPUS, _GAZE_CPUS = 0.75, 0.5
# On CPUs a network works at least ten times as long on a clip as the decoder. So there it is the other way round: a
# gazer on every CPU, and few decoders beside them.
_NETWORK_DECODE_CPUS, _NETWORK_GAZE_CPUS, _CPUS_PER_DECODER = 0.5, 0.75, 8


# With a decoder on GPUs, decoders of each GPU, which share half of it; gaze on GPUs has the other half.
_GPU_DECODERS, _GPU_OF_DECODERS = 4, 0.5


@dataclass(frozen=True)
class Workers:
    """Workers of each stage, the device that gaze runs on (cpu, cuda or mps), and what each of them asks for."""

    decode: int
    gaze: int
    device: str
    decode_cpus: float = _DECODE_CPUS
    gaze_cpus: float = _GAZE_CPUS
    decode_gpus: float = 0.0
    gaze_gpus: float = 0.0

    @property
    def actors(self) -> dict[str, int]:
        """By stage, as a run's record has them."""
        return {"decode": self.decode, "gaze": self.gaze}

    @property
    def wanted(self) -> Wanted:
        """All of them together."""
        cpus = self.decode * self.decode_cpus + self.gaze * self.gaze_cpus
        gpus = self.decode * self.decode_gpus + self.gaze * self.gaze_gpus
        return Wanted(self.decode, self.gaze, cpus, gpus, self.device == "cuda")


def share_workers(config: PreprocessConfig, cpus: int, gpus: int, nodes: int = 1) -> Workers:
    """Share a cluster among the stages.

    Raises PipelineError when the cluster lacks the device, or is too small for the workers asked for: Ray would wait
    for them for ever.
    """
    device = cluster_device(config.device, gpus, nodes)
    network = config.gaze != "canvas" or config.targets.frames > 0
    if config.policy.cuda_graphs == "on" and device != "cuda":
        raise PipelineError(f"policy.cuda_graphs=on: the policy runs on {device}; use auto or off")
    decode_cpus, gaze_cpus = cpus_of_actors(device, network)
    decode = config.workers.decode or decoders(device, network, cpus)
    of_nodes = cpus if network else max(1, cpus // nodes // 2) * nodes  # one for every other CPU of a node
    if not network and gaze_cpus:  # or those that fit beside the decoders that the user wants
        of_nodes = min(of_nodes, int((cpus - decode * decode_cpus) / gaze_cpus))
    gaze = config.workers.gaze or {"cuda": gpus, "mps": 1, "cpu": max(1, of_nodes)}[device]
    of_decoders = 0.0
    if config.decoder in ON_GPU:
        if not gpus:
            raise PipelineError(f"decoder={config.decoder}: this cluster has no GPU; use decoder=pyav")
        decode = config.workers.decode or min(decode, _GPU_DECODERS * gpus)
        of_decoders = _GPU_OF_DECODERS / math.ceil(decode / gpus)
    gaze_gpus = 0.0 if device != "cuda" else 1 - _GPU_OF_DECODERS if of_decoders else 1.0
    needed = decode * decode_cpus + gaze * gaze_cpus, decode * of_decoders + gaze * gaze_gpus
    require_workers_fit(decode, "gaze", gaze, needed, cpus, gpus)
    return Workers(decode, gaze, device, decode_cpus, gaze_cpus, of_decoders, gaze_gpus)


def cluster_device(name: str, gpus: int, nodes: int) -> str:
    """cpu, cuda or mps for a `device` setting, on a cluster. Raises PipelineError if it has none."""
    device = ("cuda" if gpus else "cpu") if name == "auto" else name
    if device == "cuda" and gpus == 0:
        raise PipelineError("device=cuda: this cluster has no GPU; use device=cpu")
    if device == "mps":
        _require_mps(nodes)
    return device


def cpus_of_actors(device: str, network: bool) -> tuple[float, float]:
    """CPUs that a decoder, and a worker of the stage after it, asks for. network: the latter runs one."""
    decode, work = (_NETWORK_DECODE_CPUS, _NETWORK_GAZE_CPUS) if device == "cpu" and network else _CANVAS_CPUS
    return decode, 0.0 if device == "cuda" else work


def decoders(device: str, network: bool, cpus: int) -> int:
    """How many decoders there are unless the user says. network: the stage after them runs one."""
    return max(1, cpus // (_CPUS_PER_DECODER if device == "cpu" and network else 1))


def require_workers_fit(
    decode: int, stage: str, actors: int, needed: tuple[float, float], cpus: int, gpus: int
) -> None:
    """Raise PipelineError where a cluster is too small for its decoders and the actors of the stage after them.

    needed: CPUs and GPUs.
    """
    if needed[0] > cpus or needed[1] > gpus:
        raise PipelineError(
            f"workers.decode={decode} and workers.{stage}={actors} need {math.ceil(needed[0])} CPUs"
            + (f" and {needed[1]:g} GPUs" if needed[1] else "")
            + f"; the cluster has {cpus} CPUs and {gpus} GPUs (on one machine, ray.cpus= sets how many Ray counts)"
        )


def _require_mps(nodes: int) -> None:
    import torch

    if nodes > 1:
        raise PipelineError(f"device=mps: is for one machine, and the cluster has {nodes} nodes; use device=cpu")
    if not torch.backends.mps.is_available():
        raise PipelineError("device=mps: this machine's torch has no mps; use device=cpu")
