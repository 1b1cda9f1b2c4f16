"""pipelines.corpus.tars: which videos a tar has, wherever they stand in it, and what is passed over by name."""

from __future__ import annotations

import gzip
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.corpus import passed, tars
from pipelines.corpus.scan import probe_object
from pipelines.corpus.tars import tar_videos
from pipelines.storage import store
from pipelines.storage.filesystem import HIDDEN
from pipelines.video.isolated import IsolatedDecoder

Make = Callable[..., Path]
HARD, SOFT = tarfile.LNKTYPE, tarfile.SYMTYPE


def contents(path: Path) -> dict[str, bytes | None]:
    """The bytes of each video of a tar, read by its range."""
    data = path.read_bytes()
    found = tar_videos(str(path)).videos.items()
    return {name: None if offset is None else data[offset : offset + size] for name, (offset, size) in found}


def test_what_macs_add_to_a_tar_is_left_out_and_counted(make_tar: Make, tmp_path: Path) -> None:
    names = ["._a.mp4", "./._b.mp4", "__MACOSX/._a.mp4", "__MACOSX/c/d.mp4", ".hidden/e.mp4", "x/.f/g.mp4"]
    path = make_tar(tmp_path / "t.tar", dict.fromkeys(names, b"no video") | {"./a.mp4": b"a", "../up.mp4": b"u"})
    found = tar_videos(str(path))
    assert set(found.videos) == {"./a.mp4", "../up.mp4"} and found.problem is None
    assert dict(found.passed.counts) == {HIDDEN: 6}
    assert found.passed.lines() == [f"6 hidden names (such as {path}#._a.mp4)"]


@pytest.mark.parametrize("blocks", [0, 2, 20, 100])
@pytest.mark.parametrize("count", [2, 3])
def test_joined_tars_are_read_to_the_end(make_tar: Make, tmp_path: Path, blocks: int, count: int) -> None:
    """blocks: of zeros between the tars, beside those with which each ends."""
    parts = [make_tar(tmp_path / f"{n}.tar", {f"{n}.mp4": b"%d" % n * 700}).read_bytes() for n in range(count)]
    (tmp_path / "t.tar").write_bytes((bytes(512 * blocks)).join(parts))
    assert contents(tmp_path / "t.tar") == {f"{n}.mp4": b"%d" % n * 700 for n in range(count)}
    assert not tar_videos(str(tmp_path / "t.tar")).passed.total


def test_of_joined_tars_the_later_member_of_a_name_counts(make_tar: Make, tmp_path: Path) -> None:
    parts = [make_tar(tmp_path / f"{n}.tar", {"a.mp4": b"%d" % n}).read_bytes() for n in range(2)]
    (tmp_path / "t.tar").write_bytes(b"".join(parts))
    assert contents(tmp_path / "t.tar") == {"a.mp4": b"1"}
    assert dict(tar_videos(str(tmp_path / "t.tar")).passed.counts) == {tars.OLDER: 1}


@pytest.mark.parametrize("tail", [b"no tar at all", b"x" * 512, b"x" * 5000, bytes(512) + b"x"])
def test_what_follows_the_end_and_is_no_tar_is_told(make_tar: Make, tmp_path: Path, tail: bytes) -> None:
    path = make_tar(tmp_path / "t.tar", {"a.mp4": b"a"})
    path.write_bytes(path.read_bytes() + tail)
    found = tar_videos(str(path))
    assert set(found.videos) == {"a.mp4"} and found.problem is None
    assert dict(found.passed.counts) == {tars.AFTER_END: 1}


@pytest.mark.parametrize("end", [0, 200, 512, 1024, 9000, 20 << 20])
def test_any_number_of_zeros_is_a_plain_end(make_tar: Make, tmp_path: Path, end: int) -> None:
    path = make_tar(tmp_path / "t.tar", {"a.mp4": b"a"})
    with path.open("r+b") as file:
        file.truncate(1024)
        file.truncate(1024 + end)
    found = tar_videos(str(path))
    assert (set(found.videos), found.problem) == ({"a.mp4"}, None)
    # So many zeros are not looked through: another tar may stand after them.
    assert dict(found.passed.counts) == ({tars.AFTER_END: 1} if end > 16 << 20 else {})


@pytest.mark.parametrize("which", [1, 2])
def test_a_damaged_header_is_no_end(make_tar: Make, tmp_path: Path, which: int) -> None:
    """tarfile takes it for one, and says nothing of the members after it."""
    path = make_tar(tmp_path / "t.tar", {f"{n}.mp4": b"a" for n in range(4)})
    data = bytearray(path.read_bytes())
    data[1024 * which + 5] ^= 0xFF
    path.write_bytes(data)
    found = tar_videos(str(path))
    assert set(found.videos) == {f"{n}.mp4" for n in range(which)}
    told = f"not a plain tar: damaged at byte {1024 * which}; what follows is not read"
    assert found.problem == ("unreadable", told)


def test_links_to_videos_of_the_tar_are_videos_and_others_are_counted(make_tar: Make, tmp_path: Path) -> None:
    path = make_tar(
        tmp_path / "t.tar",
        {
            "early.mp4": (SOFT, "train/a.mp4"),
            "train/a.mp4": b"bytes of a",
            "./val/a.mp4": (HARD, "train/a.mp4"),
            "val/b.mp4": (SOFT, "../train/a.mp4"),
            "val/c.mp4": (SOFT, "b.mp4"),
            "out.mp4": (SOFT, "/etc/passwd"),
            "away.mp4": (HARD, "../../train/a.mp4"),
            "loop.mp4": (SOFT, "loop.mp4"),
            "text.mp4": (HARD, "text.txt"),
            "text.txt": b"text",
            "a.txt": (HARD, "train/a.mp4"),
        },
    )
    names = ("early.mp4", "train/a.mp4", "./val/a.mp4", "val/b.mp4", "val/c.mp4")
    assert contents(path) == dict.fromkeys(names, b"bytes of a")
    counts = tar_videos(str(path)).passed.counts
    assert dict(counts) == {tars.LINK: 5, "other files: .txt": 1}


def test_a_hard_link_that_gnu_tar_writes_is_a_second_video(
    tmp_path: Path, video: bytes, decoder: IsolatedDecoder
) -> None:
    (tmp_path / "a.mp4").write_bytes(video)
    os.link(tmp_path / "a.mp4", tmp_path / "b.mp4")
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        archive.add(tmp_path / "a.mp4", "a.mp4")
        archive.add(tmp_path / "b.mp4", "b.mp4")
        assert archive.getmembers()[1].islnk()
    rows = probe_object(next(iter(store.list_objects(str(tmp_path / "t.tar")))), decoder)
    assert [(row["uri"][-5:], row["status"], row["frames"]) for row in rows] == [
        ("a.mp4", "ok", 20),
        ("b.mp4", "ok", 20),
    ]


def test_a_tar_tells_what_else_is_in_it(make_tar: Make, tmp_path: Path, decoder: IsolatedDecoder) -> None:
    names = {
        "1.json": b"{}",
        "2.json": b"{}",
        "1.txt": b"",
        "README": b"",
        "more.tar.gz": b"",
        "dev.mp4": (tarfile.CHRTYPE, ""),
    }
    path = make_tar(tmp_path / "t.tar", names)
    [row] = probe_object(next(iter(store.list_objects(str(path)))), decoder)
    assert (row["status"], row["detail"]) == ("failed", "no videos in this tar")
    found = tar_videos(str(path))
    assert row["passed_over"] == found.passed.to_text()
    assert found.passed.lines() == [
        "4 other files: 2 .json, 1 without a suffix, 1 .txt",
        f"1 {passed.ARCHIVE} (such as {path}#more.tar.gz)",
        f"1 {tars.DEVICE} (such as {path}#dev.mp4)",
    ]


def test_a_tar_that_is_compressed_says_so(make_tar: Make, tmp_path: Path) -> None:
    data = make_tar(tmp_path / "plain", {"a.mp4": b"a" * 2000}).read_bytes()
    (tmp_path / "t.tar").write_bytes(gzip.compress(data))
    found = tar_videos(str(tmp_path / "t.tar"))
    assert found.problem == ("unreadable", "not a plain tar: compressed with gzip; decompress it") and not found.videos
