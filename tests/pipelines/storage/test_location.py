"""pipelines.storage.location: one normal form for local paths and URLs."""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path

import pytest

from pipelines.errors import PipelineError
from pipelines.storage.location import Location


def test_a_location_reads_what_a_user_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    cases = {
        "videos/": str(tmp_path / "videos"),
        "file:///data/x": "/data/x",
        "s3://bucket/x/": "s3://bucket/x",
        "~/x": os.path.expanduser("~/x"),
    }
    for given, expected in cases.items():
        assert Location(given) == expected == Location(expected)


@pytest.mark.parametrize("given", ["s3://bucket", "s3://bucket/a", "/data", "/"])
def test_parts_are_joined_by_a_slash(given: str) -> None:
    joined = Location(given) / "b" / "c.tar"
    assert joined == f"{given.rstrip('/')}/b/c.tar"
    assert joined.name == "c.tar" and joined.parent == Location(given) / "b" and joined.parent.parent == given


def test_a_bucket_and_the_root_are_their_own_parents() -> None:
    assert Location("s3://bucket").parent == "s3://bucket" and Location("/").parent == "/"


def test_the_scheme_tells_local_paths_from_urls() -> None:
    assert Location("relative").is_local and Location("file:///data").scheme == "file"
    assert Location("S3://bucket/a").scheme == "s3" and not Location("gs://bucket").is_local


def test_a_location_is_a_str_to_whatever_takes_one() -> None:
    place = Location("s3://bucket/a")
    assert {place: 1}["s3://bucket/a"] == 1 and f"{place}" == "s3://bucket/a" and type(str(place)) is str
    assert json.loads(json.dumps({place: place})) == {"s3://bucket/a": "s3://bucket/a"}


def test_what_a_listing_names_stays_as_it_is() -> None:
    named = Location("s3://bucket") / "take 1/?token=2://x:y@z/~//"
    for same in (Location(named), pickle.loads(pickle.dumps(named)), copy.deepcopy(named)):
        assert type(same) is Location and same == "s3://bucket/take 1/?token=2://x:y@z/~//"


@pytest.mark.parametrize("given", ["s3://", "memory:///", "s3://key:secret@bucket/a"])
def test_a_url_without_a_store_or_with_credentials_is_refused(given: str) -> None:
    with pytest.raises(PipelineError) as error:
        Location(given)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)
