"""The URLs of stores and their objects."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from pipelines.storage.credentials import refuse_credentials

TEMPORARY_PREFIX = ".tmp-"


_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


@dataclass(frozen=True)
class Entry:
    """One object of a store: its URL, size in bytes, and `version`, which changes when its bytes do (ETag or mtime).

    A version of "" is that of a store which tells none.
    """

    url: str
    bytes: int
    version: str


def scheme(url: str) -> str:
    """'file' for local paths, else the URL's scheme in lower case."""
    match = _SCHEME.match(url)
    return match.group(1).lower() if match else "file"


def normalise(url: str) -> str:
    """Absolute local path (file:// removed, ~ expanded), or the URL without a trailing slash.

    Raises PipelineError for a URL that holds credentials.
    """
    if scheme(url) != "file":
        refuse_credentials(url)
        return url.rstrip("/")
    return os.path.abspath(os.path.expanduser(re.sub(r"^file://", "", url, flags=re.IGNORECASE)))


def is_local(url: str) -> bool:
    return scheme(url) == "file"


def is_s3(url: str) -> bool:
    return scheme(url) in ("s3", "s3a")


def join(url: str, *names: str) -> str:
    return "/".join([url.rstrip("/"), *names])
