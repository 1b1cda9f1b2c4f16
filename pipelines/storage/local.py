"""Local folders as a store: listing, and writes that are synced and renamed."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from pipelines.storage.retry import retrying
from pipelines.storage.urls import TEMPORARY_PREFIX, Entry


def list_folder(url: str) -> Iterator[Entry]:
    found: list[Entry] = []
    seen: set[tuple[int, int]] = set()
    waiting = [url]
    while waiting:
        path = waiting.pop()
        about = retrying(partial(_stat, path), path)
        if about is None:
            continue
        if stat.S_ISREG(about.st_mode):
            found.append(Entry(path, about.st_size, str(about.st_mtime_ns)))
        elif stat.S_ISDIR(about.st_mode) and (about.st_dev, about.st_ino) not in seen:
            seen.add((about.st_dev, about.st_ino))
            with suppress(FileNotFoundError):
                names = retrying(partial(os.listdir, path), path)
                waiting += [os.path.join(path, name) for name in sorted(names, reverse=True) if name[0] != "."]
    yield from sorted(found, key=lambda entry: entry.url)


def _stat(path: str) -> os.stat_result | None:
    """None where nothing is: removed meanwhile, or a link that leads nowhere."""
    try:
        return os.stat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def publish_file(data: bytes, path: Path) -> None:
    # A run that starts beside this one clears temporaries it finds, ours included: then write it once more.
    for attempt in range(3):
        temporary = path.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
            return
        except FileNotFoundError:
            if attempt == 2:
                raise
        finally:
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
