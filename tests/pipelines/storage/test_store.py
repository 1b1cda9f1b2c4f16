"""pipelines.storage.store: list, read, and publish so that a reader never meets half an object."""

from __future__ import annotations

import errno
import os
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipelines.storage import retry, store
from pipelines.storage.filesystem import HIDDEN
from pipelines.storage.location import Entry, Location
from pipelines.storage.retry import StoreError, TransientStoreError
from pipelines.storage.s3_files import S3Files


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "local":
        return Location(str(tmp_path / "store"))
    if request.param == "s3":
        return Location(f"{request.getfixturevalue('bucket')}/{tmp_path.name}/store")
    fsspec.filesystem("memory").store.clear()
    return Location("memory://store")


def test_what_is_published_is_listed_and_read(place: Location) -> None:
    for name in ("b/two.bin", "a one.bin", "c/ünï#cödé?[x].bin"):
        store.publish(name.encode() * 100, place / name)
    listed = list(store.list_objects(place))
    assert [entry.url.split("/store/", 1)[1] for entry in listed] == ["a one.bin", "b/two.bin", "c/ünï#cödé?[x].bin"]
    for entry in listed:
        name = entry.url.split("/store/", 1)[1].encode()
        assert entry.bytes == len(name) * 100 == store.size(entry.url)
        assert store.read(entry.url) == name * 100
        assert store.read(entry.url, 3, 5) == (name * 100)[3:8]
        assert store.read(entry.url, len(name) * 100 - 2, 50) == (name * 100)[-2:]
        assert store.read(entry.url, 1, 0) == b""


@pytest.mark.parametrize("key", ["ETag", "etag", "LastModified", "mtime", "updated", "last_modified", "created"])
def test_a_version_is_whatever_the_file_system_calls_it(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    fsspec.filesystem("memory").store.clear()
    store.publish(b"data", "memory://store/x")
    found = {"/store/x": {"type": "file", "size": 4, key: '"changes with the bytes"'}}
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", lambda *_, **__: found)
    size = "" if key.lower() == "etag" else "-4"  # a time may be the same for other bytes
    version = f"changes with the bytes{size}"
    assert list(store.list_objects("memory://store")) == [Entry(Location("memory:///store/x"), 4, version)]


def test_hidden_files_and_folders_are_left_out_and_told_in_every_store(place: Location) -> None:
    for name in ("a", ".b", ".c/d", ".c/e/f", "g/.h", "g/i", "j/.k/l"):
        store.publish(b"1", place / name)
    left_out: set[tuple[str, str]] = set()
    listed = [entry.url.split("/store/", 1)[1] for entry in store.list_objects(place, lambda *told: left_out.add(told))]
    assert listed == ["a", "g/i"]
    told = {(url.split("/store/", 1)[1], why) for url, why in left_out}
    assert told == {(name, HIDDEN) for name in (".b", ".c", "g/.h", "j/.k")}
    assert [entry.url[-2:] for entry in store.list_objects(place / ".c")] == ["/d", "/f"]


def test_an_object_is_looked_up_as_it_is_listed(place: Location) -> None:
    store.publish(b"1234", place / "folder/x")
    [listed], found = store.list_objects(place), store.entry(place / "folder/x")
    assert found is not None and (found.url, found.bytes) == (listed.url, 4)
    assert found.version == listed.version or place.scheme == "memory", "which writes times in two ways"
    assert store.entry(place / "folder") is None and store.entry(place / "nothing") is None


def test_a_listing_says_when_each_object_was_written(place: Location) -> None:
    begun = time.time()
    store.publish(b"1", place / "x")
    [entry] = store.list_objects(place)
    if place.scheme == "memory":
        assert entry.modified is None, "fsspec's memory does not say"
    else:
        assert entry.modified is not None and begun - 2 < entry.modified < time.time() + 2  # S3 counts whole seconds


@pytest.mark.parametrize(
    "at", [1_700_000_000, "2023-11-14T22:13:20Z", datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)]
)
def test_times_of_other_file_systems_are_seconds(monkeypatch: pytest.MonkeyPatch, at: Any) -> None:
    listed = {"/store/x": {"type": "file", "size": 4, "updated": at}}
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", lambda *_, **__: listed)
    assert [entry.modified for entry in store.list_objects("memory://store")] == [1_700_000_000.0]


def test_fetch_copies_a_range(place: Location, tmp_path: Path) -> None:
    data = os.urandom(20_000_000)
    store.publish(data, place / "x")
    assert store.fetch(place / "x", str(tmp_path / "copy"), 10, 19_999_000) == 19_999_000
    assert (tmp_path / "copy").read_bytes() == data[10:19_999_010]
    assert store.fetch(place / "x", str(tmp_path / "copy")) == len(data)
    assert (tmp_path / "copy").read_bytes() == data
    assert store.fetch(place / "x", str(tmp_path / "copy"), len(data) - 1, 500) == 1, "shorter than asked: it says so"


def test_what_lies_past_the_end_is_empty(place: Location, tmp_path: Path) -> None:
    store.publish(b"12345", place / "x")
    store.publish(b"", place / "empty")
    assert store.read(place / "x", 5, 10) == store.read(place / "x", 99, 10) == b""
    assert store.read(place / "x", 3) == b"45"
    assert store.read(place / "empty") == store.read(place / "empty", 0, 3) == b""
    assert store.fetch(place / "x", str(tmp_path / "copy"), 7, 3) == 0
    assert store.fetch(place / "empty", str(tmp_path / "copy")) == 0


def test_an_object_is_a_file_to_those_who_want_one(place: Location) -> None:
    data = os.urandom(3_000_000)
    store.publish(data, place / "x")
    with store.open_read(place / "x", 1 << 16) as file:
        assert file.read(10) == data[:10] and file.tell() == 10
        assert file.seek(-5, os.SEEK_END) == len(data) - 5 and file.read(100) == data[-5:] and file.read(1) == b""
        assert file.seek(1_000_000) == 1_000_000 and file.read(500_000) == data[1_000_000:1_500_000]
        assert file.seek(7, os.SEEK_CUR) == 1_500_007 and file.read() == data[1_500_007:]
    with pytest.raises(FileNotFoundError):
        store.open_read(place / "nothing")


def test_publishing_shows_a_file_when_it_is_whole_and_nothing_after_an_error(place: Location) -> None:
    url = place / "x"
    with store.publishing(url) as out:
        out.write(b"some")
        assert not store.exists(url)
        out.write(b" more")
    assert store.read(url) == b"some more"
    with pytest.raises(RuntimeError), store.publishing(place / "y") as out:
        out.write(b"half")
        raise RuntimeError
    assert [entry.url.rsplit("/", 1)[-1] for entry in store.list_objects(place)] == ["x"]


def test_a_pattern_names_objects(bucket: str, tmp_path: Path) -> None:
    place = f"{bucket}/{tmp_path.name}"
    for name in ("a1.json", "a2.json", "b.json", "a1.txt", "deep/a3.json"):
        store.publish(b"{}", f"{place}/{name}")
    assert store.glob(f"{place}/a*.json") == [f"{place}/a1.json", f"{place}/a2.json"]
    assert store.glob(f"{place}/**/a?.json") == [f"{place}/a1.json", f"{place}/a2.json", f"{place}/deep/a3.json"]
    assert store.glob(f"{place}/[bc].json") == [f"{place}/b.json"] and store.glob(f"{place}/x*") == []


def test_removing_is_idempotent_and_missing_is_missing(place: Location) -> None:
    url = place / "x"
    store.publish(b"1", url)
    assert store.exists(url)
    store.remove(url)
    store.remove(url)
    assert not store.exists(url)
    with pytest.raises(FileNotFoundError):
        store.read(url)
    assert list(store.list_objects(place / "nothing")) == []


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


@pytest.mark.parametrize("where", ["", "folder", "folder/a"])
def test_local_listing_leaves_nothing_out_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"1")
    (tmp_path / "folder" / "round").symlink_to("round")
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)
    real, troubles = os.stat, [errno.ESTALE, errno.EIO]

    def troubled(path: Any, **options: Any) -> os.stat_result:
        if troubles and path == str(tmp_path / where):
            raise OSError(troubles.pop(), "trouble", path)
        return real(path, **options)

    monkeypatch.setattr(os, "stat", troubled)
    listed = [entry.url for entry in store.list_objects(str(tmp_path))]
    assert listed == [str(tmp_path / "folder" / "a")] and not troubles
    troubles = [errno.EACCES]  # as of each file in a folder that may be read and not entered
    with pytest.raises(StoreError, match=f"{tmp_path / where}: permission denied"):
        list(store.list_objects(str(tmp_path)))


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
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)
    for url in ("s3://bucket/x", "memory://x"):
        flaky = Flaky([ConnectionError("reset"), TimeoutError("slow"), ConnectionResetError("again")])
        assert store.retrying(flaky, url) == "done" and flaky.calls == 4
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
    monkeypatch.setattr(retry.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    with pytest.raises(TransientStoreError, match="no answer for 60 s"):
        retry.retrying(Flaky([ConnectionError("refused")] * 1000), "s3://bucket/x", S3Files(), seconds=60)
    assert 40 <= clock[0] <= 60


def test_patience_begins_anew_when_there_was_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, done = [0.0], [0]
    monkeypatch.setattr(retry.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))

    def slow_but_sure() -> str:
        clock[0] += 50  # longer in all than anybody's patience
        done[0] += 1
        if done[0] < 10:
            raise ConnectionError("cut off")
        return "done"

    ended = retry.retrying(slow_but_sure, "s3://bucket/x", S3Files(), seconds=60, progress=lambda: done[0])
    assert ended == "done"


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


def test_a_proof_that_an_output_can_be_written_leaves_no_folder(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    for place in (there, there / "new" / "gaze"):
        store.require_writable(str(place))
    assert list(tmp_path.rglob("*")) == [there], "what was there stays, though empty"
