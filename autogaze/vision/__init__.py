"""Hugging Face vision transformers on gazed patches only: packed tokens, streams, and gaze and features in one pass."""

from autogaze.vision.convert import by_coverage
from autogaze.vision.encoded import Pooled, TokenFeatures
from autogaze.vision.encoder import GazedEncoder, load
from autogaze.vision.end_to_end import VideoPart, gaze_and_encode
from autogaze.vision.plan import Plan
from autogaze.vision.stream import EncoderStream

__all__ = [
    "EncoderStream",
    "GazedEncoder",
    "Plan",
    "Pooled",
    "TokenFeatures",
    "VideoPart",
    "by_coverage",
    "gaze_and_encode",
    "load",
]
