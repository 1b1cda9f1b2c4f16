"""Where the videos of a tar lie, so that each is read in place by its byte range."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from pipelines.corpus.passed import PassedOver
from pipelines.corpus.suffixes import compression_of, is_hidden, is_video
from pipelines.storage import store
from pipelines.storage.filesystem import HIDDEN

_BLOCK = tarfile.BLOCKSIZE
_LONGEST_HEADER = 1 << 20  # bytes of the longest name, or set of extended attributes, of a member
_LONGEST_END = 16 << 20  # bytes of zeros after an end mark that are read in search of another archive
AFTER_END = "tars with something after their end mark that is no tar"
OLDER = "members of a tar that a later one of the same name replaces"
LINK = "links in a tar to what is no video in it"
DEVICE = "devices and pipes in a tar"


class Member(NamedTuple):
    """An entry of a tar other than a folder.

    offset: first byte of a regular file; None where it is stored sparse: without its holes, so that its bytes are not
        one range. For a link, None.
    target: name of the member that a link leads to, as it is written; '' for what is no link. `hard` where it is one.
    """

    name: str
    offset: int | None
    size: int
    target: str = ""
    hard: bool = False
    regular: bool = True


class TarVideos(NamedTuple):
    """The videos of a tar: first byte (None: stored sparse) and size of each by name, and what was passed over.

    problem: what is wrong with the tar, in a reason and a detail; None for a sound one.
    """

    videos: dict[str, tuple[int | None, int]]
    passed: PassedOver
    problem: tuple[str, str] | None = None


def tar_videos(url: str) -> TarVideos:
    """Find the videos of a tar. Links to a video of the tar count as it, under their own name, as on a disk.

    Raises FileNotFoundError, StoreError.
    """
    videos: dict[str, tuple[int | None, int]] = {}
    links: list[Member] = []
    passed, problem = PassedOver(), None
    try:
        for member in tar_members(url, passed):
            example = f"{url}#{member.name}"
            if is_hidden(member.name):
                passed.add(HIDDEN, example)
            elif member.target:
                links.append(member)
            elif not member.regular:
                passed.add(DEVICE, example)
            elif not is_video(member.name):
                passed.add_file(member.name, example)
            else:
                if member.name in videos:  # of two of one name the later one, as when tar unpacks them
                    passed.add(OLDER, example)
                videos[member.name] = member.offset, member.size
    except tarfile.TarError as error:
        problem = "unreadable", f"not a plain tar: {error}"
    except EOFError:
        problem = "truncated", "the tar ends inside a member"
    _add_links(url, videos, links, passed)
    if problem is None and not videos:
        problem = "unreadable", "no videos in this tar"
    return TarVideos(videos, passed, problem)


def _add_links(url: str, videos: dict[str, tuple[int | None, int]], links: list[Member], passed: PassedOver) -> None:
    """Give links that lead to a video of the tar its place, links to links too; the others are passed over."""
    places = {_plain(name): place for name, place in videos.items()}
    resolved = True
    while links and resolved:
        waiting = []
        for link in links:
            place = places.get(_target(link)) if is_video(link.name) else None
            if place is None:
                waiting.append(link)
            elif link.name in videos:
                passed.add(OLDER, f"{url}#{link.name}")
            else:
                videos[link.name] = places[_plain(link.name)] = place
        links, resolved = waiting, len(waiting) < len(links)
    for link in links:
        passed.add(LINK, f"{url}#{link.name}")


def _target(link: Member) -> str:
    """The member that a link leads to: a hard link names it, a symbolic link leads there from its own folder."""
    return _plain(link.target if link.hard else posixpath.join(posixpath.dirname(_plain(link.name)), link.target))


def _plain(name: str) -> str:
    """A member's name without ./ and the like, for comparisons."""
    return posixpath.normpath(name)


def tar_members(url: str, passed: PassedOver | None = None) -> Iterator[Member]:
    """Each entry of a tar that is no folder, without reading the files' bytes; also of tars that were joined (`cat`).

    Names are labels only: nothing is unpacked, so a member called ../../x does no harm.
    passed: told if something that is no tar stands after an end mark.
    Raises EOFError when a member reaches past the end of the object, tarfile.TarError when it is no tar, or damaged.
    """
    total = store.size(url)
    with store.open_read(url) as raw:
        headers: Any = _Headers(raw)  # all that tarfile uses of a file
        begin: int | None = 0
        while begin is not None:
            raw.seek(begin)
            try:
                with tarfile.open(fileobj=headers, mode="r:", errors="backslashreplace") as archive:
                    while (member := archive.next()) is not None:
                        # tarfile keeps every header it has seen; a tar of a million members must not cost gigabytes.
                        archive.members = []  # type: ignore[attr-defined]
                        if member.size < 0:
                            raise tarfile.ReadError(f"a member of {member.size} bytes")
                        if member.isdir():
                            continue
                        if member.isreg() and not member.issparse() and member.offset_data + member.size > total:
                            raise EOFError(member.name)
                        yield _member(member)
                    end = archive.offset
            except (ValueError, OverflowError) as error:  # numbers that no file has
                raise tarfile.ReadError(str(error)) from error
            except tarfile.ReadError as error:
                raw.seek(0)
                if kind := compression_of(raw.read(8)):
                    raise tarfile.ReadError(f"compressed with {kind}; decompress it") from error
                raise
            begin = _next_archive(url, raw, end, passed)


def _member(member: tarfile.TarInfo) -> Member:
    if member.islnk() or member.issym():
        return Member(member.name, None, 0, member.linkname, member.islnk())
    if not member.isreg():
        return Member(member.name, None, 0, regular=False)
    return Member(member.name, None if member.issparse() else member.offset_data, member.size)


def _next_archive(url: str, raw: IO[bytes], end: int, passed: PassedOver | None) -> int | None:
    """Where another archive begins after the one that ended at byte `end`; None where the file ends.

    tarfile stops at anything that is no header. Only zeros, or the end of the file, are an end.
    Raises tarfile.ReadError for a damaged header.
    """
    raw.seek(end)
    block = raw.read(_BLOCK)
    if any(block):
        raise tarfile.ReadError(f"damaged at byte {end}; what follows is not read")
    at = end
    while len(block) == _BLOCK and not any(block) and at < end + _LONGEST_END:
        at += _BLOCK
        block = raw.read(_BLOCK)
    if not block:
        return None
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except tarfile.HeaderError:
        if passed is not None and (any(block) or len(block) == _BLOCK):  # else a last, short block of zeros
            passed.add(AFTER_END, url)
        return None
    return at


class _Headers:
    """The file that tarfile reads. It limits each read: a hostile header asks for more bytes than fit in memory."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.raw, self.seek, self.tell = raw, raw.seek, raw.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.raw.read(size)
