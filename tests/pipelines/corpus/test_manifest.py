"""pipelines.corpus.manifest: a store of videos -> one row per video; re-scans open only what is new or changed."""

from __future__ import annotations

import errno
import io
import os
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipelines.corpus import manifest as manifests
from pipelines.corpus import videos
from pipelines.corpus.scan import probe_object
from pipelines.corpus.videos import video_fingerprint
from pipelines.errors import PipelineError
from pipelines.storage import retry, store
from pipelines.storage.location import Entry
from pipelines.video.base import Source
from pipelines.video.isolated import IsolatedDecoder
from tests.support.plans import scan_frame as scan

pytestmark = pytest.mark.usefixtures("opened")


@pytest.mark.parametrize("where", ["here", pytest.param("on Ray", marks=pytest.mark.slow)])
def test_every_video_has_one_row_good_or_bad(
    store_of_videos: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "on Ray":
        monkeypatch.undo()  # the fixture that probes here
        request.getfixturevalue("ray_session")
    manifest = scan(str(store_of_videos))
    assert manifest["uri"].tolist() == sorted(str(path) for path in store_of_videos.rglob("*.mp4"))
    bad = manifest[manifest["status"] == "failed"]
    assert bad["uri"].tolist() == [str(store_of_videos / "broken.mp4")] and bad["reason"].tolist() == ["unreadable"]
    good = manifest[manifest["status"] == "ok"]
    assert sorted(good["frames"]) == [20, 30, 33, 40, 50, 60]
    assert set(good["codec"]) == {"h264"} and set(good["width"]) == {96} and set(good["height"]) == {64}
    assert good["fps"].tolist() == pytest.approx([25.0] * 6)


def test_a_manifest_reads_back_as_it_was_written(store_of_videos: Path, tmp_path: Path) -> None:
    manifest = scan(str(store_of_videos))
    store.publish(manifests.manifest_bytes(manifest), str(tmp_path / "m.parquet"))
    pd.testing.assert_frame_equal(manifests.read_manifest(str(tmp_path / "m.parquet")), manifest)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "m.parquet"), manifest)


def test_a_rescan_opens_only_what_is_new_or_changed(store_of_videos: Path, tmp_path: Path, opened: list[str]) -> None:
    for number in range(3):
        os.link(store_of_videos / f"clip{number}.mp4", tmp_path / f"{number}.mp4")
    first = scan(str(tmp_path))
    opened.clear()
    pd.testing.assert_frame_equal(scan(str(tmp_path), first), first)
    assert opened == []
    (tmp_path / "0.mp4").unlink()
    os.utime(tmp_path / "1.mp4", ns=(1, 1))
    os.link(store_of_videos / "clip4.mp4", tmp_path / "4.mp4")
    second = scan(str(tmp_path), first)
    assert opened == [str(tmp_path / "1.mp4"), str(tmp_path / "4.mp4")]
    pd.testing.assert_frame_equal(second, scan(str(tmp_path)))


def test_a_rescan_opens_what_has_another_size_and_the_same_time(
    store_of_videos: Path, make_tar: Callable[..., Path], tmp_path: Path, opened: list[str]
) -> None:
    def put(number: int) -> None:
        data = (store_of_videos / f"clip{number}.mp4").read_bytes()
        (tmp_path / "a.mp4").write_bytes(data)
        make_tar(tmp_path / "t.tar", {"b.mp4": data})
        for path in tmp_path.iterdir():
            os.utime(path, ns=(10**18, 10**18))

    put(0)
    first = scan(str(tmp_path))
    put(3)
    opened.clear()
    assert scan(str(tmp_path), first)["frames"].tolist() == [50, 50] and len(opened) == 2


def test_a_manifest_of_an_older_version_is_brought_up_to_date(
    video: bytes, make_tar: Callable[..., Path], tmp_path: Path, opened: list[str]
) -> None:
    """It has times without sizes, and no column of what was passed over."""
    (tmp_path / "a.mp4").write_bytes(video)
    make_tar(tmp_path / "t.tar", {"b.mp4": video})
    new = scan(str(tmp_path))
    old = new.assign(version=new["version"].str.split("-").str[0]).drop(columns=["passed_over"])
    old.to_parquet(tmp_path / "m.parquet")
    old = manifests.read_manifest(str(tmp_path / "m.parquet"))
    opened.clear()
    rescanned = scan(str(tmp_path), old)
    assert opened == [str(tmp_path / "t.tar")], "what the row of a file says is enough; of a tar it is not"
    assert rescanned["version"].tolist() == [old["version"][0], new["version"][1]]
    (tmp_path / "a.mp4").write_bytes(video + b"more")
    os.utime(tmp_path / "a.mp4", ns=(int(old["version"][0]),) * 2)
    opened.clear()
    scan(str(tmp_path), rescanned)
    assert opened == [str(tmp_path / "a.mp4")]


def test_videos_inside_a_tar_are_read_in_place(
    store_of_videos: Path, make_tar: Callable[..., Path], tmp_path: Path, decoder: IsolatedDecoder
) -> None:
    good = (store_of_videos / "clip1.mp4").read_bytes()
    make_tar(tmp_path / "t.tar", {"a/0001.mp4": good, "0001.json": b"{}", "bad.mp4": b"xx", "../../up.mp4": good})
    rows = {row["uri"].split("#")[1]: row for row in scan(str(tmp_path)).to_dict("records")}
    assert set(rows) == {"a/0001.mp4", "bad.mp4", "../../up.mp4"}
    assert (rows["a/0001.mp4"]["status"], rows["a/0001.mp4"]["frames"]) == ("ok", 30)
    assert rows["bad.mp4"]["status"] == "failed"
    for name in ("a/0001.mp4", "../../up.mp4"):
        row = rows[name]
        with open(row["object"], "rb") as tar:
            tar.seek(row["offset"])
            assert tar.read(row["bytes"]) == good
        assert decoder.probe(Source(row["object"], row["offset"], row["bytes"])).frames == 30
    assert not (tmp_path.parent / "up.mp4").exists()


def entry(path: Path) -> Entry:
    return next(iter(store.list_objects(str(path))))


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "compressed", "no videos"])
def test_a_bad_tar_is_a_failed_row_and_keeps_its_good_members(
    store_of_videos: Path, make_tar: Callable[..., Path], tmp_path: Path, decoder: IsolatedDecoder, damage: str
) -> None:
    good = (store_of_videos / "clip1.mp4").read_bytes()
    path = make_tar(tmp_path / "t.tar", {"a.mp4": good, "b.mp4": good} if damage != "no videos" else {"a.txt": b"a"})
    if damage == "text":
        path.write_text("no tar at all" * 1000)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: len(good) + 4096])
    elif damage == "compressed":
        with tarfile.open(path, "w:gz") as archive:
            archive.add(store_of_videos / "clip1.mp4", "a.mp4")
    rows = probe_object(entry(path), decoder)
    assert rows[-1]["uri"] == str(path) and rows[-1]["status"] == "failed"
    assert rows[-1]["reason"] == ("truncated" if damage == "cut" else "unreadable")
    assert [row["status"] for row in rows[:-1]] == (["ok"] if damage == "cut" else [])


@pytest.mark.parametrize("name", ["video.mp4", "videos.tar"])
@pytest.mark.parametrize("instead", ["nothing", "a folder", "a file above it", "no permission"])
def test_what_cannot_be_opened_any_more_is_a_failed_row(
    tmp_path: Path, decoder: IsolatedDecoder, name: str, instead: str
) -> None:
    path = tmp_path / "deep" / name
    path.parent.mkdir()
    path.write_bytes(b"listed")
    listed = entry(path)
    if instead == "no permission":
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        path.chmod(0)
    else:
        path.unlink()
    if instead == "a folder":
        path.mkdir()
    elif instead == "a file above it":
        path.parent.rmdir()
        path.parent.write_bytes(b"")
    [row] = probe_object(listed, decoder)
    assert row["uri"] == str(path) and row["status"] == "failed"
    assert row["reason"] == ("unreadable" if instead in ("a folder", "no permission") else "missing")


def test_a_disk_that_does_not_answer_is_asked_again_and_then_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(retry.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    troubles = [errno.ESTALE, errno.EIO]

    def troubled(*arguments: Any) -> Any:
        if troubles:
            raise OSError(troubles.pop(), "the disk is in trouble")
        return open(*arguments)

    path = tmp_path / "a"
    path.write_bytes(b"some bytes")
    expected = video_fingerprint(str(path))
    monkeypatch.setattr(videos, "open", troubled, raising=False)
    assert video_fingerprint(str(path)) == expected and troubles == []
    troubles = [errno.EIO] * 1000
    with pytest.raises(retry.TransientStoreError, match=f"{path}: no answer for 120 s"):
        video_fingerprint(str(path))


def test_a_rescan_opens_again_what_could_not_be_read(store_of_videos: Path, tmp_path: Path) -> None:
    os.link(store_of_videos / "clip0.mp4", tmp_path / "0.mp4")
    good = scan(str(tmp_path))
    denied = good.assign(status="failed", reason="unreadable", detail="no permission to read the file", fingerprint="")
    pd.testing.assert_frame_equal(scan(str(tmp_path), denied), good)


def test_of_two_members_of_one_name_the_later_one_counts(
    store_of_videos: Path, make_tar: Callable[..., Path], tmp_path: Path, decoder: IsolatedDecoder
) -> None:
    older, newer = ((store_of_videos / f"clip{number}.mp4").read_bytes() for number in (1, 2))
    make_tar(tmp_path / "t.tar", {"./a.mp4": older})
    with tarfile.open(tmp_path / "t.tar", "a") as archive:  # as tar -r does
        info = tarfile.TarInfo("./a.mp4")
        info.size = len(newer)
        archive.addfile(info, io.BytesIO(newer))
    [row] = probe_object(entry(tmp_path / "t.tar"), decoder)
    assert (row["status"], row["frames"], row["bytes"]) == ("ok", 40, len(newer))


@pytest.mark.parametrize("version", ["--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", None])
def test_a_member_stored_sparse_is_a_failed_row_and_the_rest_of_its_tar_is_read(
    store_of_videos: Path, tmp_path: Path, decoder: IsolatedDecoder, version: str | None
) -> None:
    """version: of the ways in which GNU tar stores holes; None: the one it has for --format=posix now."""
    good = (store_of_videos / "clip1.mp4").read_bytes()
    with (tmp_path / "a holes.mp4").open("wb") as file:
        file.write(good)
        file.truncate(1 << 20)
        for hole in range(2, 60, 2):  # more than fit into one header
            file.seek(hole << 20)
            file.write(good)
    (tmp_path / "b good.mp4").write_bytes(good)
    how = [version or "--format=posix", *(["--format=posix"] if version and "sparse" in version else [])]
    names = ["a holes.mp4", "b good.mp4"]
    made = subprocess.run(["tar", "-S", *how, "-cf", "t.tar", *names], cwd=tmp_path, capture_output=True)
    if made.returncode or (tmp_path / "t.tar").stat().st_size > 10 << 20:
        pytest.skip("this tar, or this file system, makes no sparse members")
    holes, whole = probe_object(entry(tmp_path / "t.tar"), decoder)
    assert (holes["uri"], holes["reason"]) == (f"{tmp_path / 't.tar'}#a holes.mp4", "unreadable")
    assert "make the tar without -S" in holes["detail"]
    assert (whole["uri"], whole["status"], whole["frames"]) == (f"{tmp_path / 't.tar'}#b good.mp4", "ok", 30)


def test_a_video_that_takes_too_long_to_open_fails_and_is_tried_again_by_the_next_scan(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    video = str(make_video(tmp_path / "counted.avi", frames=60, size=(640, 480)))  # probing it decodes it all
    hurried = scan(video, timeout_s=1e-6)
    assert hurried["reason"].tolist() == ["decoder_timeout"]
    assert scan(video, hurried)["status"].tolist() == ["ok"]


def test_a_name_that_is_not_utf8_is_a_failed_row(store_of_videos: Path, tmp_path: Path) -> None:
    os.link(store_of_videos / "clip0.mp4", os.fsencode(tmp_path) + b"/bad\xff.mp4")
    os.link(store_of_videos / "clip0.mp4", tmp_path / "good.mp4")
    manifest = scan(str(tmp_path))
    assert manifest[["status", "reason"]].fillna("").to_numpy().tolist() == [["failed", "bad_name"], ["ok", ""]]


def test_a_rescan_opens_again_what_has_no_version(store_of_videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = str(store_of_videos / "clip0.mp4")
    monkeypatch.setattr(store, "list_objects", lambda url, omit: [Entry(url, os.stat(url).st_size, "")])
    first = scan(video)
    changed = first.assign(frames=1)
    pd.testing.assert_frame_equal(scan(video, changed), first)


def test_a_fingerprint_is_of_the_bytes_not_of_the_place(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(300_000)
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b").write_bytes(b"header" + data + b"trailer")
    assert video_fingerprint(str(tmp_path / "a")) == video_fingerprint(str(tmp_path / "b"), 6, len(data))
    first, last = bytes([data[0] ^ 1]), bytes([data[-1] ^ 1])
    for change in (data[1:], data[:-1], first + data[1:], data[:-1] + last, data + b"x"):
        (tmp_path / "c").write_bytes(change)
        assert video_fingerprint(str(tmp_path / "c")) != video_fingerprint(str(tmp_path / "a"))
    (tmp_path / "empty").write_bytes(b"")
    assert video_fingerprint(str(tmp_path / "empty"))


def test_a_single_file_is_a_store_whatever_it_is_called(store_of_videos: Path, tmp_path: Path) -> None:
    os.link(store_of_videos / "clip0.mp4", tmp_path / "no suffix")
    assert scan(str(tmp_path / "no suffix"))["status"].tolist() == ["ok"]


@pytest.mark.parametrize("text", [b"", b"PAR1", b"not parquet"])
def test_a_file_that_is_no_manifest_is_one_clear_line(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "m.parquet").write_bytes(text)
    with pytest.raises(PipelineError, match="not a manifest"):
        manifests.read_manifest(str(tmp_path / "m.parquet"))
