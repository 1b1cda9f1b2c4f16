"""A Ray for the length of one job: our own on this machine, or the cluster at an address.

Our own has no dashboard, reports no usage statistics, is closed to others by a token made for this run, and dies with
this process, however that dies.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import ray

from cluster import ClusterError


@dataclass
class RayConfig:
    """Which Ray runs the job."""

    address: str = field(
        default="", metadata={"help": "'' starts one on this machine; 'auto' or host:port joins a cluster"}
    )
    cpus: int = field(default=0, metadata={"help": "CPUs of the Ray we start (0 = all of this machine)"})
    object_store_mb: int = field(default=0, metadata={"help": "memory for rows in flight (0 = Ray's own choice)"})


@dataclass(frozen=True)
class ClusterSize:
    """What the cluster has when the job starts."""

    nodes: int
    cpus: int
    gpus: int


@contextmanager
def running(config: RayConfig) -> Iterator[ClusterSize]:
    """Connect to Ray, or start it, for the length of the block.

    Raises ClusterError when no cluster answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray otherwise prints one line per dataset and a banner per connection; a job has its own progress and summary.
    common: dict[str, object] = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": True}
    if config.address:
        try:
            ray.init(address=config.address, **common)
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ClusterError(
                f"ray.address={config.address}: no Ray cluster answers ({first}); "
                "start one with `ray start --head`, or leave ray.address empty to run on this machine"
            ) from error
    else:
        os.environ.pop("RAY_ADDRESS", None)
        if "RAY_AUTH_MODE" not in os.environ:
            # A token in our own environment reaches the processes we start and no file: a token file in the home
            # folder would switch authentication on for every other Ray of this user.
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        ray.init(
            num_cpus=config.cpus or None,
            object_store_memory=config.object_store_mb << 20 or None,
            include_dashboard=False,
            **common,
        )
    try:
        resources = ray.cluster_resources()
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        yield ClusterSize(nodes, int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))
    finally:
        ray.shutdown()
