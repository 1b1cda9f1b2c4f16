"""Rows of any gaze in one pass, as a GPU wants them: where each token lies, and what it sees.

A row is a gaze at one of some clips, of which it rebuilds frames of its own. Its tokens follow one another, the class
token first, and rows are padded behind their ends. One mask for all layers says what a token sees: the class token, and
the tokens of its own frame and of earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from autogaze.device import sent
from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary

_MULTIPLE = 8  # of the length of rows: attention on a GPU would copy a mask of other widths in every layer


@dataclass(frozen=True)
class Packed:
    """Of R rows: their gazed tokens [R, N], and the slots [R, M] that they are decoded in. All int64, on one device.

    patch: of each gazed token, the patch among all of the clips, [C * T * V]. ids, frame: its id and frame number.
    source: of each slot, the gazed token in it, among [R * (1 + N)] with class tokens; 0 if it holds the mask token.
    slot_ids, slot_frame: of each slot.
    rebuilt: [n, P], the finest slots of the n frames to rebuild, row by row, among [R * (1 + M)].
    sees, seen: [R, 1 + N] and slot_sees, slot_seen: [R, 1 + M]: a token sees those whose `seen` is at most its `sees`.
    """

    patch: Tensor
    ids: Tensor
    frame: Tensor
    source: Tensor
    slot_ids: Tensor
    slot_frame: Tensor
    rebuilt: Tensor
    sees: Tensor
    seen: Tensor
    slot_sees: Tensor
    slot_seen: Tensor

    @classmethod
    def of(
        cls,
        gazes: Sequence[Gaze],
        clips: Sequence[int],
        at: Sequence[Sequence[int]],
        vocabulary: PatchVocabulary,
        device: torch.device,
    ) -> Packed:
        """Of rows: their gazes, one or more rows each; of each row its clip's number, and the frames it rebuilds.

        The index is made on the CPU and goes to the device as one copy, which waits for nothing.
        """
        arrays = _arrays(gazes, np.asarray(clips), at, vocabulary)
        flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays.values()]))
        parts = sent(flat, device).split([array.size for array in arrays.values()])
        return cls(**{name: part.view(array.shape) for (name, array), part in zip(arrays.items(), parts, strict=True)})

    def mask(self, dtype: torch.dtype) -> Tensor:
        """What gazed tokens see, added to their attention: [R, 1, 1 + N, 1 + N], 0 or minus infinity."""
        return _mask(self.sees, self.seen, dtype)

    def slot_mask(self, dtype: torch.dtype) -> Tensor:
        """What slots see, added to their attention: [R, 1, 1 + M, 1 + M], 0 or minus infinity."""
        return _mask(self.slot_sees, self.slot_seen, dtype)


def _mask(sees: Tensor, seen: Tensor, dtype: torch.dtype) -> Tensor:
    hidden = sees[:, None, :, None] < seen[:, None, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)


def _arrays(
    gazes: Sequence[Gaze], clips: np.ndarray, at: Sequence[Sequence[int]], vocabulary: PatchVocabulary
) -> dict[str, np.ndarray]:
    """The tensors of Packed by name."""
    lengths = np.concatenate([gaze.lengths.cpu().numpy() for gaze in gazes])
    tokens = np.concatenate([gaze.tokens.cpu().numpy() for gaze in gazes])
    (rows, frames), size = lengths.shape, vocabulary.size
    owner = np.repeat(np.arange(rows * frames), lengths.ravel())
    row, frame = owner // frames, owner % frames
    number = np.arange(len(tokens))
    column = number - (np.cumsum(lengths.sum(axis=1)) - lengths.sum(axis=1))[row]
    in_frame = number - (np.cumsum(lengths.ravel()) - lengths.ravel())[owner]

    wanted = np.zeros((rows, frames), bool)
    for each, numbers in enumerate(at):
        wanted[each, list(numbers)] = True
    width = np.where(wanted, size, lengths)
    begin = np.cumsum(width, axis=1) - width
    inputs, slots = (_rounded(int(counts.sum(axis=1).max())) for counts in (lengths, width))

    found = {name: np.zeros((rows, inputs), np.int64) for name in ("patch", "ids", "frame")}
    found |= {name: np.zeros((rows, slots), np.int64) for name in ("source", "slot_ids", "slot_frame")}
    found["patch"][row, column] = (clips[row] * frames + frame) * size + tokens
    found["ids"][row, column], found["frame"][row, column] = tokens, frame
    whole_row, whole_frame = (part.repeat(size) for part in np.nonzero(wanted))
    every = np.tile(np.arange(size), int(wanted.sum()))
    place = begin[whole_row, whole_frame] + every
    found["slot_ids"][whole_row, place], found["slot_frame"][whole_row, place] = every, whole_frame
    slot = begin[row, frame] + np.where(wanted[row, frame], tokens, in_frame)
    found["source"][row, slot] = row * (1 + inputs) + 1 + column
    found["slot_ids"][row, slot], found["slot_frame"][row, slot] = tokens, frame

    finest = np.arange(size - vocabulary.counts[-1], size)
    first = [each * (1 + slots) + 1 + begin[each, t] for each, numbers in enumerate(at) for t in numbers]
    found["rebuilt"] = np.array(first, np.int64)[:, None] + finest
    found["sees"], found["seen"] = _ranks(found["frame"], lengths.sum(axis=1), frames)
    found["slot_sees"], found["slot_seen"] = _ranks(found["slot_frame"], width.sum(axis=1), frames)
    assert {each.name for each in fields(Packed)} == found.keys()
    return found


def _ranks(frame: np.ndarray, counts: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """`sees` and `seen` of tokens [R, N], of which each row has `counts` [R]: nobody sees padding, which sees all."""
    padding = np.arange(frame.shape[1]) >= counts[:, None]
    sees, seen = (np.full((len(frame), 1 + frame.shape[1]), -1, np.int64) for _ in range(2))
    sees[:, 1:], seen[:, 1:] = np.where(padding, frames, frame), np.where(padding, frames + 1, frame)
    return sees, seen


def _rounded(count: int) -> int:
    """As many tokens, or a few more, that make a good length with the class token."""
    return -(-(1 + count) // _MULTIPLE) * _MULTIPLE - 1
