"""Gaze: which patches are looked at, frame by frame, in order.

Frames differ in length by a factor of a hundred, so all tokens are one flat list, beside the number of each frame.
Converts to and from the reference's padded tensors and label JSON, Python lists, and .npz files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from autogaze import npz
from autogaze.patches import VOCABULARY, PatchVocabulary


@dataclass(frozen=True, eq=False, kw_only=True)
class Gaze:
    """The gaze of B clips of T frames each.

    tokens: int64 [N], patch ids of all frames, clip by clip, frame by frame, in the order they were chosen.
    lengths: int64 [B, T], tokens of each frame; 0 for a frame that needed none.
    losses: float32 [N], the frame's error after each token: in the units of the reconstructor that measured it, or as
        predicted by the policy that chose the tokens. None: unknown.
    initial: float32 [B, T], each frame's error before its first token. None: unknown.
    places, slots: int64 [N] and [B, T]: the slot of each token within its frame, rising, and how many slots the frame
        takes in all. A policy may leave slots unused (docs/method.md, section 'Generation'). None: token i of a frame
        is in slot i, and none is unused.
    origins: int64 [B, T, 3], of a verified gaze (autogaze/verified.py): how many of a frame's tokens, in this order,
        the policy chose before it would have stopped, and after that, and greedy search chose. None: not verified.

    Raises ValueError if shapes, dtypes or ids do not fit together.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    losses: torch.Tensor | None = None
    initial: torch.Tensor | None = None
    vocabulary: PatchVocabulary = VOCABULARY
    places: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    origins: torch.Tensor | None = None

    def __post_init__(self) -> None:
        _expect(self.tokens, "tokens", torch.int64, 1)
        _expect(self.lengths, "lengths", torch.int64, 2)
        count = self.tokens.numel()
        if self.lengths.numel() and self.lengths.min() < 0:
            raise ValueError("lengths holds a negative number of tokens")
        if int(self.lengths.sum()) != count:
            raise ValueError(f"lengths add up to {int(self.lengths.sum())}, but there are {count} tokens")
        if count and (self.tokens.min() < 0 or self.tokens.max() >= self.vocabulary.size):
            low, high = int(self.tokens.min()), int(self.tokens.max())
            raise ValueError(f"tokens lie in 0..{self.vocabulary.size - 1}; found {low}..{high}")
        if self.losses is not None:
            _expect(self.losses, "losses", torch.float32, 1)
            if self.losses.numel() != count:
                raise ValueError(f"{self.losses.numel()} losses for {count} tokens: one is needed after each")
        if self.initial is not None:
            _expect(self.initial, "initial", torch.float32, 2)
            if self.initial.shape != self.lengths.shape:
                raise ValueError(f"initial is {list(self.initial.shape)}, lengths {list(self.lengths.shape)}")
        if (self.places is None) != (self.slots is None):
            raise ValueError("places and slots are given together or not at all")
        if self.places is not None and self.slots is not None:
            _expect(self.places, "places", torch.int64, 1)
            _expect(self.slots, "slots", torch.int64, 2)
            if self.places.shape != self.tokens.shape or self.slots.shape != self.lengths.shape:
                raise ValueError("places must have the shape of tokens, slots that of lengths")
            frame, room = self._frame_of_token(), self.slots.reshape(-1)
            rising = (self.places.diff() > 0) | (frame.diff() > 0)
            if count and not (rising.all() and self.places.min() >= 0 and (self.places < room[frame]).all()):
                raise ValueError("places must rise within each frame and lie in 0..slots-1")
        if self.origins is not None:
            _expect(self.origins, "origins", torch.int64, 3)
            if self.origins.shape != (*self.lengths.shape, 3) or bool((self.origins < 0).any()):
                raise ValueError(f"origins must be {[*self.lengths.shape, 3]} numbers from 0 up")
            if not torch.equal(self.origins.sum(dim=2), self.lengths):
                raise ValueError("origins of a frame must add up to its length")

    def __repr__(self) -> str:
        """A line: numbers of clips, frames and tokens, not the tensors."""
        known = [name for name in ("losses", "initial", "places", "origins") if getattr(self, name) is not None]
        held = f", with {', '.join(known)}" if known else ""
        return f"Gaze({self.clips} clips of {self.num_frames} frames, {len(self.tokens)} tokens{held})"

    # -- parts ---------------------------------------------------------------------------------------------------

    @property
    def clips(self) -> int:
        """B, the number of clips."""
        return self.lengths.shape[0]

    @property
    def num_frames(self) -> int:
        """T, the frames of each clip."""
        return self.lengths.shape[1]

    def frames(self, b: int) -> list[list[int]]:
        """The tokens of clip b, one list per frame."""
        return [part.tolist() for part in self[b].tokens.split(self.lengths[b].tolist())]

    def __getitem__(self, b: int) -> "Gaze":
        """The gaze of clip b, as a batch of one. Raises IndexError beyond the last, so a gaze can be iterated."""
        if not -self.clips <= b < self.clips:
            raise IndexError(f"clip {b} of a gaze of {self.clips}")
        b %= self.clips
        start = int(self.lengths[:b].sum())
        part = slice(start, start + int(self.lengths[b].sum()))
        return Gaze(
            tokens=self.tokens[part],
            lengths=self.lengths[b : b + 1],
            losses=None if self.losses is None else self.losses[part],
            initial=None if self.initial is None else self.initial[b : b + 1],
            vocabulary=self.vocabulary,
            places=None if self.places is None else self.places[part],
            slots=None if self.slots is None else self.slots[b : b + 1],
            origins=None if self.origins is None else self.origins[b : b + 1],
        )

    @classmethod
    def cat(cls, gazes: Sequence["Gaze"]) -> "Gaze":
        """The clips of several gazes, one after another. Raises ValueError if the gazes do not go together."""
        if not gazes:
            raise ValueError("nothing to concatenate: a gaze needs at least one part to know its frames and vocabulary")
        kinds = {
            (gaze.num_frames, gaze.vocabulary, gaze.losses is None, gaze.initial is None, gaze.origins is None)
            for gaze in gazes
        }
        if len(kinds) > 1:
            raise ValueError("gazes differ in frames, vocabulary, or in having losses, initial errors or origins")
        origins = [gaze.origins for gaze in gazes if gaze.origins is not None]
        losses = [gaze.losses for gaze in gazes if gaze.losses is not None]
        initial = [gaze.initial for gaze in gazes if gaze.initial is not None]
        holes = any(gaze.places is not None for gaze in gazes)
        return cls(
            tokens=torch.cat([gaze.tokens for gaze in gazes]),
            lengths=torch.cat([gaze.lengths for gaze in gazes]),
            losses=torch.cat(losses) if losses else None,
            initial=torch.cat(initial) if initial else None,
            vocabulary=gazes[0].vocabulary,
            places=torch.cat([gaze.token_places() for gaze in gazes]) if holes else None,
            slots=torch.cat([gaze.frame_slots() for gaze in gazes]) if holes else None,
            origins=torch.cat(origins) if origins else None,
        )

    def token_places(self) -> torch.Tensor:
        """The slot of each token within its frame: int64 [N]."""
        if self.places is not None:
            return self.places
        ends = self.lengths.reshape(-1).cumsum(0)
        return (
            torch.arange(len(self.tokens), device=self.tokens.device)
            - (ends - self.lengths.reshape(-1))[self._frame_of_token()]
        )

    def frame_slots(self) -> torch.Tensor:
        """How many slots each frame takes, unused ones included: int64 [B, T]."""
        return self.lengths if self.slots is None else self.slots

    def _frame_of_token(self) -> torch.Tensor:
        """The frame that each token belongs to, numbered over all clips: int64 [N] in 0..B*T-1."""
        return torch.repeat_interleave(self.lengths.reshape(-1))

    # -- measures ------------------------------------------------------------------------------------------------

    def counts(self) -> torch.Tensor:
        """The number of tokens of each clip: int64 [B]."""
        return self.lengths.sum(dim=1)

    def ratio(self) -> torch.Tensor:
        """The share of all patches of all frames that is gazed at: float32 [B] in [0, 1]."""
        return self.counts() / (self.num_frames * self.vocabulary.size)

    def final(self) -> torch.Tensor:
        """The error that each frame ends with: its last loss, or its initial error if it has no token. float32 [B, T].

        Raises ValueError if the gaze does not hold these errors.
        """
        if self.losses is None:
            raise ValueError("this gaze has no losses, so its final errors are unknown")
        empty = self.lengths == 0
        if self.initial is None and bool(empty.any()):
            raise ValueError("this gaze has frames without tokens and no initial errors, so their error is unknown")
        final = (
            torch.zeros(self.lengths.shape, device=self.losses.device) if self.initial is None else self.initial.clone()
        )
        last = self.lengths.reshape(-1).cumsum(0).view_as(self.lengths) - 1
        final[~empty] = self.losses[last[~empty]]
        return final

    def met(self, threshold: float | Sequence[float]) -> torch.Tensor:
        """Which frames end at or under the threshold: bool [B, T]. The threshold is compared as float32.

        threshold: one number, or one for each frame, of which there may be more than a clip has frames.
        """
        final = self.final()
        limit = torch.tensor(threshold, dtype=torch.float32, device=final.device)
        return final <= (limit[: self.num_frames] if limit.dim() else limit)

    def masks(self) -> list[torch.Tensor]:
        """The reference's `gazing_mask`: one uint8 [B, T, count] of 0 and 1 for each scale, coarse to fine."""
        return self.vocabulary.masks(self.tokens, self.lengths)

    # -- Python lists --------------------------------------------------------------------------------------------

    @classmethod
    def from_lists(
        cls,
        clips: Sequence[Sequence[Sequence[int]]],
        losses: Sequence[Sequence[Sequence[float]]] | None = None,
        initial: Sequence[Sequence[float]] | None = None,
        vocabulary: PatchVocabulary = VOCABULARY,
    ) -> "Gaze":
        """From lists: `clips[b][t]` the tokens of a frame, `losses[b][t]` one number for each, `initial[b][t]` one.

        Raises ValueError if clips differ in their number of frames, or a frame's losses and tokens in number.
        """
        if not clips:
            raise ValueError("no clips: their number of frames is unknown")
        if len({len(clip) for clip in clips}) > 1:
            raise ValueError(f"clips have different numbers of frames: {sorted({len(clip) for clip in clips})}")
        lengths = [[len(frame) for frame in clip] for clip in clips]
        if losses is not None and [[len(frame) for frame in clip] for clip in losses] != lengths:
            raise ValueError("losses must hold one number for each token")
        flat_losses = None
        if losses is not None:
            flat = [loss for clip in losses for frame in clip for loss in frame]
            flat_losses = torch.tensor(flat, dtype=torch.float32)
        return cls(
            tokens=torch.tensor([token for clip in clips for frame in clip for token in frame], dtype=torch.int64),
            lengths=torch.tensor(lengths, dtype=torch.int64).view(len(clips), -1),
            losses=flat_losses,
            initial=None if initial is None else torch.tensor(initial, dtype=torch.float32),
            vocabulary=vocabulary,
        )

    # -- the reference's padded tensors --------------------------------------------------------------------------

    def padded(self, slots: int | Sequence[int] | None = None) -> dict[str, torch.Tensor]:
        """The reference's layout: every clip has the same slots, frame after frame.

        See docs/method.md, section 'Gaze layouts'.

        slots: of each frame (one number, or T of them); None: the most that any clip takes. N is their sum.
        Returns `gazing_pos` int64 [B, N] of absolute ids (frame t adds t * size; an unused slot holds eos + t * size),
        `num_gazing_each_frame` int64 [T], and `if_padded_gazing` bool [B, N], true at unused slots.

        Raises ValueError if a frame takes more slots than it is given.
        """
        taken = self.frame_slots()
        longest = taken.amax(dim=0) if self.clips else taken.new_zeros(self.num_frames)
        wanted = longest if slots is None else self.lengths.new_tensor(slots).expand(self.num_frames).clone()
        if bool((wanted < longest).any()):
            t = int((wanted < longest).nonzero()[0])
            raise ValueError(f"frame {t} takes {int(longest[t])} slots, more than the {int(wanted[t])} there are")
        frame = torch.repeat_interleave(torch.arange(self.num_frames, device=wanted.device), wanted)
        total, begin = len(frame), wanted.cumsum(0) - wanted
        owner = self._frame_of_token()
        clip, t_of_token = owner // max(self.num_frames, 1), owner % max(self.num_frames, 1)
        column = begin[t_of_token] + self.token_places()
        ids = torch.full((self.clips, total), self.vocabulary.eos, dtype=torch.int64, device=wanted.device)
        ids[clip, column] = self.tokens
        used = torch.zeros(self.clips, total, dtype=torch.bool, device=wanted.device)
        used[clip, column] = True
        return {
            "gazing_pos": ids + frame * self.vocabulary.size,
            "num_gazing_each_frame": wanted,
            "if_padded_gazing": ~used,
        }

    @classmethod
    def from_padded(
        cls,
        gazing_pos: torch.Tensor,
        if_padded_gazing: torch.Tensor,
        num_gazing_each_frame: torch.Tensor | Sequence[int],
        vocabulary: PatchVocabulary = VOCABULARY,
    ) -> "Gaze":
        """From the reference's layout (see `padded`). Unused slots may be anywhere in a frame and hold any id.

        Raises ValueError if the shapes do not fit or a used slot holds an id of another frame.
        """
        slots = torch.as_tensor(num_gazing_each_frame, dtype=torch.int64)
        if slots.device != gazing_pos.device:
            slots = slots.to(gazing_pos.device)
        if gazing_pos.shape != if_padded_gazing.shape or gazing_pos.shape[1:] != (int(slots.sum()),):
            raise ValueError(
                f"gazing_pos {list(gazing_pos.shape)} and if_padded_gazing {list(if_padded_gazing.shape)} must both be"
                f" [B, {int(slots.sum())}], the sum of num_gazing_each_frame"
            )
        used = ~if_padded_gazing.bool()
        frame = torch.repeat_interleave(torch.arange(len(slots), device=slots.device), slots)
        lengths = torch.zeros(len(used), len(slots), dtype=torch.int64, device=slots.device)
        lengths.index_add_(1, frame, used.to(torch.int64))
        tokens = (gazing_pos.to(torch.int64) - frame * vocabulary.size)[used]
        if bool(used.all()):
            return cls(tokens=tokens, lengths=lengths, vocabulary=vocabulary)
        places = (torch.arange(len(frame), device=slots.device) - (slots.cumsum(0) - slots)[frame]).expand(used.shape)
        return cls(
            tokens=tokens,
            lengths=lengths,
            vocabulary=vocabulary,
            places=places[used],
            slots=slots.expand(len(used), -1).contiguous(),
        )

    # -- the reference's label JSON ------------------------------------------------------------------------------

    def to_label(self, b: int) -> dict[str, list[list[Any]]]:
        """Clip b as an entry of the reference's label file: absolute ids, and the loss after each of them.

        See docs/method.md, section 'Gaze layouts'.

        Raises ValueError if the gaze has no losses.
        """
        clip = self[b]
        if clip.losses is None:
            raise ValueError("this gaze has no losses, which a label needs")
        lengths = clip.lengths[0].tolist()
        ids = [[token + t * self.vocabulary.size for token in tokens] for t, tokens in enumerate(clip.frames(0))]
        return {"gazing_pos": ids, "task_losses": [part.tolist() for part in clip.losses.split(lengths)]}

    @classmethod
    def from_label(cls, entry: dict[str, list[list[Any]]], vocabulary: PatchVocabulary = VOCABULARY) -> "Gaze":
        """One clip from an entry of the reference's label file, which holds no initial errors.

        Raises ValueError if a key is missing or the lists do not fit.
        """
        for key in ("gazing_pos", "task_losses"):
            if key not in entry:
                raise ValueError(f"a label has gazing_pos and task_losses; this one has no {key}")
        tokens = [[id - t * vocabulary.size for id in ids] for t, ids in enumerate(entry["gazing_pos"])]
        return cls.from_lists([tokens], losses=[entry["task_losses"]], vocabulary=vocabulary)

    # -- stored form ---------------------------------------------------------------------------------------------

    def to_npz(self) -> bytes:
        """One clip as an .npz file: tokens uint16 [N], lengths uint16 [T], losses float32 [N], initial float32 [T],
        places uint16 [N], slots uint16 [T], origins uint16 [T, 3].

        What is None is left out. The same gaze gives the same bytes, which np.savez does not promise. Raises ValueError
        for more than one clip, or ids or lengths too large for uint16.
        """
        if self.clips != 1:
            raise ValueError(f"an .npz holds one clip, this gaze has {self.clips}: write gaze[b].to_npz()")
        if max(self.vocabulary.size - 1, int(self.lengths.max())) > np.iinfo(np.uint16).max:
            raise ValueError("token ids or lengths of this gaze do not fit in uint16")
        arrays = {
            "tokens": self.tokens.cpu().numpy().astype("<u2"),
            "lengths": self.lengths[0].cpu().numpy().astype("<u2"),
        }
        if self.losses is not None:
            arrays["losses"] = self.losses.cpu().numpy().astype("<f4")
        if self.initial is not None:
            arrays["initial"] = self.initial[0].cpu().numpy().astype("<f4")
        if self.places is not None and self.slots is not None:
            arrays["places"] = self.places.cpu().numpy().astype("<u2")
            arrays["slots"] = self.slots[0].cpu().numpy().astype("<u2")
        if self.origins is not None:
            arrays["origins"] = self.origins[0].cpu().numpy().astype("<u2")
        return npz.write(arrays)

    @classmethod
    def from_npz(cls, source: bytes | str | Path | BinaryIO, vocabulary: PatchVocabulary = VOCABULARY) -> "Gaze":
        """The clip that `to_npz` wrote, from bytes, a path or an open file.

        Raises ValueError if it is no such file or does not fit the vocabulary.
        """
        arrays = npz.read(source)
        missing = [name for name in ("tokens", "lengths") if name not in arrays]
        if missing:
            raise ValueError(f"not a gaze file: it holds no {missing[0]}")
        tokens, lengths = arrays["tokens"], arrays["lengths"]
        losses, initial, places, slots = (arrays.get(name) for name in ("losses", "initial", "places", "slots"))
        origins = arrays.get("origins")
        return cls(
            tokens=torch.from_numpy(tokens.astype(np.int64)),
            lengths=torch.from_numpy(lengths.astype(np.int64))[None],
            losses=None if losses is None else torch.from_numpy(losses.astype(np.float32)),
            initial=None if initial is None else torch.from_numpy(initial.astype(np.float32))[None],
            vocabulary=vocabulary,
            places=None if places is None else torch.from_numpy(places.astype(np.int64)),
            slots=None if slots is None else torch.from_numpy(slots.astype(np.int64))[None],
            origins=None if origins is None else torch.from_numpy(origins.astype(np.int64))[None],
        )


def _expect(value: torch.Tensor, name: str, dtype: torch.dtype, dims: int) -> None:
    if not isinstance(value, torch.Tensor) or value.dtype != dtype or value.dim() != dims:
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise ValueError(f"{name} must be a {dtype} tensor with {dims} dimension{'s' * (dims > 1)}, not {found}")
