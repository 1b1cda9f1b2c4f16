"""Where things are: one normal form for local paths and URLs, and what a store says of an object."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from pipelines.errors import PipelineError
from pipelines.storage.credentials import refuse_credentials

TEMPORARY_PREFIX = ".tmp-"  # of a file that is still being written; hidden, so that no listing shows it
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


def escaped(url: str) -> str:
    """A URL as tables hold it, and as listings are ordered: bytes of a local name that are not UTF-8 become \\x.."""
    return url.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Location(str):
    """A folder or an object in a store: an absolute local path, or a URL without a trailing slash.

    `Location(text)` reads what a user wrote: file:// is removed, ~ expanded, a relative path made absolute. A Location
    comes back as it is, so a function that takes either calls this. `location / "name"` is an object or folder in it.
    Being a str, it compares, hashes, prints and pickles as one. (YAML's safe_dump knows plain str only: str(location).)

    Raises PipelineError for a URL that holds credentials, or names nothing after its scheme.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Location:
        if isinstance(text, Location):
            return text
        if scheme_of(text) == "file":
            path = re.sub(r"^file://", "", text, flags=re.IGNORECASE)
            return cls.as_is(os.path.abspath(os.path.expanduser(path)))
        refuse_credentials(text)
        if text.rstrip("/").endswith(":"):
            raise PipelineError(f"{text}: names no store; say which, as in s3://bucket/folder")
        return cls.as_is(text.rstrip("/"))

    @classmethod
    def as_is(cls, text: str) -> Location:
        """Text that has the form already, from a listing, a manifest or a plan: nothing is changed or refused."""
        return text if isinstance(text, Location) else super().__new__(cls, text)

    def __reduce__(self) -> tuple[object, ...]:
        return Location.as_is, (str(self),)

    def __truediv__(self, name: str) -> Location:
        return Location.as_is(f"{self.rstrip('/')}/{name}")

    @property
    def scheme(self) -> str:
        """'file' for a local path, else the URL's scheme in lower case."""
        return scheme_of(self)

    @property
    def is_local(self) -> bool:
        return self.scheme == "file"

    @property
    def name(self) -> str:
        """What follows the last slash."""
        return self.rpartition("/")[2]

    @property
    def parent(self) -> Location:
        """The folder it is in; of a bucket, the bucket itself."""
        if self.is_local:
            return Location.as_is(os.path.dirname(self))
        parent = self.rpartition("/")[0]
        return self if parent.endswith(":/") else Location.as_is(parent)


@dataclass(frozen=True)
class Entry:
    """One object of a store, as listed.

    url: where it is.
    bytes: its size.
    version: changes when its bytes do: its ETag, or the time of its last change and its size. "" where the store has
        neither.
    modified: when its bytes last changed, in seconds since 1970. None where the store does not say.
    """

    url: Location
    bytes: int
    version: str
    modified: float | None = None


def places_in(text: str) -> list[Location]:
    """The places that a text names, separated by commas; one that is there and has a comma in its name is one place.

    What follows the comma of a URL is a part of its name, unless it is a URL or a local path that is there.
    """
    words, places = ([text] if _is_there(text) else text.split(",")), list[str]()
    while words:
        runs = (number for number in range(1, len(words) + 1) if _is_there(",".join(words[:number])))
        number = next(runs, 1) if is_local(words[0]) else 1
        word, words = ",".join(words[:number]), words[number:]
        if word and places and not is_local(places[-1]) and is_local(word) and not _is_there(word):
            places[-1] += f",{word}"
        elif word:
            places.append(word)
    return [Location(place) for place in places]


def _is_there(text: str) -> bool:
    return bool(text) and is_local(text) and os.path.exists(Location(text))


def scheme_of(text: str) -> str:
    """'file' for a local path, else the URL's scheme in lower case."""
    match = _SCHEME.match(text)
    return match.group(1).lower() if match else "file"


def is_local(text: str) -> bool:
    return scheme_of(text) == "file"
