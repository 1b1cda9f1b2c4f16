"""The settings of an encode job, and which of them cannot work. Nothing is loaded here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from pipelines.dataset.features import FINAL
from pipelines.errors import PipelineError
from pipelines.gazing.settings import Device, check_gaze
from pipelines.networks.encoders import EncoderConfig, check_encoder
from pipelines.preprocess.config import CorpusConfig, check_corpus, parse_part
from pipelines.schema import check, section, setting, settings_of
from pipelines.storage.location import Location
from pipelines.video.base import ON_GPU

POOLED = {"none": [], "clip": ["clip"], "frame": ["frame"], "both": ["clip", "frame"]}
NO_LAYERS = "none"
# Sections and keys that say how videos become clips and clips become gaze: with data= the gaze dataset has said so.
_OF_INPUT = [
    "gaze",
    "policy",
    "reconstructor",
    "teachers",
    "labels",
    "verify",
    "threshold",
    "max_ratio",
    "calibration",
    "clip",
    "shard",
    "decoder",
]


@dataclass
class EncodeWorkersConfig:
    """How many workers each stage has, in all; 0 shares the cluster's CPUs and GPUs out."""

    decode: int = setting(
        0, "decoders of videos or stored frames (0 = one per CPU; per eight when encoding on CPUs)", at_least=0
    )
    encode: int = setting(0, "encoders (0 = as many as the GPUs have room for, or one per CPU)", at_least=0)
    gpus: float = setting(1.0, "share of a GPU that each encoder takes: 0.5 puts two on one", more_than=0, at_most=1)


@dataclass
class EncodeConfig(CorpusConfig):
    """An encode job. Settings that must have the same value on resume are a part of dataset.json."""

    usage: ClassVar[str] = "autogaze encode data=/data/gaze encoder.checkpoint=/models/siglip2 output=/data/features"

    data: str = setting(
        "", "gaze dataset whose patches are encoded; or give input=", on_resume="same content", place="location"
    )
    input: str = setting(
        "", "videos to gaze at and encode in one pass, as preprocess takes them; or give data=", place="input"
    )
    grow: bool = setting(
        False,
        "first take in what data (or input) has now and had not when the features were planned, as new shards after "
        "the others",
        on_resume="any value",
    )
    device: Device = setting(
        "auto",
        "encode and gaze on auto (cuda where there is a GPU, else cpu), cpu, cuda or mps",
        on_resume="any value",
    )
    encoder: EncoderConfig = section(EncoderConfig, on_resume="same content")
    layers: str = setting(
        FINAL,
        "what is stored of each token, with commas: final (after the final norm), or numbers of hidden states (0 = "
        "embeddings, -2 = of the last layer but one); or none",
    )
    pooled: Literal["none", "clip", "frame", "both"] = setting(
        "none", "also store one feature for each clip, for each frame, or both: by the encoder's own pooling"
    )
    store: Literal["float16", "bfloat16"] = setting("float16", "features are stored as float16 or bfloat16")
    convert: Literal["", "coverage"] = setting(
        "", "coverage: encode a gaze of other scales by the patches of the encoder's that cover it ('' = refuse it)"
    )
    batch: int = setting(8192, "tokens that pass through the encoder at once: whole clips, at least one", at_least=1)
    workers: EncodeWorkersConfig = section(EncodeWorkersConfig, on_resume="any value")


def check_encode_config(config: EncodeConfig) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    check(config)
    parse_part(config.part)
    if bool(config.data) == bool(config.input):
        raise PipelineError(
            "data= and input= are both given: data= encodes a gaze dataset, input= gazes at videos first; leave one out"
            if config.data
            else f"data= is missing, a gaze dataset, or input=, videos: {config.usage}"
        )
    check_encoder(config.encoder)
    if config.data:
        _require_unset(config)
        data, output = Location(config.data), Location(config.output)
        if f"{output}/".startswith(f"{data}/"):
            raise PipelineError(f"output={config.output}: lies inside data={config.data}; put it beside it")
    else:
        check_gaze(config)
        check_corpus(config)
        if config.decoder in ON_GPU:
            raise PipelineError(
                f"decoder={config.decoder}: encode decodes on CPUs, beside its work on GPUs; use decoder=pyav, or "
                "preprocess the videos with it and encode that dataset"
            )
    if not layer_words(config.layers) and config.pooled == "none":
        raise PipelineError("layers=none with pooled=none: nothing would be stored; choose one of them")


def _require_unset(config: EncodeConfig) -> None:
    for key, default in zip(settings_of(config), settings_of(type(config)()), strict=True):
        if key.name.split(".")[0] in _OF_INPUT and key.value != default.value:
            raise PipelineError(
                f"{key.name}={key.value}: is for input=; with data= the dataset has clips and gaze; leave it out"
            )


def layer_words(layers: str) -> list[str]:
    """The words of `layers`: final, or numbers. [] for none. Raises PipelineError for others, and for repeated ones."""
    if layers == NO_LAYERS:
        return []
    words = [word.strip() for word in layers.split(",")]
    for word in words:
        if word != FINAL and not re.fullmatch(r"-?\d{1,4}", word):
            raise PipelineError(f"layers={layers}: must be none, or with commas final and numbers, such as final,-2")
    return words


def layer_names(layers: str, count: int) -> list[str]:
    """Names of the layers to store, of an encoder of `count` layers: final, or hidden_N with N from 0 to `count`.

    Raises PipelineError for a layer that it does not have, or that is named twice.
    """
    names = []
    for word in layer_words(layers):
        number = count if word == FINAL else int(word) + (count + 1 if word.startswith("-") else 0)
        if not 0 <= number <= count:
            raise PipelineError(
                f"layers={layers}: this encoder has {count} layers: 0 (embeddings) to {count}, or -1 to {-count - 1}"
            )
        names.append(FINAL if word == FINAL else f"hidden_{number}")
    if len(set(names)) < len(names):
        raise PipelineError(f"layers={layers}: names a layer twice")
    return names
