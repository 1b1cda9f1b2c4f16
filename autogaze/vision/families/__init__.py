"""The kinds of vision transformer that can be run on gazed patches, one small description each."""

from __future__ import annotations

from autogaze.vision.families.base import Family, TransformerLayer
from autogaze.vision.families.clip import Clip
from autogaze.vision.families.dinov2 import Dinov2, Dinov2WithRegisters
from autogaze.vision.families.dinov3 import Dinov3
from autogaze.vision.families.siglip import Siglip
from autogaze.vision.families.siglip2 import Siglip2NaFlex
from autogaze.vision.families.vit import Vit

FAMILIES: tuple[Family, ...] = (
    Siglip(),
    Siglip2NaFlex(),
    Dinov2(),
    Dinov2WithRegisters(),
    Dinov3(),
    Clip(),
    Vit(),
)

__all__ = ["FAMILIES", "Family", "TransformerLayer"]
