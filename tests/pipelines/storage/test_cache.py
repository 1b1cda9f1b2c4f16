"""The cache of local copies: bounded, shared by processes, unharmed by one that is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipelines.storage.cache import LocalCache
from tests.support import runs


def test_the_cache_stays_in_its_bounds_and_forgets_what_was_used_least(tmp_path: Path) -> None:
    cache, made = LocalCache(str(tmp_path), 1), []

    def use(name: str) -> None:
        def make(path: str) -> None:
            made.append(name)
            Path(path).write_bytes(name.encode() * (300 << 10))

        with cache.local(name, make, 300 << 10) as path:
            assert Path(path).read_bytes() == name.encode() * (300 << 10)

    for name in "abcabdab":
        use(name)
        time.sleep(0.01)
    assert made == list("abcd") and not list(tmp_path.glob(".tmp-*"))
    use("c")
    assert made == list("abcdc")


def test_processes_that_share_a_cache_fetch_once_and_survive_a_kill(tmp_path: Path) -> None:
    """The first to come is killed in the middle of making the entry; the rest make it once, and find it whole."""
    code = f"""
import os, sys, time
from pipelines.storage.cache import LocalCache
def make(path):
    with open(path, "wb") as file:
        file.write(b"half"); file.flush()
        open({str(tmp_path / "log")!r}, "a").write("made\\n")
        time.sleep(60 if sys.argv[1] == "slow" else 0.3)
        file.write(b"whole")
with LocalCache({str(tmp_path / "cache")!r}, 10).local("x", make) as path:
    assert open(path, "rb").read() == b"halfwhole"
"""

    def start(kind: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, kind], cwd=runs.ROOT)

    def made() -> int:
        log = tmp_path / "log"
        return len(log.read_text().splitlines()) if log.exists() else 0

    first = start("slow")
    assert runs.wait_until(lambda: made() == 1)
    others = [start("fast") for _ in range(3)]
    first.send_signal(signal.SIGKILL)
    assert [process.wait(60) for process in others] == [0, 0, 0] and made() == 2
    first.wait()
    left = [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".tmp-")]
    assert len(left) == 1  # the killed one's; it goes when it is old
    os.utime(left[0], (0, 0))
    with LocalCache(str(tmp_path / "cache"), 10).local("y", lambda path: Path(path).write_bytes(b"y")):
        pass
    assert not left[0].exists()


def test_what_is_in_use_is_never_stale_and_a_swept_folder_is_made_again(tmp_path: Path) -> None:
    """A video may be decoded for longer than a dead process's link is kept; others then clean up around it."""
    cache = LocalCache(str(tmp_path / "cache"), 1)

    def make(path: str) -> None:
        Path(path).write_bytes(b"video")

    with cache.local("x", make) as path:
        os.utime(path, (0, 0))
        with LocalCache(str(tmp_path / "cache"), 1).local("y", make):
            assert Path(path).read_bytes() == b"video"
        cache.clear()
        assert Path(path).read_bytes() == b"video" and len(list((tmp_path / "cache").glob("*"))) == 2  # it, and locks
    shutil.rmtree(tmp_path / "cache")
    with cache.local("x", make) as path:
        assert Path(path).read_bytes() == b"video" and (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_a_disk_is_never_filled_with_copies(small_disk: Path) -> None:
    """300 KB, of which three copies take 240; the limit alone would have let it run full."""
    cache = LocalCache(str(small_disk / "cache"), 4096)

    def make(path: str) -> None:
        Path(path).write_bytes(bytes(80_000))

    for name in "abcdef":
        with cache.local(name, make, 80_000) as path:
            assert len(Path(path).read_bytes()) == 80_000
        time.sleep(0.01)
        assert shutil.disk_usage(small_disk).free >= 15_000
    assert len([path for path in (small_disk / "cache").iterdir() if path.is_file()]) == 3
