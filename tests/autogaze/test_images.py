"""Images: the reference's preprocessing bit for bit, and what is refused."""

import warnings

import numpy as np
import pytest
import torch

from autogaze.images import MEAN, STD, as_model_input, preprocess, to_model_size


@pytest.fixture(scope="module")
def inputs(golden):
    return golden("inputs")


def plain(frames: torch.Tensor) -> torch.Tensor:
    """The formula of docs/method.md, section 'Image preparation', on square frames of the network's size."""
    mean, std = torch.tensor([MEAN, STD]).view(2, 3, 1, 1)
    return (frames.movedim(-1, -3).float() / 127.5 - 1 - mean) / std


def test_every_pixel_value_is_that_of_the_image_processor(inputs):
    assert torch.equal(preprocess(inputs["raw_uint8"])[1, 2], inputs["processed_video_frame"])
    every = torch.arange(256, dtype=torch.uint8).view(16, 16, 1).expand(1, 1, 16, 16, 3)
    assert torch.equal(as_model_input(every, 16), plain(every))


def test_frames_that_are_not_square_keep_their_shape_in_the_processor_and_lose_it_in_the_model(inputs):
    frames = inputs["raw_nonsquare_uint8"]
    processed = preprocess(frames)
    assert torch.equal(processed[0], inputs["processed_nonsquare_frame"])
    seen = to_model_size(processed)
    assert seen.shape == (2, 3, 224, 224)
    torch.testing.assert_close(seen[0, :1], inputs["nonsquare_frame_after_model_resize_ch0"], rtol=0, atol=1e-5)
    assert torch.equal(as_model_input(frames[None])[0], seen)
    assert torch.equal(as_model_input(processed[None])[0], seen)
    upright = preprocess(frames.transpose(1, 2))
    assert upright.shape == (2, 3, 298, 224)


def test_a_tile_is_enlarged_as_the_model_does(inputs):
    tile = preprocess(inputs["raw_392_uint8"][:, :196, :196], size=196)
    wanted = inputs["tile196_frame_after_model_resize_ch0"]
    torch.testing.assert_close(to_model_size(tile)[0, :1], wanted, rtol=0, atol=1e-5)


def test_arrays_and_tensors_of_any_layout_give_the_same(inputs):
    clips = inputs["raw_uint8"]
    wanted = plain(clips)
    frozen = clips.numpy().copy()
    frozen.flags.writeable = False
    forms = [
        clips,
        clips.numpy(),
        frozen,
        clips.flip(-1).numpy()[..., ::-1],
        clips.movedim(-1, 2).contiguous().movedim(2, -1),
        wanted,
        wanted.numpy(),
        wanted.double(),
        wanted.movedim(2, -1).contiguous().movedim(-1, 2),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, form in enumerate(forms):
            assert torch.equal(as_model_input(form), wanted), number
    assert np.array_equal(frozen, clips.numpy())


def test_precision_is_lowered_after_the_arithmetic(inputs):
    clips = inputs["raw_uint8"][:1, :1]
    for frames in (clips, plain(clips)):
        assert torch.equal(as_model_input(frames, dtype=torch.bfloat16), plain(clips).bfloat16())
    frames = inputs["raw_nonsquare_uint8"][None]
    assert torch.equal(as_model_input(frames, dtype=torch.bfloat16), as_model_input(frames).bfloat16())


def test_a_frame_does_not_depend_on_the_others(inputs):
    frames = inputs["raw_nonsquare_uint8"][None]
    assert torch.equal(as_model_input(frames)[:, 1:], as_model_input(frames[:, 1:]))


NAN = torch.zeros(1, 2, 3, 8, 8)
NAN[0, 1, 2, 3, 4] = float("nan")


@pytest.mark.parametrize(
    ("frames", "found"),
    [
        (torch.zeros(1, 1, 8, 8, 3, dtype=torch.int64), "torch.int64"),
        (np.zeros((1, 1, 8, 8, 3), np.int16), "int16"),
        (np.zeros((1, 1, 8, 8, 3), ">f4"), ">f4"),
        (np.full((1, 1, 8, 8, 3), None), "object"),
        ([[0]], "list"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), r"\[1, 8, 8, 3\]"),
        (torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8), r"\[1, 1, 3, 8, 8\]"),
        (torch.zeros(1, 1, 8, 8, 4, dtype=torch.uint8), r"\[1, 1, 8, 8, 4\]"),
        (torch.zeros(1, 1, 8, 8, 3), r"\[1, 1, 8, 8, 3\]"),
        (torch.zeros(0, 1, 8, 8, 3, dtype=torch.uint8), r"\[0, 1, 8, 8, 3\]"),
        (torch.zeros(1, 0, 8, 8, 3, dtype=torch.uint8), r"\[1, 0, 8, 8, 3\]"),
        (torch.zeros(1, 1, 0, 8, 3, dtype=torch.uint8), r"\[1, 1, 0, 8, 3\]"),
        (torch.zeros(1, 1, 3, 8, 0), r"\[1, 1, 3, 8, 0\]"),
        (NAN, "NaN"),
        (NAN.nan_to_num() - float("inf"), "infinity"),
        (np.full((1, 1, 3, 8, 8), 1e300), "infinity"),
    ],
)
def test_frames_that_make_no_sense_are_refused_in_one_line(frames, found):
    with pytest.raises(ValueError, match=rf"frames.*{found}.*wanted") as refused:
        as_model_input(frames, 8)
    assert "\n" not in str(refused.value)
