"""Gazes chosen for features, how near features come, and token merging to compare with."""

import numpy as np
import pytest
import torch

from autogaze.patches import PatchVocabulary
from autogaze.vision.agreement import Retrieval, agreement, cosine, every_nth_frame, retrieval
from autogaze.vision.choose import changed_most, random_places, stalest
from autogaze.vision.merging import merge, tokens_per_layer, within_reach

VOCABULARY = PatchVocabulary((16, 32, 64), 8)
FULL = np.array([[64, 4, 4]])


def scene() -> np.ndarray:
    """Noise, of which one patch of frame 1 and two of frame 2 change: uint8 [1, 3, 64, 64, 3]."""
    clip = np.random.default_rng(0).integers(0, 256, (1, 1, 64, 64, 3), np.uint8).repeat(3, axis=1)
    clip[0, 1:, 8:16, 16:24] = 255 - clip[0, 1:, 8:16, 16:24]
    clip[0, 2, 40:56, 0:8] = 255 - clip[0, 2, 40:56, 0:8]
    return clip


FIRST, SECOND = [20 + 8 + 2], [20 + 5 * 8, 20 + 6 * 8]


@pytest.mark.parametrize("contrast", [True, False])
def test_what_changed_is_gazed_first_and_what_was_gazed_is_no_longer_stale(contrast):
    lengths = np.array([[64, 1, 2]])
    gaze = changed_most(scene(), lengths, vocabulary=VOCABULARY, contrast=contrast)
    assert gaze.frames(0) == [list(range(20, 84)), FIRST, SECOND]


def test_a_small_change_of_a_flat_patch_counts_as_much_as_a_large_one_of_a_rough_patch():
    clip = np.random.default_rng(0).integers(0, 256, (1, 1, 64, 64, 3), np.uint8).repeat(2, axis=1)
    clip[0, :, :8, :8] = 100
    clip[0, 1, :8, :8] = 130
    clip[0, 1, :8, 8:16] ^= 64  # by 64 everywhere, of a patch that varies by 74
    lengths = np.array([[64, 1]])
    assert changed_most(clip, lengths, vocabulary=VOCABULARY).frames(0)[1] == [20]
    assert changed_most(clip, lengths, vocabulary=VOCABULARY, contrast=False).frames(0)[1] == [21]


def test_the_stalest_patches_are_taken_and_no_more_than_are_worth_it():
    clip = scene()
    clip[0, 1] = clip[0, 0]
    gaze = stalest(clip, FULL, vocabulary=VOCABULARY)
    assert gaze.frames(0)[0] == list(range(20, 84)) and gaze.frames(0)[1] == []
    assert gaze.frames(0)[2][:3] == sorted(FIRST + SECOND)[:3]


def test_a_frame_that_changed_all_over_is_seen_coarse():
    clip = np.random.default_rng(0).integers(0, 256, (1, 2, 64, 64, 3), np.uint8)
    clip[:, 1] //= 8
    ids = stalest(clip, np.array([[64, 4]]), vocabulary=VOCABULARY).frames(0)[1]
    assert len(ids) == 4 and max(ids) < 20


def test_chosen_gazes_depend_on_nothing_beside_the_clip():
    clips = np.random.default_rng(1).integers(0, 256, (2, 3, 64, 64, 3), np.uint8)
    lengths = np.array([[64, 3, 9], [10, 20, 0]])
    for choose in (changed_most, stalest):
        both = choose(clips, lengths, vocabulary=VOCABULARY)
        for b in range(2):
            alone = choose(clips[b : b + 1], lengths[b : b + 1], vocabulary=VOCABULARY)
            assert alone.frames(0) == both.frames(b)
    one = random_places(clips, lengths, ["a", "b"], vocabulary=VOCABULARY)
    other = random_places(clips[1:], lengths[1:], ["b"], vocabulary=VOCABULARY)
    assert one.frames(1) == other.frames(0) and one.lengths.tolist() == lengths.tolist()


@pytest.mark.parametrize("lengths", [np.array([[85]]), np.array([[-1]]), np.array([1]), np.array([[0.5]])])
def test_lengths_that_make_no_sense(lengths):
    with pytest.raises(ValueError, match="lengths"):
        stalest(np.zeros((1, 1, 64, 64, 3), np.uint8), lengths, vocabulary=VOCABULARY)


def test_full_frames_agree_with_themselves(encoder):
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64, 3), np.uint8)
    full = encoder("dinov2", "frame").encode(frames)
    found = agreement(full, full)
    for part in (found.tokens, found.dense, found.pooled):
        assert part.tolist() == pytest.approx([1, 1])
    assert retrieval(full.pool().clips, full.pool().clips) == Retrieval(1, 1)


def test_retrieval_ranks_each_clip_among_all_and_shares_out_what_is_equally_near():
    full = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert retrieval(full * 3, full) == Retrieval(1, 1)
    found = retrieval(full[[0, 0, 0]] + 0.1 * full[[2, 2, 2]], full)  # rank 1, 3 and 2
    assert found.first == pytest.approx(1 / 3) and found.reciprocal == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    blind = retrieval(torch.zeros(3, 3), full)  # as near to all: chance
    assert blind.first == pytest.approx(1 / 3) and blind.reciprocal == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    with pytest.raises(ValueError, match="2 clips or more"):
        retrieval(full[:1], full[:1])


def test_agreement_compares_each_patch_with_its_own_place(encoder, gazes):
    frames = np.random.default_rng(0).integers(0, 256, (2, 2, 64, 64, 3), np.uint8)
    full = encoder("siglip", "frame").encode(frames)
    gazed = encoder("siglip", "block_causal").encode(frames, gazes([[30, 9], [0, 0]]))
    own = []
    for token, t, id in zip(gazed.tokens, gazed.frame.tolist(), gazed.id.tolist(), strict=True):
        if id >= 20:
            own.append(torch.cosine_similarity(token, full.dense()[0, t].flatten(0, 1)[id - 20], dim=0))
    found = agreement(full, gazed)
    assert float(found.tokens[0]) == pytest.approx(float(torch.stack(own).mean()), abs=1e-5)
    assert bool(found.tokens[1].isnan()) and float(found.dense[1]) == float(found.pooled[1]) == 0


def test_every_nth_frame_is_in_full_and_the_others_empty():
    gaze = every_nth_frame(2, 8, 3 * 64 + 10, VOCABULARY)
    assert gaze.lengths.tolist() == [[64, 0, 0, 64, 0, 64, 0, 0]] * 2
    assert every_nth_frame(1, 4, 5, VOCABULARY).lengths.tolist() == [[64, 0, 0, 0]]


def test_merging_nothing_gives_the_whole_network(encoder, kind):
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 64, 64, 3), np.uint8)
    one = encoder(kind, "frame", (64,))
    if kind.startswith("dinov3"):
        with pytest.raises(ValueError, match="DINOv3 turns queries and keys by place"):
            merge(one, frames, 1.0)
        return
    found = merge(one, frames, 1.0)
    assert found.tokens == [64, 64, 64]
    whole = one.encode(frames)
    torch.testing.assert_close(found.features.dense(), whole.dense(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.features.prefix, whole.prefix, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.features.pool().clips, whole.pool().clips, atol=1e-5, rtol=0)


def test_merged_tokens_stand_for_all_places_and_fewer_are_less_alike(encoder):
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 64, 64, 3), np.uint8)
    one = encoder("dinov2", "frame", (64,))
    whole = one.encode(frames).dense()
    cosines = [cosine(merge(one, frames, share).features.dense(), whole).mean() for share in (1.0, 0.7, 0.3)]
    assert cosines[0] > cosines[1] > cosines[2] > 0
    places = merge(one, frames, 0.3).features.dense()[0, 0].flatten(0, 1)
    assert len(places.unique(dim=0)) == tokens_per_layer(64, 3, 0.3)[-1]


def test_patches_that_are_the_same_merge_without_loss(encoder):
    """A grey frame: tokens differ by their positions alone until they are merged; the class token is near its own."""
    one = encoder("dinov2", "frame", (64,))
    merged = merge(one, np.full((1, 1, 64, 64, 3), 128, np.uint8), 0.6)
    assert bool(merged.features.tokens.isfinite().all()) and merged.features.prefix.shape == (1, 1, 1, 32)


def test_merging_reaches_what_halving_in_every_layer_leaves(encoder):
    one = encoder("dinov2", "frame", (64,))  # three layers: (1/2 + 1/4 + 1/8) / 3 of 64
    assert within_reach(one, 0.3) and not within_reach(one, 0.2)
    assert merge(one, np.zeros((1, 1, 64, 64, 3), np.uint8), 0.3).tokens_per_frame == pytest.approx(0.3 * 64, abs=1)
    assert not within_reach(encoder("dinov3", "frame", (64,)), 0.9)


def test_merging_refuses_rotary_positions(encoder):
    with pytest.raises(ValueError, match="DINOv3 turns queries and keys by place"):
        merge(encoder("dinov3", "frame", (64,)), np.zeros((1, 1, 64, 64, 3), np.uint8), 0.5)


@pytest.mark.parametrize("share", [0.2, 0.3, 0.5, 0.9])
def test_a_schedule_gives_layers_the_share_asked_for(share):
    counts = tokens_per_layer(196, 12, share)
    assert sum(counts) / (12 * 196) == pytest.approx(share, abs=0.01)
    assert all(after >= before / 2 for before, after in zip([196, *counts[:-1]], counts, strict=True))
