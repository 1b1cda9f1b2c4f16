"""AutoGazeConfig: the reference's config.json, read, refused and written."""

import json
import pickle
from copy import deepcopy
from dataclasses import replace

import pytest

from autogaze.model.config import AutoGazeConfig, RopeScaling
from autogaze.patches import VOCABULARY
from tests.support import places

GOLDEN = places.GOLDEN
DECODER = "gaze_model_config.gaze_decoder_config"
VISION = "gaze_model_config.vision_model_config"
SMALL = AutoGazeConfig(
    hidden_size=48, num_layers=2, num_heads=3, head_dim=16, intermediate_size=96, max_ratio=0.5, loss_threshold=0.7
)


@pytest.fixture
def document() -> dict:
    return json.loads((GOLDEN / "autogaze_small_k10" / "config.json").read_text())


def section(document: dict, path: str) -> tuple[dict, str]:
    *sections, key = path.split(".")
    for name in sections:
        document = document[name]
    return document, key


def test_the_references_config_is_read(document):
    assert AutoGazeConfig.from_json(document) == SMALL
    assert AutoGazeConfig.from_json(document).vocabulary == VOCABULARY
    assert (SMALL.num_vision_tokens, SMALL.vocab_size) == (196, 266)
    four = json.loads((GOLDEN / "autogaze_small_k4" / "config.json").read_text())
    assert AutoGazeConfig.from_json(four) == replace(SMALL, block_size=4)


def test_a_config_that_was_read_is_written_with_every_key_it_had(document):
    document["something of the future"] = {"a": [1]}
    document["scales"] = "224+112+64+32"
    assert AutoGazeConfig.from_json(document).to_json() == document | {"positions": "reference"}


def test_a_config_from_scratch_writes_what_the_reference_would(document):
    assert SMALL.to_json() == document | {"positions": "reference"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "consistent", "max_ratio": 1, "loss_threshold": 0},
        {"max_ratio": None, "loss_threshold": None},
        {"scales": (32, 64), "input_size": 64, "block_size": 1, "conv_depth": 3, "max_num_frames": 64},
        {"rope_scaling": None, "rope_theta": 10000},
        {"rope_scaling": RopeScaling(factor=2, original_max_position_embeddings=16), "rms_norm_eps": 1e-6},
    ],
)
@pytest.mark.parametrize("read", [False, True])
def test_what_is_written_reads_back_equal(document, changes, read):
    config = replace(AutoGazeConfig.from_json(document) if read else AutoGazeConfig(), **changes)
    before = deepcopy(config.raw)
    assert AutoGazeConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert config.raw == before
    assert pickle.loads(pickle.dumps(config)) == config


def test_both_spellings_of_transformers_are_understood_and_kept(document):
    decoder = document["gaze_model_config"]["gaze_decoder_config"]
    decoder["rope_parameters"] = decoder.pop("rope_scaling") | {"rope_theta": decoder.pop("rope_theta")}
    document["torch_dtype"] = document.pop("dtype")
    config = AutoGazeConfig.from_json(document)
    assert config == SMALL
    assert config.to_json() == document | {"positions": "reference"}

    changed = replace(config, rope_theta=10000.0, rope_scaling=RopeScaling(factor=4.0))
    written = changed.to_json()
    assert AutoGazeConfig.from_json(written) == changed
    assert not {"rope_scaling", "rope_theta"} & written["gaze_model_config"]["gaze_decoder_config"].keys()


def test_no_fixed_number_for_inference_reads_as_none(document):
    document["gazing_ratio_config"]["sample_strategy_during_inference"] = "exponential"
    document["has_task_loss_requirement_during_inference"] = False
    config = AutoGazeConfig.from_json(document)
    assert (config.max_ratio, config.loss_threshold) == (None, None)
    assert config.to_json() == document | {"positions": "reference"}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model_type", "llama"),
        ("scales", "32+64+112"),
        ("scales", "32,64"),
        ("num_vision_tokens_each_frame", 196),
        ("gaze_model_config", "none"),
        ("gaze_model_config.input_img_size", 225),
        ("gaze_model_config.num_vision_tokens_each_frame", 264),
        ("gaze_model_config.connector_config.hidden_dim", 64),
        ("gaze_model_config.connector_config.num_tokens", 197),
        (f"{VISION}.hidden_dim", 64),
        (f"{VISION}.out_dim", 64),
        (f"{VISION}.kernel_size", 14),
        (f"{VISION}.temporal_patch_size", 2),
        (f"{VISION}.trunk_temporal_kernel_size", 5),
        (f"{VISION}.trunk_spatial_kernel_size", 1),
        (f"{DECODER}.hidden_act", "gelu"),
        (f"{DECODER}.attention_bias", True),
        (f"{DECODER}.mlp_bias", True),
        (f"{DECODER}.tie_word_embeddings", True),
        (f"{DECODER}.num_key_value_heads", 1),
        (f"{DECODER}.vocab_size", 265),
        (f"{DECODER}.eos_token_id", 2),
        (f"{DECODER}.num_hidden_layers", "2"),
        (f"{DECODER}.num_multi_token_pred", 0),
        (f"{DECODER}.rms_norm_eps", float("nan")),
        (f"{DECODER}.rope_theta", True),
        (f"{DECODER}.rope_scaling", {"rope_type": "yarn", "factor": 8.0}),
        (f"{DECODER}.rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("positions", "stale"),
        ("has_task_loss_requirement_during_inference", "yes"),
        ("gazing_ratio_config.fixed.gazing_ratio", [0.5]),
    ],
)
def test_another_network_is_refused_by_the_name_of_the_key(document, path, value):
    part, key = section(document, path)
    part[key] = value
    if path == "gaze_model_config.input_img_size":
        key = "input_size"  # the field's name: the number alone is at fault
    if path == "scales" and value == "32+64+112":
        key = "num_vision_tokens|vocab_size"  # sensible by itself; what it does not fit is named
    with pytest.raises(ValueError, match=rf"{key}.*(found .*, wanted|missing, wanted)") as refused:
        AutoGazeConfig.from_json(document)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "path",
    [
        "model_type",
        "scales",
        "max_num_frames",
        "gaze_model_config",
        f"{DECODER}.num_multi_token_pred",
        f"{DECODER}.rope_theta",
        f"{DECODER}.rope_scaling",
        f"{DECODER}.rope_scaling.low_freq_factor",
        "gazing_ratio_config.fixed.gazing_ratio",
        "task_loss_requirement_config",
    ],
)
def test_a_missing_key_is_named(document, path):
    part, key = section(document, path)
    del part[key]
    with pytest.raises(ValueError, match=rf"{path}.*: missing, wanted"):
        AutoGazeConfig.from_json(document)


@pytest.mark.parametrize(
    "changes",
    [
        {"patch_size": 14, "scales": (28,)},
        {"scales": (30,)},
        {"head_dim": 15},
        {"num_layers": 0},
        {"positions": "both"},
        {"max_ratio": 0.0},
        {"max_ratio": 1.5},
        {"loss_threshold": -0.1},
        {"loss_threshold": float("nan")},
    ],
)
def test_a_config_that_makes_no_sense_cannot_be_made(changes):
    with pytest.raises(ValueError, match=next(iter(changes)).removesuffix("s")):
        AutoGazeConfig(**changes)
