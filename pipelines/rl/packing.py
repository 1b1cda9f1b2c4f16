"""Groups side by side: several clips' groups as one batch of rows, and which groups a learner takes at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary
from pipelines.rl.groups import Group


@dataclass(frozen=True)
class PackedGroups:
    """b groups of G members each as R = b * G rows over the T frames of the longest, N slots in all.

    A frame has the slots of the group that takes most there; those that a group does not take are unused, as are all
    slots of frames after its last.

    gaze: of the R rows. slots: int64 [T]. drawn: int64 [R, N], the end-of-frame id in unused slots. valid: bool [R, N].
    log_probs: float32 [R, N], when it was drawn. at: int64 [R, F]. errors: float32 [R, F]. All
    on the CPU. columns: int64 of each group, which of the N slots are its own, in its order.
    """

    gaze: Gaze
    slots: Tensor
    drawn: Tensor
    valid: Tensor
    log_probs: Tensor
    at: Tensor
    errors: Tensor
    columns: list[np.ndarray]

    @classmethod
    def of(cls, groups: Sequence[Group], vocabulary: PatchVocabulary) -> PackedGroups:
        members, frames = len(groups[0].seeds), max(len(group.slots) for group in groups)
        slots = np.zeros(frames, np.int64)
        for group in groups:
            slots[: len(group.slots)] = np.maximum(slots[: len(group.slots)], group.slots)
        begin, rows, columns = slots.cumsum() - slots, len(groups) * members, []
        drawn = np.full((rows, int(slots.sum())), vocabulary.eos, np.int64)
        valid, log_probs = np.zeros(drawn.shape, bool), np.zeros(drawn.shape, np.float32)
        for number, group in enumerate(groups):
            own = np.repeat(np.arange(len(group.slots)), group.slots)
            columns.append(begin[own] + np.arange(len(own)) - (group.slots.cumsum() - group.slots)[own])
            mine = slice(number * members, (number + 1) * members), columns[-1]
            drawn[mine], valid[mine], log_probs[mine] = group.drawn, group.used, group.log_probs
        frame = torch.from_numpy(np.repeat(np.arange(frames), slots))
        given, used = torch.from_numpy(drawn), torch.from_numpy(valid)
        return cls(
            gaze=Gaze.from_padded(given + frame * vocabulary.size, ~used, torch.from_numpy(slots), vocabulary),
            slots=torch.from_numpy(slots),
            drawn=given,
            valid=used,
            log_probs=torch.from_numpy(log_probs),
            at=torch.from_numpy(np.repeat(np.stack([group.at for group in groups]), members, axis=0)),
            errors=torch.from_numpy(np.concatenate([group.errors for group in groups])),
            columns=columns,
        )


def by_temperature(groups: Sequence[Group]) -> list[list[int]]:
    """The places of groups that were sampled at one temperature, and so can be scored together; in order."""
    found: dict[float, list[int]] = {}
    for place, group in enumerate(groups):
        found.setdefault(group.temperature, []).append(place)
    return list(found.values())


def packed_parts(groups: Sequence[Group], tokens: int, vision: int) -> list[list[int]]:
    """Cut groups into parts that come to at most `tokens` tokens each, as they are computed: padded to the longest.

    Groups of one temperature and of like lengths lie together. A group that is longer by itself is a part of its own.

    vision: tokens of a frame that the policy reads. Returns places in `groups`, each once.
    """

    def length(place: int) -> int:
        group = groups[place]
        return len(group.slots) * vision + int(group.slots.sum())

    parts: list[list[int]] = []
    for places in by_temperature(groups):
        part: list[int] = []
        for place in sorted(places, key=lambda place: (length(place), place)):  # so the next is the longest of its part
            rows = sum(len(groups[other].seeds) for other in (*part, place))
            if part and rows * length(place) > tokens:
                parts.append(part)
                part = []
            part.append(place)
        parts.append(part)
    return parts
