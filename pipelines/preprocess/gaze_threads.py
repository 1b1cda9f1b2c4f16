"""Gaze in threads of an actor: each gazes at a group of neighbouring clips of a shard, with networks of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from autogaze.gaze import Gaze
from pipelines.dataset.frames import decode_frames_into, jpeg_members
from pipelines.gazing import gazers
from pipelines.gazing.gazers import Gazer, ResolvedGaze
from pipelines.preprocess.rows import DecodedClip
from pipelines.preprocess.streams import OwnThreads, clip_array, grouped

R = TypeVar("R")


def one_thread() -> None:
    """Let torch work in one thread in each of ours: clips side by side gain more than one clip in several threads."""
    torch.set_num_threads(1)


class GazeThreads:
    """A gaze, ready in `count` threads on a device: cpu, cuda or mps. Raises PipelineError as `gazers.start` does.

    storage: how frames are stored. A verified gaze is measured on what a reader of the shard sees.
    """

    def __init__(self, gaze: ResolvedGaze, device: str, count: int, storage: str) -> None:
        one_thread()
        self._threads = OwnThreads(lambda: gazers.start(gaze, device), count, one_thread)
        self.gazer = self._threads.first
        self._stored = self.gazer.settings.verify and storage == "jpeg"

    def close(self) -> None:
        self._threads.close()

    def gazed(
        self, clips: Iterable[DecodedClip], finish: Callable[[list[DecodedClip], list[Gaze], Gazer], R]
    ) -> Iterator[tuple[R, float]]:
        """Gaze at clips, in groups as large as the bytes of a gaze depend on.

        finish: called in the same thread with a group, the gaze of each clip of it that has frames, and the gazer.
        Gives what that returns and the seconds that both took, group by group, in order.
        """

        def work(gazer: Gazer, group: list[DecodedClip]) -> R:
            return finish(group, self._gazes(group, gazer), gazer)

        return self._threads.in_order(work, grouped(clips, self.gazer.batch))

    def _gazes(self, group: Sequence[DecodedClip], gazer: Gazer) -> list[Gaze]:
        ok = [clip for clip in group if clip.frames is not None]
        if not ok:
            return []
        frames = clip_array([clip.frames for clip in ok if clip.frames is not None])
        if self._stored:
            frames = _as_stored(ok, frames.shape)
        return gaze_each(gazer, frames, [clip.name for clip in ok])


def _as_stored(clips: Sequence[DecodedClip], shape: tuple[int, ...]) -> np.ndarray:
    """The frames uint8 [K, T, S, S, 3] of clips that a reader of the shard sees."""
    frames = np.empty(shape, np.uint8)
    for clip, out in zip(clips, frames, strict=True):
        decode_frames_into(dict(jpeg_members(clip.jpegs)), out)
    return frames


def gaze_each(gazer: Gazer, frames: np.ndarray, clips: list[str]) -> list[Gaze]:
    """The gaze of each clip, as it would be had the clip been alone. frames: uint8 [K, T, S, S, 3] of K clips.

    Unused slots belong to a clip: one that has none does not carry the places and slots of the batch.
    """
    gaze = gazer.gaze(frames, clips)
    each = [gaze[b] for b in range(gaze.clips)]
    return [clip if _has_holes(clip) else replace(clip, places=None, slots=None) for clip in each]


def _has_holes(clip: Gaze) -> bool:
    return clip.slots is not None and not torch.equal(clip.slots, clip.lengths)
