"""How many CPUs this process may use: those of its affinity, and no more than the quotas of its control groups.

A container with `--cpus=2` (Docker), a limit of CPUs (Kubernetes) or CPUQuota= (systemd) sees all CPUs of its host, and
is stopped for the rest of each period once it has used its share. Kernel documentation: admin-guide/cgroup-v2 (cpu.max)
and scheduler/sched-bwc (cpu.cfs_quota_us).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cpus(root: Path = Path("/")) -> int:
    """The number of CPUs, at least 1; of a quota of 2.5 CPUs 2. root: where /proc and /sys are, for tests."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it; it knows cpusets and taskset
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([cpus, *(int(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """CPUs that each control group of this process allows, its own and those above it, where they allow a number."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return  # not Linux, or /proc is hidden
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for top, mounted in _mounts(mounts, version_2=not controllers):
            folder = root / mounted.relative_to("/")
            for group in _group_and_parents(folder, PurePosixPath(path), top):
                quota = _quota_2(group) if not controllers else _quota_1(group)
                if quota is not None:
                    yield quota


def _mounts(mountinfo: list[str], *, version_2: bool) -> Iterator[tuple[PurePosixPath, PurePosixPath]]:
    """Of each mount of the hierarchy: the group that is its root, and where it is mounted."""
    for line in mountinfo:
        fields, _, about = line.partition(" - ")
        kind, _, options = [*about.split(" ", 2), "", ""][:3]
        if kind == ("cgroup2" if version_2 else "cgroup") and (version_2 or "cpu" in options.split(",")):
            top, mounted = (_unescape(field) for field in fields.split(" ")[3:5])
            yield PurePosixPath(top), PurePosixPath(mounted)


def _unescape(field: str) -> str:
    """A path of mountinfo, in which a space is \\040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _group_and_parents(folder: Path, path: PurePosixPath, top: PurePosixPath) -> Iterator[Path]:
    """The folders of a group and of those above it, as far as the mount shows them."""
    # A path that is not below the mount's root is the host's name for a group that is not mounted here.
    inside = path.relative_to(top) if path.is_relative_to(top) else PurePosixPath()
    if ".." not in inside.parts:
        yield from (folder / part for part in (inside, *inside.parents))
    else:
        yield folder


def _quota_2(group: Path) -> float | None:
    """CPUs by cpu.max: "max 100000" or "200000 100000"; the topmost group has no such file."""
    words = _words(group / "cpu.max")
    return _ratio(words[:1], words[1:])


def _quota_1(group: Path) -> float | None:
    """CPUs by cpu.cfs_quota_us, where -1 is no limit, and cpu.cfs_period_us."""
    quota, period = _words(group / "cpu.cfs_quota_us"), _words(group / "cpu.cfs_period_us")
    return _ratio(quota, period)


def _ratio(quota: list[str], period: list[str]) -> float | None:
    digits = bool(quota and period) and quota[0].isdigit() and period[0].isdigit()
    return int(quota[0]) / int(period[0]) if digits and int(period[0]) else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
