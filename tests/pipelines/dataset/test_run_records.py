"""Records of runs: what is written is what is read, old records too, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.dataset.run_records import RunRecord, StageTime, new_record_url, newest_record, read_runs
from pipelines.storage.location import Location
from tests.support import places
from tests.support.records import run_record


def test_a_record_comes_back_as_it_was_written() -> None:
    assert RunRecord.from_json(run_record().to_json()) == run_record()


def test_the_file_has_the_keys_that_the_format_page_lists() -> None:
    page = (places.ROOT / "docs" / "formats.md").read_text()
    listed = page[page.index("`<output>.runs/<time>-<id>.json`, with the keys `") :].split("`")[3].split()
    document = json.loads(run_record().to_json())
    assert list(document) == listed
    assert document["clips"] == {"ok": 1234, "failed": 5}
    assert document["stages"]["gaze"] == {"seconds": 90.0, "workers": 1}


def test_a_record_from_before_gaze_and_start_up_is_read() -> None:
    document = json.loads(run_record().to_json())
    del document["gaze"], document["start_up"]
    assert RunRecord.from_json(json.dumps(document).encode()) == run_record(gaze="", start_up={})


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b'{"started": 1}', b'"text"', b"null"])
def test_what_is_no_record_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        RunRecord.from_json(data)


@pytest.mark.parametrize("key", ["finished", "seconds", "stages", "clips", "workers"])
def test_a_record_with_a_broken_field_is_a_value_error(key: str) -> None:
    document = json.loads(run_record().to_json()) | {key: "some time"}
    with pytest.raises(ValueError):
        RunRecord.from_json(json.dumps(document).encode())


def test_stages_are_listed_busiest_first_each_before_its_parts() -> None:
    parts = {"fetch": StageTime(100.0, 20), "write": StageTime(5.0, 1), "search": StageTime(80.0, 1)}
    record = run_record(stages=run_record().stages | parts)
    assert record.busiest_first() == ["gaze", "search", "write", "decode", "encode", "fetch"]
    assert [record.busy_share(name) for name in ("gaze", "decode", "encode")] == [0.9, 0.75, 0.15]


def test_runs_are_listed_newest_first_and_the_newest_is_the_last_that_wrote(tmp_path: Path) -> None:
    dataset = str(tmp_path / "gaze")
    assert read_runs(Location(dataset)) == [] and newest_record(Location(dataset)) is None
    long_one = run_record(started="2026-11-22T10:00:00Z", finished="2026-11-22T18:00:00Z")
    short_one = run_record(started="2026-11-22T11:00:00Z", finished="2026-11-22T11:05:00Z")
    for began, record in ((1.0, long_one), (3600.0, short_one)):
        place = Path(new_record_url(Location(dataset), began))
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(record.to_json())
    (place.parent / "bad.json").write_text("{")
    (place.parent / "notes.txt").write_text("x")
    assert read_runs(Location(dataset)) == [short_one, long_one]
    assert newest_record(Location(dataset)) == long_one
