"""One description of a cluster for every launcher: which nodes a job wants, what runs on them, and how long to wait.

The same file serves a laptop (backend: local), Slurm and Kubernetes (KubeRay); `docs/launch.md` has one of each. What a
spec never holds is a secret: credentials are named (a profile, a Kubernetes secret), and found where the job runs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cluster.errors import ClusterError

BACKENDS = ("local", "slurm", "kuberay")
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")


@dataclass
class NodeGroup:
    """Nodes of one role, all alike."""

    nodes: int = field(default=0, metadata={"help": "how many; with autoscaling, how many to begin with"})
    max_nodes: int = field(default=0, metadata={"help": "autoscaling up to this many (0 = as many as nodes; KubeRay)"})
    cpus: int = field(default=2, metadata={"help": "CPUs of each"})
    memory_gb: int = field(default=8, metadata={"help": "memory of each, GB"})
    gpus: int = field(default=0, metadata={"help": "GPUs of each"})
    gpu_kind: str = field(default="", metadata={"help": "kind of GPU, as the launcher names it ('' = any)"})


@dataclass
class HeadGroup(NodeGroup):
    """The node that runs Ray's head and the job's driver. Exactly one."""

    nodes: int = field(default=1, metadata={"help": "always 1"})


@dataclass
class EnvironmentConfig:
    """What the job finds on its nodes."""

    image: str = field(default="", metadata={"help": "container image (KubeRay)"})
    python: str = field(default="", metadata={"help": "python with autogaze, on every node ('' = the submitter's)"})
    setup: str = field(default="", metadata={"help": "shell line that runs first on every node (module load ...)"})
    tmp: str = field(default="/tmp", metadata={"help": "local disk for Ray's files; a private folder is made in it"})  # noqa: S108


@dataclass
class StorageConfig:
    """How object storage is reached. Credentials by reference only."""

    endpoint_url: str = field(default="", metadata={"help": "S3 endpoint ('' = Amazon's), as AWS_ENDPOINT_URL"})
    region: str = field(default="", metadata={"help": "as AWS_REGION"})
    profile: str = field(default="", metadata={"help": "name of a profile on the nodes, as AWS_PROFILE"})
    secret: str = field(default="", metadata={"help": "Kubernetes secret whose keys become environment variables"})


@dataclass
class TimeoutsConfig:
    """Seconds."""

    ready_s: int = field(default=300, metadata={"help": "for all nodes to join"})
    grace_s: int = field(default=120, metadata={"help": "between SIGTERM and the end: time to save a checkpoint"})


@dataclass
class SlurmConfig:
    """What only Slurm needs."""

    partition: str = field(default="", metadata={"help": "partition ('' = the default one)"})
    account: str = field(default="", metadata={"help": "account ('' = yours)"})
    qos: str = field(default="", metadata={"help": "quality of service"})
    time: str = field(default="", metadata={"help": "time limit, as sbatch takes it ('' = the partition's)"})
    requeue: bool = field(default=True, metadata={"help": "go back into the queue when preempted"})
    logs: str = field(default="", metadata={"help": "folder for job logs ('' = where submit ran)"})
    array: int = field(
        default=0, metadata={"help": "preprocess or encode as a job array of so many tasks (0 = one Ray job)"}
    )
    array_parallel: int = field(default=0, metadata={"help": "array tasks at the same time (0 = no limit)"})


@dataclass
class KubeRayConfig:
    """What only KubeRay needs."""

    namespace: str = field(default="default", metadata={"help": "Kubernetes namespace"})
    service_account: str = field(default="", metadata={"help": "of the pods ('' = the namespace's default)"})
    backoff_limit: int = field(default=3, metadata={"help": "new clusters to try when the job fails; it resumes"})
    ttl_s: int = field(default=600, metadata={"help": "seconds that a finished cluster stays"})


@dataclass
class ClusterSpec:
    """A cluster for a job."""

    backend: str = field(default="local", metadata={"help": "local, slurm or kuberay"})
    name: str = field(default="autogaze", metadata={"help": "of the job: small letters, digits and dashes"})
    address: str = field(default="", metadata={"help": "backend local: a Ray that runs already ('' = start one)"})
    head: HeadGroup = field(default_factory=HeadGroup)
    decode: NodeGroup = field(default_factory=NodeGroup)
    gpu: NodeGroup = field(default_factory=NodeGroup)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    timeouts: TimeoutsConfig = field(default_factory=TimeoutsConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    kuberay: KubeRayConfig = field(default_factory=KubeRayConfig)

    def groups(self) -> dict[str, NodeGroup]:
        """The groups that have nodes, by role, the head first."""
        groups = {"head": self.head, "decode": self.decode, "gpu": self.gpu}
        return {role: group for role, group in groups.items() if group.nodes or group.max_nodes}


def storage_variables(spec: ClusterSpec) -> dict[str, str]:
    """What the job's processes find in their environment to reach object storage. Never a secret."""
    storage = spec.storage
    values = {
        "AWS_ENDPOINT_URL": storage.endpoint_url,
        "AWS_REGION": storage.region,
        "AWS_DEFAULT_REGION": storage.region,
        "AWS_PROFILE": storage.profile,
    }
    return {name: value for name, value in values.items() if value}


def check_spec(spec: ClusterSpec) -> None:
    """Raise ClusterError, in one line, for the first value that cannot work."""
    if spec.backend not in BACKENDS:
        raise ClusterError(f"backend={spec.backend}: must be one of {', '.join(BACKENDS)}")
    if not _NAME.fullmatch(spec.name):
        raise ClusterError(f"name={spec.name}: must be small letters, digits and dashes, at most 40, a letter first")
    if spec.head.nodes != 1 or spec.head.max_nodes > 1:
        raise ClusterError(f"head.nodes={spec.head.nodes}: there is always one head")
    for role, group in {"head": spec.head, "decode": spec.decode, "gpu": spec.gpu}.items():
        for name, value, least in (
            ("nodes", group.nodes, 0),
            ("cpus", group.cpus, 1),
            ("memory_gb", group.memory_gb, 1),
            ("gpus", group.gpus, 0),
        ):
            if value < least:
                raise ClusterError(f"{role}.{name}={value}: must be at least {least}")
        if group.max_nodes and group.max_nodes < group.nodes:
            raise ClusterError(f"{role}.max_nodes={group.max_nodes}: is less than {role}.nodes={group.nodes}")
        if group.gpu_kind and not group.gpus:
            raise ClusterError(f"{role}.gpu_kind={group.gpu_kind}: with {role}.gpus=0 there is none")
    if (spec.gpu.nodes or spec.gpu.max_nodes) and not spec.gpu.gpus:
        raise ClusterError("gpu.gpus=0: the nodes of the role gpu must have at least 1")
    if spec.address and spec.backend != "local":
        raise ClusterError(f"address={spec.address}: only backend local joins a Ray that runs already")
    if spec.address and spec.storage.profile:
        raise ClusterError(
            f"storage.profile={spec.storage.profile}: a Ray that runs already has its own credentials; "
            "set AWS_PROFILE where each node runs `ray start`, and leave storage.profile out"
        )
    if spec.backend == "kuberay" and not spec.environment.image:
        raise ClusterError("environment.image= is missing: KubeRay runs containers; give an image that has autogaze")
    if spec.backend != "kuberay" and (spec.environment.image or spec.storage.secret):
        name = "environment.image" if spec.environment.image else "storage.secret"
        raise ClusterError(f"{name}: is for backend kuberay, this spec is for {spec.backend}")
    if spec.backend == "kuberay" and spec.environment.setup:
        raise ClusterError("environment.setup: pods have no shell of yours; put it into environment.image")
    if (
        spec.slurm.array < 0
        or spec.slurm.array_parallel < 0
        or spec.kuberay.backoff_limit < 0
        or spec.kuberay.ttl_s < 0
    ):
        raise ClusterError("slurm.array, slurm.array_parallel, kuberay.backoff_limit and ttl_s must be 0 or more")
    for name, seconds in (("ready_s", spec.timeouts.ready_s), ("grace_s", spec.timeouts.grace_s)):
        if seconds < 1:
            raise ClusterError(f"timeouts.{name}={seconds}: must be at least 1")
