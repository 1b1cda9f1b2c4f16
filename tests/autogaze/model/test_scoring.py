"""Teacher forcing: log-probabilities and loss predictions of a given gaze, equal to the reference's with gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from autogaze.gaze import Gaze
from autogaze.model import AutoGaze
from tests.support import places

GOLDEN = places.GOLDEN
PADDED = ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame")
SCORED = [
    ("k10", "ratio_tlr", (0, 1)),
    ("k10", "ratio_tlr_batch1_sample0", (0,)),
    ("k10", "ratio_tlr_batch1_sample1", (1,)),
    ("k10", "fixedpos_ratio", (0, 1)),
    ("k10", "fixedpos_ratio_tlr", (0, 1)),
    ("k10", "teacher_forced_ntp", (0, 1)),
    ("k4", "ratio_tlr", (0, 1)),
]


def next_token_loss(log_probs, loss_predictions, losses, used):
    """The reference's training loss of each row, float [B]: of the tokens, and of the loss predictions.

    See docs/method.md, section 'Next-token prediction'.
    """
    rows, total = len(used), used.sum()
    tokens = -(log_probs * used).sum(1) / (total / rows + 1e-6)
    predictions = ((loss_predictions - losses) ** 2 * used).sum(1) / (total / rows + 1e-6)
    return tokens, predictions


def close(found, wanted) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "call", "rows"), SCORED)
@pytest.mark.parametrize("positions", ["reference", "consistent"])
def test_scores_equal_the_references_unused_slots_included(policy, video, golden, name, call, rows, positions):
    """At an unused slot it is the log-probability of ending the frame. Position modes differ in generation only."""
    reference = golden(f"{name}__{call}")
    gaze = Gaze.from_padded(*(reference[key] for key in PADDED))
    scores = policy(name, positions).score(video[list(rows)], gaze)
    close(scores.log_probs, reference["log_action_probs"])
    close(scores.loss_predictions, reference["task_loss_prediction"])


def test_losses_and_gradients_of_next_token_prediction_equal_the_references(video, golden):
    reference = golden("k10__teacher_forced_ntp")
    model = AutoGaze.from_pretrained(GOLDEN / "autogaze_small_k10").train()
    scores = model.score(video, Gaze.from_padded(*(reference[key] for key in PADDED)))
    tokens, predictions = next_token_loss(*scores[:2], reference["task_losses"], ~reference["if_padded_gazing"])
    close(tokens, reference["ntp_loss"])
    close(predictions, reference["task_loss_prediction_loss"])
    loss = (tokens + predictions).mean()
    close(loss, reference["scalar_loss"])
    loss.backward()
    wanted = load_file(GOLDEN / "k10__teacher_forced_ntp_grads.safetensors")
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@st.composite
def slotted(draw):
    """Clips of frames of slots, ids 0..19 or 20 in unused ones: holes and frames without a token anywhere."""
    counts = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any))
    row = st.tuples(*(st.lists(st.integers(0, 20), min_size=n, max_size=n) for n in counts))
    return counts, draw(st.lists(row, min_size=1, max_size=3))


@given(slotted(), st.integers(0, 7), st.sampled_from([1, 3, 4]))
@settings(deadline=None, derandomize=True, max_examples=25)
def test_scores_of_any_gaze_equal_the_plain_policys(small, small_policy, plain_policy, clips, drawn, seed, block):
    counts, rows = drawn
    frames, model = clips(len(rows), len(counts), seed), small_policy(seed, block)
    gaze = from_slots(rows, counts, model.vocabulary)
    with torch.no_grad():
        scores = model.score(frames, gaze)
    layout = gaze.padded()["num_gazing_each_frame"].tolist()
    assert scores.log_probs.shape == scores.loss_predictions.shape == (len(rows), sum(layout))
    for b, slots in enumerate(rows):
        filled = [list(frame)[:n] + [20] * (n - len(frame)) for frame, n in zip(slots, layout, strict=True)]
        if any(layout):
            log_probs, predictions = small(seed, block)[1].score(plain_policy.preprocessed(frames[b]), filled)
            close(scores.log_probs[b], log_probs)
            close(scores.loss_predictions[b], predictions)


def from_slots(rows, counts, vocabulary) -> Gaze:
    pos = torch.tensor([[id for frame in row for id in frame] for row in rows])
    return Gaze.from_padded(
        pos + torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)) * 20,
        pos == 20,
        counts,
        vocabulary,
    )


def test_gradients_equal_those_through_the_plain_policy(small, plain_policy, clips):
    folder = small(2, 4)[0]
    rows, counts = [([5, 20, 7], [1, 2, 3, 4, 0]), ([20, 20, 20], [9, 8, 20, 20, 6])], [3, 5]
    model, frames = AutoGaze.from_pretrained(folder), clips(2, 2)
    weights = {name: tensor.requires_grad_() for name, tensor in load_file(folder / "model.safetensors").items()}
    plain = plain_policy.PlainPolicy(folder, weights)
    scores = model.score(frames, from_slots(rows, counts, model.vocabulary))
    weigh = torch.randn(2, *scores.log_probs.shape, generator=torch.Generator().manual_seed(0))
    (weigh[0] * scores.log_probs + weigh[1] * scores.loss_predictions).sum().backward()
    for b, slots in enumerate(rows):
        log_probs, predictions = plain.score(plain_policy.preprocessed(frames[b]), [list(frame) for frame in slots])
        (weigh[0, b] * log_probs + weigh[1, b] * predictions).sum().backward()
    for name, parameter in model.named_parameters():
        wanted = weights[name].grad
        assert (parameter.grad - wanted).norm() <= 1e-4 * wanted.norm(), name


def test_mates_do_not_change_the_scores_of_a_row(small_policy, clips):
    model, frames = small_policy(1), clips(3, 2)
    gaze = Gaze.from_lists([[[1, 2, 3, 4], [5]], [[], [6, 7]], [[8], []]], vocabulary=model.vocabulary)
    with torch.no_grad():
        together = model.score(frames, gaze)
        used = ~gaze.padded()["if_padded_gazing"]
        for b, clip in enumerate(gaze):
            alone, mine = model.score(frames[b : b + 1], clip), ~clip.padded()["if_padded_gazing"][0]
            for one, other in zip(alone[:2], together[:2], strict=True):
                torch.testing.assert_close(one[0, mine], other[b, used[b]], atol=1e-5, rtol=0)


def test_frames_without_tokens_are_scored_and_trained_on(small, clips):
    model = AutoGaze.from_pretrained(small()[0])
    gaze = Gaze.from_lists([[[], [3, 1], [], []], [[2], [], [], [4]]], vocabulary=model.vocabulary)
    scores = model.score(clips(2, 4), gaze)
    assert torch.isfinite(scores.log_probs).all() and torch.isfinite(scores.loss_predictions).all()
    (scores.log_probs.sum() + scores.loss_predictions.sum()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_scoring_without_gradients_gives_the_same(small_policy, clips):
    model, frames = small_policy(3), clips(2, 3)
    gaze = model.gaze(frames, max_ratio=0.7, loss_threshold=0.8)
    with torch.no_grad():
        plain = model.score(frames, gaze)
    assert not plain.log_probs.requires_grad
    for one, other in zip(plain[:2], model.score(frames, gaze)[:2], strict=True):
        torch.testing.assert_close(one, other.detach(), atol=1e-5, rtol=0)
