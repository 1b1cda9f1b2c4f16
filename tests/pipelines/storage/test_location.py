"""pipelines.storage.location: one normal form for local paths and URLs."""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path

import pytest

from pipelines.errors import PipelineError
from pipelines.storage.location import Location, places_in


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


def test_commas_separate_places_but_where_a_place_has_one_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "x,y", "x,y,z", "p,", "q, r"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    cases = {
        "a,b": ["a", "b"],
        "x,y": ["x,y"],
        "a,x,y,b": ["a", "x,y", "b"],
        "x,y,z": ["x,y,z"],
        "p,": ["p,"],
        "q, r,a": ["q, r", "a"],
        "a,,b,": ["a", "b"],
        "new,other": ["new", "other"],
        "s3://b/x,y": ["s3://b/x,y"],
        "s3://b/x,y,s3://b/z,": ["s3://b/x,y", "s3://b/z"],
        "s3://b/x,a": ["s3://b/x", "a"],
        "a,s3://b/x": ["a", "s3://b/x"],
        "": [],
        ",": [],
    }
    for text, names in cases.items():
        expected = [Location(name) for name in names]
        assert places_in(text) == expected, text
        assert places_in(",".join(expected)) == expected, "absolute"
