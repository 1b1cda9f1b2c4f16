"""Verified gaze: a threshold that is kept, measured by a painter of the tests' own, whatever the policy predicts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from autogaze import verified
from autogaze.gaze import Gaze
from autogaze.greedy import label
from autogaze.measuring import measure_errors
from autogaze.model import AutoGaze
from autogaze.model.cache import PaddedCache
from autogaze.model.config import AutoGazeConfig
from autogaze.patches import PatchVocabulary
from autogaze.reconstruction import load
from tests.autogaze.plain_verified import Painter, greedy, plain_verified
from tests.support import places

CONFIG = AutoGazeConfig(
    scales=(16, 32, 64),
    input_size=64,
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    head_dim=16,
    intermediate_size=32,
    block_size=4,
    positions="consistent",
)
VOCABULARY = CONFIG.vocabulary  # 21 patches
CANVAS = load("canvas", VOCABULARY)


def policy_that(predicts: float | None = None, seed: int = 0, **changes) -> AutoGaze:
    """A policy of random weights. predicts: the loss that it predicts everywhere; None: a random one, about zero."""
    torch.manual_seed(seed)
    policy = AutoGaze(replace(CONFIG, **changes)).eval()
    decoder = policy.gazing_model.gaze_decoder
    decoder.lm_head.weight.data.mul_(20)
    if predicts is not None:
        losses = decoder.losses
        decoder.losses = lambda hidden: torch.full_like(losses(hidden), predicts)
    return policy


@pytest.fixture
def clips(footage) -> np.ndarray:
    """Two clips of 5 frames: a disc over a texture, and stripes that stand still and then change."""
    moving = footage("moving", 2, 5, 64)
    moving[1, :3] = footage("gradient", 1, 1, 64)[0]
    return moving


def same(one: Gaze, other: Gaze) -> bool:
    names = ("tokens", "lengths", "losses", "initial", "origins")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def assert_certified(clips: np.ndarray, gaze: Gaze) -> None:
    """Every stored error is what a painter of the tests' own measures, bit for bit."""
    for b, clip in enumerate(clips):
        painter, after = Painter(clip, gaze.vocabulary), gaze[b].losses.tolist()
        for t, tokens in enumerate(gaze.frames(b)):
            assert gaze.initial[b, t].item() == painter.error(t, [])
            for count in range(1, len(tokens) + 1):
                assert after.pop(0) == painter.error(t, tokens[:count])
            painter.keep(t, tokens)


# -- what it chooses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stop", "threshold", "ratio", "go_on"),
    [(0.1, 0.05, 1.0, 0), (10.0, 0.1, 1.0, 0), (0.0, 0.02, 0.4, 0), (0.1, 0.05, 0.7, 1), (10.0, 0.05, 0.5, 2)],
)
def test_tokens_and_origins_are_those_of_the_plain_version(clips, stop, threshold, ratio, go_on):
    policy = policy_that()
    gaze = verified.gaze(clips, policy, CANVAS, threshold=threshold, max_ratio=ratio, stops=stop, go_on=go_on)
    for b, clip in enumerate(clips):
        tokens, origins = plain_verified(clip, policy, threshold, VOCABULARY.cap(ratio), stop, go_on)
        assert gaze.frames(b) == tokens
        assert gaze.origins[b].tolist() == origins


def test_the_cases_above_have_tokens_of_every_origin_and_frames_gazed_at_anew(clips):
    parts = [
        verified.gaze(clips, policy_that(), CANVAS, threshold=threshold, max_ratio=ratio, stops=stop, go_on=0).origins
        for stop, threshold, ratio in ((0.1, 0.05, 1.0), (10.0, 0.1, 1.0), (0.0, 0.02, 0.4))
    ]
    assert (torch.stack(parts).sum(dim=(0, 1, 2)) > 0).all()
    alone = torch.cat([part.flatten(0, 1) for part in parts])
    assert ((alone[:, :2].sum(dim=1) == 0) & (alone[:, 2] > 0)).any()


def test_a_frame_that_meets_the_threshold_gets_no_token(footage):
    still = np.repeat(footage("gradient", 1, 1, 64), 4, axis=1)
    gaze = verified.gaze(still, policy_that(), CANVAS, threshold=0.05)
    assert gaze.lengths[0, 0] > 0
    assert gaze.lengths[0, 1:].tolist() == [0, 0, 0]
    assert gaze.met(0.05).all()


def test_proposals_are_the_patches_of_plain_generation(clips):
    """What is proposed is what plain generation chooses."""
    for positions in ("reference", "consistent"):
        policy = policy_that(predicts=1.0, positions=positions)
        plain = policy.gaze(clips[:, :1], max_ratio=0.4)
        proposals = policy.propose(2, [8])
        proposals.open(policy.encode(clips[:, :1]).tokens[:, 0], 8)
        first = proposals.proposed()[0]
        proposals.go_on([0, 1])
        assert torch.equal(torch.cat((first, proposals.proposed()[0]), dim=1).flatten(), plain.tokens)


# -- what it promises ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predicts", [0.0, torch.inf, torch.nan, None])
@pytest.mark.parametrize("threshold", [0.0, 0.03])
def test_a_policy_that_lies_is_found_out(clips, predicts, threshold):
    gaze = verified.gaze(clips, policy_that(predicts), CANVAS, threshold=threshold)
    assert gaze.met(threshold).all()
    assert_certified(clips, gaze)


def test_a_frame_is_missed_only_where_greedy_search_misses_it_too(clips):
    gaze = verified.gaze(clips, policy_that(torch.inf), CANVAS, threshold=0.01, max_ratio=0.2)
    assert_certified(clips, gaze)
    missed = ~gaze.met(0.01)
    assert missed.any()
    assert not missed.all()
    for b, clip in enumerate(clips):
        painter = Painter(clip, VOCABULARY)
        for t, tokens in enumerate(gaze.frames(b)):
            if missed[b, t]:
                assert tokens == greedy(painter, t, [], np.float32(0.01), VOCABULARY.cap(0.2))
                assert gaze.origins[b, t].tolist() == [0, 0, len(tokens)]
            painter.keep(t, tokens)


@pytest.mark.parametrize("kind", ["black", "grey", "noise"])
def test_a_cap_of_one_token(footage, kind):
    frames = footage(kind, 2, 3, 64)
    gaze = verified.gaze(frames, policy_that(), CANVAS, threshold=0.01, max_ratio=1 / 21)
    assert_certified(frames, gaze)
    assert gaze.lengths.max() <= 1
    if kind == "black":  # the one coarsest patch shows it
        assert gaze.met(0.01).all()
    if kind == "grey":
        assert gaze.lengths.sum() == 0


def test_a_cap_for_each_frame(clips):
    gaze = verified.gaze(clips, policy_that(), CANVAS, threshold=0.0, max_ratio=[1.0, 0.1, 0.2, 1.0, 0.3])
    assert (gaze.lengths <= torch.tensor([21, 2, 4, 21, 6])).all()
    assert_certified(clips, gaze)


# -- what it does not depend on --------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["reference", "consistent"])
@pytest.mark.parametrize("stop", [0.0, 0.1])
def test_batch_and_order_change_nothing(footage, positions, stop):
    policy = policy_that(positions=positions)
    clips = np.concatenate([footage(kind, 2, 4, 64) for kind in ("moving", "gradient", "noise", "black")])
    how = {"threshold": 0.06, "max_ratio": 0.6, "stops": stop}
    alone = Gaze.cat([verified.gaze(clip[None], policy, CANVAS, **how) for clip in clips])
    assert same(verified.gaze(clips, policy, CANVAS, **how), alone)
    assert same(verified.gaze(clips[::-1].copy(), policy, CANVAS, **how), Gaze.cat(list(alone)[::-1]))


def test_nor_does_the_cache_that_gpus_use(clips, monkeypatch):
    policy = policy_that()
    ragged = verified.gaze(clips, policy, CANVAS, threshold=0.03, stops=0.1)
    monkeypatch.setattr("autogaze.model.policy.RaggedCache", PaddedCache)
    assert same(verified.gaze(clips, policy, CANVAS, threshold=0.03, stops=0.1), ragged)


def test_nor_do_candidates_where_they_hold_the_best(clips):
    policy = policy_that(0.0)
    every = verified.gaze(clips, policy, CANVAS, threshold=0.02)
    assert same(verified.gaze(clips, policy, CANVAS, threshold=0.02, candidates=1), every)


# -- the learned reconstructor ---------------------------------------------------------------------------------------


def test_with_the_learned_reconstructor(footage):
    learned = load(places.GOLDEN / "videomae_tiny")
    policy = AutoGaze.from_pretrained(places.GOLDEN / "autogaze_small_k4")
    frames = footage("moving", 1, 2, 224)
    start = learned.search(frames).open(0).item()
    gaze = verified.gaze(frames, policy, learned, threshold=start * 0.9999, max_ratio=0.004, stops=0.0, candidates=2)
    again = measure_errors(frames, gaze, learned)
    assert torch.equal(again.losses, gaze.losses)
    assert torch.equal(again.initial, gaze.initial)
    assert gaze.origins.sum() == gaze.counts().sum() > 0


# -- form and refusals -----------------------------------------------------------------------------------------------


def test_a_stored_gaze_keeps_its_certificate_and_others_their_bytes(clips):
    gaze = verified.gaze(clips, policy_that(), CANVAS, threshold=0.05, stops=0.1)
    assert all(same(Gaze.from_npz(clip.to_npz(), VOCABULARY), clip) for clip in gaze)
    plain = label(clips, CANVAS, threshold=0.05)
    assert b"origins" not in plain[0].to_npz()
    with pytest.raises(ValueError, match="origins"):
        Gaze.cat([gaze, plain])
    with pytest.raises(ValueError, match="add up"):
        replace(gaze, origins=gaze.origins + 1)
    with pytest.raises(ValueError, match="origins must be"):
        replace(gaze, origins=gaze.origins[:, :, :2])


def test_what_does_not_fit_is_refused(clips):
    other = load("canvas", PatchVocabulary((32, 64), 16))
    for wrong, reconstructor, said in (
        ({"threshold": -1.0}, CANVAS, "threshold is an error"),
        ({"threshold": torch.nan}, CANVAS, "threshold is an error"),
        ({"threshold": 0.1, "max_ratio": 0.0}, CANVAS, "ratio"),
        ({"threshold": 0.1, "stops": -1.0}, CANVAS, "loss_threshold"),
        ({"threshold": 0.1, "go_on": -1}, CANVAS, "go_on"),
        ({"threshold": 0.1, "candidates": 0}, CANVAS, "candidates"),
        ({"threshold": 0.1}, other, "the policy chooses from"),
    ):
        with pytest.raises(ValueError, match=said):
            verified.gaze(clips, policy_that(), reconstructor, **wrong)
    with pytest.raises(ValueError, match="frames must be uint8"):
        verified.gaze(clips[:, :, :32], policy_that(), CANVAS, threshold=0.1)
