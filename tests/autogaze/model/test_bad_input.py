"""Calls that make no sense end in one ValueError that says what was wrong."""

import math

import numpy as np
import pytest
import torch

from autogaze.gaze import Gaze
from autogaze.model import Sampling
from autogaze.patches import VOCABULARY, PatchVocabulary


@pytest.fixture
def model(small_policy):
    return small_policy()


@pytest.fixture
def frames(clips):
    return clips(2, 3)


def refused(words: str):
    """One line, which names what is wrong."""
    return pytest.raises(ValueError, match=rf"(?i)^(?=.*(?:{words}))[^\n]*\Z")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frames: frames[0], "shape|frames"),
        (lambda frames: frames[:, 0], "shape|frames"),
        (lambda frames: frames[..., :1], "channel|shape|frames"),
        (lambda frames: torch.cat([frames, frames[..., :1]], dim=-1), "channel|shape|frames"),
        (lambda frames: frames.movedim(-1, 2), "channel|shape|frames"),
        (lambda frames: frames.float(), "channel|shape|frames"),  # float frames have their channels before the sides
        (lambda frames: frames.int(), "dtype|int32"),
        (lambda frames: frames.numpy().astype(np.int64), "dtype|int64"),
        (lambda frames: frames.bool(), "dtype|bool"),
        (lambda frames: frames[:, :0], "no frame|empty"),
        (lambda frames: frames[:, :, :0], "no pixel|empty|shape"),
    ],
)
def test_frames_of_another_shape_or_dtype_are_refused(model, frames, change, words):
    with refused(words):
        model.gaze(change(frames), max_ratio=0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_frames_that_are_not_finite_are_refused(model, plain_policy, frames, value):
    floats = plain_policy.preprocessed(frames)
    floats[1, 2, 0, 5, 5] = value
    gaze = Gaze.from_lists([[[1], [2], [3]]] * 2, vocabulary=model.vocabulary)
    with refused("nan|inf|finite"):
        model.gaze(floats, max_ratio=0.5)
    with refused("nan|inf|finite"):
        model.score(floats, gaze)
    stream = model.stream(max_ratio=0.5, batch=2)
    with refused("nan|inf|finite"):
        stream.push(floats[:, 2])


@pytest.mark.parametrize("ratio", [0, -0.1, 1.5, math.nan, math.inf, [0.5, 0.5, 0.0], [0.5, math.nan, 0.5]])
def test_a_ratio_outside_its_range_is_refused(model, frames, ratio):
    with refused(r"ratio.*\(0, 1\]"):
        model.gaze(frames, max_ratio=ratio)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_ratios_for_other_than_the_frames_there_are_are_refused(model, frames, count):
    with refused("ratio.*3"):
        model.gaze(frames, max_ratio=[0.5] * count)


@pytest.mark.parametrize("threshold", [-1, -1e-6, math.nan, [0.5, -0.5, 0.5], [[0.5], [math.nan]]])
def test_a_threshold_outside_its_range_is_refused(model, frames, threshold):
    with refused("threshold"):
        model.gaze(frames, loss_threshold=threshold)
    if isinstance(threshold, int | float):
        with refused("threshold"):
            model.stream(loss_threshold=threshold)


@pytest.mark.parametrize("shape", [(0,), (2,), (4,), (3, 1), (1, 2), (2, 2), (2, 3, 1)])
def test_thresholds_for_other_than_the_rows_and_frames_there_are_are_refused(model, frames, shape):
    with refused("threshold"):
        model.gaze(frames, loss_threshold=torch.full(shape, 0.5))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"temperature": 0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": -5}, "top_k"),
        ({"seeds": [1, 2, 3]}, "seed"),
        ({"seeds": []}, "seed"),
        ({"seeds": [1]}, "seed"),
    ],
)
def test_a_sampling_that_cannot_be_is_refused(model, frames, how, words):
    with refused(words):
        model.gaze(frames, max_ratio=0.5, sample=Sampling(**({"seeds": 0} | how)))


@pytest.mark.parametrize("vocabulary", [PatchVocabulary((32, 48, 64), 16), PatchVocabulary((64,), 16)])
def test_a_vocabulary_of_other_than_as_many_scales_is_refused(model, frames, vocabulary):
    with refused("scales"):
        model.gaze(frames, max_ratio=0.5, vocabulary=vocabulary)


@pytest.mark.parametrize("sides", [(64, 64), (96, 64), (96, 100)])
def test_frames_that_are_not_of_the_vocabularys_size_are_refused(model, plain_policy, clips, sides):
    height, width = sides
    floats = plain_policy.preprocessed(clips(2, 3, side=128)[:, :, :height, :width])
    with refused("96"):
        model.gaze(floats, max_ratio=0.5, vocabulary=PatchVocabulary((32, 96), 16))


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([[[1], [2], [3]]], "clips|rows"),
        ([[[1], [2]]] * 2, "frames"),
        ([[[1], [2], [3], [4]]] * 2, "frames"),
    ],
)
def test_a_gaze_of_other_clips_or_frames_is_not_scored(model, frames, tokens, words):
    with refused(words):
        model.score(frames, Gaze.from_lists(tokens, vocabulary=model.vocabulary))


def test_a_gaze_of_another_vocabulary_is_not_scored(model, frames):
    with refused("vocabulary"):
        model.score(frames, Gaze.from_lists([[[1], [2], [3]]] * 2, vocabulary=VOCABULARY))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frame: frame[:1], "2"),
        (lambda frame: frame[0], "2"),
        (lambda frame: torch.cat([frame, frame]), "2"),
        (lambda frame: frame[..., :2], "channel|shape|frame"),
        (lambda frame: frame.int(), "dtype|int32"),
        (lambda frame: frame[None], "shape|frame"),
    ],
)
def test_a_stream_refuses_a_frame_that_does_not_fit_and_goes_on(model, frames, change, words):
    stream, undisturbed = model.stream(max_ratio=0.5, batch=2), model.stream(max_ratio=0.5, batch=2)
    stream.push(frames[:, 0])
    undisturbed.push(frames[:, 0])
    with refused(words):
        stream.push(change(frames[:, 1]))
    assert torch.equal(stream.push(frames[:, 1]).tokens, undisturbed.push(frames[:, 1]).tokens)


@pytest.mark.parametrize("batch", [0, -1])
def test_a_stream_has_a_clip(model, batch):
    with refused("clip|batch"):
        model.stream(max_ratio=0.5, batch=batch)
