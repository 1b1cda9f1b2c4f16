"""Targets: teacher features of original frames, computed once per clip and stored as <clip>.targets.npz.

Originals never change, so neither do their features: jobs that measure reconstructions against them read the stored
ones. Targets belong to the teachers that made them; `require` refuses those of other teachers.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from autogaze import npz
from autogaze.reconstruction.losses import FrameLoss

_FEATURES = "features_"  # of a teacher, before its name: a member of the .npz


@dataclass(frozen=True, eq=False)
class Targets:
    """Teacher features of F frames of one clip.

    at: int64 [F], their frame numbers, rising. features: float16 [F, tokens, channels] by teacher, in the order of the
    loss's teachers. fingerprint: `FrameLoss.targets_fingerprint` of the loss that made them.

    Raises ValueError if shapes or dtypes do not fit, or a feature is NaN or infinite.
    """

    at: Tensor
    features: Mapping[str, Tensor]
    fingerprint: str

    def __post_init__(self) -> None:
        if self.at.dtype != torch.int64 or self.at.dim() != 1:
            raise ValueError(f"at must be int64 [F], not {self.at.dtype} {list(self.at.shape)}")
        if not (bool((self.at >= 0).all()) and bool((self.at.diff() > 0).all())):
            raise ValueError(f"at must be frame numbers that rise, not {self.at.tolist()}")
        for name, features in self.features.items():
            if features.dtype != torch.float16 or features.dim() != 3 or len(features) != len(self.at):
                raise ValueError(
                    f"features of {name} must be float16 [{len(self.at)}, tokens, channels],"
                    f" not {features.dtype} {list(features.shape)}"
                )
            if not bool(features.isfinite().all()):
                raise ValueError(f"features of {name} hold NaN or infinity")

    @classmethod
    def of(cls, loss: FrameLoss, frames: Tensor, at: Sequence[int]) -> "Targets":
        """The targets, on the CPU, of the frames `at` of a clip. frames: float [F, 3, S, S], as `loss` takes them.

        Raises ValueError also if a feature is beyond the range of float16.
        """
        if len(frames) != len(at):
            raise ValueError(f"{len(frames)} frames for {len(at)} frame numbers")
        computed = dict(zip(loss.names, loss.targets(frames), strict=True))
        for name, features in computed.items():
            largest = float(features.abs().max()) if features.numel() else 0.0
            if not largest <= torch.finfo(torch.float16).max:
                raise ValueError(
                    f"features of {name} reach {largest:g}, and float16 holds up to 65504: this teacher's targets"
                    " cannot be stored, only computed where they are used"
                )
        stored = {name: features.to("cpu", torch.float16) for name, features in computed.items()}
        return cls(torch.tensor(list(at), dtype=torch.int64), stored, loss.targets_fingerprint)

    def require(self, loss: FrameLoss) -> None:
        """Raise ValueError unless the teachers of `loss` made them, with the same weights, preprocessing and dtype."""
        if self.fingerprint != loss.targets_fingerprint:
            own, theirs = (", ".join(names) or "no teacher" for names in (self.features, loss.names))
            raise ValueError(
                f"these targets are of {own} (fingerprint {self.fingerprint[:16]}), the loss has {theirs} (fingerprint"
                f" {loss.targets_fingerprint[:16]}): use the teachers they were made with, or make them again"
            )

    def for_frames(self, at: Sequence[int]) -> list[Tensor]:
        """The targets of the frames `at`, in any order, as `FrameLoss` takes them: float16 [len(at), tokens, channels]
        each.

        Raises ValueError, naming the frames, if some have none.
        """
        places = {number: place for place, number in enumerate(self.at.tolist())}
        missing = [number for number in at if number not in places]
        if missing:
            raise ValueError(f"there are no targets of frames {missing}, only of {list(places)}")
        wanted = torch.tensor([places[number] for number in at], dtype=torch.int64)
        return [features[wanted.to(features.device)] for features in self.features.values()]

    def to_npz(self) -> bytes:
        """As an .npz file: at int64 [F], fingerprint (ASCII), and features_<teacher> float16 [F, tokens, channels].

        The same targets always give the same bytes.
        """
        arrays = {"at": self.at.cpu().numpy().astype("<i8"), "fingerprint": np.array(self.fingerprint.encode())}
        for name, features in self.features.items():
            arrays[_FEATURES + name] = features.cpu().numpy().astype("<f2")
        return npz.write(arrays)

    @classmethod
    def from_npz(cls, source: bytes | str | Path | BinaryIO) -> "Targets":
        """What `to_npz` wrote, from bytes, a path or an open file. Raises ValueError for anything else."""
        arrays = npz.read(source)
        missing = [name for name in ("at", "fingerprint") if name not in arrays]
        if missing or arrays["fingerprint"].dtype.kind != "S" or arrays["fingerprint"].shape:
            raise ValueError(f"not a targets file: it holds no {', '.join(missing) or 'readable fingerprint'}")
        features = {
            name.removeprefix(_FEATURES): torch.from_numpy(array)
            for name, array in arrays.items()
            if name.startswith(_FEATURES)
        }
        return cls(torch.from_numpy(arrays["at"]), features, arrays["fingerprint"].item().decode())


def target_frames(clip_key: str, frames: int, count: int) -> list[int]:
    """The `count` frames of a clip's `frames` that have targets, rising: a pure function of the clip's name.

    A larger count gives the same frames and more. Raises ValueError if the clip has fewer frames.
    """
    if not 0 <= count <= frames:
        raise ValueError(f"{clip_key}: cannot have targets of {count} frames, it has {frames}")
    marks = {t: hashlib.sha256(f"{clip_key}/{t}".encode()).digest() for t in range(frames)}
    return sorted(sorted(marks, key=marks.__getitem__)[:count])
