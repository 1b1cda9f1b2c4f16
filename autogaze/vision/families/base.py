"""What the runner needs to know of a vision transformer: one description a family, one set of parts a loaded model.

A vision transformer is a row of pixels times a matrix, plus where the patch lies, through a stack of layers. Families
differ in names, in how a place becomes a vector, and in the tokens they put before the patches of a picture.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class TransformerLayer:
    """One layer of a stack: x + scale1(out(attention(norm1 x))), then x + scale2(mlp(norm2 x)). The model's modules."""

    norm1: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module
    out: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    scale1: nn.Module | None = None
    scale2: nn.Module | None = None


class Family(ABC):
    """Vision transformers of one kind in transformers. Subclasses say what is theirs; nothing here holds weights.

    Attributes:
        name: in words, as errors give it.
        model_types: of config.json; those of models with a vision tower beside other parts included.
        model_class: what loads it, by its name in transformers.
        normalisation: mean and deviation of the pixels in [0, 1] it was trained on, where its folder does not say.
        prefix_count: tokens before the patches of a picture, of a loaded model.
    """

    name: str
    model_types: tuple[str, ...]
    model_class: str
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    unused: tuple[str, ...] = ()
    """Beginnings of weight names that this runner does without, so that a checkpoint may lack them."""
    options: dict[str, Any] = {}  # noqa: RUF012  (constants, of from_pretrained)

    @abstractmethod
    def patch(self, model: Any) -> tuple[Tensor, Tensor | None]:
        """Matrix [D, 3 * p * p] and bias [D] of a row (channel, y, x) of pixels."""

    @abstractmethod
    def layers(self, model: Any) -> list[TransformerLayer]:
        """The stack, first to last."""

    @abstractmethod
    def positions(self, model: Any, grid: int) -> Tensor | None:
        """What is added to each patch of a grid x grid picture, row by row: [grid * grid, D]; None: nothing."""

    def rotation(self, model: Any, grid: int) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines [grid * grid, head_dim] that turn each patch's queries and keys; None: they stay."""
        return None

    def prefix(self, model: Any) -> Tensor | None:
        """The tokens before a picture's patches, [P, D]: the class token, then registers; None: there are none."""
        return None

    def first_norm(self, model: Any) -> nn.Module | None:
        """Applied to the embeddings; None: nothing is."""
        return None

    @abstractmethod
    def final_norm(self, model: Any) -> nn.Module | None:
        """Applied to the last layer's output to give what transformers calls last_hidden_state; None: nothing is."""

    def pooling_head(self, model: Any) -> Any | None:
        """SigLIP's attention pooling; None: a picture's feature is its class token's."""
        return None

    def class_feature(self, model: Any, token: Tensor) -> Tensor:
        """A picture's feature of its class token after the final norm, [..., D]."""
        return token


def resized(table: Tensor, grid: int, mode: str = "bicubic", antialias: bool = False) -> Tensor:
    """A square table of positions [n * n, D] for a picture of grid x grid patches: [grid * grid, D] of its dtype.

    The table itself where it has that size; else resized as a picture, in float32, align_corners off.
    """
    side = square_side(len(table))
    if side == grid:
        return table
    picture = table.float().view(1, side, side, -1).permute(0, 3, 1, 2)
    picture = F.interpolate(picture, size=(grid, grid), mode=mode, align_corners=False, antialias=antialias)
    return picture.permute(0, 2, 3, 1).reshape(grid * grid, -1).to(table.dtype)


def square_side(count: int) -> int:
    """The side of a square table of positions. Raises ValueError if it is not square."""
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"a table of {count} positions is not square: pictures that are not square are not supported")
    return side


def layers_of(
    stack: Sequence[Any], norms: tuple[str, str], attention: str, out: str, scales: tuple[str, str] | None = None
) -> list[TransformerLayer]:
    """Layers by the names of their parts; q_proj, k_proj, v_proj and mlp are called so in every family."""
    found = []
    for layer in stack:
        attend = getattr(layer, attention)
        found.append(
            TransformerLayer(
                getattr(layer, norms[0]),
                attend.q_proj,
                attend.k_proj,
                attend.v_proj,
                getattr(attend, out),
                getattr(layer, norms[1]),
                layer.mlp,
                *(() if scales is None else (getattr(layer, scale) for scale in scales)),
            )
        )
    return found


def convolution(module: Any) -> tuple[Tensor, Tensor | None]:
    """A convolution whose stride is its kernel, as the matrix and bias of a row of pixels."""
    return module.weight.flatten(1), module.bias


def stacked(*tokens: Tensor) -> Tensor:
    """Tokens of any leading dimensions of size one, or none, as [P, D]."""
    return torch.cat([token.reshape(-1, token.shape[-1]) for token in tokens])
