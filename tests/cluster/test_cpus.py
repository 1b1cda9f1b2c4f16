"""cluster.cpus: quotas of control groups, of both versions, decide how many CPUs there are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import cpus
from cluster.cpus import usable_cpus
from tests.support import places

HOST_CPUS = 64
V2 = "30 23 0:26 {top} {at} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "31 23 0:27 {top} {at} rw,nosuid shared:5 - cgroup cgroup rw,cpu,cpuacct"


@pytest.fixture(autouse=True)
def many_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda pid: set(range(HOST_CPUS)), raising=False)


def fake(root: Path, groups: str, mounts: list[str], files: dict[str, str]) -> int:
    """usable_cpus on a system with these /proc/self/cgroup, mounts and files below /sys/fs/cgroup."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text("\n".join(["22 1 8:1 / / rw - ext4 /dev/sda1 rw", *mounts, ""]))
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return usable_cpus(root)


@pytest.mark.parametrize(
    "path, top, files, expected",
    [
        ("/", "/", {"cpu.max": "200000 100000\n"}, 2),  # Docker, in a namespace of its own
        ("/", "/", {"cpu.max": "max 100000\n"}, HOST_CPUS),
        ("/", "/", {}, HOST_CPUS),  # the topmost group of a host
        ("/", "/", {"cpu.max": "250000 100000"}, 2),
        ("/", "/", {"cpu.max": "50000 100000"}, 1),
        ("/", "/", {"cpu.max": "8000000 50000"}, HOST_CPUS),
        ("/user.slice/job", "/", {"user.slice/job/cpu.max": "max 100000", "user.slice/cpu.max": "300000 100000"}, 3),
        ("/a/b/c", "/", {"a/b/c/cpu.max": "400000 100000", "a/cpu.max": "500000 100000"}, 4),
        ("/docker/1f", "/docker/1f", {"cpu.max": "300000 100000"}, 3),  # without a namespace, its group mounted
        ("/docker/1f/in", "/docker/1f", {"in/cpu.max": "max 100000", "cpu.max": "300000 100000"}, 3),
        ("/../../other", "/", {"cpu.max": "200000 100000"}, 2),  # joined from outside the namespace
        ("/host/path", "/pod", {"cpu.max": "200000 100000"}, 2),
        ("/", "/", {"cpu.max": ""}, HOST_CPUS),
        ("/", "/", {"cpu.max": "100000 0"}, HOST_CPUS),
    ],
)
def test_quotas_of_version_2(path: str, top: str, files: dict[str, str], expected: int, tmp_path: Path) -> None:
    assert fake(tmp_path, f"0::{path}\n", [V2.format(top=top, at="/sys/fs/cgroup")], files) == expected


@pytest.mark.parametrize(
    "path, top, quotas, expected",
    [
        ("/", "/", {"": ("100000", "100000")}, 1),  # F17: docker --cpus=1
        ("/", "/", {"": ("-1", "100000")}, HOST_CPUS),
        ("/docker/1f", "/docker/1f", {"": ("350000", "100000")}, 3),
        ("/slurm/job", "/", {"slurm/job": ("-1", "100000"), "slurm": ("400000", "100000")}, 4),
        ("/slurm/job", "/", {"slurm/job": ("200000", "100000"), "slurm": ("400000", "100000")}, 2),
    ],
)
def test_quotas_of_version_1(
    path: str, top: str, quotas: dict[str, tuple[str, str]], expected: int, tmp_path: Path
) -> None:
    files = {}
    for group, (quota, period) in quotas.items():
        files[f"cpu,cpuacct/{group}/cpu.cfs_quota_us"] = f"{quota}\n"
        files[f"cpu,cpuacct/{group}/cpu.cfs_period_us"] = f"{period}\n"
    groups = f"12:memory:/elsewhere\n4:cpu,cpuacct:{path}\n3:cpuset:/elsewhere\n0::/\n"
    mounts = [
        V2.format(top="/", at="/sys/fs/cgroup/unified"),
        V1.format(top=top, at="/sys/fs/cgroup/cpu,cpuacct"),
        "32 23 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset",
    ]
    assert fake(tmp_path, groups, mounts, files) == expected


def test_a_mount_may_have_a_space_in_its_path_and_proc_may_be_missing(tmp_path: Path) -> None:
    mounted = V2.format(top="/", at=r"/sys/fs/cgroup/my\040groups")
    assert fake(tmp_path, "0::/x\n", [mounted], {"my groups/x/cpu.max": "100000 100000"}) == 1
    assert usable_cpus(tmp_path / "nothing") == HOST_CPUS


def test_affinity_counts_as_well_and_is_the_host_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda pid: {3, 5})
    assert fake(tmp_path, "0::/\n", [V2.format(top="/", at="/sys/fs/cgroup")], {"cpu.max": "600000 100000"}) == 2
    monkeypatch.delattr(cpus.os, "sched_getaffinity")
    monkeypatch.setattr(cpus.os, "cpu_count", lambda: 6)
    assert usable_cpus(tmp_path / "nothing") == 6


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A control group of this machine with a quota of one CPU."""
    name = f"autogaze-test-{os.getpid()}"
    for parent, quota in (("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us"), ("/sys/fs/cgroup", "cpu.max")):
        group = Path(parent, name)
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / quota).write_text("100000")
            yield group
            return
        except OSError:
            continue
        finally:
            group.rmdir()
    pytest.skip("no control group of CPUs can be made here; that takes root")


def test_a_process_in_a_real_group_sees_its_quota(real_group: Path) -> None:
    code = f"import os; open('{real_group}/cgroup.procs', 'w').write(str(os.getpid()))\n"
    code += "from cluster.cpus import usable_cpus; print(usable_cpus())"
    done = subprocess.run([sys.executable, "-c", code], cwd=places.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_a_ray_of_our_own_is_started_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster import local

    asked = []
    monkeypatch.setattr(local, "start_ray", lambda **options: asked.append(options["num_cpus"]) or _stop())
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests may have connected this process
    for quota, configured in ((5, 0), (1, 0), (5, 3)):
        monkeypatch.setattr(local, "usable_cpus", lambda quota=quota: quota)
        with pytest.raises(KeyboardInterrupt), local.running(local.RayConfig(cpus=configured)):
            pass
    assert asked == [5, 2, 3], "two stages hold a CPU each"


def _stop() -> None:
    raise KeyboardInterrupt
