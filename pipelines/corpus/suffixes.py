"""What a file's name says: a video, a tar of videos, an archive that cannot be read in place, or a list of videos."""

from __future__ import annotations

import os

from pipelines.storage.filesystem import hidden_part

# What PyAV's libav opens, and cameras, recorders and downloads write.
VIDEO_SUFFIXES = frozenset([
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avc", ".avi", ".dif", ".divx", ".dv", ".dvr-ms", ".evo", ".f4v",
    ".flv", ".gif", ".h263", ".h264", ".h265", ".hevc", ".insv", ".ismv", ".ivf", ".lrv", ".m1v", ".m2p",
    ".m2t", ".m2ts", ".m2v", ".m4v", ".mj2", ".mjpeg", ".mjpg", ".mk3d", ".mkv", ".mov", ".mp4", ".mp4v",
    ".mpe", ".mpeg", ".mpg", ".mpg4", ".mpv", ".mts", ".mxf", ".nut", ".obu", ".ogg", ".ogm", ".ogv", ".qt",
    ".rm", ".rmvb", ".tod", ".trp", ".ts", ".vob", ".vro", ".webm", ".wm", ".wmv", ".wtv", ".xvid", ".y4m",
])  # fmt: skip
TAR_SUFFIX = ".tar"
LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".parquet")
# Their members have no byte range that could be read by itself. Names such as x.tar.gz end with these too.
_ARCHIVE_SUFFIXES = frozenset([
    ".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz", ".zst", ".tzst", ".lz4", ".zip", ".7z", ".rar",
])  # fmt: skip
_ARCHIVE_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
}


def suffix_of(name: str) -> str:
    """A file's suffix with its dot, in lower case; '' where it has none."""
    return os.path.splitext(name)[1].lower()


def is_video(name: str) -> bool:
    """Whether a file's name is one that a scan opens as a video."""
    return suffix_of(name) in VIDEO_SUFFIXES


def is_tar(name: str) -> bool:
    """Whether a file's name is one that a scan opens as a tar of videos."""
    return suffix_of(name) == TAR_SUFFIX


def is_archive(name: str) -> bool:
    """Whether a file's name is that of a compressed archive, whose videos cannot be read in place."""
    return suffix_of(name) in _ARCHIVE_SUFFIXES


def is_list(name: str) -> bool:
    """Whether a file's name is that of a list of videos, where it is given as an input itself."""
    return suffix_of(name) in LIST_SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a path in a folder or a tar is hidden: a part of it begins with a dot, or is a Mac archive's __MACOSX.

    The .mp4 files in that one hold what macOS knows of a file (AppleDouble), and no video.
    """
    return bool(hidden_part(name)) or "__MACOSX" in name.split("/")


def compression_of(head: bytes) -> str:
    """What compressed a file, told by its first bytes; '' for anything else."""
    return next((kind for magic, kind in _ARCHIVE_MAGIC.items() if head.startswith(magic)), "")
