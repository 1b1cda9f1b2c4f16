"""Names of videos and of clips: readable, unique, and the same wherever a store lies."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

_SLUG, _HASH = 40, 16  # letters of a video's file name in its name here, and hexadecimal digits of the hash

_NAMED = re.compile(rf"-([0-9a-f]{{{_HASH}}})(?:-(\d+))?$")


def video_name(uri: str, root: str, fingerprint: str) -> str:
    """A readable, stable name of a video: its file name made safe, and a hash of its path in the store and its bytes.

    The path is relative to `root`, so that moving a store from disk to S3 keeps every clip's name. The bytes tell apart
    two videos of one name in two stores, whose datasets may be trained on together. 64 bits of hash: among ten million
    videos that share a file name, two have the same name with a probability of 3 in a million.

    fingerprint: of the video's bytes (`video_fingerprint`); "" where they could not be read.
    """
    below = uri.startswith((f"{root.rstrip('/')}/", f"{root}#"))
    relative = uri[len(root) :].removeprefix("/") if below else uri.rsplit("/", 1)[-1] if uri == root else uri
    stem = re.split(r"[/#]", relative)[-1]
    stem = stem.rsplit(".", 1)[0] or stem
    slug = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_")[:_SLUG] or "video"
    hashed = relative.encode("utf-8", "surrogateescape") + b"\0" + fingerprint.encode()
    return f"{slug}-{hashlib.sha256(hashed).hexdigest()[:_HASH]}"


class VideoNames:
    """Gives the videos of a plan names that are all different, some videos after others.

    Where a hash comes up again, the first video keeps its name and the others get a number: `...-2`, `...-3`. Eight
    bytes are kept of each video.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._seen: list[np.ndarray] = []  # sorted, each more than twice as long as the next: few to search, few merges
        self._times: Counter[int] = Counter()

    def know(self, names: Iterable[str]) -> None:
        """Take in names that an earlier plan of the same videos' dataset gave: none of them is given again."""
        found = [match for name in names if (match := _NAMED.search(name)) is not None]
        for match in found:
            if match[2]:
                key = int(match[1], 16)
                self._times[key] = max(self._times[key], int(match[2]) - 1)
        self._keep(np.unique(np.array([int(match[1], 16) for match in found], np.uint64)))

    def of(self, uris: Iterable[str], fingerprints: Iterable[str]) -> list[str]:
        """The names of the next videos."""
        names = [video_name(uri, self._root, mark) for uri, mark in zip(uris, fingerprints, strict=True)]
        keys = np.array([int(name.rpartition("-")[2], 16) for name in names], np.uint64)
        repeated = self._before(keys)
        first = np.zeros(len(keys), bool)
        first[np.unique(keys, return_index=True)[1]] = True
        for place in np.flatnonzero(repeated | ~first).tolist():
            key = int(keys[place])
            self._times[key] += 1
            names[place] += f"-{self._times[key] + 1}"
        self._keep(np.unique(keys))
        return names

    def _before(self, keys: np.ndarray) -> np.ndarray:
        """Which keys earlier calls had."""
        found = np.zeros(len(keys), bool)
        for run in self._seen:
            places = np.minimum(np.searchsorted(run, keys), len(run) - 1)
            found |= run[places] == keys
        return found

    def _keep(self, keys: np.ndarray) -> None:
        if len(keys):
            self._seen.append(keys)
        while len(self._seen) > 1 and len(self._seen[-2]) <= 2 * len(self._seen[-1]):
            self._seen[-2:] = [np.unique(np.concatenate(self._seen[-2:]))]


def clip_suffix(start: int, stride: int, tile: str) -> str:
    """What a clip's name adds to its video's."""
    return f"-{start:06d}" + (f"-s{stride}" if stride != 1 else "") + (f"-{tile}" if tile else "")


def video_of_clip(clip: str, start: int, stride: int, tile: str) -> str:
    """The name of the video (`video_name`) that a clip is cut from, given the rest of the clip's name."""
    return clip.removesuffix(clip_suffix(start, stride, tile))
