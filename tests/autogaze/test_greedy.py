"""Greedy labels: equal to the plain search choice by choice and loss by loss, and true to what they promise."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autogaze.gaze import Gaze
from autogaze.greedy import label
from autogaze.patches import VOCABULARY, PatchVocabulary
from autogaze.reconstruction import load

SMALL = PatchVocabulary((8, 16, 32), 8)
KINDS = ["noise", "gradient", "flat", "moving", "black", "white", "grey"]


def same(one: Gaze, other: Gaze) -> bool:
    names = ("tokens", "lengths", "losses", "initial")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def assert_equals_plain(plain, gaze: Gaze, frames: np.ndarray, **how) -> None:
    vocabulary, lengths = gaze.vocabulary, how.pop("lengths", None)
    for b, clip in enumerate(gaze):
        fixed = None if lengths is None else lengths[b].tolist()
        tokens, losses, initial = plain.plain_greedy(
            frames[b], vocabulary.scales, vocabulary.patch_size, lengths=fixed, **how
        )
        assert clip.frames(0) == tokens
        assert clip.losses.tolist() == [loss for frame in losses for loss in frame]
        assert clip.initial[0].tolist() == initial


# -- equal to the plain search ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [None, 0.0, 0.03, 0.2, 1.0])
def test_every_choice_and_loss_is_the_plain_searchs(plain, footage, kind, threshold):
    frames = footage(kind, 2, 4, 32)
    gaze = label(frames, load("canvas", SMALL), threshold=threshold)
    assert_equals_plain(plain, gaze, frames, threshold=threshold)


@pytest.mark.parametrize("kind", ["noise", "moving", "flat"])
@pytest.mark.parametrize(
    ("scales", "patch_size"),
    [((6, 8, 16), 2), ((4, 32), 4), ((32,), 8), ((33, 55), 11), ((10, 15, 40), 5), ((24,), 24)],
)
def test_also_for_scales_that_do_not_divide_each_other(plain, footage, kind, scales, patch_size):
    vocabulary = PatchVocabulary(scales, patch_size)
    frames = footage(kind, 2, 2, vocabulary.frame_size)
    gaze = label(frames, load("canvas", vocabulary), threshold=0.02)
    assert_equals_plain(plain, gaze, frames, threshold=0.02)


@pytest.mark.parametrize("kind", ["noise", "gradient", "moving"])
def test_also_for_the_default_vocabulary(plain, footage, kind):
    frames = footage(kind, 1, 2, 224)
    gaze = label(frames, load("canvas"), threshold=0.02, max_ratio=0.02)
    assert_equals_plain(plain, gaze, frames, threshold=0.02, cap=5)
    assert gaze.counts().item() > 0


@pytest.mark.parametrize("kind", ["noise", "flat", "moving"])
def test_also_with_fixed_lengths(plain, footage, kind):
    frames = footage(kind, 2, 3, 32)
    lengths = torch.tensor([[3, 0, 21], [1, 7, 2]])
    gaze = label(frames, load("canvas", SMALL), lengths=lengths)
    assert torch.equal(gaze.lengths, lengths)
    assert_equals_plain(plain, gaze, frames, lengths=lengths)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_also_for_any_clip_and_threshold(plain, data):
    """A few grey values only, so that equal errors and repainting that helps again are common."""
    values = st.sampled_from([0, 100, 128, 129, 255])
    blocks = np.array(data.draw(st.lists(values, min_size=32, max_size=32)), np.uint8).reshape(1, 2, 4, 4, 1)
    frames = np.broadcast_to(blocks.repeat(4, axis=2).repeat(4, axis=3), (1, 2, 16, 16, 3)).copy()
    threshold = data.draw(st.none() | st.floats(0, 0.6))
    gaze = label(frames, load("canvas", PatchVocabulary((4, 8, 16), 4)), threshold=threshold)
    assert_equals_plain(plain, gaze, frames, threshold=threshold)


def test_equal_gains_go_to_the_lowest_id(footage):
    gaze = label(footage("black", 1, 1, 32), load("canvas", SMALL), threshold=0.0)
    assert gaze.frames(0) == [[0]]
    without_coarse = PatchVocabulary((16, 32), 8)
    gaze = label(footage("black", 1, 1, 32), load("canvas", without_coarse), threshold=0.0)
    assert gaze.frames(0) == [[0, 1, 2, 3]]


# -- what it promises ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3, 1.0])
def test_properties_of_a_label(footage, kind, threshold):
    frames, reconstructor = footage(kind, 3, 3, 224), load("canvas")
    gaze = label(frames, reconstructor, threshold=threshold, max_ratio=0.1)
    assert int(gaze.lengths.max()) <= VOCABULARY.cap(0.1) == 26
    assert torch.equal(gaze.met(threshold), gaze.final() <= threshold)
    assert torch.equal(gaze.final(), reconstructor.reconstruct(frames, gaze).error), "the error is the real one"
    losses = gaze.losses.split(gaze.lengths.flatten().tolist())
    for first, after in zip(gaze.initial.flatten(), losses, strict=True):
        errors = [first.item(), *after.tolist()]
        assert all(earlier > later for earlier, later in pairwise(errors)), "each token helps"
        assert all(error > threshold for error in errors[:-1]), "it stops once the threshold is met"
    for b in range(3):
        assert all(len(set(frame)) == len(frame) for frame in gaze.frames(b)), "none twice in a frame"
    for t in range(3):  # every loss is what reconstruct measures at that point
        for kept in range(int(gaze.lengths[0, t])):
            cut = [frame[:kept] if u == t else frame for u, frame in enumerate(gaze.frames(0))]
            error = reconstructor.reconstruct(frames[:1], Gaze.from_lists([cut]), at=[t]).error
            assert error.item() == [gaze[0].initial[0, t].item(), *losses[t].tolist()][kept]


def test_a_frame_that_meets_the_threshold_needs_no_token(footage):
    frames = footage("grey", 1, 3, 224)
    frames[0, 1] += 2
    gaze = label(frames, load("canvas"), threshold=0.01)
    assert gaze.lengths.tolist() == [[0, 0, 0]]
    assert gaze.met(0.01).all() and gaze.tokens.shape == gaze.losses.shape == (0,)
    assert gaze.initial.tolist() == [[0.0, np.float32(2 / 255), 0.0]]


def test_threshold_1_needs_no_token_and_0_takes_the_finest_patches(footage):
    frames = footage("noise", 1, 2, 32)
    for threshold in (1.0, 2.0, float(np.finfo(np.float32).max)):
        assert label(frames, load("canvas", SMALL), threshold=threshold).counts().tolist() == [0]
    assert label(frames, load("canvas", SMALL), threshold=0.0).final().tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("vocabulary", [SMALL, VOCABULARY], ids=str)
def test_a_threshold_that_equals_the_error_is_met(footage, vocabulary):
    frames, reconstructor = footage("black", 1, 1, vocabulary.frame_size), load("canvas", vocabulary)
    first = label(frames, reconstructor).initial.item()
    assert label(frames, reconstructor, threshold=first).lengths.item() == 0
    assert label(frames, reconstructor, threshold=float(np.nextafter(np.float32(first), 0))).lengths.item() > 0


@pytest.mark.parametrize("ratio", [0.001, 0.1, 0.5])
def test_the_cap_ends_a_frame_unmet(footage, ratio):
    gaze = label(footage("noise", 1, 2, 32), load("canvas", SMALL), threshold=0.0, max_ratio=ratio)
    assert gaze.lengths.tolist() == [[SMALL.cap(ratio)] * 2]
    assert not gaze.met(0.0).any()


# -- the same everywhere ---------------------------------------------------------------------------------------------


def test_a_clips_gaze_does_not_depend_on_its_batch(footage):
    frames = np.concatenate([footage(kind, 1, 3, 224) for kind in ("noise", "flat", "moving", "gradient", "white")])
    together = label(frames, load("canvas"), threshold=0.03, max_ratio=0.2)
    alone = Gaze.cat([label(clip[None], load("canvas"), threshold=0.03, max_ratio=0.2) for clip in frames])
    assert same(together, alone)
    backwards = label(frames[::-1].copy(), load("canvas"), threshold=0.03, max_ratio=0.2)
    assert same(Gaze.cat([backwards[b] for b in (4, 3, 2, 1, 0)]), together)


def test_threads_and_autocast_do_not_change_a_gaze(footage):
    frames = footage("moving", 4, 3, 224)
    one = label(frames, load("canvas"), threshold=0.02)
    torch.set_num_threads(2)
    assert same(label(frames, load("canvas"), threshold=0.02), one)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(label(frames, load("canvas"), threshold=0.02), one)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_gaze(footage):
    frames = torch.from_numpy(footage("moving", 4, 3, 224))
    assert same(
        label(frames.cuda(), load("canvas"), threshold=0.02, max_ratio=0.3),
        label(frames, load("canvas"), threshold=0.02, max_ratio=0.3),
    )


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"threshold": -0.1}, "threshold is an error and cannot be -0.1"),
        ({"threshold": float("nan")}, "threshold is an error and cannot be nan"),
        ({"threshold": float("inf")}, "threshold is an error and cannot be inf"),
        ({"threshold": 1e39}, r"threshold is an error and cannot be 1e\+39"),
        ({"max_ratio": 0.0}, "ratio lies in"),
        ({"max_ratio": 1.5}, "ratio lies in"),
        ({"lengths": torch.tensor([[1, 2]]), "threshold": 0.1}, "lengths fix what the others would decide"),
        ({"lengths": torch.tensor([[1, 2, 3]])}, r"lengths must be whole numbers \[1, 2\]"),
        ({"lengths": torch.tensor([[1.0, 2.0]])}, "lengths must be whole numbers"),
        ({"lengths": torch.tensor([[22, 0]])}, r"lengths lie in 0\.\.21"),
        ({"lengths": torch.tensor([[-1, 0]])}, r"lengths lie in 0\.\.21"),
    ],
)
def test_orders_that_make_no_sense_are_refused(footage, how, message):
    with pytest.raises(ValueError, match=message):
        label(footage("flat", 1, 2, 32), load("canvas", SMALL), **how)


def test_frames_of_another_size_are_refused(footage):
    with pytest.raises(ValueError, match=r"frames must be uint8 \[B, T, 224, 224, 3\]"):
        label(footage("flat", 1, 2, 32), load("canvas"), threshold=0.1)
