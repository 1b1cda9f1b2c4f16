"""Bad input: one clear line that says what to do."""

import json
import sys

import numpy as np
import pytest
import torch

from autogaze.gaze import Gaze
from autogaze.hub import CheckpointError
from autogaze.patches import PatchVocabulary
from autogaze.vision import load


def refused(words: str, call, kind=ValueError) -> None:
    with pytest.raises(kind, match=words) as found:
        call()
    assert "\n" not in str(found.value)


def test_a_network_of_a_kind_not_known(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    refused("'resnet'.*wanted one of siglip", lambda: load(tmp_path), CheckpointError)


@pytest.mark.parametrize("kind", ["bert", "clip_text_model", "siglip_text_model"])
def test_a_checkpoint_without_a_vision_tower(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    refused("no vision tower known here", lambda: load(tmp_path), CheckpointError)


def test_a_vision_tower_whose_weights_are_not_all_there(tmp_path, checkpoint):
    from safetensors.torch import load_file, save_file

    whole = load_file(checkpoint("dinov2") / "model.safetensors")
    (tmp_path / "config.json").write_bytes((checkpoint("dinov2") / "config.json").read_bytes())
    save_file({k: v for k, v in whole.items() if "layer.1.mlp" not in k}, tmp_path / "model.safetensors")
    refused("lacks encoder.layer.1.mlp", lambda: load(tmp_path, scales=(64,)), CheckpointError)


def test_weights_that_are_no_numbers(tmp_path, checkpoint):
    from safetensors.torch import load_file, save_file

    weights = load_file(checkpoint("vit") / "model.safetensors")
    weights["layernorm.bias"][3] = torch.nan
    (tmp_path / "config.json").write_bytes((checkpoint("vit") / "config.json").read_bytes())
    save_file(weights, tmp_path / "model.safetensors")
    refused("weights that are NaN or infinite", lambda: load(tmp_path, scales=(64,)), CheckpointError)


def test_what_is_no_checkpoint(tmp_path):
    refused("there is no folder", lambda: load(tmp_path / "nothing"), CheckpointError)
    refused("holds no config.json", lambda: load(tmp_path), CheckpointError)
    (tmp_path / "config.json").write_text("{")
    refused("is no JSON", lambda: load(tmp_path), CheckpointError)


def test_weights_that_are_pickled_or_missing(tmp_path, checkpoint):
    (tmp_path / "config.json").write_bytes((checkpoint("siglip") / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused("does not load as SigLIP", lambda: load(tmp_path, scales=(64,)), CheckpointError)


def test_without_transformers(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused("need transformers 5.20 or later: pip install", lambda: load(checkpoint("siglip")), CheckpointError)


def test_scales_that_the_patch_does_not_divide(checkpoint):
    refused(
        r"33\+64 do not fit this SigLIP, whose patches have 8 pixels.*nearest are 32\+64$",
        lambda: load(checkpoint("siglip"), scales=(33, 64)),
    )
    refused("strictly increasing", lambda: load(checkpoint("siglip"), scales=(64, 32)))


def test_other_settings(checkpoint):
    folder = checkpoint("siglip")
    refused("attention='causal': wanted one of block_causal", lambda: load(folder, attention="causal"))
    refused("wanted one of torch.float32", lambda: load(folder, dtype=torch.int8))
    if not torch.cuda.is_available():
        refused("device 'cuda' is not on this machine", lambda: load(folder, device="cuda"))


def test_a_gaze_of_another_vocabulary_or_of_other_frames(encoder, pixels, gazes):
    one, frames = encoder(), pixels(1, 2)
    other = Gaze.from_lists([[[1], [2]]], vocabulary=PatchVocabulary((64,), 8))
    refused(r"scales 64/8 \(64 ids\), the encoder of 16\+32\+64/8 \(84 ids\)", lambda: one.encode(frames, other))
    refused("convert='area': wanted None, or 'coverage'", lambda: one.encode(frames, other, convert="area"))
    refused("1 clips of 2 frames, the gaze is of 1 of 3", lambda: one.encode(frames, gazes([[1, 1, 1]])))


def test_what_is_no_gaze_and_no_list_of_layers(encoder, pixels, gazes):
    one, frames = encoder(), pixels(1, 2)
    refused("the gaze is a list: wanted a Gaze", lambda: one.encode(frames, [[[3], [1]]]))
    refused("the gaze is a Tensor: wanted a Gaze", lambda: one.stream().push(frames[0, 0], torch.tensor([9])))
    refused(r"hidden_states=-2: wanted True, or a list", lambda: one.encode(frames, gazes([[1, 1]]), hidden_states=-2))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_frames_that_are_no_numbers(encoder, pixels, gazes, value):
    frames = pixels(1, 2)
    frames[0, 1, 2, 3, 4] = value
    told = r"hold NaN or infinity \(the first in frame 1 of clip 0\)"
    refused(told, lambda: encoder().encode(frames, gazes([[1, 0]])))
    refused("hold NaN or infinity", lambda: encoder().stream().push(frames[0, 1], gazes([[1]])))


def test_frames_of_another_shape(encoder):
    refused(r"wanted \[B, T, H, W, 3\]", lambda: encoder().encode(np.zeros((2, 64, 64, 3), np.uint8)))
    refused("hold no clip, no frame or no pixel", lambda: encoder().encode(np.zeros((0, 2, 64, 64, 3), np.uint8)))


def test_streams(encoder, pixels):
    refused("at least 1 clip", lambda: encoder().stream(0))
    refused("this stream has 2 clips", lambda: encoder().stream(2).push(pixels(1, 1)[0, 0]))
    stream = encoder().stream()
    stream.push(pixels(1, 1)[0, 0])
    refused("there are 4", lambda: stream.push(pixels(1, 1)[0, 0], hidden_states=[9]))
    assert stream.frames == 1


def test_outputs_asked_for_by_a_wrong_name(encoder, pixels, gazes):
    out = encoder().encode(pixels(1, 1), gazes([[3]]))
    refused("fill='nan': wanted one of carry, zero", lambda: out.dense("nan"))
    refused("how='class': SigLIP has head, mean", lambda: out.pool("class"))
    refused("hidden_states=.9.: there are 4", lambda: encoder().encode(pixels(1, 1), hidden_states=[9]))
