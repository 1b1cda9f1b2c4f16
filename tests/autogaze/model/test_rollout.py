"""Rollouts: a sample with the log-probabilities it had, and the same log-probabilities again with gradients."""

import pytest
import torch

from autogaze.model import Encoded, Sampling

LIMITS = [
    {"max_ratio": 0.6},
    {"max_ratio": 0.7, "loss_threshold": 0.5},
    {"slots": [7, 1, 4]},
    {"slots": [7, 20, 4], "loss_threshold": 0.45},
]
HOW = [(1.0, 50), (3.0, 6), (0.5, None), (1.0, 2)]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize(("temperature", "top_k"), HOW)
@pytest.mark.parametrize("graphs", [None, False, True])
def test_scoring_a_rollout_gives_the_log_probabilities_it_was_sampled_with(
    small_policy, clips, take_the_gpus_path, temperature, top_k, limits, graphs
):
    if graphs is not None:
        take_the_gpus_path(graphs)
    model, frames = small_policy(2, 3, "consistent"), clips(2, 3, 4)
    sample = Sampling(temperature, top_k, seeds=list(range(8)))
    encoded = model.encode(frames).repeat(4)
    rollout = model.rollout(Encoded(encoded.tokens.detach()), sample, **limits)
    scores = model.score(encoded, rollout.gaze, sample, rollout.drawn)
    drawn = rollout.drawn != model.vocabulary.eos
    assert drawn.any()
    torch.testing.assert_close(scores.log_probs[drawn], rollout.log_probs[drawn], atol=2e-4, rtol=1e-4)
    assert scores.entropies is not None and (scores.entropies >= -1e-5).all()
    # What is used was drawn.
    padded = rollout.gaze.padded()
    used, size = ~padded["if_padded_gazing"], model.vocabulary.size
    assert torch.equal(padded["gazing_pos"][used] % size, rollout.drawn[used])


def test_a_rollout_is_the_gaze_that_the_same_sampling_gives(small_policy, clips):
    model, frames = small_policy(1, 3), clips(3, 2, 5)
    sample = Sampling(2.0, 7, seeds=[4, 5, 6])
    gaze = model.gaze(frames, max_ratio=0.5, loss_threshold=0.5, sample=sample)
    rollout = model.rollout(frames, sample, max_ratio=0.5, loss_threshold=0.5)
    assert torch.equal(rollout.gaze.tokens, gaze.tokens) and torch.equal(rollout.gaze.lengths, gaze.lengths)


def test_the_log_probabilities_are_those_of_the_distribution_sampled_from(small_policy, clips):
    """Over samples x of p, the mean of 1 / p(x) is the number of x there are: here those of the best five."""
    rows, frames, model = 3000, clips(1, 1), small_policy(0, 3, "consistent")
    sample = Sampling(1.5, 5, seeds=list(range(rows)))
    rollout = model.rollout(model.encode(frames).repeat(rows), sample, slots=[3])
    first, second = (-rollout.log_probs[:, :2]).exp().T
    assert (first.mean() - 5).abs() < 4 * first.std() / rows**0.5
    # The second head has five too, less one where the first took one of them.
    pairs = {tuple(pair) for pair in rollout.drawn[:, :2].tolist()}
    both = first * second
    assert (both.mean() - len(pairs)).abs() < 4 * both.std() / rows**0.5


def test_gradients_flow_through_a_repeated_encoding_as_through_copies(small_policy, clips):
    model, frames = small_policy(2, 3, "consistent"), clips(1, 2, 3)
    sample = Sampling(1.0, 8, seeds=[1, 2, 3])
    rollout = model.rollout(model.encode(frames).repeat(3), sample, slots=[5, 6])

    def gradients(given):
        model.zero_grad()
        model.score(given, rollout.gaze, sample).log_probs.sum().backward()
        return {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }

    copies = gradients(frames.repeat(3, 1, 1, 1, 1))
    shared = gradients(model.encode(frames).repeat(3))
    assert copies.keys() == shared.keys()
    for name, gradient in copies.items():
        torch.testing.assert_close(shared[name], gradient, atol=1e-4, rtol=1e-3)


def test_slots_that_make_no_sense_are_refused(small_policy, clips):
    model, frames = small_policy(), clips(1, 2)
    for slots in ([1], [0, 1], [21, 1]):
        with pytest.raises(ValueError, match="2 numbers from 1 to 20"):
            model.rollout(frames, Sampling(), slots=slots)
    with pytest.raises(ValueError, match="no max_ratio"):
        model.rollout(frames, Sampling(), slots=[1, 1], max_ratio=0.5)


def test_a_gaze_is_of_the_weights_precision_under_autocast(policy, video):
    def found():
        k4, sample = policy("k4"), Sampling(seeds=[1, 2])
        stream = k4.stream(max_ratio=0.02, batch=2)
        gazes = [k4.gaze(video, max_ratio=0.02), *(stream.push(frame) for frame in video.unbind(1))]
        rollout = k4.rollout(video, sample, max_ratio=0.02)
        return [tensor for gaze in gazes for tensor in (gaze.tokens, gaze.losses)] + [rollout.drawn, rollout.log_probs]

    exact = found()
    with torch.autocast("cpu", torch.bfloat16):
        cast = found()
    assert all(torch.equal(one, other) for one, other in zip(exact, cast, strict=True))
