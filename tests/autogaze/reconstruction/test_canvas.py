"""The canvas reconstructor: what is painted, what the error is, and that it is the same everywhere."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autogaze.gaze import Gaze
from autogaze.patches import VOCABULARY, PatchVocabulary
from autogaze.reconstruction import canvas, load

VOCABULARIES = [
    VOCABULARY,
    PatchVocabulary((56, 112, 196, 392), 14),
    PatchVocabulary((48, 96, 160, 320), 16),
    PatchVocabulary((6, 8, 16), 2),
    PatchVocabulary((33, 55), 11),
]
SMALL = PatchVocabulary((8, 16, 32), 8)  # ids: 0, then 1..4, then 5..20


def whole_scale(vocabulary: PatchVocabulary, index: int) -> list[int]:
    return list(range(vocabulary.offsets[index], vocabulary.offsets[index] + vocabulary.counts[index]))


# -- painting --------------------------------------------------------------------------------------------------------


def test_before_anything_was_gazed_the_canvas_is_grey(footage):
    frames = footage("noise", 2, 1, 32)
    painted = load("canvas", SMALL).reconstruct(frames, Gaze.from_lists([[[]], [[]]], vocabulary=SMALL))
    assert (painted.pixels == 128).all()


@pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=str)
@pytest.mark.parametrize("kind", ["noise", "gradient", "white"])
def test_all_patches_of_a_scale_paint_the_frame_resampled_by_area(plain, footage, vocabulary, kind):
    frame = footage(kind, 1, 1, vocabulary.frame_size)
    for index, scale in enumerate(vocabulary.scales):
        gaze = Gaze.from_lists([[whole_scale(vocabulary, index)]], vocabulary=vocabulary)
        painted = load("canvas", vocabulary).reconstruct(frame, gaze).pixels[0, 0]
        assert np.array_equal(painted, plain.resampled(frame[0, 0], scale))


def test_the_finest_scale_paints_the_frame_itself(footage):
    frames = footage("noise", 1, 1, 224)
    painted = load("canvas").reconstruct(frames, Gaze.from_lists([[whole_scale(VOCABULARY, 3)]]))
    assert np.array_equal(painted.pixels, frames)
    assert painted.error.tolist() == [[0.0]]


def test_averages_are_rounded_half_up():
    frame = np.zeros((1, 1, 32, 32, 3), np.uint8)
    frame[..., ::2, 0], frame[..., ::4, 1], frame[..., 1::4, 1] = 1, 1, 0  # averages of 2x2 pixels: 0.5; 0.5 and 0; 0
    painted = load("canvas", SMALL).reconstruct(frame, Gaze.from_lists([[[1, 2, 3, 4]]], vocabulary=SMALL)).pixels[0, 0]
    assert (painted[..., 0] == 1).all() and (painted[..., 2] == 0).all()
    assert painted[0, :4, 1].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(("scale", "size"), [(2, 128), (63, 64), (2, 130), (3, 200), (7, 150)])
def test_resampling_is_exact_for_any_ratio(plain, footage, scale, size):
    frames = footage("noise", 1, 2, size)[0]
    down = canvas._Scale(scale, size, torch.device("cpu"))
    views = down.up(down.down(torch.from_numpy(frames).float().view(2, size, size * 3)))
    for frame, view in zip(frames, views.view(frames.shape), strict=True):
        assert np.array_equal(view, plain.resampled(frame, scale))


@pytest.mark.parametrize("size", [2, 7, 22, 63, 64, 65, 100, 200, 300])
def test_an_average_is_rounded_up_from_the_very_half(size):
    """One pixel of the scale from size x size pixels of a value, of which just under or just half are one higher."""
    half = (size * size + 1) // 2
    scale = canvas._Scale(1, size, torch.device("cpu"))
    for value in range(255) if size < 64 else (0, 127, 254):
        frames = torch.full((2, size * size, 3), float(value))
        frames[0, : half - 1] += 1
        frames[1, :half] += 1
        under, up = scale.down(frames.view(2, size, size * 3))
        assert (under == value).all() and (up == value + 1).all()


def test_a_patch_paints_its_region_and_nothing_else(footage):
    frames = footage("noise", 1, 1, 224)
    for token in (0, 19, 40, 264):
        painted = load("canvas").reconstruct(frames, Gaze.from_lists([[[token]]])).pixels[0, 0]
        top, left, bottom, right = VOCABULARY.box(token)
        outside = torch.ones(224, 224, dtype=torch.bool)
        outside[top:bottom, left:right] = False
        assert (painted[outside] == 128).all()
        assert not (painted[~outside] == 128).all()


def test_of_overlapping_patches_the_last_is_seen(footage):
    frames = footage("noise", 1, 1, 32)
    reconstructor = load("canvas", SMALL)

    def paint(tokens):
        return reconstructor.reconstruct(frames, Gaze.from_lists([[tokens]], vocabulary=SMALL)).pixels

    assert torch.equal(paint([5, 0]), paint([0]))
    assert torch.equal(paint([0, 5])[0, 0, :8, :8], torch.from_numpy(frames)[0, 0, :8, :8])
    assert torch.equal(paint([0, 5, 0]), paint([0]))
    assert torch.equal(paint([0, 5, 1, 20]), paint([5, 0, 20, 1]))


def test_the_canvas_carries_over_from_frame_to_frame(footage):
    frames = footage("noise", 1, 3, 32)
    gaze = Gaze.from_lists([[[0], [], [5]]], vocabulary=SMALL)
    pixels = load("canvas", SMALL).reconstruct(frames, gaze).pixels[0]
    assert torch.equal(pixels[1], pixels[0])
    assert torch.equal(pixels[2, 8:], pixels[0, 8:])
    assert np.array_equal(pixels[2, :8, :8], frames[0, 2, :8, :8])


def test_a_frame_depends_on_no_later_frame_and_no_later_gaze(footage):
    frames, reconstructor = footage("moving", 1, 3, 32), load("canvas", SMALL)
    gaze = Gaze.from_lists([[[0], [6, 2], [5]]], vocabulary=SMALL)
    before = reconstructor.reconstruct(frames, gaze, at=[0, 1])
    frames[:, 2] = 7
    after = reconstructor.reconstruct(frames, Gaze.from_lists([[[0], [6, 2], [20, 1]]], vocabulary=SMALL), at=[0, 1])
    assert torch.equal(before.pixels, after.pixels) and torch.equal(before.error, after.error)


# -- error -----------------------------------------------------------------------------------------------------------


def test_the_error_is_the_mean_absolute_difference_as_a_share_of_255(footage):
    frames = footage("noise", 2, 3, 32)
    gaze = Gaze.from_lists([[[0], [3, 9], []], [[], [1], [2]]], vocabulary=SMALL)
    painted = load("canvas", SMALL).reconstruct(frames, gaze)
    sums = np.abs(painted.pixels.numpy().astype(int) - frames).sum(axis=(2, 3, 4))
    assert np.array_equal(painted.error, (sums / (32 * 32 * 3 * 255)).astype(np.float32))


def test_errors_are_exact_where_float32_holds_no_such_sums(footage):
    frames = footage("noise", 3, 1, 224) % 4
    search = load("canvas", PatchVocabulary((224,), 224)).search(frames)
    assert search.open(0).tolist() == np.abs(frames.astype(int) - 128).sum(axis=(1, 2, 3, 4)).tolist()


@pytest.mark.parametrize(("kind", "error"), [("black", 128 / 255), ("white", 127 / 255), ("grey", 0.0)])
def test_the_error_of_an_empty_canvas(footage, kind, error):
    painted = load("canvas").reconstruct(footage(kind, 1, 1, 224), Gaze.from_lists([[[]]]))
    assert painted.error.tolist() == [[np.float32(error)]]


def test_frames_are_given_as_asked_for(footage):
    frames, reconstructor = footage("noise", 2, 4, 32), load("canvas", SMALL)
    gaze = Gaze.from_lists([[[0], [5], [6], [1]], [[2], [], [9, 3], []]], vocabulary=SMALL)
    every = reconstructor.reconstruct(frames, gaze)
    some = reconstructor.reconstruct(frames, gaze, at=[2, 0, 2])
    assert torch.equal(some.pixels, every.pixels[:, [2, 0, 2]]) and torch.equal(some.error, every.error[:, [2, 0, 2]])
    assert reconstructor.reconstruct(frames, gaze, at=[]).error.shape == (2, 0)


@given(st.floats(0, 2, width=32) | st.floats(0, 2))
def test_an_error_within_the_limit_meets_the_threshold_as_stored(threshold):
    reconstructor = load("canvas")
    limit = reconstructor.limit(threshold)
    losses = reconstructor.loss(torch.tensor([limit, limit + 1]))
    assert losses[0] <= np.float32(threshold)
    assert losses[1] > np.float32(threshold) or limit == 224 * 224 * 3 * 255


# -- the same everywhere ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["medium", "high", "autocast", "two threads"])
def test_nothing_a_caller_sets_changes_a_bit(footage, precision):
    frames = footage("moving", 3, 2, 224)
    gaze = Gaze.from_lists([[[0, 30], [100, 7]]] * 3)
    expected = load("canvas").reconstruct(frames, gaze)
    before = torch.get_float32_matmul_precision()
    try:
        if precision == "two threads":
            torch.set_num_threads(2)
        elif precision != "autocast":
            torch.set_float32_matmul_precision(precision)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            found = load("canvas").reconstruct(frames, gaze)
        assert torch.equal(found.pixels, expected.pixels) and torch.equal(found.error, expected.error)
        if precision in ("medium", "high"):
            assert torch.get_float32_matmul_precision() == precision, "the caller's setting is left as it was"
    finally:
        torch.set_float32_matmul_precision(before)


def test_frames_may_be_read_only_arrays_or_views(footage):
    frames = footage("noise", 2, 3, 32)
    gaze = Gaze.from_lists([[[0], [5], [6]], [[2], [], [9]]], vocabulary=SMALL)
    expected = load("canvas", SMALL).reconstruct(frames, gaze).pixels
    view = np.asfortranarray(frames)
    frames.flags.writeable = False
    for same in (frames, view, torch.from_numpy(view)):
        assert torch.equal(load("canvas", SMALL).reconstruct(same, gaze).pixels, expected)


def test_a_fingerprint_names_the_vocabulary_too():
    assert load("canvas").fingerprint == load("canvas").fingerprint != load("canvas", SMALL).fingerprint


# -- refusals --------------------------------------------------------------------------------------------------------


def test_an_unknown_reconstructor_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="reconstructor 'canvass': neither canvas nor an existing checkpoint"):
        load("canvass")


@pytest.mark.parametrize(
    "frames",
    [np.zeros((1, 1, 32, 32, 3)), np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 1, 3, 32, 32), np.uint8)],
    ids=["float", "one clip", "channels first"],
)
def test_frames_of_another_kind_are_refused(frames):
    with pytest.raises(ValueError, match=r"frames must be uint8 \[B, T, 32, 32, 3\]"):
        load("canvas", SMALL).reconstruct(frames, Gaze.from_lists([[[]]], vocabulary=SMALL))


@pytest.mark.parametrize("shape", [(0, 2), (2, 0)])
def test_no_clips_or_no_frames_are_refused(shape):
    with pytest.raises(ValueError, match="no clip or no frame"):
        load("canvas", SMALL).search(np.zeros((*shape, 32, 32, 3), np.uint8))


def test_a_gaze_of_something_else_is_refused(footage):
    frames, reconstructor = footage("flat", 1, 2, 32), load("canvas", SMALL)
    with pytest.raises(ValueError, match="1 clips x 1 frames for 1 x 2"):
        reconstructor.reconstruct(frames, Gaze.from_lists([[[]]], vocabulary=SMALL))
    with pytest.raises(ValueError, match="the gaze is of scales"):
        reconstructor.reconstruct(frames, Gaze.from_lists([[[], []]]))
    with pytest.raises(ValueError, match=r"frame numbers lie in 0\.\.1"):
        reconstructor.reconstruct(frames, Gaze.from_lists([[[], []]], vocabulary=SMALL), at=[2])
