"""What an encoder gives: packed tokens, and the same as dense maps and as pooled features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from autogaze.device import sent
from autogaze.patches import PatchVocabulary
from autogaze.vision.families.base import Family
from autogaze.vision.plan import Plan
from autogaze.vision.pooling import attention_pool, mean_pool

FILLS = ("carry", "zero")


class EncoderParts(Protocol):
    """What made the tokens. A protocol, so that encoders import their results and not the other way round as well."""

    family: Family
    model: Any
    vocabulary: PatchVocabulary


class Pooled(NamedTuple):
    """clips: [B, D]. frames: [B, T, D]."""

    clips: Tensor
    frames: Tensor


@dataclass(frozen=True, eq=False)
class TokenFeatures:
    """M tokens of B clips of T frames, in the order of the gaze.

    tokens: [M, D], what transformers calls the last hidden state (after the final norm, where the network has one for
        patches: CLIP has none).
    plan: which patch became which row.
    hidden_states: [M, D] each, those asked for: embeddings first, before the final norm.
    prefix: [B, T, P, D], each frame's own tokens, as `tokens`: the class token first, then registers; zero where the
        frame has no patch.
    carried: [B, g * g, D], the dense map before the first frame, where frames came before (a stream).
    before: of each clip of a stream the features of its newest frame before that had tokens, or None.
    """

    tokens: Tensor
    plan: Plan
    hidden_states: list[Tensor]
    prefix: Tensor
    encoder: EncoderParts = field(repr=False)
    carried: Tensor | None = None
    before: tuple[TokenFeatures | None, ...] = field(default=(), repr=False)

    @property
    def clip(self) -> Tensor:
        """The clip of each token: int64 [M]."""
        return sent(self.plan.clip, self.tokens.device)

    @property
    def frame(self) -> Tensor:
        """The frame of each token: int64 [M]. In a stream, counted from its first frame."""
        return sent(self.plan.frame, self.tokens.device)

    @property
    def id(self) -> Tensor:
        """The patch of each token, an id of the encoder's vocabulary: int64 [M]."""
        return sent(self.plan.id, self.tokens.device)

    @classmethod
    def cat(cls, parts: Sequence[TokenFeatures]) -> TokenFeatures:
        """The clips of several, of one encoder and of as many frames, one after another. Raises ValueError."""
        if len({(part.plan.lengths.shape[1], id(part.encoder), len(part.hidden_states)) for part in parts}) != 1:
            raise ValueError("parts differ in encoder, frames or hidden states, or there are none")
        first = parts[0]
        counts = [part.plan.lengths.shape[0] for part in parts]
        before = [sum(counts[:n]) for n in range(len(parts))]
        carried = [part.carried for part in parts if part.carried is not None]
        return cls(
            torch.cat([part.tokens for part in parts]),
            Plan(
                torch.cat([part.plan.clip + clips for part, clips in zip(parts, before, strict=True)]),
                torch.cat([part.plan.frame for part in parts]),
                torch.cat([part.plan.id for part in parts]),
                torch.cat([part.plan.lengths for part in parts]),
                first.plan.prefix,
                first.plan.vocabulary,
                first.plan.start,
            ),
            [torch.cat(states) for states in zip(*(part.hidden_states for part in parts), strict=True)],
            torch.cat([part.prefix for part in parts]),
            first.encoder,
            torch.cat(carried) if carried else None,
        )

    def dense(self, fill: str = "carry", states: Tensor | None = None) -> Tensor:
        """A feature for each place of the finest grid of each frame: [B, T, g, g, D].

        A place shows the feature of the patch that its centre lies in: of a frame's patches the finest.
        fill: "carry": a place that was not gazed keeps the newest feature that covers it, of whatever scale, and is
            zero until there is one. "zero": it is zero.
        states: [M, D], instead of `tokens`, such as one of `hidden_states`.

        Raises ValueError for another fill.
        """
        patch = self.shown(fill)
        values = self.tokens if states is None else states
        flat = sent(patch.reshape(-1), values.device)
        there = flat >= 0
        found = values.new_zeros(len(flat), values.shape[1])
        if len(values):
            found = torch.where(there[:, None], values[flat.clamp(min=0)], found)
        found = found.view(*patch.shape, -1)
        if self.carried is not None and states is None and fill == "carry":
            found = torch.where(sent(patch >= 0, found.device)[..., None], found, self.carried[:, None])
        grid = self.encoder.vocabulary.grids[-1]
        dense: Tensor = found.unflatten(2, (grid, grid))
        return dense

    def shown(self, fill: str = "carry") -> Tensor:
        """Which token each place of the finest grid shows in each frame: int64 [B, T, g * g], on the CPU; -1: none."""
        if fill not in FILLS:
            raise ValueError(f"fill={fill!r}: wanted one of {', '.join(FILLS)}")
        patch = self.plan.newest()
        if fill == "zero":
            clips, frames = self.plan.lengths.shape
            own = torch.arange(clips * frames).view(clips, frames, 1)
            there = patch >= 0
            if len(self.tokens):
                there &= self.plan.place[patch.clamp(min=0)] == own
            patch = patch.masked_fill(~there, -1)
        return patch

    def pool(self, how: str | None = None) -> Pooled:
        """One feature for each clip and for each frame.

        how: "head": the network's attention pooling, over exactly the tokens of the frame or clip (SigLIP). "class":
            the class token (of a clip: the mean of its frames'). "mean": the mean of the tokens. None: the first of
            head, class and mean that the network has.
        A frame without tokens has the feature of the newest frame before it that has some, and zero if there is none;
        a clip without tokens has zero.

        Raises ValueError for a way that the network does not have.
        """
        family, model = self.encoder.family, self.encoder.model
        head = family.pooling_head(model)
        ways = {"head": head is not None, "class": self.prefix.shape[2] > 0, "mean": True}
        how = next(way for way, there in ways.items() if there) if how is None else how
        if not ways.get(how, False):
            raise ValueError(f"how={how!r}: {family.name} has {', '.join(way for way, there in ways.items() if there)}")
        of_clips, of_frames = self._pooled(how)
        frames, there = self.plan.lengths.shape[1], sent(self.plan.lengths > 0, self.tokens.device)
        # The newest frame with tokens, up to each frame.
        newest = torch.where(there, torch.arange(frames, device=there.device), -1).cummax(dim=1).values
        carried = of_frames.gather(1, newest.clamp(min=0)[..., None].expand_as(of_frames))
        carried = carried * (newest >= 0)[..., None]
        for clip, earlier in enumerate(self.before):
            if earlier is not None:
                carried[clip, newest[clip] < 0] = earlier._pooled(how).frames[clip, -1]
        return Pooled(of_clips, carried)

    def _pooled(self, how: str) -> Pooled:
        """As `pool`, but zero for a frame without tokens."""
        family, model = self.encoder.family, self.encoder.model
        clips, frames = self.plan.lengths.shape
        place, clip = sent(self.plan.place, self.tokens.device), self.clip
        there = sent(self.plan.lengths > 0, self.tokens.device)
        if how == "class":
            of_frames = family.class_feature(model, self.prefix[:, :, 0])
            of_frames = of_frames * there[..., None]
            of_clips = of_frames.sum(dim=1) / there.sum(dim=1, keepdim=True).clamp(min=1)
        elif how == "head":
            head = family.pooling_head(model)
            of_frames = attention_pool(head, self.tokens, place, clips * frames).view(clips, frames, -1)
            of_clips = attention_pool(head, self.tokens, clip, clips)
        else:
            of_frames = mean_pool(self.tokens, place, clips * frames).view(clips, frames, -1)
            of_clips = mean_pool(self.tokens, clip, clips)
        return Pooled(of_clips, of_frames)
