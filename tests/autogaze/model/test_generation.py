"""Gaze: equal to the reference and to the plain policy token for token, and true to what it promises."""

import math
from functools import partial
from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autogaze.gaze import Gaze
from autogaze.model import AutoGaze, Sampling
from autogaze.model.cache import PaddedCache
from autogaze.patches import PatchVocabulary
from tests.support import places

GOLDEN = places.GOLDEN
PADDED = ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame")
CAPS = {0.1: 26, 0.25: 66, 0.4: 106, None: 265}
TENSOR = [[0.7, 0.6, 0.75, 0.65], [0.65, 0.7, 0.6, 0.8]]
THRESHOLD_CALLS = {"ratio_tlr": (0.4, 0.7), "tlr_only": (None, 0.7), "ratio_tlr_tensor": (0.25, TENSOR)}
# The rows of the reference's batches that their mates did not change.
UNDISTURBED = [
    ("k10", "ratio_tlr", 1),
    ("k10", "tlr_only", 1),
    ("k10", "ratio_tlr_tensor", 1),
    ("k4", "ratio_tlr", 0),
    ("k4", "tlr_only", 0),
]
examples = partial(settings, deadline=None, derandomize=True)


def assert_padded_equals(gaze: Gaze, reference: dict[str, torch.Tensor]) -> None:
    padded = gaze.padded()
    for key in ("num_gazing_each_frame", "if_padded_gazing", "gazing_pos"):
        assert torch.equal(padded[key], reference[key]), key


def same(one: Gaze, other: Gaze) -> bool:
    """Tokens, the slots they lie in, and losses to rounding."""
    padded = zip(one.padded().values(), other.padded().values(), strict=True)
    close = partial(torch.allclose, atol=1e-4, rtol=0)
    return all(torch.equal(a, b) for a, b in padded) and close(one.losses, other.losses)


def alone(gaze: Gaze) -> list[list[list[int]]]:
    return [gaze.frames(b) for b in range(gaze.clips)]


# -- the reference -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["k10", "k4"])
@pytest.mark.parametrize(
    ("call", "max_ratio"), [("ratio", 0.1), ("ratio_list", [0.2, 0.004, 0.1, 0.03]), ("full_no_stop", 1.0)]
)
def test_a_call_without_threshold_equals_the_reference(policy, video, golden, name, call, max_ratio):
    reference = golden(f"{name}__{call}")
    gaze = policy(name).gaze(video, max_ratio=max_ratio)
    assert_padded_equals(gaze, reference)
    for index, mask in enumerate(gaze.masks()):
        assert torch.equal(mask, reference[f"gazing_mask_{index}"])


def test_a_row_of_a_threshold_call_equals_the_reference_run_with_it_alone(policy, video, golden):
    model = policy("k10")
    batch = model.gaze(video, max_ratio=0.4, loss_threshold=0.7)
    for b in range(2):
        reference = golden(f"k10__ratio_tlr_batch1_sample{b}")
        for gaze in (model.gaze(video[b : b + 1], max_ratio=0.4, loss_threshold=0.7), batch[b]):
            assert_padded_equals(gaze, reference)
            for index, mask in enumerate(gaze.masks()):
                assert torch.equal(mask, reference[f"gazing_mask_{index}"])


@pytest.mark.parametrize(("name", "call", "row"), UNDISTURBED)
def test_rows_that_mates_did_not_disturb_equal_the_references_batch(policy, video, golden, name, call, row):
    max_ratio, threshold = THRESHOLD_CALLS[call]
    reference = Gaze.from_padded(*(golden(f"{name}__{call}")[key] for key in PADDED))
    gaze = policy(name).gaze(video, max_ratio=max_ratio, loss_threshold=threshold)
    assert gaze.frames(row) == reference.frames(row)


@pytest.mark.parametrize("name", ["k10", "k4"])
@pytest.mark.parametrize("call", THRESHOLD_CALLS)
def test_every_row_of_a_threshold_call_equals_the_plain_policy(
    policy, oracle, plain_policy, slots_of, video, name, call
):
    max_ratio, threshold = THRESHOLD_CALLS[call]
    gaze = policy(name).gaze(video, max_ratio=max_ratio, loss_threshold=threshold)
    for b, clip in enumerate(gaze):
        thresholds = threshold[b] if call == "ratio_tlr_tensor" else [threshold] * 4
        plain = oracle(name).gaze(plain_policy.preprocessed(video[b]), [CAPS[max_ratio]] * 4, thresholds)
        assert slots_of(clip.padded()) == [plain.slots]


@pytest.mark.parametrize(("call", "threshold"), [("fixedpos_ratio", None), ("fixedpos_ratio_tlr", 0.7)])
def test_consistent_positions_equal_the_repaired_reference(policy, video, golden, call, threshold):
    gaze = policy("k10", "consistent").gaze(
        video, max_ratio=0.1 if threshold is None else 0.4, loss_threshold=threshold
    )
    assert_padded_equals(gaze, golden(f"k10__{call}"))


@pytest.mark.parametrize("name", ["k10", pytest.param("k4", marks=pytest.mark.slow)])
def test_the_plain_policy_equals_the_reference_with_its_batch_effects(
    oracle, plain_policy, slots_of, video, golden, name
):
    clips = [plain_policy.preprocessed(clip) for clip in video]
    for call, (max_ratio, threshold) in THRESHOLD_CALLS.items():
        thresholds = TENSOR if call == "ratio_tlr_tensor" else [[threshold] * 4] * 2
        gazes = oracle(name).together(clips, [CAPS[max_ratio]] * 4, thresholds)
        assert [gaze.slots for gaze in gazes] == slots_of(golden(f"{name}__{call}"))
    if name == "k4":
        return
    gazes = oracle("k10").together(clips, [106] * 4, [[0.7] * 4] * 2, consistent=True)
    assert [gaze.slots for gaze in gazes] == slots_of(golden("k10__fixedpos_ratio_tlr"))


def test_the_checkpoints_own_limits_hold_where_a_call_names_none(policy, video):
    assert same(policy("k10").gaze(video), policy("k10").gaze(video, max_ratio=0.5, loss_threshold=0.7))


def test_frames_may_come_preprocessed_as_arrays_or_as_tensors(policy, plain_policy, video):
    expected = policy("k10").gaze(video, max_ratio=0.1)
    for frames in (video.numpy(), plain_policy.preprocessed(video)):
        assert same(policy("k10").gaze(frames, max_ratio=0.1), expected)


# -- the plain policy --------------------------------------------------------------------------------------------------


@st.composite
def calls(draw):
    """A random small network, clips, and limits: of each frame, and of each row and frame, or none."""
    clips, frames = draw(st.integers(1, 3)), draw(st.integers(1, 4))

    def per_frame(*values):
        return st.lists(st.sampled_from(values), min_size=frames, max_size=frames)

    rows = st.lists(per_frame(0.0, 0.3, 0.6, 0.9, 3.0), min_size=clips, max_size=clips)
    return {
        "network": (draw(st.integers(0, 7)), draw(st.sampled_from([1, 3, 4, 7, 25]))),
        "positions": draw(st.sampled_from(["reference", "consistent"])),
        "clips": (clips, frames, draw(st.integers(0, 99))),
        "max_ratio": draw(per_frame(0.01, 0.2, 0.35, 0.7, 1.0)),
        "loss_threshold": draw(st.none() | rows),
    }


def limits(call: dict) -> dict:
    threshold = call["loss_threshold"]
    return {"max_ratio": call["max_ratio"], "loss_threshold": None if threshold is None else torch.tensor(threshold)}


def caps(call: dict) -> list[int]:
    return [max(1, int(torch.tensor(ratio) * 20)) for ratio in call["max_ratio"]]


@given(call=calls())
@examples(max_examples=20)
def test_a_gaze_equals_the_plain_policys(small, small_policy, plain_policy, slots_of, clips, call):
    """Tokens and slots exactly, and the losses it predicted on the way. Decisions too close to call are left out."""
    consistent, frames = call["positions"] == "consistent", clips(*call["clips"])
    plain = small(*call["network"])[1]
    batch = small_policy(*call["network"], call["positions"]).gaze(frames, **limits(call))
    for b, clip in enumerate(batch):
        thresholds = call["loss_threshold"] and call["loss_threshold"][b]
        wanted = plain.gaze(plain_policy.preprocessed(frames[b]), caps(call), thresholds, consistent)
        assume(wanted.margin > 1e-4)
        assert slots_of(clip.padded(), 20) == [wanted.slots]
        assert clip.initial[0].tolist() == pytest.approx([before[0] for before in wanted.before], abs=1e-4)
        losses = iter(clip.losses.tolist())
        for slots, before in zip(wanted.slots, wanted.before, strict=True):
            for slot, id in enumerate(slots):
                loss = None if id == 20 else next(losses)
                if loss is not None and slot + 1 < len(before):  # after a frame's last block no prediction is made
                    assert loss == pytest.approx(before[slot + 1], abs=1e-4)


# -- what always holds -------------------------------------------------------------------------------------------------


samplings = st.none() | st.builds(
    Sampling, temperature=st.sampled_from([0.3, 1.0, 5.0]), top_k=st.sampled_from([1, 4, None]), seeds=st.integers(0, 9)
)


@given(call=calls(), sample=samplings)
@examples(max_examples=20)
def test_frames_keep_their_caps_have_a_token_and_no_token_twice(small_policy, clips, call, sample):
    gaze = small_policy(*call["network"], call["positions"]).gaze(clips(*call["clips"]), **limits(call), sample=sample)
    for clip in alone(gaze):
        for frame, cap in zip(clip, caps(call), strict=True):
            assert 1 <= len(frame) <= cap and len(set(frame)) == len(frame)
            assert call["loss_threshold"] or len(frame) == cap
    assert gaze.lengths.shape == call["clips"][:2] and torch.isfinite(gaze.losses).all()


@given(call=calls(), data=st.data())
@examples(max_examples=20)
def test_neither_order_nor_mates_change_a_row(small_policy, clips, call, data):
    """Greedy and sampled; mates that stop at once or never, are there twice, or are not there."""
    model, frames = small_policy(*call["network"], call["positions"]), clips(*call["clips"])
    sampled, count = data.draw(st.booleans()), len(frames)
    seeds = data.draw(st.lists(st.integers(0, 2**40), min_size=count, max_size=count))
    how = limits(call)

    def gazed(rows: list[int]) -> Gaze:
        thresholds = how["loss_threshold"]
        sample = Sampling(temperature=1.0, top_k=10, seeds=[seeds[b] for b in rows]) if sampled else None
        each = how | {"loss_threshold": thresholds if thresholds is None else thresholds[rows]}
        return model.gaze(frames[rows], **each, sample=sample)

    single = [gazed([b]) for b in range(count)]
    rows = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=5))
    for clip, b in zip(gazed(rows), rows, strict=True):
        assert same(clip, single[b])


@pytest.mark.parametrize("threshold", [0.6, [0.3, 0.6, 0.9], [[0.3], [0.9]], [[0.1, 0.5, 0.9], [0.9, 0.5, 0.1]]])
def test_a_threshold_is_for_all_for_each_frame_for_each_row_or_for_both(small_policy, clips, threshold):
    model, frames = small_policy(3), clips(2, 3)
    every = torch.as_tensor(threshold, dtype=torch.float32).expand(2, 3)
    assert same(model.gaze(frames, loss_threshold=threshold), model.gaze(frames, loss_threshold=every))
    assert not same(model.gaze(frames, loss_threshold=every), model.gaze(frames, loss_threshold=every.flip(1) + 0.7))


def test_a_threshold_no_frame_is_above_leaves_each_frame_its_first_token(small_policy, clips):
    free, met = (small_policy().gaze(clips(2, 3), max_ratio=1.0, loss_threshold=limit) for limit in (None, 100.0))
    assert met.lengths.tolist() == [[1, 1, 1]] * 2
    assert [clip[0] for clip in alone(met)] == [clip[0][:1] for clip in alone(free)]


def test_consistent_losses_are_those_of_teacher_forcing(policy, small_policy, video, clips):
    """Also after a frame's last slot, where generation has nothing to decide any more."""
    cases = [(policy(name, "consistent"), video, 0.4, 0.7) for name in ("k10", "k4")]
    cases += [(policy("k10", "consistent"), video, 10.5 / 265, None)]
    for seed, block in product((1, 3), (1, 3, 7)):
        cases.append((small_policy(seed, block, "consistent"), clips(3, 3), 1.0, 0.6))
    for model, frames, max_ratio, threshold in cases:
        gaze = model.gaze(frames, max_ratio=max_ratio, loss_threshold=threshold)
        for clip, one in zip(gaze, frames, strict=True):
            with torch.no_grad():
                scores = model.score(one[None], clip)
            used = ~clip.padded()["if_padded_gazing"]
            torch.testing.assert_close(clip.losses, scores.loss_predictions[used], atol=1e-4, rtol=0)


# -- sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (2.0, None), (1.0, 5), (3.0, 5)])
def test_samples_follow_the_distribution(small, small_policy, plain_policy, clips, temperature, top_k):
    """A chi-square test of the first token over many seeds; seeds are fixed, so it cannot fail by chance."""
    rows, frames, plain = 1500, clips(1, 1), small()[1]
    sample = Sampling(temperature=temperature, top_k=top_k, seeds=list(range(rows)))
    gaze = small_policy().gaze(frames.expand(rows, -1, -1, -1, -1), max_ratio=0.05, sample=sample)
    vision = plain.encode(plain_policy.preprocessed(frames[0]))
    scores = plain.next_heads(vision, [], [], False)[0][0, :20] / temperature
    if top_k is not None:
        scores[scores < scores.topk(top_k).values[-1]] = -math.inf
    expected = rows * scores.softmax(-1)
    found = torch.bincount(gaze.tokens, minlength=20)
    assert found[expected == 0].sum() == 0
    likely = expected >= 5
    found = torch.cat([found[likely], found[~likely].sum()[None]])
    expected = torch.cat([expected[likely], expected[~likely].sum()[None] + 1e-9])
    freedom = len(expected) - 1
    assert ((found - expected) ** 2 / expected).sum() < freedom + 4 * (2 * freedom) ** 0.5


def test_a_seed_fixes_a_rows_sample_and_seeds_differ(small_policy, clips):
    model, frames = small_policy(), clips(1, 2).expand(4, -1, -1, -1, -1)
    gaze = model.gaze(frames, max_ratio=0.5, sample=Sampling(temperature=5.0, top_k=None, seeds=[7, 7, 8, 9]))
    first, second, third, fourth = alone(gaze)
    assert first == second and first != third and third != fourth
    twice = [model.gaze(frames, max_ratio=0.5, sample=Sampling(temperature=5.0, seeds=3)) for _ in range(2)]
    assert same(*twice) and alone(twice[0])[0] != alone(twice[0])[1]


def test_frames_that_are_alike_are_not_sampled_alike(small_policy, clips):
    still = clips(1, 1).expand(-1, 6, -1, -1, -1)
    gaze = small_policy().gaze(still, max_ratio=0.5, sample=Sampling(temperature=100.0, top_k=None, seeds=1))
    assert len({tuple(frame) for frame in gaze.frames(0)}) == 6


@pytest.mark.parametrize(("block", "how"), [(1, {"top_k": 1}), (1, {"temperature": 1e-4}), (3, {"temperature": 1e-4})])
@pytest.mark.parametrize("threshold", [None, 0.6])
def test_the_narrowest_and_the_coldest_sampling_is_greedy(small_policy, clips, block, how, threshold):
    model, limits = small_policy(0, block), {"max_ratio": 0.5, "loss_threshold": threshold}
    gaze = model.gaze(clips(2, 3), **limits, sample=Sampling(**how, seeds=5))
    assert same(gaze, model.gaze(clips(2, 3), **limits))


# -- how it runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["reference", "consistent"])
def test_the_cache_of_gpus_gives_the_gaze_of_the_cache_of_cpus(small_policy, clips, positions, monkeypatch):
    model, frames, wide = small_policy(3, 4, positions), clips(3, 5), clips(2, 2, side=96)
    sample, vocabulary = Sampling(temperature=2.0, seeds=1), PatchVocabulary((32, 96), 16)
    calls = [{"max_ratio": 0.7}, {"loss_threshold": [[0.3], [0.6], [0.9]]}, {"loss_threshold": 0.6, "sample": sample}]

    def gazed() -> tuple[list[Gaze], Gaze]:
        adapted = model.gaze(wide, loss_threshold=0.6, vocabulary=vocabulary)
        stream = model.stream(loss_threshold=0.6, batch=3)
        return [model.gaze(frames, **call) for call in calls] + [stream.push(frames[:, t]) for t in range(5)], adapted

    ragged, ragged_adapted = gazed()
    monkeypatch.setattr("autogaze.model.policy.RaggedCache", PaddedCache)
    padded, padded_adapted = gazed()
    assert all(map(same, ragged, padded)) and torch.equal(ragged_adapted.tokens, padded_adapted.tokens)


def test_gazing_in_training_leaves_no_graph_and_changes_nothing(small, small_policy, clips):
    model, frames = AutoGaze.from_pretrained(small()[0]), clips(2, 2)
    model.train()
    with torch.enable_grad():
        gaze = model.gaze(frames, max_ratio=0.5, loss_threshold=0.6)
    assert same(gaze, small_policy().gaze(frames, max_ratio=0.5, loss_threshold=0.6))
    assert not gaze.losses.requires_grad and not gaze.initial.requires_grad
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert model.score(frames, gaze).log_probs.requires_grad  # nothing is frozen, nothing left in inference mode


def test_bfloat16_runs_and_stays_close(policy, small, clips, video):
    half = AutoGaze.from_pretrained(small(3)[0], dtype=torch.bfloat16)
    gaze = half.gaze(clips(2, 3), max_ratio=0.7, loss_threshold=0.6)
    assert all(len(set(frame)) == len(frame) for clip in alone(gaze) for frame in clip)
    assert (gaze.losses.dtype, gaze.initial.dtype) == (torch.float32, torch.float32)
    whole, half = policy("k10"), AutoGaze.from_pretrained(GOLDEN / "autogaze_small_k10", dtype=torch.bfloat16)
    gaze = whole.gaze(video, max_ratio=0.1)
    with torch.no_grad():
        for one, other in zip(whole.score(video, gaze)[:2], half.score(video, gaze)[:2], strict=True):
            assert (one - other.float()).abs().mean() < 0.05 * one.abs().mean()
    first = half.gaze(video, max_ratio=0.1)
    assert [clip[0][0] for clip in alone(first)] == [clip[0][0] for clip in alone(gaze)]
    assert (first.initial - gaze.initial)[:, 0].abs().max() < 0.05
