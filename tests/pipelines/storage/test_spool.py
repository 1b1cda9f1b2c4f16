"""What is written and not complete: the next writer clears what a dead one left, and nothing of a live one."""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from pipelines.storage import s3, spool, store
from tests.support import runs
from tests.support.forks import FORKS
from tests.support.waiting import wait_until

MINE = ["000001", "000002"]


def mine(name: str) -> bool:
    return name.partition(".")[0] in MINE


def half(url: str) -> None:
    """Write a half, and no more."""
    with store.publishing(url) as out:
        out.write(b"half")
        out.flush()
        os.kill(os.getpid(), signal.SIGSTOP)


def test_a_live_spool_is_left_alone_and_a_dead_one_is_cleared(tmp_path: Path) -> None:
    writer = FORKS.Process(target=half, args=(str(tmp_path / "000001.tar"),))
    writer.start()
    assert wait_until(lambda: any(path.stat().st_size for path in tmp_path.glob(".tmp-000001.tar-*")))
    assert store.remove_temporaries(str(tmp_path)) == 0
    runs.kill(writer.pid or 0)
    writer.join()
    other = tmp_path / ".tmp-000007.tar-0"
    other.write_bytes(b"")
    assert store.remove_temporaries(str(tmp_path), mine) == 1 and os.listdir(tmp_path) == [other.name]
    assert store.remove_temporaries(str(tmp_path)) == 1


def test_a_spool_that_was_cleared_all_the_same_is_written_again(tmp_path: Path) -> None:
    url = str(tmp_path / "x")
    with store.publishing(url) as out:
        out.write(b"some")
        for path in tmp_path.glob(".tmp-*"):
            path.unlink()
        out.write(b" more")
    assert store.read(url) == b"some more" and os.listdir(tmp_path) == ["x"]


def test_a_large_file_is_sent_to_its_disk_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(spool, "_SENT_BYTES", 5000)
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, count, advice: sent.append((start, start + count)))
    parts = [os.urandom(1 + 997 * number % 4001) for number in range(20)]
    with store.publishing(str(tmp_path / "x")) as out:
        for part in parts:
            out.write(part)
    whole = b"".join(parts)
    assert store.read(str(tmp_path / "x")) == whole
    assert len(sent) > 3 and sent[0][0] == 0 and len(whole) - sent[-1][1] < 5000 + 4001
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(sent)), "each byte once, in order"


def test_what_goes_to_an_object_store_lies_in_a_folder_that_is_cleared(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"autogaze-spool-{os.getuid()}"
    with store.publishing(f"{bucket}/spooled/x") as out:
        (folder / ".tmp-000001.tar-dead").write_bytes(b"")
        assert store.clear_spools(bucket) == 1 and len(os.listdir(folder)) == 1
        out.write(b"all")
    assert store.read(f"{bucket}/spooled/x") == b"all" and os.listdir(folder) == []


def test_an_upload_that_a_killed_writer_began_is_taken_back(bucket: str) -> None:
    where = s3.split(bucket)[0]
    for name in ("000001.tar", "000009.tar"):
        s3.client().create_multipart_upload(Bucket=where, Key=f"parts/shards/{name}")
    s3.client().create_multipart_upload(Bucket=where, Key="other/shards/000001.tar")
    assert store.remove_temporaries(f"{bucket}/parts/shards", mine) == 1
    assert [upload.key for upload in s3.uploads(f"{bucket}/parts/shards")[0]] == ["parts/shards/000009.tar"]
    assert store.remove_temporaries(f"{bucket}/parts/shards") == 1
    assert len(s3.uploads(f"{bucket}/other/shards")[0]) == 1, "of another dataset"
    s3.abort(bucket, s3.uploads(f"{bucket}/other/shards")[0][0])


def test_an_upload_that_was_taken_back_begins_again(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    data, complete, taken = os.urandom(6 << 20), s3._complete, list[int]()

    def taken_back(url: str, of: dict[str, str], *rest: Any) -> None:
        if not taken:
            taken.append(store.remove_temporaries(f"{bucket}/again/shards"))
            raise ClientError({"Error": {"Code": "NoSuchUpload"}}, "CompleteMultipartUpload")  # moto answers with 500
        complete(url, of, *rest)

    monkeypatch.setattr(s3, "_complete", taken_back)
    with store.publishing(f"{bucket}/again/shards/000001.tar") as out:
        out.write(data)
    assert taken == [1] and store.read(f"{bucket}/again/shards/000001.tar") == data
    assert s3.uploads(f"{bucket}/again/shards") == ([], None)


def test_a_name_of_any_length_has_a_spool(tmp_path: Path) -> None:
    with spool.spool(tmp_path, "x" * 300) as (file, path):
        file.write(b"1")
        assert path.exists()
