"""What `input=` names: folders, objects, patterns and lists of videos; and the objects there that a scan opens.

    input=/data/videos                  a folder, or everything under a URL
    input=clip.mp4  input=videos.tar    one object, whatever its name
    input=videos/**/*.mp4               a pattern: *, ?, [...] and **, as a shell takes them; also on s3://
    input=list.txt                      a list of videos (pipelines.corpus.lists)
    input=a,b,s3://bucket/c             several of these

What exists by the very name that was given is that, whatever characters it has.
"""

from __future__ import annotations

import glob
import heapq
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.corpus.lists import beside, read_list
from pipelines.corpus.manifest import manifest_files
from pipelines.corpus.passed import REPEATED, PassedOver
from pipelines.corpus.suffixes import (
    LIST_SUFFIXES,
    TAR_SUFFIX,
    VIDEO_SUFFIXES,
    is_archive,
    is_hidden,
    is_list,
    is_tar,
    is_video,
    suffix_of,
)
from pipelines.errors import PipelineError
from pipelines.storage import retry, store
from pipelines.storage.credentials import refuse_credentials
from pipelines.storage.filesystem import HIDDEN
from pipelines.storage.location import Entry, Location, escaped, scheme_of

_AT_ONCE = 32  # objects of a list that are looked up at the same time ...
_LOOKED_UP = 4096  # ... and of which the answers wait
_WILD = re.compile(r"[*?[]")


class Part(NamedTuple):
    """One part of an input: a folder, prefix or object by its URL, a pattern, or the URL of a list."""

    kind: Literal["place", "pattern", "list"]
    url: Location

    @property
    def root(self) -> str:
        """The folder that it is about."""
        if self.kind == "list":
            return self.url.parent
        return _before_wild(self.url) if self.kind == "pattern" else self.url


class Found(NamedTuple):
    """A video or tar of an input. problem: why it cannot be asked for; it is a failed video then."""

    entry: Entry
    problem: str = ""


@dataclass
class Listing:
    """What a scan of an input opens.

    Attributes:
        root: what names of videos are relative to.
        found: videos and tars, sorted by URL, each once: as they are listed, so they can be taken once. One that a list
            names and that is not there has no version. Taking the last raises what `list_input` says.
        passed: what is not opened, of what was taken.
    """

    root: str
    found: Iterator[Found]
    passed: PassedOver = field(default_factory=PassedOver)


def words_of(text: str) -> list[Location]:
    """The parts of an input as absolute paths and URLs. Commas separate them, unless something exists by their name.

    Raises PipelineError for a URL that holds credentials or names nothing.
    """
    words, found = text.split(","), list[Location]()
    while words:
        # As many as make a name that exists; at least one.
        count = next((n for n in range(len(words), 1, -1) if _exists(",".join(words[:n]))), 1)
        if word := ",".join(words[:count]).strip():
            found.append(Location(word))
        words = words[count:]
    if not found:
        raise PipelineError(f"input={text}: names nothing")
    return found


def split_input(text: str) -> list[Part]:
    """The parts of an input, and what each is. Raises PipelineError as words_of does, and StoreError."""
    return [_part(word) for word in words_of(text)]


def require_there(text: str) -> None:
    """Raise PipelineError for a local part of an input that is not there: at once, without listing anything."""
    for part in split_input(text):
        if part.kind == "place" and part.url.is_local and not store.exists(part.url):
            raise PipelineError(f"input={part.url}: does not exist")


def _part(url: Location) -> Part:
    if _is_pattern(url) and not _exists(url):
        return Part("pattern", url)
    return Part("list" if is_list(url) and store.entry(url) is not None else "place", url)


def _is_pattern(name: str) -> bool:
    return scheme_of(name) not in ("http", "https") and bool(_WILD.search(name))


def _exists(name: str) -> bool:
    url = Location(name.strip())
    if url.is_local:
        return store.exists(url)
    try:
        return next(store.list_objects(url), None) is not None
    except retry.StoreError:  # whoever lists it says so; submitting a job needs no access to its input
        return False


def normal_input(text: str) -> str:
    """An input in one form, whatever folder it is named from: each part absolute."""
    return ",".join(words_of(text))


def covers(text: str, url: str) -> bool:
    """Whether an object that appears at `url` would belong to an input."""
    words = words_of(text)
    return any(url.startswith(f"{word}/") or (_is_pattern(word) and _named_by(word)(url)) for word in words)


def is_manifest(text: str) -> bool:
    """Whether an input is a manifest of `autogaze scan`, or a damaged one; else it is a list of videos, or no table."""
    if suffix_of(text) != ".parquet" or _is_pattern(text) or not (files := manifest_files(text)):
        return False
    try:
        with store.open_read(files[0]) as file:
            return "fingerprint" in pq.ParquetFile(file).schema_arrow.names
    except (pa.ArrowException, OSError, ValueError):
        return True  # reading it says what is wrong


def list_input(text: str) -> Listing:
    """The objects of an input that a scan opens.

    Raises PipelineError, here or from `found`: nothing there, nothing that looks like a video, a list that cannot be
    read, a store that lists its objects in no order. StoreError.
    """
    parts, passed = split_input(text), PassedOver()
    streams = [stream for part in parts for stream in _streams(part, passed)]
    root = common_folder([part.root for part in parts]) if len(parts) > 1 else parts[0].root
    return Listing(root, _each_once(text, streams, passed), passed)


def _each_once(text: str, streams: list[Iterator[Found]], passed: PassedOver) -> Iterator[Found]:
    """All that some streams hold, in order."""
    last, key = "", ""
    for found in heapq.merge(*streams, key=lambda each: escaped(each.entry.url)):
        key = escaped(found.entry.url)
        if key == last:
            passed.add(REPEATED, found.entry.url)
            continue
        if key < last:
            raise PipelineError(
                f"input={text}: its store lists {key} after {last}, in no order; give a list of videos instead"
            )
        last = key
        yield found
    if not key:
        told = "; ".join(passed.lines()) or "it is empty"
        raise PipelineError(
            f"input={text}: no videos among its {passed.total} files ({told}); looked for {TAR_SUFFIX} and "
            + " ".join(sorted(VIDEO_SUFFIXES))
        )


def _streams(part: Part, passed: PassedOver) -> list[Iterator[Found]]:
    if part.kind == "list":
        return [_of_list(part.url, passed)]
    if part.kind == "place":
        return [_of_place(part.url, passed)]
    lists = (
        []
        if suffix_of(part.url) not in LIST_SUFFIXES
        else [
            _of_list(entry.url, passed)
            for entry in _matches(part.url, PassedOver())
            if _is_named_list(part.url, entry.url)
        ]
    )
    return [_of_pattern(part.url, passed), *lists]


def _of_place(url: Location, passed: PassedOver) -> Iterator[Found]:
    """The videos and tars of a folder or prefix; an object by its own name, whatever that is."""
    there = False
    for entry in store.list_objects(url, lambda hidden, why: passed.add(why, hidden)):
        there = True
        if entry.url == url:
            if is_archive(url):
                raise PipelineError(
                    f"input={url}: a compressed archive cannot be read in place; unpack it, or make it a plain .tar"
                )
            yield Found(entry)
        elif is_hidden(entry.url.removeprefix(url)):
            passed.add(HIDDEN, entry.url)
        elif is_video(entry.url) or is_tar(entry.url):
            yield Found(entry)
        else:
            passed.add_file(entry.url, entry.url)
    if not there and not store.exists(url):
        raise PipelineError(f"input={url}: does not exist")


def _of_pattern(pattern: Location, passed: PassedOver) -> Iterator[Found]:
    """The files that a pattern names, and the videos and tars of the folders that it names.

    A pattern that ends in a suffix means the files of that suffix, whatever it is; lists are streams of their own.
    """
    own, there = PassedOver(), False
    for entry in _matches(pattern, own):
        there, name = True, entry.url.removeprefix(_before_wild(pattern))
        if is_hidden(name):
            own.add(HIDDEN, entry.url)
        elif _is_named_list(pattern, entry.url):
            continue
        elif is_video(name) or is_tar(name) or (_by_suffix(pattern, name) and not is_archive(name)):
            yield Found(entry)
        else:
            own.add_file(name, entry.url)
    if not there and not own.total:
        raise PipelineError(f"input={pattern}: does not exist; as a pattern it matches nothing either")
    passed.merge(own)


def _by_suffix(pattern: str, name: str) -> bool:
    """Whether a pattern means a file by its suffix."""
    suffix = suffix_of(pattern)
    return bool(suffix) and not _WILD.search(suffix) and suffix_of(name) == suffix


def _is_named_list(pattern: str, url: str) -> bool:
    """Whether a pattern names an object as a list of videos."""
    name = url.removeprefix(_before_wild(pattern))
    return not is_hidden(name) and _by_suffix(pattern, name) and is_list(name)


def _matches(pattern: Location, passed: PassedOver) -> Iterator[Entry]:
    """The objects that a pattern names, and those of folders that it names, sorted."""
    if pattern.is_local and "**" not in pattern:
        # Not a walk through all of the folder: /data/*.mp4 has nothing to do with what else is in /data.
        for name in sorted(glob.glob(pattern), key=lambda name: escaped(name) + ("/" if os.path.isdir(name) else "")):
            yield from store.list_objects(name, lambda url, why: passed.add(why, url))
        return
    named = _named_by(pattern)

    def omit(url: str, why: str) -> None:
        if named(url):
            passed.add(why, url)

    yield from (entry for entry in store.list_objects(_before_wild(pattern), omit) if named(entry.url))


def _named_by(pattern: str) -> Callable[[str], bool]:
    """Whether a pattern names an object, or a folder that it is in, by its URL."""
    from fsspec.utils import glob_translate  # here, not above: most processes never need fsspec

    match = re.compile(glob_translate(pattern)).match
    folder = _before_wild(pattern)

    def named(url: str) -> bool:
        ends = [place for place, letter in enumerate(url) if letter == "/" and place > len(folder)]
        return any(match(url[:end]) for end in [*ends, len(url)])

    return named


def _before_wild(pattern: str) -> str:
    """The folder before the first part of a pattern that is not plain text."""
    return _WILD.split(pattern, maxsplit=1)[0].rpartition("/")[0] or "/"


def _of_list(url: Location, passed: PassedOver) -> Iterator[Found]:
    """The objects that a list names, sorted: also those that are not there, which are failed videos."""
    wanted: dict[Location, str] = {}  # with what is wrong with the name itself
    first_problem: Exception | None = None
    usable = False
    for name in read_list(url):
        try:
            refuse_credentials(name)
        except PipelineError as error:  # no row: it would hold them
            raise PipelineError(f"input={url}: a line of it: {error}") from None
        try:
            place, problem = Location(beside(url, name)), ""
        except PipelineError as error:
            place, problem = Location.as_is(name), " ".join(str(error).split())
            first_problem = first_problem or error
        if place in wanted:
            passed.add(REPEATED, place)
        wanted[place] = problem

    def look(place: Location) -> Entry | Exception:
        try:
            return store.entry(place) or Entry(place, 0, "")
        except retry.TransientStoreError:
            raise
        except retry.StoreError as error:
            return error

    places = sorted(wanted, key=escaped)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for begin in range(0, len(places), _LOOKED_UP):
            part = places[begin : begin + _LOOKED_UP]
            looked = pool.map(lambda place: Entry(place, 0, "") if wanted[place] else look(place), part)
            for place, entry in zip(part, looked, strict=True):
                if isinstance(entry, Exception):
                    first_problem = first_problem or entry
                    yield Found(Entry(place, 0, ""), " ".join(str(entry).split()))
                else:
                    usable = usable or not wanted[place]
                    yield Found(entry, wanted[place])
    if not usable and first_problem is not None:  # no credentials, a bucket that does not exist
        raise first_problem


def common_folder(urls: list[str]) -> str:
    """The deepest folder that holds all URLs, or is one of them."""
    first, *others = [url.split("/") for url in urls]
    for other in others:
        length = next((i for i, (a, b) in enumerate(zip(first, other, strict=False)) if a != b), len(first))
        first = first[: min(length, len(other))]
    return "/".join(first)
