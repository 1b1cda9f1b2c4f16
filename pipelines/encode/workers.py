"""How many workers each stage of encode has, and how much CPU and GPU each asks Ray for."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.encode.config import EncodeConfig
from pipelines.errors import PipelineError
from pipelines.preprocess.layout import Wanted
from pipelines.preprocess.workers import cluster_device, cpus_of_actors, decoders, require_workers_fit


@dataclass(frozen=True)
class EncodeWorkers:
    """Workers of each stage, the device that encodes (cpu, cuda or mps), and what each of them asks for."""

    decode: int
    encode: int
    device: str
    decode_cpus: float
    encode_cpus: float
    gpus: float

    @property
    def actors(self) -> dict[str, int]:
        """By stage, as a run's record has them."""
        return {"decode": self.decode, "features": self.encode}

    @property
    def wanted(self) -> Wanted:
        """All of them together."""
        cpus = self.decode * self.decode_cpus + self.encode * self.encode_cpus
        return Wanted(self.decode, self.encode, cpus, self.encode * self.gpus, self.device == "cuda")


def share_encode_workers(config: EncodeConfig, cpus: int, gpus: int, nodes: int = 1) -> EncodeWorkers:
    """Share a cluster among the stages.

    Raises PipelineError when the cluster lacks the device, or is too small for the workers asked for.
    """
    device = cluster_device(config.device, gpus, nodes)
    if config.policy.cuda_graphs == "on" and device != "cuda":
        raise PipelineError(f"policy.cuda_graphs=on: the policy runs on {device}; use auto or off")
    of_gpu = config.workers.gpus if device == "cuda" else 0.0
    decode_cpus, encode_cpus = cpus_of_actors(device, network=True)
    decode = config.workers.decode or decoders(device, True, cpus)
    room = {"cuda": gpus * int(1 / config.workers.gpus), "mps": 1, "cpu": cpus}[device]
    encode = config.workers.encode or room
    needed = decode * decode_cpus + encode * encode_cpus, encode / room * gpus if of_gpu else 0.0
    require_workers_fit(decode, "encode", encode, needed, cpus, gpus)
    return EncodeWorkers(decode, encode, device, decode_cpus, encode_cpus, of_gpu)
