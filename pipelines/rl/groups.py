"""Groups: the gazes that a rollout samples of one clip, with the errors they lead to; and the request for one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch

from autogaze import npz
from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary


class RolloutRequest(NamedTuple):
    """Asks for the group of sample `id` in `epoch`, for learner step `step`, sampled by the policy's `version`."""

    step: int
    epoch: int
    id: int
    version: int


@dataclass(frozen=True, eq=False)
class Group:
    """G trajectories of one clip, over the T' frames up to the last rebuilt one. In numpy, to travel between processes.

    request: what was asked for. clip: its name. temperature: that it was sampled at.
    threshold: predicted loss at which gazes ended (nan: none did).
    at: int64 [F], the rebuilt frames, rising. seeds: int64 [G].
    slots: int64 [T'], slots of each frame, N in all. drawn: int16 [G, N], ids as they were drawn. used: bool [G, N].
    log_probs: float32 [G, N], of what was drawn, in the distribution it was drawn from.
    errors: float32 [G, F], of the rebuilt frames, in the reconstructor's units; the reward is their negative.
    seconds: float64 [3], its share of what its request took: waiting for clips to be read, gazing and rebuilding.
    """

    request: RolloutRequest
    clip: str
    temperature: float
    threshold: float
    at: np.ndarray
    seeds: np.ndarray
    slots: np.ndarray
    drawn: np.ndarray
    used: np.ndarray
    log_probs: np.ndarray
    errors: np.ndarray
    seconds: np.ndarray

    def gaze(self, vocabulary: PatchVocabulary) -> Gaze:
        """The gazes of its G trajectories over T' frames."""
        slots = torch.tensor(self.slots)  # copies: arrays out of Ray's object store are read-only
        frame = torch.repeat_interleave(torch.arange(len(slots)), slots)
        ids = torch.from_numpy(self.drawn.astype(np.int64)) + frame * vocabulary.size
        return Gaze.from_padded(ids, torch.tensor(~self.used), slots, vocabulary)

    def digest(self) -> int:
        """A hash of everything that was sampled or measured, an int64; never 0."""
        request = ", ".join(f"{name}={value}" for name, value in self.request._asdict().items())
        # Ledgers hold these hashes: their text stays what it was when a request was called Ask.
        digest = hashlib.sha256(f"(Ask({request}), {self.clip!r}, {self.temperature!r})".encode())
        for name in ("at", "seeds", "slots", "drawn", "used", "log_probs", "errors"):
            digest.update(getattr(self, name).tobytes())
        return int.from_bytes(digest.digest()[:8], "big", signed=True) or 1

    def to_npz(self) -> bytes:
        """Everything but the seconds, as an archive without pickles; the same group gives the same bytes."""
        arrays: dict[str, np.ndarray] = {
            "ask": np.array(self.request, np.int64),
            "clip": np.frombuffer(self.clip.encode(), np.uint8),
        }
        arrays |= {name: np.array(getattr(self, name), np.float64) for name in ("temperature", "threshold")}
        arrays |= {name: getattr(self, name) for name in _array_names()}
        return npz.write(arrays)

    @classmethod
    def from_npz(cls, data: bytes) -> Group:
        """The group that `to_npz` wrote, its seconds 0. Raises ValueError for anything else."""
        arrays = npz.read(data)
        missing = [name for name in ("ask", "clip", "temperature", "threshold", *_array_names()) if name not in arrays]
        if missing:
            raise ValueError(f"has no {missing[0]}, so it is no group of trajectories")
        values: dict[str, Any] = {name: arrays[name] for name in _array_names()}
        values |= {
            "request": RolloutRequest(*arrays["ask"].tolist()),
            "clip": arrays["clip"].tobytes().decode(),
            "temperature": float(arrays["temperature"]),
            "threshold": float(arrays["threshold"]),
            "seconds": np.zeros(3),
        }
        return cls(**values)


def _array_names() -> list[str]:
    """The fields of a group that are stored as they are."""
    others = {"request", "clip", "temperature", "threshold", "seconds"}
    return [field.name for field in fields(Group) if field.name not in others]
