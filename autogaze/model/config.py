"""The hyper-parameters of the AutoGaze network, read from and written to the reference's config.json.

`AutoGazeConfig()` has the released sizes (3.26M parameters). What the reference could vary but this network does not
(activation, biases, kernel sizes, tied embeddings) is checked when a config.json is read: a checkpoint that would give
other numbers here is refused by the name of the key.
"""

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from autogaze.patches import PatchVocabulary

POSITIONS = ("reference", "consistent")

_VISION = "gaze_model_config.vision_model_config"
_CONNECTOR = "gaze_model_config.connector_config"
_DECODER = "gaze_model_config.gaze_decoder_config"

# Where config.json holds a field of AutoGazeConfig that is a number.
_PLACES = {
    "input_size": "gaze_model_config.input_img_size",
    "patch_size": f"{_VISION}.kernel_size",
    "conv_depth": f"{_VISION}.depth",
    "hidden_size": f"{_DECODER}.hidden_size",
    "num_layers": f"{_DECODER}.num_hidden_layers",
    "num_heads": f"{_DECODER}.num_attention_heads",
    "head_dim": f"{_DECODER}.head_dim",
    "intermediate_size": f"{_DECODER}.intermediate_size",
    "block_size": f"{_DECODER}.num_multi_token_pred",
    "rms_norm_eps": f"{_DECODER}.rms_norm_eps",
    "max_num_frames": "max_num_frames",
}
# What every config.json this network can run has.
_ALWAYS = {
    "model_type": "autogaze",
    f"{_VISION}.temporal_patch_size": 1,
    f"{_VISION}.kernel_size": 16,
    f"{_VISION}.trunk_temporal_kernel_size": 3,
    f"{_VISION}.trunk_spatial_kernel_size": 3,
    f"{_DECODER}.hidden_act": "silu",
    f"{_DECODER}.attention_bias": False,
    f"{_DECODER}.mlp_bias": False,
    f"{_DECODER}.tie_word_embeddings": False,
}


def _as_floats(config: object, names: tuple[str, ...]) -> None:
    """1 and 1.0 are the same config, so they must be written, and hashed, the same."""
    for name in names:
        if getattr(config, name) is not None:
            object.__setattr__(config, name, float(getattr(config, name)))


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of the rotary frequencies, in config.json's terms."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        _as_floats(self, ("factor", "low_freq_factor", "high_freq_factor"))


@dataclass(frozen=True)
class AutoGazeConfig:
    """The network's hyper-parameters.

    block_size: K, the tokens predicted at once. conv_depth: blocks of the encoder.
    positions: the decode positions the weights were trained for: "reference", what the released weights were run with
        (in-frame decode steps reuse the prefill's last positions), or "consistent", those of teacher forcing. A key of
        our own in config.json, which the reference ignores; where it is absent the weights are the reference's.
    max_ratio, loss_threshold: what limits a frame when a call names neither; None where config.json has no fixed number
        for it. How the reference spreads a clip's ratio over frames (gazing_ratio_each_frame_config) is not modelled:
        every frame has max_ratio.
    raw: the config.json this was read from, so that writing it keeps every key; empty for a config made from scratch.

    Raises ValueError, one line with the name, what was found and what is wanted.
    """

    scales: tuple[int, ...] = (32, 64, 112, 224)
    patch_size: int = 16
    input_size: int = 224
    hidden_size: int = 192
    num_layers: int = 4
    num_heads: int = 6
    head_dim: int = 32
    intermediate_size: int = 384
    conv_depth: int = 1
    block_size: int = 10
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling | None = RopeScaling()
    max_num_frames: int = 16
    positions: str = "reference"
    max_ratio: float | None = 0.75
    loss_threshold: float | None = 0.7
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", self.vocabulary.scales)
        self.vocabulary.require_whole("a policy's scales are cut into whole patches")
        _as_floats(self, ("rms_norm_eps", "rope_theta", "max_ratio", "loss_threshold"))
        for name in _PLACES:
            _require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "a positive number")
        _require(self.patch_size == 16, "patch_size", self.patch_size, 16)
        fits = self.input_size % self.patch_size == 0
        _require(fits, "input_size", self.input_size, f"a multiple of patch_size {self.patch_size}")
        _require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "an even number, for the rotary embedding")
        _require(0 < self.rope_theta < math.inf, "rope_theta", self.rope_theta, "a positive number")
        _require(self.positions in POSITIONS, "positions", self.positions, " or ".join(map(repr, POSITIONS)))
        if self.max_ratio is not None:
            _require(0 < self.max_ratio <= 1, "max_ratio", self.max_ratio, "a number in (0, 1], or None")
        if self.loss_threshold is not None:
            fits = 0 <= self.loss_threshold < math.inf
            _require(fits, "loss_threshold", self.loss_threshold, "a number from 0 up, or None")

    @cached_property
    def vocabulary(self) -> PatchVocabulary:
        """The patches the model chooses from."""
        return PatchVocabulary(self.scales, self.patch_size)

    @property
    def num_vision_tokens(self) -> int:
        """Tokens the encoder makes of a frame: 196 for 14x14."""
        return (self.input_size // self.patch_size) ** 2

    @property
    def vocab_size(self) -> int:
        """V + 1: every patch, and the end of the frame."""
        return self.vocabulary.size + 1

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "AutoGazeConfig":
        """The config of a parsed config.json of the reference, written by transformers 4 or 5.

        Raises ValueError, one line with the key, what was found and what is wanted, for a network that is not this one,
        for sizes that do not fit each other, and for a missing key.
        """
        for path, wanted in _ALWAYS.items():
            _expect(document, path, wanted)
        numbers = {
            name: _number(document, path, float if name == "rms_norm_eps" else int) for name, path in _PLACES.items()
        }
        config = cls(
            scales=_scales(document),
            **numbers,
            rope_theta=_number(document, _rope(document)[0], float),
            rope_scaling=_rope_scaling(document),
            positions=document.get("positions", "reference"),
            max_ratio=_max_ratio(document),
            loss_threshold=_loss_threshold(document),
            raw=deepcopy(dict(document)),
        )
        for path, wanted in config._implied().items():
            _expect(document, path, wanted)
        return config

    def to_json(self) -> dict[str, Any]:
        """The config.json of this config, ready for json.dumps: complete for the reference's loader.

        What was read from a config.json keeps every key of it; only what this config changes is written over. The
        weights beside it are float32, so that is the dtype named.
        """
        document = deepcopy(dict(self.raw)) if self.raw else _reference_document()
        if not self.raw or _scales(document) != self.scales:
            document["scales"] = "+".join(map(str, self.scales))
        fields = {path: getattr(self, name) for name, path in _PLACES.items()}
        for path, value in (_ALWAYS | fields | self._implied()).items():
            _set(document, path, value)
        theta, scaling = _rope(document)
        _set(document, theta, self.rope_theta)
        if _rope_scaling(document) != self.rope_scaling:
            old = _get(document, scaling, "") if scaling.endswith("rope_parameters") else {}
            new = vars(self.rope_scaling) | {"rope_type": "llama3"} if self.rope_scaling else {"rope_type": "default"}
            _set(document, scaling, old | new)
        if _max_ratio(document) != self.max_ratio:
            _write_fixed(document, "gazing_ratio_config", "gazing_ratio", self.max_ratio)
        if _loss_threshold(document) != self.loss_threshold:
            document["has_task_loss_requirement_during_inference"] = self.loss_threshold is not None
            _write_fixed(document, "task_loss_requirement_config", "task_loss_requirement", self.loss_threshold)
        document["torch_dtype" if "torch_dtype" in document else "dtype"] = "float32"
        document["positions"] = self.positions
        return document

    def _implied(self) -> dict[str, int]:
        """What config.json says once more, and must agree with the fields."""
        return {
            f"{_VISION}.hidden_dim": self.hidden_size,
            f"{_VISION}.out_dim": self.hidden_size,
            f"{_CONNECTOR}.hidden_dim": self.hidden_size,
            f"{_CONNECTOR}.num_tokens": self.num_vision_tokens,
            f"{_DECODER}.num_key_value_heads": self.num_heads,
            f"{_DECODER}.vocab_size": self.vocab_size,
            f"{_DECODER}.eos_token_id": self.vocabulary.eos,
            "gaze_model_config.num_vision_tokens_each_frame": self.vocabulary.size,
            "num_vision_tokens_each_frame": self.vocabulary.size,
        }


# -- reading a document by dotted paths ------------------------------------------------------------------------------


def _require(ok: bool, name: str, found: object, wanted: object) -> None:
    if not ok:
        text = repr(found)
        raise ValueError(f"{name}: found {text if len(text) <= 80 else text[:77] + '...'}, wanted {wanted}")


def _get(document: Mapping[str, Any], path: str, wanted: object) -> Any:
    value: Any = document
    keys = path.split(".")
    for depth, key in enumerate(keys):
        _require(isinstance(value, Mapping), ".".join(keys[:depth]) or "config.json", value, "an object")
        if key not in value:
            raise ValueError(f"{path}: missing, wanted {wanted}")
        value = value[key]
    return value


def _expect(document: Mapping[str, Any], path: str, wanted: object) -> None:
    found = _get(document, path, repr(wanted))
    _require(found == wanted and isinstance(found, bool) == isinstance(wanted, bool), path, found, repr(wanted))


def _number(document: Mapping[str, Any], path: str, kind: type) -> Any:
    """The number at a path: any finite one of kind float, a positive one of kind int."""
    wanted = "a positive integer" if kind is int else "a number"
    found = _get(document, path, wanted)
    _require(isinstance(found, int | kind) and not isinstance(found, bool), path, found, wanted)
    _require(math.isfinite(found) and (kind is float or found > 0), path, found, wanted)
    return kind(found)


def _set(document: dict[str, Any], path: str, value: object) -> None:
    *sections, key = path.split(".")
    for section in sections:
        document = document.setdefault(section, {})
    document[key] = value


def _scales(document: Mapping[str, Any]) -> tuple[int, ...]:
    found = _get(document, "scales", "e.g. '32+64+112+224'")
    parts = str(found).split("+")
    _require(all(part.strip().isdecimal() for part in parts), "scales", found, "e.g. '32+64+112+224'")
    return tuple(sorted(map(int, parts)))


def _rope(document: Mapping[str, Any]) -> tuple[str, str]:
    """Paths of rope's theta and of its scaling: newer transformers write both into one object."""
    if _get(document, _DECODER, "an object").get("rope_parameters") is not None:
        return f"{_DECODER}.rope_parameters.rope_theta", f"{_DECODER}.rope_parameters"
    return f"{_DECODER}.rope_theta", f"{_DECODER}.rope_scaling"


def _rope_scaling(document: Mapping[str, Any]) -> RopeScaling | None:
    path = _rope(document)[1]
    found = _get(document, path, "null or an object")
    if found is None:
        return None
    _require(isinstance(found, Mapping), path, found, "null or an object")
    kind = found.get("rope_type", found.get("type"))  # transformers before 4.43 wrote "type"
    if kind == "default":
        return None
    _require(kind == "llama3", f"{path}.rope_type", kind, "'llama3' or 'default'")
    return RopeScaling(
        factor=_number(document, f"{path}.factor", float),
        low_freq_factor=_number(document, f"{path}.low_freq_factor", float),
        high_freq_factor=_number(document, f"{path}.high_freq_factor", float),
        original_max_position_embeddings=_number(document, f"{path}.original_max_position_embeddings", int),
    )


def _max_ratio(document: Mapping[str, Any]) -> float | None:
    return _fixed(document, "gazing_ratio_config", "gazing_ratio")


def _loss_threshold(document: Mapping[str, Any]) -> float | None:
    key = "has_task_loss_requirement_during_inference"
    limits = _get(document, key, "true or false")
    _require(isinstance(limits, bool), key, limits, "true or false")
    return _fixed(document, "task_loss_requirement_config", "task_loss_requirement") if limits else None


def _fixed(document: Mapping[str, Any], section: str, name: str) -> float | None:
    """The number inference uses, or None where the reference would draw one."""
    strategy = _get(document, f"{section}.sample_strategy_during_inference", "e.g. 'fixed'")
    return _number(document, f"{section}.fixed.{name}", float) if strategy == "fixed" else None


def _write_fixed(document: dict[str, Any], section: str, name: str, value: float | None) -> None:
    _set(document, f"{section}.sample_strategy_during_inference", "uniform" if value is None else "fixed")
    if value is not None:
        _set(document, f"{section}.fixed.{name}", value)


# -- a document from scratch -----------------------------------------------------------------------------------------


# What transformers writes for each part of a model, whatever the part is. None of it changes this network.
# fmt: off
_PRETRAINED_CONFIG: dict[str, Any] = {
    "_name_or_path": "", "add_cross_attention": False, "architectures": None, "bad_words_ids": None,
    "begin_suppress_tokens": None, "bos_token_id": None, "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None, "decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False,
    "dtype": None, "early_stopping": False, "encoder_no_repeat_ngram_size": 0, "eos_token_id": None,
    "exponential_decay_length_penalty": None, "finetuning_task": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "is_decoder": False,
    "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0, "max_length": 20,
    "min_length": 0, "model_type": "", "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1,
    "num_return_sequences": 1, "output_attentions": False, "output_hidden_states": False, "output_scores": False,
    "pad_token_id": None, "prefix": None, "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False,
    "repetition_penalty": 1.0, "return_dict": True, "return_dict_in_generate": False, "sep_token_id": None,
    "suppress_tokens": None, "task_specific_params": None, "temperature": 1.0, "tf_legacy_loss": False,
    "tie_encoder_decoder": False, "tie_word_embeddings": True, "tokenizer_class": None, "top_k": 50, "top_p": 1.0,
    "torchscript": False, "typical_p": 1.0, "use_bfloat16": False,
}
# fmt: on


def _reference_document() -> dict[str, Any]:
    """A config.json as transformers 4.57 writes it, less what `to_json` fills in."""
    llama = {"model_type": "llama", "attention_dropout": 0.0, "bos_token_id": 1, "initializer_range": 0.02}
    llama |= {"max_position_embeddings": 131072, "pretraining_tp": 1, "use_cache": True, "rope_scaling": None}
    uniform = {"gazing_ratio_min": 0, "gazing_ratio_max": 1}
    strategies = {"sample_strategy_during_training": "fixed", "sample_strategy_during_inference": "fixed"}
    return {
        "architectures": ["AutoGaze"],
        "attn_mode": "sdpa",
        "dtype": "float32",
        "gaze_model_config": {
            "model_type": "",
            "vision_model_config": deepcopy(_PRETRAINED_CONFIG),
            "connector_config": deepcopy(_PRETRAINED_CONFIG),
            "gaze_decoder_config": deepcopy(_PRETRAINED_CONFIG) | llama,
        },
        "gazing_ratio_config": strategies
        | {"fixed": {"gazing_ratio": 0.75}, "uniform": uniform, "exponential": uniform | {"lambda": 10}},
        "gazing_ratio_each_frame_config": {
            "sample_strategy_during_training": "uniform",
            "sample_strategy_during_inference": "uniform",
            "uniform": {},
            "dirichlet": {"alpha": 0.5},
            "self": {},
        },
        "has_task_loss_requirement_during_training": False,
        "has_task_loss_requirement_during_inference": True,
        "max_batch_size": None,
        "task_loss_requirement_config": strategies
        | {
            "fixed": {"task_loss_requirement": 0.7},
            "uniform": {"task_loss_requirement_min": 0.6, "task_loss_requirement_max": 0.9},
        },
        "transformers_version": "4.57.6",
        "use_flash_attn": False,
    }
