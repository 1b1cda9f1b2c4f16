"""What a cluster is asked before any work: are the nodes there that the spec describes, and are they alike?

One small actor on every node answers; whatever is asked of it is a function of code that the node has itself. A node
that lacks the code, or does not answer in time, is a finding and not a failure of the check.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.spec import ClusterSpec

SECONDS = 45.0
"""How long a node may take for one question, the start of its worker included."""

_PACKAGES = ("autogaze", "pipelines", "cluster", "jobs")
_VERSIONS = ("ray", "torch", "av", "numpy")
_TMP_GB = 5.0  # Ray's logs, spilled objects, and one video at a time
_TMP_FREE = 0.05  # Ray makes no more objects when less than this share of the disk is free
_OBJECT_STORE_MB = 256  # a few shards' frames
_CLOCK_S = 5.0


@dataclass(frozen=True)
class Check:
    """One row of the table: what was looked at, what was found, and, if that is bad, what to do."""

    name: str
    ok: bool
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Node:
    """A node of the cluster, as Ray counts it."""

    id: str
    name: str
    cpus: int
    gpus: int
    gpu_kind: str
    object_store: int


@dataclass(frozen=True)
class FailedNode:
    """Why a node gave no answer, in one line."""

    why: str


class _Probe:
    """The actor: it runs what it is told."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class Probes:
    """One actor on each node, to be asked things."""

    def __init__(self, nodes: list[Node]) -> None:
        import ray  # here, not above: see cluster.local
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.nodes = nodes
        probe = ray.remote(num_cpus=0)(_Probe)
        self.actors: dict[str, Any] = {
            node.name: probe.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
            ).remote()
            for node in nodes
        }

    def ask(self, function: Callable[..., Any], *arguments: Any, seconds: float = SECONDS) -> dict[str, Any]:
        """What `function(*arguments)` returns on every node, by the node's name; a Failure where it does not."""
        return self.ask_each(function, dict.fromkeys(self.actors, arguments), seconds)

    def ask_each(
        self, function: Callable[..., Any], arguments: dict[str, tuple[Any, ...]], seconds: float = SECONDS
    ) -> dict[str, Any]:
        """The same with each node's own arguments; nodes that have none are not asked."""
        import ray

        answers = {node: self.actors[node].call.remote(function, *given) for node, given in arguments.items()}
        ready, _ = ray.wait(list(answers.values()), num_returns=max(1, len(answers)), timeout=seconds)
        told: dict[str, Any] = {}
        for node, answer in answers.items():
            if answer not in ready:
                told[node] = FailedNode(f"no answer in {seconds:.0f} s")
                continue
            try:
                told[node] = ray.get(answer)
            except Exception as error:  # noqa: BLE001 (whatever a node's code raised is what we want to know)
                told[node] = FailedNode(_reason(error))
        return told


@contextmanager
def probing(nodes: list[Node]) -> Iterator[Probes]:
    """Actors on these nodes for the length of the block."""
    import ray

    probes = Probes(nodes)
    try:
        yield probes
    finally:
        for actor in probes.actors.values():
            ray.kill(actor)


def alive_nodes() -> list[Node]:
    """The nodes of the Ray that this process is connected to, by name."""
    import ray

    listed = [node for node in ray.nodes() if node["Alive"]]
    hosts = [str(node["NodeManagerHostname"]) for node in listed]
    found = []
    for node, host in zip(listed, hosts, strict=True):
        has = node["Resources"]
        kinds = [name.partition(":")[2] for name in has if name.startswith("accelerator_type:")]
        found.append(
            Node(
                id=str(node["NodeID"]),
                name=host if hosts.count(host) == 1 else f"{host}/{node['NodeID'][:6]}",
                cpus=int(has.get("CPU", 0)),
                gpus=int(has.get("GPU", 0)),
                gpu_kind=kinds[0] if kinds else "",
                object_store=int(has.get("object_store_memory", 0)),
            )
        )
    return sorted(found, key=lambda node: node.name)


def check_cluster(spec: ClusterSpec, probes: Probes) -> list[Check]:
    """Everything that needs no storage: nodes, devices, disks, clocks, code."""
    checks = check_groups(spec, probes.nodes)
    told = probes.ask(facts, spec.environment.tmp)
    known = {node: fact for node, fact in told.items() if not isinstance(fact, FailedNode)}
    silent = {node: fact.why for node, fact in told.items() if isinstance(fact, FailedNode)}
    checks.append(
        Check(
            "answers",
            not silent,
            f"{len(known)} of {len(told)} nodes" + (f"; {each(silent)}" if silent else ""),
            "install this version of autogaze for the python that runs Ray on every node" if silent else "",
        )
    )
    checks += [
        _check_gpus(spec, probes.nodes, known),
        _check_tmp(spec, known),
        _check_object_store(probes.nodes, known),
        _check_clocks(probes, list(known)),
        _check_code(known),
    ]
    return checks


def check_groups(spec: ClusterSpec, nodes: list[Node]) -> list[Check]:
    """Whether each role's nodes are there: those with the most GPUs, then CPUs, are taken by who wants the most."""
    free = sorted(nodes, key=lambda node: (node.gpus, node.cpus))
    checks = []
    for role, group in sorted(spec.groups().items(), key=lambda item: (-item[1].gpus, -item[1].cpus)):
        fit = [node for node in free if node.cpus >= group.cpus and node.gpus >= group.gpus][: group.nodes]
        free = [node for node in free if node not in fit]
        wanted = f"{group.cpus} CPUs" + (f" and {group.gpus} GPUs" if group.gpus else "")
        ok = len(fit) == group.nodes
        has = "; ".join(f"{node.name} has {node.cpus} CPUs, {node.gpus} GPUs" for node in nodes[:8])
        checks.append(
            Check(
                f"{role} nodes",
                ok,
                f"{len(fit)} of {group.nodes} with {wanted}" + ("" if ok else f" ({has})"),
                "" if ok else f"start the missing nodes, or make {role}.nodes, {role}.cpus, {role}.gpus what there is",
            )
        )
    return checks


def facts(tmp: str) -> dict[str, Any]:
    """What a node says of itself. Runs there."""
    disk = shutil.disk_usage(tmp) if Path(tmp).is_dir() else None
    shm = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None  # noqa: S108
    return {
        "code": {name: _code(name) for name in _PACKAGES},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _VERSIONS},
        "tmp_free": None if disk is None else disk.free,
        "tmp_total": None if disk is None else disk.total,
        "shm": shm,
        "gpus": _gpus(),
    }


def _code(package: str) -> str:
    """Hash of a package's Python files and their places."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return "missing"
    folder, digest = Path(next(iter(found.submodule_search_locations))), hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _gpus() -> list[str]:
    """Names of the GPUs that the driver shows on this node."""
    if shutil.which("nvidia-smi") is None:
        return []
    listing = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(listing, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


def _check_gpus(spec: ClusterSpec, nodes: list[Node], known: dict[str, Any]) -> Check:
    wrong = {
        node.name: f"Ray counts {node.gpus}, the driver shows {len(known[node.name]['gpus'])}"
        for node in nodes
        if node.name in known and node.gpus > len(known[node.name]["gpus"])
    }
    kinds = {node.name: known.get(node.name, {}).get("gpus") or [node.gpu_kind] for node in nodes if node.gpus}
    wanted = [group.gpu_kind for group in spec.groups().values() if group.gpu_kind]
    seen = sorted({kind for names in kinds.values() for kind in names if kind})
    missing = [kind for kind in wanted if not any(same_kind(kind, name) for name in seen)]
    found = each(wrong) or f"{sum(node.gpus for node in nodes)}" + (f": {', '.join(seen)}" if seen else "")
    if missing:
        return Check("GPUs", False, f"{found}; no {missing[0]}", "correct gpu_kind, or ask for nodes that have it")
    fix = "look at nvidia-smi there; start Ray with the --num-gpus that it shows" if wrong else ""
    return Check("GPUs", not wrong, found, fix)


def same_kind(wanted: str, name: str) -> bool:
    """Whether a launcher's word for a GPU (h100, nvidia-h100-80gb, label=NVIDIA-H100-80GB-HBM3) can mean this one."""
    words = set(name.lower().replace("-", " ").split())
    asked = set(wanted.rpartition("=")[2].lower().replace("-", " ").replace("_", " ").split())
    generic = {"nvidia", "tesla", "geforce", "rtx", "amd", "instinct", "pcie", "sxm"}
    return bool((asked & words) - generic)


def _check_tmp(spec: ClusterSpec, known: dict[str, Any]) -> Check:
    tmp, wrong = spec.environment.tmp, {}
    for node, fact in known.items():
        if fact["tmp_free"] is None:
            wrong[node] = "no such folder"
        elif fact["tmp_free"] < _TMP_GB * 1e9 or fact["tmp_free"] < _TMP_FREE * fact["tmp_total"]:
            wrong[node] = f"{fact['tmp_free'] / 1e9:.1f} of {fact['tmp_total'] / 1e9:.0f} GB"
    least = min((fact["tmp_free"] for fact in known.values() if fact["tmp_free"] is not None), default=0)
    fix = f"make room there ({_TMP_GB:.0f} GB and {_TMP_FREE:.0%}), or set environment.tmp" if wrong else ""
    return Check(f"free in {tmp}", not wrong, each(wrong) or f"{least / 1e9:.0f} GB or more", fix)


def _check_object_store(nodes: list[Node], known: dict[str, Any]) -> Check:
    wrong = {}
    for node in nodes:
        shm = known.get(node.name, {}).get("shm")
        if node.object_store < _OBJECT_STORE_MB << 20:
            wrong[node.name] = f"{node.object_store >> 20} MB"
        elif shm is not None and shm < node.object_store:
            wrong[node.name] = f"{node.object_store >> 20} MB, on a /dev/shm of {shm >> 20} MB"
    least = min((node.object_store for node in nodes), default=0)
    fix = f"give it {_OBJECT_STORE_MB} MB or more, and /dev/shm as much (a container's is 64 MB unless told)"
    return Check("object store", not wrong, each(wrong) or f"{least / 1e9:.1f} GB or more", fix if wrong else "")


def _check_clocks(probes: Probes, nodes: list[str]) -> Check:
    """Each clock against this process's, asked of workers that have started, so that the answer takes no time."""
    off: dict[str, float] = {}
    for node in nodes:
        before = time.time()
        told = probes.ask_each(time.time, {node: ()}, 10.0)[node]
        if not isinstance(told, FailedNode):
            off[node] = skew(before, told, time.time())
    wrong = {node: f"{seconds:+.1f} s" for node, seconds in off.items() if abs(seconds) > _CLOCK_S}
    most = max((abs(seconds) for seconds in off.values()), default=0.0)
    fix = "set its clock (chrony, ntp): S3 refuses requests that are minutes off" if wrong else ""
    return Check("clocks", not wrong, each(wrong) or f"within {max(most, 0.1):.1f} s", fix)


def skew(before: float, told: float, after: float) -> float:
    """Seconds that a clock is certainly off, when it told a time between two of ours."""
    return min(told - before, 0.0) + max(told - after, 0.0)


def _check_code(known: dict[str, Any]) -> Check:
    """Every node against this process, which is the one that was told what to do."""
    here = {"code": {name: _code(name) for name in _PACKAGES}}
    here["versions"] = {"python": platform.python_version()} | {name: _version(name) for name in _VERSIONS}
    wrong = {}
    for node, fact in known.items():
        other = [f"{name} differs" for name in _PACKAGES if fact["code"][name] != here["code"][name]]
        other += [
            f"{name} {fact['versions'][name]}, here {version}"
            for name, version in here["versions"].items()
            if fact["versions"][name] != version
        ]
        if other:
            wrong[node] = ", ".join(other)
    found = f"the same everywhere (ray {here['versions']['ray']}, torch {here['versions']['torch']})"
    fix = "install the same versions on every node: results are compared byte by byte" if wrong else ""
    return Check("code", not wrong, each(wrong) or found, fix)


def each(wrong: dict[str, str], most: int = 4) -> str:
    """'node: what' for the first few of them."""
    shown = "; ".join(f"{node}: {what}" for node, what in list(wrong.items())[:most])
    return shown + (f"; and {len(wrong) - most} more" if len(wrong) > most else "")


def _reason(error: BaseException) -> str:
    """One line of what a node's code raised, below Ray's wrappers."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[0] if cause is not error or not lines else lines[-1]
    own = type(cause).__module__.split(".")[0] in _PACKAGES  # our errors say all there is to say
    return text if own else f"{type(cause).__name__}: {text or 'no reason given'}"
