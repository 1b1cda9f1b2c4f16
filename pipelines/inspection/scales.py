"""Whether an encoder sees the patches that a dataset's gaze is of. Nothing here imports torch."""

from __future__ import annotations

from typing import Literal, TypeAlias

from autogaze.patches import PatchVocabulary
from pipelines.dataset.shards import Dataset
from pipelines.errors import PipelineError
from pipelines.networks.encoders import EncoderConfig, check_encoder

Convert: TypeAlias = Literal["", "coverage"]
CONVERT_HELP = "coverage: gaze of other scales than the encoder's becomes the patches that show the same places"


def check_seeing(config: EncoderConfig, convert: Convert) -> None:
    """Raise PipelineError, in one line, for settings of an encoder that cannot work. It may be left out altogether."""
    if config.checkpoint:
        check_encoder(config)
    elif config != EncoderConfig() or convert:
        raise PipelineError("encoder.checkpoint= is missing: the other keys of encoder, and convert, need it")


def require_patches(config: EncoderConfig, own: PatchVocabulary, dataset: Dataset, convert: Convert) -> None:
    """Raise PipelineError, in one line, if an encoder's patches are not those of a dataset and are not to be converted.

    own: the encoder's.
    """
    theirs = dataset.vocabulary
    if own == theirs or convert:
        return
    scales = "+".join(map(str, theirs.scales))
    same = f"give encoder.scales={scales}, or " if own.patch_size == theirs.patch_size else ""
    raise PipelineError(
        f"encoder.scales={config.scales}: with its patches of {own.patch_size} pixels the encoder sees other patches "
        f"than {dataset.url} holds ({scales}, of {theirs.patch_size}); {same}convert=coverage takes its gaze by the "
        "places it covers"
    )
