"""autogaze.baselines: each takes exactly the patches that its docstring says."""

import numpy as np
import pytest
import torch

from autogaze import baselines
from autogaze.lengths import mean_lengths
from autogaze.patches import VOCABULARY, PatchVocabulary

SMALL = PatchVocabulary((32, 64))  # 4 + 16 patches of a 64-pixel frame
KEYS = ["a", "b"]


@pytest.fixture(params=["random", "coarse_to_fine", "frame_difference"])
def method(request):
    if request.param == "random":
        return lambda frames, lengths, **rest: baselines.random_patches(frames, lengths, KEYS[: len(frames)], **rest)
    return getattr(baselines, request.param)


def test_every_frame_gets_its_length_of_different_patches_coarse_to_fine(method, footage) -> None:
    clips = footage("moving", 2, 5, 224)
    lengths = torch.tensor([[0, 1, 196, 197, 265], [265, 3, 70, 20, 5]])
    gaze = method(clips, lengths)
    assert gaze.lengths.equal(lengths)
    for b in range(2):
        for tokens in gaze.frames(b):
            assert tokens == sorted(set(tokens))
    with pytest.raises(ValueError, match="lengths"):
        method(clips, lengths[:, :4])
    with pytest.raises(ValueError, match="lengths"):
        method(clips, lengths + 1)
    with pytest.raises(ValueError, match="frames"):
        method(clips[:, :, :200], lengths)


def test_the_gaze_of_a_clip_does_not_depend_on_its_batch(footage) -> None:
    clips, lengths = footage("moving", 2, 3, 224), mean_lengths(0.1, 3).expand(2, 3)
    for make in (
        lambda f, n, k: baselines.random_patches(f, n, k),
        lambda f, n, k: baselines.coarse_to_fine(f, n),
        lambda f, n, k: baselines.frame_difference(f, n),
    ):
        both = make(clips, lengths, KEYS)
        for b in range(2):
            assert make(clips[b : b + 1], lengths[b : b + 1], [KEYS[b]]).tokens.equal(both[b].tokens)


def test_random_patches_are_uniform_over_all_ids_and_follow_key_and_seed() -> None:
    clips = np.zeros((1, 2000, 64, 64, 3), np.uint8)
    lengths = torch.full((1, 2000), 5)
    gaze = baselines.random_patches(clips, lengths, ["a"], vocabulary=SMALL)
    counts = np.bincount(gaze.tokens.numpy(), minlength=20)
    assert ((counts - 500) ** 2 / 500).sum() < 36.2  # chi-squared with 19 degrees of freedom, 1 %
    for key, seed in (("b", 0), ("a", 1)):
        assert not baselines.random_patches(clips, lengths, [key], seed=seed, vocabulary=SMALL).tokens.equal(
            gaze.tokens
        )
    more = baselines.random_patches(clips, lengths + 4, ["a"], vocabulary=SMALL)
    assert all(set(few) < set(many) for few, many in zip(gaze.frames(0)[:50], more.frames(0)[:50], strict=True))


def test_coarse_to_fine_fills_scale_by_scale_and_spreads_the_rest() -> None:
    clips = np.zeros((1, 4, 224, 224, 3), np.uint8)
    frames = baselines.coarse_to_fine(clips, torch.tensor([[4, 20, 69, 69 + 49]])).frames(0)
    assert frames[:3] == [list(range(4)), list(range(20)), list(range(69))]
    _, row, column = VOCABULARY.locate(np.array(frames[3][69:]))
    quarters = np.zeros((2, 2), int)
    np.add.at(quarters, (row // 7, column // 7), 1)
    assert quarters.min() >= 10 and quarters.max() <= 15  # 12.25 each if it were perfect
    taken = np.zeros((14, 14), int)
    taken[row, column] = 1
    windows = np.lib.stride_tricks.sliding_window_view(taken, (4, 4)).sum(axis=(2, 3))
    assert windows.min() >= 2 and windows.max() <= 6  # 4 of 16 on average


def test_frame_difference_takes_change_and_in_the_first_frame_contrast() -> None:
    clip = np.full((1, 3, 64, 64, 3), 100, np.uint8)
    clip[0, :, :16, 16:32] = np.arange(16, dtype=np.uint8)[:, None, None] * 9  # patch 1 of the finest: contrast
    clip[0, :, 48:, 48:] = 250  # patch 15: bright, but flat
    clip[0, 1:, 32:48, :16] = 140  # patch 8 changes much
    clip[0, 1:, 16:32, :16] = 90  # patch 4 changes a little
    gaze = baselines.frame_difference(clip, torch.tensor([[1, 2, 1]]), vocabulary=SMALL)
    assert gaze.frames(0) == [[4 + 1], [4 + 4, 4 + 8], [4 + 0]]  # nothing changes in frame 2: the lowest id
    one = baselines.frame_difference(clip, torch.tensor([[1, 1, 18]]), vocabulary=SMALL).frames(0)
    assert one[1] == [4 + 8]
    assert one[2] == [2, 3, *range(4, 20)]  # more than the finest scale holds: coarser ones, the last ids first
