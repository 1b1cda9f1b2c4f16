"""The vision transformer that reads gazed patches: the settings that name it, and opening it.

Only open_encoder imports torch: a command starts without it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipelines.errors import PipelineError
from pipelines.networks.find import find_network, on_disk
from pipelines.schema import setting

if TYPE_CHECKING:
    from autogaze.vision import GazedEncoder


@dataclass
class EncoderConfig:
    """The vision transformer that encodes gazed patches, and how it sees them: the keys `encoder.*` of every job.

    `GazedEncoder.fingerprint` says whether two of these give the same features; the path of a checkpoint may change.
    """

    checkpoint: str = setting(
        "",
        "SigLIP, DINOv2, CLIP, ...: a folder in Hugging Face's format, a hub id, or a run that trains one",
        on_resume="same content",
        place="encoder",
    )
    scales: str = setting(
        "32+64+112+224",
        "sides in pixels that a frame is seen at, each a multiple of the encoder's patch, or the encoder's own size",
        on_resume="same value",
    )
    attention: Literal["block_causal", "frame", "first_frame", "newest"] = setting(
        "block_causal",
        "what a frame sees: block_causal (itself, all before), frame (itself), first_frame or newest",
        on_resume="same value",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32", "float32, bfloat16 or float16, of weights and arithmetic", on_resume="same value"
    )


def check_encoder(config: EncoderConfig, key: str = "encoder") -> None:
    """Raise PipelineError, in one line, if no checkpoint is named or the scales are none. Loads nothing.

    Words are checked by pipelines.schema.check. key: of the section, for messages.
    """
    if not config.checkpoint:
        raise PipelineError(
            f"{key}.checkpoint= is missing: give the folder or hub id of a vision transformer, "
            "such as google/siglip2-base-patch16-224"
        )
    scales_of(config, key)


def scales_of(config: EncoderConfig, key: str = "encoder") -> tuple[int, ...]:
    """The numbers of `scales`. Raises PipelineError unless they are such, rising."""
    words = config.scales.split("+")
    if not all(re.fullmatch(r"[1-9]\d{0,4}", word) for word in words):
        raise PipelineError(f"{key}.scales={config.scales}: must be pixels joined by +, such as 32+64+112+224")
    scales = tuple(map(int, words))
    if list(scales) != sorted(set(scales)):
        raise PipelineError(f"{key}.scales={config.scales}: must rise; give {'+'.join(map(str, sorted(set(scales))))}")
    return scales


def open_encoder(config: EncoderConfig, device: str, key: str = "encoder") -> GazedEncoder:
    """The vision transformer of a config on a device ("cpu", "cuda", "cuda:1", "mps"), without gradients.

    key: of the section, for messages.
    Raises PipelineError, in one line: there is none, it is of no kind known, incomplete or without a vision tower, its
    patches do not divide the scales, or the device is not there.
    """
    import torch

    from autogaze.device import usable_device
    from autogaze.hub import CheckpointError
    from autogaze.vision import load

    check_encoder(config, key)
    try:
        usable_device(device)
    except ValueError as error:
        raise PipelineError(f"device={device}: {error}") from error
    found = find_network(config.checkpoint, "encoder", f"{key}.checkpoint")
    scales = scales_of(config, key)
    try:
        with on_disk(found) as folder:
            return load(folder, scales, config.attention, device, getattr(torch, config.dtype))
    except CheckpointError as error:
        raise PipelineError(f"{key}.checkpoint={found}: {error}") from error
    except ValueError as error:  # everything else was checked before
        raise PipelineError(f"{key}.scales={config.scales}: {error}") from error
