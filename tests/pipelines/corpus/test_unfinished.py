"""A scan that is interrupted goes on from where it was, and one that was made for a dry run is not made again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from pipelines.corpus import scan as scans
from pipelines.corpus import unfinished as module
from pipelines.corpus.unfinished import UnfinishedScan
from pipelines.storage import store
from pipelines.storage.location import Location
from tests.support.plans import scan_frame as scan


@pytest.fixture
def videos(tmp_path: Path, video: bytes, make_tar: Callable[..., Path]) -> Path:
    folder = tmp_path / "v"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.mp4").write_bytes(video)
    make_tar(folder / "t.tar", {"a.mp4": video, "b.mp4": video, "c.txt": b""})
    return folder


@pytest.fixture(params=["local", "s3"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> UnfinishedScan:
    place = tmp_path if request.param == "local" else f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    return UnfinishedScan(Location(f"{place}/m.parquet"))


class Stop(BaseException):
    """As Ctrl-C and SIGTERM are."""


def stop_after(count: int) -> Callable[[int, int], None]:
    def on_progress(done: int, total: int) -> None:
        if done == count:
            raise Stop

    return on_progress


def test_an_interrupted_scan_goes_on_where_it_was(videos: Path, kept: UnfinishedScan, opened: list[str]) -> None:
    whole = scan(str(videos))
    opened.clear()
    for count in (2, 3):
        with pytest.raises(Stop):
            scan(str(videos), keeper=kept, on_progress=stop_after(count))
    again = UnfinishedScan(Location(kept.url.removesuffix(".scan")))
    told: list[tuple[int, int]] = []
    pd.testing.assert_frame_equal(scan(str(videos), keeper=again, on_progress=lambda *at: told.append(at)), whole)
    assert sorted(opened) == sorted({*whole["object"]}), "each object was opened once over all three scans"
    assert told == [(3, 5), (4, 5), (5, 5)]
    again.remove()
    assert list(store.list_objects(kept.url)) == [] and not os.path.exists(kept.url)
    again.remove()


def test_what_changed_since_is_scanned_again(videos: Path, kept: UnfinishedScan, opened: list[str]) -> None:
    scan(str(videos), keeper=kept)
    (videos / "0.mp4").write_bytes((videos / "0.mp4").read_bytes() + b"more")
    store.publish(b"damaged", kept.url / "x.parquet")
    opened.clear()
    # The newest rows of an object count, also over those of a manifest that is there.
    for expected in ([str(videos / "0.mp4")], []):
        scan(str(videos), scan(str(videos / "1.mp4")), keeper=kept)
        assert [url for url in opened if url != str(videos / "1.mp4")] == expected
        opened.clear()


def test_rows_are_kept_now_and_then_while_a_scan_goes_on(
    videos: Path, tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10_000, 6))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    kept = UnfinishedScan(Location(str(tmp_path / "m")))
    files: list[int] = []
    scan(str(videos), keeper=kept, on_progress=lambda *_: files.append(len(list(store.list_objects(kept.url)))))
    assert files == [0, 0, 0, 1, 1, 1] and sum(map(len, kept.read())) == 6


def test_a_scan_that_cannot_be_kept_is_made_all_the_same(videos: Path, opened: list[str]) -> None:
    kept = UnfinishedScan(Location("/proc/no/m"))
    assert len(scan(str(videos), keeper=kept)) == 6
    assert "/proc/no" in kept.problem


def test_an_error_of_a_worker_loses_nothing(
    videos: Path, kept: UnfinishedScan, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = scans._probe_all

    def fails(*arguments: object) -> Iterator[object]:
        for number, answer in enumerate(real(*arguments)):  # type: ignore[arg-type]
            if number == 3:
                raise RuntimeError
            yield answer

    monkeypatch.setattr(scans, "_probe_all", fails)
    with pytest.raises(RuntimeError):
        scan(str(videos), keeper=kept)
    assert sum(len(set(table["object"].to_pylist())) for table in kept.read()) == 3
