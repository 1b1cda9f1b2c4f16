"""Rewards: the errors of a few frames of a clip as the reconstructor rebuilds them under each gaze of its group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.reconstruction.base import Reconstructor
from autogaze.reconstruction.learned import Learned
from autogaze.reconstruction.targets import Targets
from pipelines.errors import PipelineError


@dataclass(frozen=True)
class RewardedClip:
    """A clip whose group is to be rewarded.

    frames: uint8 [T', S, S, 3], up to the last rewarded one, on the device. at: the rewarded frames, F of them, rising.
    targets: teacher features of these frames; None where there are no teachers.
    """

    frames: Tensor
    at: list[int]
    targets: list[Tensor] | None


class Rewards:
    """Measures the errors of groups. Teacher features of a clip are computed once for its group."""

    def __init__(self, reconstructor: Reconstructor, device: torch.device) -> None:
        self.reconstructor, self.device = reconstructor, device
        self.learned: Learned | None = reconstructor if isinstance(reconstructor, Learned) else None
        own = self.learned.frame_loss if self.learned is not None else None
        self.teachers = own if own is not None and own.names else None

    def errors(self, clips: Sequence[RewardedClip], gazes: Sequence[Gaze]) -> list[Tensor]:
        """Errors float32 [G, F] of each clip, on the CPU. gazes: of each clip's group, G rows of its T' frames.

        On a GPU all members of all groups are one pass.
        """
        if len(clips) > 1 and (self.learned.wide if self.learned is not None else self.device.type != "cpu"):
            return self.together(clips, gazes)
        return [self._of_one(clip, gaze) for clip, gaze in zip(clips, gazes, strict=True)]

    def together(self, clips: Sequence[RewardedClip], gazes: Sequence[Gaze]) -> list[Tensor]:
        """`errors` in one pass. Clips are lengthened by frames without a patch, which nothing looks at."""
        longest = max(gaze.num_frames for gaze in gazes)
        frames = torch.stack([F.pad(clip.frames, (0,) * 7 + (longest - len(clip.frames),)) for clip in clips])
        of = [number for number, gaze in enumerate(gazes) for _ in range(gaze.clips)]
        rows = Gaze.cat([_lengthened(gaze, longest) for gaze in gazes])
        if self.learned is None:  # a canvas is painted frame by frame, whichever errors are asked for
            asked = sorted({number for clip in clips for number in clip.at})
            painted = self.reconstructor.reconstruct(frames[torch.tensor(of)], rows, asked).error.cpu()
            parts = painted.split([gaze.clips for gaze in gazes])
            return [part[:, [asked.index(t) for t in clip.at]] for part, clip in zip(parts, clips, strict=True)]
        targets = None
        if self.teachers is not None:
            features = [[one.float() for one in clip.targets] for clip in clips if clip.targets is not None]
            targets = [torch.stack(of_teacher) for of_teacher in zip(*features, strict=True)]
        errors = self.learned.group_errors(frames, rows, of, [clip.at for clip in clips], targets)
        return list(errors.split([gaze.clips for gaze in gazes]))

    def _of_one(self, clip: RewardedClip, gaze: Gaze) -> Tensor:
        frames = clip.frames.expand(gaze.clips, *clip.frames.shape)
        if self.learned is None:
            return self.reconstructor.reconstruct(frames, gaze, clip.at).error.cpu()
        return self.learned.errors(frames, gaze, clip.at, clip.targets)

    def targets(self, clip: str, originals: Tensor, at: list[int], data: bytes | None) -> list[Tensor] | None:
        """Teacher features of the rewarded frames; None where there are no teachers.

        originals: uint8 [F, S, S, 3], the frames `at`. data: the targets that the dataset keeps of the clip: they are
        taken for the frames that have them, and computed for the others, so that every frame can be rewarded.
        Raises PipelineError for kept targets of other teachers.
        """
        if self.teachers is None:
            return None
        assert self.learned is not None
        stored = None if data is None else self._stored_targets(clip, data)
        kept = {number: place for place, number in enumerate(stored.at.tolist())} if stored is not None else {}
        missing = [place for place, number in enumerate(at) if number not in kept]
        held = stored.for_frames([number for number in at if number in kept]) if stored is not None else []
        if not missing:
            return [features.to(self.device) for features in held]
        computed = self.teachers.targets(self.learned.normalised(originals[missing]).float())
        if len(missing) == len(at):
            return computed
        there = [place for place in range(len(at)) if place not in missing]
        order = torch.tensor([*there, *missing], device=self.device).argsort()
        return [
            torch.cat((old.to(self.device, new.dtype), new))[order] for old, new in zip(held, computed, strict=True)
        ]

    def _stored_targets(self, clip: str, data: bytes) -> Targets:
        assert self.teachers is not None
        try:
            targets = Targets.from_npz(data)
            targets.require(self.teachers)
        except ValueError as error:
            raise PipelineError(f"{clip}: {error}") from error
        return targets


def _lengthened(gaze: Gaze, frames: int) -> Gaze:
    """The same patches over so many frames, the further ones without any. Which slots they were in does not matter."""
    lengths = F.pad(gaze.lengths, (0, frames - gaze.num_frames))
    return Gaze(tokens=gaze.tokens, lengths=lengths, vocabulary=gaze.vocabulary)
