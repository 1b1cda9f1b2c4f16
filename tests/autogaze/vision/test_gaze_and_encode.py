"""Gaze and features in one pass."""

import numpy as np
import pytest
import torch

from autogaze import baselines, greedy
from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary
from autogaze.reconstruction.canvas import Canvas
from autogaze.tiling import TileGrid
from autogaze.vision import gaze_and_encode

VOCABULARY = PatchVocabulary((16, 32, 64), 8)


def changes(clips: np.ndarray) -> Gaze:
    lengths = np.full(clips.shape[:2], 6)
    return baselines.frame_difference(clips, lengths, vocabulary=VOCABULARY)


def canvas(clips: np.ndarray) -> Gaze:
    return greedy.label(clips, Canvas(VOCABULARY), threshold=0.05, max_ratio=0.3)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_clips_give_what_gazing_and_then_encoding_gives(encoder, batch):
    clips, one = noise(3, 2, 64, 64, 3), encoder("dinov2")
    out = gaze_and_encode(clips, canvas, one, batch=batch)
    wanted = one.encode(clips, canvas(clips))
    assert torch.equal(out.id, wanted.id) and torch.equal(out.clip, wanted.clip)
    torch.testing.assert_close(out.tokens, wanted.tokens, atol=1e-5, rtol=0)


def test_clips_longer_than_a_chunk_are_gazed_in_chunks_and_encoded_whole(encoder):
    clips, one = noise(1, 35, 64, 64, 3), encoder()
    out = gaze_and_encode(clips, changes, one)
    parts = [changes(clips[:, start : start + 16]) for start in (0, 16, 32)]
    assert torch.equal(out.id, torch.cat([part.tokens for part in parts]))
    whole = Gaze(tokens=out.id, lengths=torch.full((1, 35), 6), vocabulary=VOCABULARY)
    torch.testing.assert_close(out.tokens, one.encode(clips, whole).tokens, atol=1e-5, rtol=0)


def test_a_policy_gazes_in_the_encoders_vocabulary(encoder, policy_of_two_scales):
    clips, one = noise(1, 2, 64, 64, 3), encoder("siglip", "block_causal", (16, 32))
    out = gaze_and_encode(clips, policy_of_two_scales, one)
    wanted = policy_of_two_scales.gaze(clips, vocabulary=one.vocabulary)
    assert torch.equal(out.id, wanted.tokens)


@pytest.fixture
def policy_of_two_scales():
    """A random policy of two scales; the encoder has as many, with smaller grids."""
    from dataclasses import replace

    from autogaze.model import AutoGaze, AutoGazeConfig

    torch.manual_seed(0)
    config = AutoGazeConfig()
    return AutoGaze(replace(config, scales=(112, 224), max_ratio=0.1, loss_threshold=None)).eval()


@pytest.mark.parametrize("batch", [2, 32])
def test_a_video_gives_the_features_of_its_tiles_chunk_by_chunk(encoder, batch):
    frames, one, taken = noise(21, 100, 150, 3), encoder("siglip", "newest"), []

    def chunks():
        for start in (0, 16):
            taken.append(start)
            yield frames[start : start + 16]

    grid = TileGrid(100, 150, 64)
    found = {}
    for part in gaze_and_encode(chunks(), changes, one, batch=batch):
        assert taken[-1] == part.start, "a chunk was taken before the last one was done"
        assert part.grid == grid and len(part.tiles) <= batch
        for n, tile in enumerate(part.tiles):
            found[part.start, tile] = part.features.tokens[part.features.clip == n]
    assert len(found) == 2 * grid.count
    for (start, tile), tokens in found.items():
        clip = grid.cut(frames[start : start + 16], [tile])
        torch.testing.assert_close(tokens, one.encode(clip, changes(clip)).tokens, atol=1e-5, rtol=0)


def test_a_video_seen_whole_is_one_clip_a_chunk(encoder):
    frames, one = noise(4, 64, 64, 3), encoder()
    (part,) = gaze_and_encode([frames], changes, one, tiles=False)
    wanted = one.encode(frames[None], changes(frames[None]))
    assert part.grid.count == 1 and torch.equal(part.features.tokens, wanted.tokens)


def test_frames_that_do_not_fit(encoder):
    one = encoder()
    with pytest.raises(ValueError, match="at least 1 clip"):
        gaze_and_encode(noise(1, 1, 64, 64, 3), changes, one, batch=0)
    with pytest.raises(ValueError, match="give uint8 frames"):
        gaze_and_encode(torch.zeros(1, 1, 3, 64, 64), changes, one)
    with pytest.raises(ValueError, match="t from 1 to 16"):
        list(gaze_and_encode([noise(17, 64, 64, 3)], changes, one))
    with pytest.raises(ValueError, match="a video has one size"):
        list(gaze_and_encode([noise(2, 64, 64, 3), noise(2, 64, 80, 3)], changes, one))
