"""The gaze that an encoder learns on: of the ratio asked for, and a function of clip, ratio and generator alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autogaze.draws import numbered_generator
from autogaze.gaze import Gaze
from autogaze.patches import PatchVocabulary
from pipelines.train.encoder_gaze import training_gaze

VOCABULARY = PatchVocabulary((16, 32), 8)  # grids of 2 and 4: 20 ids
KINDS = ("stored", "random", "stalest", "changed_most")
STORED = Gaze.from_lists(
    [[[7, 1, 19, 4], [3, 2], []], [[5], [6, 0, 18, 9, 8, 12], [1]]], losses=None, vocabulary=VOCABULARY
)


def clips(count: int = 2, side: int = 32) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side, 3), generator=random, dtype=torch.uint8)


def gaze_of(kind, ratios=(0.25, 0.5), whole_first=False, stored=STORED, frames=None, seeds=(0, 1)) -> Gaze:
    frames = clips() if frames is None else frames
    generators = [numbered_generator(seed) for seed in seeds]
    return training_gaze(kind, frames, stored, ratios, generators, vocabulary=VOCABULARY, whole_first=whole_first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_has_at_most_its_share_of_the_finest_patches(kind) -> None:
    found = gaze_of(kind)
    assert (found.lengths <= torch.tensor([[4], [8]])).all() and (found.counts() > 0).all()
    if kind in ("random", "changed_most"):
        assert found.lengths.tolist() == [[4] * 3, [8] * 3]
    first = gaze_of(kind, whole_first=True)
    assert first.lengths[:, 0].tolist() == ([4, 1] if kind == "stored" else [16, 16])
    assert (first.lengths[:, 1:] <= torch.tensor([[4], [8]])).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_is_gazed_alike_beside_any_other(kind) -> None:
    both = gaze_of(kind)
    alone = training_gaze(
        kind, clips()[1:], STORED[1], [0.5], [numbered_generator(1)], vocabulary=VOCABULARY, whole_first=False
    )
    assert torch.equal(both[1].tokens, alone.tokens) and torch.equal(both[1].lengths, alone.lengths)


def test_stored_gaze_keeps_the_patches_that_were_chosen_first() -> None:
    found = gaze_of("stored", ratios=(0.125, 0.125))
    assert [found.frames(b) for b in range(2)] == [[[7, 1], [3, 2], []], [[5], [6, 0], [1]]]
    assert found.losses is None
    assert gaze_of("stored", ratios=(0.125, 0.125), whole_first=True).frames(0)[0] == [7, 1, 19, 4]


def test_a_clip_without_gaze_shows_random_patches() -> None:
    empty = Gaze.from_lists([[[], [], []]] * 2, vocabulary=VOCABULARY)
    found = gaze_of("stored", stored=empty)
    assert found.lengths.tolist() == [[4] * 3, [8] * 3]
    assert torch.equal(found.tokens, gaze_of("random").tokens)


def test_random_patches_are_of_all_scales_and_differ_with_the_generator() -> None:
    one, other = gaze_of("random", ratios=(0.8, 0.8)), gaze_of("random", ratios=(0.8, 0.8), seeds=(2, 3))
    assert not torch.equal(one.tokens, other.tokens) and (one.tokens < 4).any() and (one.tokens >= 4).any()
    whole = gaze_of("random", whole_first=True)
    assert whole.frames(0)[0] == list(range(4, 20))


def test_frames_of_another_size_are_chosen_from_as_the_encoder_sees_them() -> None:
    large = clips(side=32).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    near = np.mean(
        [
            a == b
            for a, b in zip(gaze_of("changed_most").tokens, gaze_of("changed_most", frames=large).tokens, strict=True)
        ]
    )
    assert near > 0.8
