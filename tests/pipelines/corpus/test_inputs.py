"""pipelines.corpus.inputs: what `input=` may be, on a disk and on S3 alike, and what of it is opened."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from pipelines.corpus import passed as reasons
from pipelines.corpus.inputs import covers, is_manifest, list_input, normal_input
from pipelines.corpus.manifest import manifest_bytes
from pipelines.errors import PipelineError
from pipelines.storage import store
from pipelines.storage.filesystem import BROKEN_LINK, HIDDEN, KNOWN_FOLDER, NO_FILE
from tests.support.plans import scan_frame as scan

FILES = [
    "a.mp4",
    "b.MOV",
    "c.tar",
    "notes.txt",
    "list.csv",
    "x.tar.gz",
    "y.zip",
    "bare",
    ".hidden.mp4",
    ".git/x.mp4",
    ".git/deep/y.mp4",
    "__MACOSX/._a.mp4",
    "__MACOSX/b.mp4",
    "deep/d.mkv",
    "deep/er/e.webm",
    "deep/.cache/f.mp4",
    "deep/raw.dat",
]


@pytest.fixture(scope="module", params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that holds FILES. Tests write beside it."""
    local = request.param == "local"
    place = str(tmp_path_factory.mktemp("inputs") / "v") if local else f"{request.getfixturevalue('bucket')}/v"
    for name in FILES:
        store.publish(b"bytes", f"{place}/{name}")
    return place


def listed(text: str, place: str) -> list[str]:
    return [entry.url.removeprefix(f"{place}/") for entry, _ in list_input(text).found]


def test_a_folder_gives_its_videos_and_tars_and_tells_the_rest(place: str) -> None:
    listing = list_input(place)
    assert [entry.url.removeprefix(f"{place}/") for entry, _ in listing.found] == [
        "a.mp4", "b.MOV", "c.tar", "deep/d.mkv", "deep/er/e.webm",
    ]  # fmt: skip
    assert listing.root == place
    assert dict(listing.passed.counts) == {
        HIDDEN: 5,  # .hidden.mp4, .git, deep/.cache, and what is in __MACOSX
        reasons.ARCHIVE: 2,
        "other files: .txt": 1,
        "other files: .csv": 1,
        "other files: .dat": 1,
        "other files: ": 1,
    }
    assert listing.passed.lines()[1] == "4 other files: 1 without a suffix, 1 .csv, 1 .dat, 1 .txt"


def test_a_hidden_folder_that_is_named_itself_is_read(place: str) -> None:
    assert listed(f"{place}/.git", place) == [".git/deep/y.mp4", ".git/x.mp4"]
    assert listed(f"{place}/.hidden.mp4", place) == [".hidden.mp4"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.mp4", ["a.mp4"]),
        ("*", ["a.mp4", "b.MOV", "c.tar", "deep/d.mkv", "deep/er/e.webm"]),
        ("**", ["a.mp4", "b.MOV", "c.tar", "deep/d.mkv", "deep/er/e.webm"]),
        ("**/*.webm", ["deep/er/e.webm"]),
        ("**/[ad].m*", ["a.mp4", "deep/d.mkv"]),
        ("d?ep", ["deep/d.mkv", "deep/er/e.webm"]),
        ("deep/*.dat", ["deep/raw.dat"]),
        ("*/*/e.webm", ["deep/er/e.webm"]),
    ],
)
def test_a_pattern_names_files_and_folders(place: str, pattern: str, names: list[str]) -> None:
    listing = list_input(f"{place}/{pattern}")
    assert [entry.url.removeprefix(f"{place}/") for entry, _ in listing.found] == names
    assert listing.root == (f"{place}/deep" if pattern.startswith("deep/") else place)


def test_what_exists_by_a_name_with_wild_characters_is_that(tmp_path: Path) -> None:
    for name in ("a[1].mp4", "a1.mp4", "b*/c.mp4", "bb/c.mp4", "what?.txt"):
        store.publish(b"a.mp4" if name.endswith("txt") else b"", str(tmp_path / name))
    (tmp_path / "a.mp4").touch()
    here = str(tmp_path)
    assert listed(f"{here}/a[1].mp4", here) == ["a[1].mp4"] and listed(f"{here}/b*", here) == ["b*/c.mp4"]
    assert listed(f"{here}/what?.txt", here) == ["a.mp4"]


def test_commas_separate_inputs_of_any_kind(place: str) -> None:
    store.publish(b"v/b.MOV\n", f"{place}.txt")
    text = f"{place}/a.mp4, {place}/deep/*.mkv,{place}.txt,,{place}/deep/er"
    assert listed(text, place) == ["a.mp4", "b.MOV", "deep/d.mkv", "deep/er/e.webm"]
    assert list_input(text).root == place.removesuffix("/v") and list_input(f"{place}/deep,{place}/a.mp4").root == place
    overlapping = list_input(f"{place},{place}/a.mp4")
    assert len(list(overlapping.found)) == 5 and overlapping.passed.counts[reasons.REPEATED] == 1


def test_a_name_with_a_comma_is_that_where_it_exists(place: str) -> None:
    place += "-commas"
    for name in ("x,y/1.mp4", "x/2.mp4", "y/3.mp4", "p,q.mp4"):
        store.publish(b"", f"{place}/{name}")
    assert listed(f"{place}/x,y", place) == ["x,y/1.mp4"]
    assert listed(f"{place}/p,q.mp4", place) == ["p,q.mp4"]
    assert listed(f"{place}/x,y,{place}/y,{place}/p,q.mp4", place) == ["p,q.mp4", "x,y/1.mp4", "y/3.mp4"]
    assert normal_input(f"{place}/x,y,{place}/y") == f"{place}/x,y,{place}/y"


def test_an_input_has_one_form_wherever_it_is_named_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path)
    assert normal_input("a/,b/../c") == f"{here}/a,{here}/c" and normal_input("v/**/*.mp4") == f"{here}/v/**/*.mp4"
    assert normal_input("s3://b/v/") == "s3://b/v" and normal_input(f"file://{here}/a") == f"{here}/a"


# -- lists -----------------------------------------------------------------------------------------------------------


def as_list(kind: str, names: list[str], folder: Path) -> bytes:
    """A list of videos in one of the forms in which people have them."""
    table = pd.DataFrame({"caption": [f'"quoted", {n}' for n in range(len(names))], "URL": names})
    if kind == "parquet":
        table.to_parquet(folder / "table")
        return (folder / "table").read_bytes()
    if kind in ("csv", "tsv"):
        return table.to_csv(index=False, sep="," if kind == "csv" else "\t").encode()
    return {
        "txt": "\n".join(names).encode(),
        "txt of Windows": b"\xef\xbb\xbf" + "\r\n".join([*names, ""]).encode(),
        "txt of PowerShell": "\r\n".join(names).encode("utf-16"),
    }[kind]


@pytest.mark.parametrize("kind", ["txt", "txt of Windows", "txt of PowerShell", "csv", "tsv", "parquet"])
def test_a_list_names_videos_relative_to_itself(place: str, tmp_path: Path, kind: str) -> None:
    names = ["../v/a.mp4", "./x/../../v/deep/raw.dat", f"{place}/deep/d.mkv", "../v/c.tar", "ünï da.mp4", "../v/a.mp4"]
    url = f"{place}-lists/videos.{kind.split()[0]}"
    store.publish(as_list(kind, names, tmp_path), url)
    listing = list_input(url)
    assert [(entry.url.removeprefix(f"{place}"), bool(entry.version)) for entry, _ in listing.found] == [
        ("-lists/ünï da.mp4", False),
        ("/a.mp4", True),
        ("/c.tar", True),
        ("/deep/d.mkv", True),
        ("/deep/raw.dat", True),  # whatever its suffix
    ]
    assert listing.passed.counts == {reasons.REPEATED: 1} and listing.root == f"{place}-lists" and not is_manifest(url)


def test_patterns_name_lists_too(place: str) -> None:
    for number, names in enumerate((b"../a.mp4", b"../b.MOV\n../a.mp4")):
        store.publish(names.replace(b"..", b"../v"), f"{place}-more/{number}.txt")
    assert listed(f"{place}-more/*.txt", place) == ["a.mp4", "b.MOV"]


def test_what_a_list_names_and_cannot_be_read_is_a_failed_video(
    tmp_path: Path, video: bytes, opened: list[str]
) -> None:
    (tmp_path / "good").write_bytes(video)
    (tmp_path / "folder").mkdir()
    (tmp_path / "x.tar.gz").write_bytes(b"")
    names = [b"good", b"gone.mp4", b"folder", b"x.tar.gz", b"foo://bar/a.mp4", b"bad\xff.mp4", b"s3:///", b""]
    (tmp_path / "list.txt").write_bytes(b"\n".join(names))
    manifest = scan(str(tmp_path / "list.txt")).set_index("uri")
    assert len(manifest) == 7
    reason = {name.removeprefix(f"{tmp_path}/"): row for name, row in manifest["reason"].items()}
    assert {name: row for name, row in reason.items() if isinstance(row, str)} == {
        "gone.mp4": "missing",
        "folder": "unreadable",
        "x.tar.gz": "unreadable",
        "foo://bar/a.mp4": "unreadable",
        "bad\\xff.mp4": "bad_name",
        "s3:///": "unreadable",
    }
    assert manifest.loc[str(tmp_path / "good"), "status"] == "ok"
    assert "cannot open foo:// URLs" in manifest.loc["foo://bar/a.mp4", "detail"]


class _Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    """An HTTP server of tmp_path."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Silent, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_list_names_videos_of_a_website_and_of_a_bucket(
    tmp_path: Path, video: bytes, opened: list[str], website: str, bucket: str
) -> None:
    (tmp_path / "good.mp4").write_bytes(video)
    (tmp_path / "empty.mp4").write_bytes(b"")
    store.publish(video, f"{bucket}/list/good.mp4")
    store.publish(b"", f"{bucket}/list/empty.mp4")
    names = [f"{place}/{name}.mp4" for place in (website, f"{bucket}/list") for name in ("good", "empty", "gone")]
    (tmp_path / "list.txt").write_text("\n".join(names))
    manifest = scan(str(tmp_path / "list.txt")).set_index("uri").loc[names]
    assert manifest["reason"].fillna("").tolist() == ["", "empty_file", "missing"] * 2
    assert manifest["bytes"].tolist() == [len(video), 0, 0] * 2
    assert all(manifest["version"].iloc[[0, 3]]), "by which a re-scan knows that they are the same"
    opened.clear()
    assert len(scan(str(tmp_path / "list.txt"), manifest.reset_index())) == 6
    assert not [name for name in opened if "good" in name]


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.txt", b"", "lists no video"),
        ("a.txt", b" \n\n", "lists no video"),
        ("a.txt", b"PK\0\0", "not a list of videos: its bytes are no text"),
        ("a.csv", b"", "no column url (it has none)"),
        ("a.csv", b"path,name\na.mp4,b\n", "no column url (it has path, name)"),
        ("a.csv", b"name,url\nb,\n", "lists no video"),
        ("a.csv", b'url\n"' + b"x" * 200_000, "not a list of videos: field larger than field limit"),
        ("a.txt", b"s3://key:secret@bucket/a.mp4\n", "a line of it: s3://...: holds credentials"),
        ("a.txt", b"https://host/a.mp4?X-Amz-Signature=abc\n", "holds credentials"),
        ("a.txt", b"foo://bar/a.mp4\n", "cannot open foo:// URLs"),
        ("a.zip", b"PK", "a compressed archive cannot be read in place"),
        ("none.txt", None, "does not exist"),
        ("none.parquet", None, "does not exist"),
        ("none*.mp4", None, "does not exist; as a pattern it matches nothing either"),
        ("none/**/*.mp4", None, "does not exist; as a pattern it matches nothing either"),
        (",", None, "names nothing"),
    ],
)
def test_what_is_no_input_is_one_line(tmp_path: Path, name: str, data: bytes | None, told: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(PipelineError) as error:
        list(list_input(name if name == "," else str(tmp_path / name)).found)
    assert told in str(error.value) and "\n" not in str(error.value) and "secret" not in str(error.value)


def test_a_table_without_urls_says_what_it_has(tmp_path: Path) -> None:
    pd.DataFrame({"path": ["a.mp4"], "n": [1]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(
        PipelineError, match=r"neither a manifest nor a list of videos: no column url \(it has path, n\)"
    ):
        list(list_input(str(tmp_path / "t.parquet")).found)


def test_a_manifest_is_told_from_a_list(tmp_path: Path, video: bytes, opened: list[str]) -> None:
    (tmp_path / "a.mp4").write_bytes(video)
    (tmp_path / "m.parquet").write_bytes(manifest_bytes(scan(str(tmp_path))))
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    pd.DataFrame({"url": ["a.mp4"]}).to_parquet(tmp_path / "l.parquet")
    (tmp_path / "d.parquet").mkdir()
    found = {name: is_manifest(str(tmp_path / f"{name}.parquet")) for name in ("m", "cut", "l", "d", "none")}
    assert found == {"m": True, "cut": True, "l": False, "d": False, "none": False}


# -- what a disk has beside files ------------------------------------------------------------------------------------


def test_links_and_pipes_of_a_folder_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.mp4").symlink_to("a.mp4")
    (tmp_path / "c.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "again").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "d.mp4")
    listing = list_input(str(tmp_path))
    assert [entry.url[-5:] for entry, _ in listing.found] == ["a.mp4", "b.mp4"]
    assert dict(listing.passed.counts) == {BROKEN_LINK: 1, KNOWN_FOLDER: 1, NO_FILE: 1}


def test_an_input_with_nothing_to_open_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / ".b.mp4").touch()
    with pytest.raises(
        PipelineError, match=r"no videos among its 2 files \(1 hidden names .*; 1 other files: 1 .txt\)"
    ):
        list(list_input(str(tmp_path)).found)


@pytest.mark.parametrize(
    ("text", "output", "inside"),
    [
        ("/v", "/v/gaze", True),
        ("/v", "/video/gaze", False),
        ("/v/**", "/v/gaze", True),
        ("/v/*", "/v/gaze", True),
        ("/v/**/*.mp4", "/v/gaze", False),
        ("/v/*.mp4", "/v/gaze", False),
        ("/x,/v", "/v/gaze", True),
    ],
)
def test_an_output_inside_the_input_is_known(text: str, output: str, inside: bool) -> None:
    assert covers(text, f"{output}/shards/000000.tar") == inside
