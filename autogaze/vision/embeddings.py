"""What an encoder may learn beside its checkpoint: which scale a patch is of, and which frame of the clip.

A checkpoint knows one scale and one picture. Both embeddings are added to what a patch's row and place give, and are
zero at first, so that training begins exactly at the checkpoint. They are a file of their own beside it: transformers
reads the folder as before, and `autogaze.vision.load` picks them up.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from autogaze.hub import CheckpointError
from autogaze.patches import PatchVocabulary

EMBEDDINGS = "gaze_embeddings.safetensors"
_ABOUT, _FORMAT = "gaze_embeddings", 1


class GazeEmbeddings(nn.Module):
    """scale: [S, D], one for each of `scales`. time: [T, D], one for each frame of a clip; later frames have the last.

    Zero when made.
    """

    def __init__(self, scales: Sequence[int], frames: int, width: int) -> None:
        super().__init__()
        self.scales = tuple(int(scale) for scale in scales)
        self.scale = nn.Parameter(torch.zeros(len(self.scales), width))
        self.time = nn.Parameter(torch.zeros(frames, width))

    def extra_repr(self) -> str:
        return f"scales {'+'.join(map(str, self.scales))}, {len(self.time)} frames"

    def require(self, vocabulary: PatchVocabulary) -> None:
        """Raise ValueError unless every scale of the vocabulary has an embedding."""
        if lacking := [scale for scale in vocabulary.scales if scale not in self.scales]:
            own = ", ".join(map(str, self.scales))
            raise ValueError(
                f"this encoder has learnt embeddings of scales {own}, and none of {', '.join(map(str, lacking))}:"
                f" load it with scales=({own}), or some of these"
            )

    def of_ids(self, vocabulary: PatchVocabulary) -> Tensor:
        """The scale embedding of each id of a vocabulary: [V, D]."""
        rows = [self.scales.index(scale) for scale in vocabulary.scales]
        owner = torch.repeat_interleave(torch.tensor(rows), torch.tensor(vocabulary.counts))
        return F.embedding(owner.to(self.scale.device), self.scale)

    def of_frames(self, frame: Tensor) -> Tensor:
        """The time embeddings of frame numbers int64 [M]: [M, D]."""
        return F.embedding(frame.to(self.time.device).clamp(max=len(self.time) - 1), self.time)

    def write(self, folder: Path) -> None:
        """Write them into a checkpoint's folder."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        # One key: safetensors writes several in an order that differs from run to run.
        save_file(tensors, folder / EMBEDDINGS, {_ABOUT: json.dumps({"format": _FORMAT, "scales": self.scales})})

    @classmethod
    def read(cls, folder: Path, width: int) -> GazeEmbeddings | None:
        """Those of a checkpoint's folder, float32 on the CPU; None where there are none.

        Raises CheckpointError, one line: they are damaged, or of another width than the network.
        """
        path = folder / EMBEDDINGS
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                about = dict(json.loads((file.metadata() or {})[_ABOUT]))
                scale, time = file.get_tensor("scale"), file.get_tensor("time")
            scales = about["scales"] if about["format"] == _FORMAT else None
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error!r}; copy it again, or remove it") from error
        if scales is None:
            raise CheckpointError(f"{path} is of format {about['format']}, wanted {_FORMAT}: use a newer autogaze")
        if scale.shape != (len(scales), width) or time.dim() != 2 or time.shape[1] != width or not len(time):
            raise CheckpointError(
                f"{path} holds {list(scale.shape)} for {len(scales)} scales and {list(time.shape)} for frames, the"
                f" network is {width} wide: it is not this network's; remove it, or give the folder it was made in"
            )
        if not bool(scale.isfinite().all() and time.isfinite().all()):
            raise CheckpointError(f"{path} holds numbers that are NaN or infinite")
        found = cls(scales, len(time), width)
        found.load_state_dict({"scale": scale.float(), "time": time.float()})
        return found
