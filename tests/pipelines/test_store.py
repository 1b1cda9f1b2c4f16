"""pipelines.store: list, read, and publish so that a reader never meets half an object."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipelines import store
from pipelines.store import StoreError, TransientStoreError


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    fsspec.filesystem("memory").store.clear()
    return "memory://store"


def test_what_is_published_is_listed_and_read(place: str) -> None:
    for name in ("b/two.bin", "a one.bin", "c/ünï#cödé?[x].bin"):
        store.publish(name.encode() * 100, store.join(place, name))
    listed = list(store.list_objects(place))
    assert [entry.url.split("store/", 1)[1] for entry in listed] == ["a one.bin", "b/two.bin", "c/ünï#cödé?[x].bin"]
    for entry in listed:
        name = entry.url.split("store/", 1)[1].encode()
        assert entry.bytes == len(name) * 100 == store.size(entry.url)
        assert store.read(entry.url) == name * 100
        assert store.read(entry.url, 3, 5) == (name * 100)[3:8]
        assert store.read(entry.url, len(name) * 100 - 2, 50) == (name * 100)[-2:]
        assert store.read(entry.url, 1, 0) == b""


def test_fetch_copies_a_range_in_chunks(place: str, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    store.publish(data, store.join(place, "x"))
    assert store.fetch(store.join(place, "x"), str(tmp_path / "copy"), 10, 99_000, chunk=4096) == 99_000
    assert (tmp_path / "copy").read_bytes() == data[10:99_010]
    assert store.fetch(store.join(place, "x"), str(tmp_path / "copy"), 99_999, 500) == 1, (
        "shorter than asked: it says so"
    )


def test_removing_is_idempotent_and_missing_is_missing(place: str) -> None:
    url = store.join(place, "x")
    store.publish(b"1", url)
    assert store.exists(url)
    store.remove(url)
    store.remove(url)
    assert not store.exists(url)
    with pytest.raises(FileNotFoundError):
        store.read(url)
    assert list(store.list_objects(store.join(place, "nothing"))) == []


def test_a_reader_sees_the_old_bytes_or_the_new_never_a_mixture(tmp_path: Path) -> None:
    url, stop, seen = str(tmp_path / "x"), threading.Event(), set()
    store.publish(b"a" * 1_000_000, url)

    def read() -> None:
        while not stop.is_set():
            seen.add(bytes(set(store.read(url))) + str(os.stat(url).st_size).encode())

    reader = threading.Thread(target=read)
    reader.start()
    for letter in b"bcdefgh":
        store.publish(bytes([letter]) * 1_000_000, url)
    stop.set()
    reader.join()
    assert seen <= {bytes([letter]) + b"1000000" for letter in b"abcdefgh"}


def test_a_failed_publish_leaves_what_was_there_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "x")
    store.publish(b"old", url)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="no space left on the device"):
        store.publish(b"new", url)
    assert (tmp_path / "x").read_bytes() == b"old" and os.listdir(tmp_path) == ["x"]


def test_a_temporary_cleared_by_another_run_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, []

    def cleared_once(handle: int) -> None:
        if not calls:
            calls.append(store.remove_temporaries(str(tmp_path)))
        real(handle)

    monkeypatch.setattr(os, "fsync", cleared_once)
    store.publish(b"data", str(tmp_path / "x"))
    assert calls == [1] and (tmp_path / "x").read_bytes() == b"data"


def test_local_listing_follows_links_but_not_loops_and_skips_what_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"1")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b").write_bytes(b"2")
    (tmp_path / "real" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".hidden").write_bytes(b"3")
    os.mkfifo(tmp_path / "pipe")
    names = {os.path.basename(entry.url) for entry in store.list_objects(str(tmp_path))}
    assert names == {"a", "b"}


@pytest.mark.parametrize(
    "name", ["a::b", "memory:x", "x#y", "tab\tname", "-flag", "per%20cent", "new\nline", "$HOME", "~"]
)
def test_a_local_name_is_only_a_name(tmp_path: Path, name: str) -> None:
    url = str(tmp_path / name)
    store.publish(b"data", url)
    assert os.listdir(tmp_path) == [name]
    assert [entry.url for entry in store.list_objects(str(tmp_path))] == [url]
    assert store.read(url) == b"data"


class Flaky:
    def __init__(self, failures: list[Exception]) -> None:
        self.failures, self.calls = failures, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"


def test_transient_trouble_is_tried_again_and_the_rest_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.time, "sleep", lambda seconds: None)
    flaky = Flaky([ConnectionError("reset"), TimeoutError("slow"), OSError("503 SlowDown")])
    assert store.retrying(flaky, "s3://bucket/x") == "done" and flaky.calls == 4
    local = Flaky([OSError(errno.ESTALE, "stale NFS handle")])
    assert store.retrying(local, "/nfs/x") == "done" and local.calls == 2
    for final in (PermissionError(errno.EACCES, "denied"), OSError(errno.ENOSPC, "full")):
        refused = Flaky([final])
        with pytest.raises(StoreError) as told:
            store.retrying(refused, "/disk/x")
        assert refused.calls == 1 and "\n" not in str(told.value) and "/disk/x" in str(told.value)
    with pytest.raises(FileNotFoundError):
        store.retrying(Flaky([FileNotFoundError()]), "s3://bucket/x")


def test_patience_ends_with_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(store.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(store.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    with pytest.raises(TransientStoreError, match="no answer for 60 s"):
        store.retrying(Flaky([ConnectionError("refused")] * 1000), "s3://bucket/x", seconds=60)
    assert 40 <= clock[0] <= 60


@pytest.mark.parametrize(
    "url, told",
    [
        ("memory://x", "lives in one process"),
        ("nosuch://x", "cannot open nosuch://"),
        ("/proc/nothing", "/proc/nothing"),
    ],
)
def test_an_unwritable_output_is_one_clear_line(url: str, told: str) -> None:
    with pytest.raises(StoreError, match=told):
        store.require_writable(url)


def test_a_file_in_the_way_of_the_output_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="a part of this path is a file"):
        store.require_writable(str(tmp_path / "file" / "gaze"))


def test_normalise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    cases: dict[str, Any] = {
        "videos/": str(tmp_path / "videos"),
        "file:///data/x": "/data/x",
        "s3://bucket/x/": "s3://bucket/x",
        "~/x": os.path.expanduser("~/x"),
    }
    for given, expected in cases.items():
        assert store.normalise(given) == expected
