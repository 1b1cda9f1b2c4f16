"""Checks of a cluster before any work: are the nodes there that the spec describes, and are they alike?

Each node answers for itself (cluster/probes.py). One that cannot is a finding, and does not stop the other checks.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.probes import PACKAGES, FailedNode, Node, Probes
from cluster.spec import ClusterSpec

_VERSIONS = ("ray", "torch", "av", "numpy")
_TMP_GB = 5.0  # Ray's logs, spilled objects, and one video at a time
_TMP_FREE = 0.05  # Ray makes no more objects when less than this share of the disk is free
_OBJECT_STORE_MB = 256  # a few shards' frames
_CLOCK_S = 5.0


@dataclass(frozen=True)
class Check:
    """One row of the table: what was checked, what was found and, if that is bad, what to do."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def check_cluster(spec: ClusterSpec, probes: Probes) -> list[Check]:
    """All checks that need no storage: nodes, GPUs, disks, clocks, code."""
    checks = check_groups(spec, probes.nodes)
    answers = probes.call(facts, spec.environment.tmp)
    known = {node: fact for node, fact in answers.items() if not isinstance(fact, FailedNode)}
    silent = {node: fact.why for node, fact in answers.items() if isinstance(fact, FailedNode)}
    checks.append(
        Check(
            "answers",
            not silent,
            f"{len(known)} of {len(answers)} nodes" + (f"; {each(silent)}" if silent else ""),
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
    """Whether there are enough nodes for each role.

    The role that wants the most GPUs, then CPUs, takes the smallest nodes that are large enough; then the next role.
    """
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
                "" if ok else f"start the missing nodes, or lower {role}.nodes, {role}.cpus or {role}.gpus",
            )
        )
    return checks


def facts(tmp: str) -> dict[str, Any]:
    """What the checks need to know of a node. Runs there. Sizes in bytes."""
    disk = shutil.disk_usage(tmp) if Path(tmp).is_dir() else None
    shm = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None  # noqa: S108
    return {
        "code": {name: _code(name) for name in PACKAGES},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _VERSIONS},
        "tmp_free": None if disk is None else disk.free,
        "tmp_total": None if disk is None else disk.total,
        "shm": shm,
        "gpus": _gpus(),
    }


def _code(package: str) -> str:
    """Hash of a package's Python files and their paths."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return "missing"
    folder, digest = Path(next(iter(spec.submodule_search_locations))), hashlib.sha256()
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
    fix = f"give it {_OBJECT_STORE_MB} MB or more, and /dev/shm as much (a container's is 64 MB by default)"
    return Check("object store", not wrong, each(wrong) or f"{least / 1e9:.1f} GB or more", fix if wrong else "")


def _check_clocks(probes: Probes, nodes: list[str]) -> Check:
    """Each node's clock against ours. The workers have started by now, so an answer takes no time."""
    off: dict[str, float] = {}
    for node in nodes:
        before = time.time()
        theirs = probes.call_each(time.time, {node: ()}, 10.0)[node]
        if not isinstance(theirs, FailedNode):
            off[node] = skew(before, theirs, time.time())
    wrong = {node: f"{seconds:+.1f} s" for node, seconds in off.items() if abs(seconds) > _CLOCK_S}
    most = max((abs(seconds) for seconds in off.values()), default=0.0)
    fix = "set its clock (chrony, ntp): S3 refuses requests that are minutes off" if wrong else ""
    return Check("clocks", not wrong, each(wrong) or f"within {max(most, 0.1):.1f} s", fix)


def skew(before: float, theirs: float, after: float) -> float:
    """Seconds that a clock is off for certain, given its time and ours before and after it was read."""
    return min(theirs - before, 0.0) + max(theirs - after, 0.0)


def _check_code(known: dict[str, Any]) -> Check:
    """Every node's code and versions against those of this process."""
    here = {"code": {name: _code(name) for name in PACKAGES}}
    here["versions"] = {"python": platform.python_version()} | {name: _version(name) for name in _VERSIONS}
    wrong = {}
    for node, fact in known.items():
        other = [f"{name} differs" for name in PACKAGES if fact["code"][name] != here["code"][name]]
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
