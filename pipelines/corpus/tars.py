"""Where the members of a tar lie, so that a video in it is read in place by its byte range."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, Any

from pipelines.storage import store

_LONGEST_HEADER = 1 << 20  # bytes of the longest name, or set of extended attributes, of a member


def tar_members(url: str) -> Iterator[tuple[str, int | None, int]]:
    """(name, first byte, size) of each regular file of a tar, without reading the files' bytes.

    The first byte is None where a file is stored sparse: without its holes, so that its bytes are not one range.
    Names are labels only: nothing is unpacked, so a member called ../../x does no harm.
    Raises EOFError when a member reaches past the end of the object, tarfile.TarError when it is no tar.
    """
    total = store.size(url)
    with store.open_read(url) as raw:
        headers: Any = _Headers(raw)  # all that tarfile uses of a file
        try:
            with tarfile.open(fileobj=headers, mode="r:", errors="backslashreplace") as archive:
                while (member := archive.next()) is not None:
                    # tarfile keeps every header it has seen; a tar of a million members must not cost gigabytes.
                    archive.members = []  # type: ignore[attr-defined]
                    if member.size < 0:
                        raise tarfile.ReadError(f"a member of {member.size} bytes")
                    if not member.isreg():
                        continue
                    if member.issparse():
                        yield member.name, None, member.size
                        continue
                    if member.offset_data + member.size > total:
                        raise EOFError(member.name)
                    yield member.name, member.offset_data, member.size
        except (ValueError, OverflowError) as error:  # numbers that no file has
            raise tarfile.ReadError(str(error)) from error


class _Headers:
    """The file that tarfile reads. It limits each read: a hostile header asks for more bytes than fit in memory."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.raw, self.seek, self.tell = raw, raw.seek, raw.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.raw.read(size)
