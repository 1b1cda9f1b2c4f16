"""Gaze at other scales and patch sizes than the network was made for (docs/method.md, section 'Other sizes')."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autogaze.gaze import Gaze
from autogaze.model import Sampling
from autogaze.patches import PatchVocabulary

PADDED = ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame")
# call -> its input, scales, patch size
CALLS = {
    "resadapt_392p14": ("raw_392_uint8", (56, 112, 196, 392), 14),
    "resadapt_320p16_padded": ("raw_320_uint8", (48, 96, 160, 320), 16),
}


@pytest.mark.parametrize("call", CALLS)
def test_gaze_at_other_scales_equals_the_reference(policy, plain_policy, inputs, golden, call):
    name, scales, patch = CALLS[call]
    reference, vocabulary = golden(f"k10__{call}"), PatchVocabulary(scales, patch)
    for frames in (inputs[name][None], plain_policy.preprocessed(inputs[name])[None]):
        gaze = policy("k10").gaze(frames, max_ratio=0.3, loss_threshold=0.7, vocabulary=vocabulary)
        assert gaze.vocabulary == vocabulary
        for key in PADDED:
            assert torch.equal(gaze.padded()[key], reference[key])
        for index, mask in enumerate(gaze.masks()):
            assert torch.equal(mask, reference[f"gazing_mask_{index}"])


@pytest.mark.parametrize("call", CALLS)
def test_the_plain_policy_equals_the_reference_with_tiles_as_one_batch(oracle, plain_policy, inputs, golden, call):
    name, scales, patch = CALLS[call]
    reference = Gaze.from_padded(*(golden(f"k10__{call}")[key] for key in PADDED), PatchVocabulary(scales, patch))
    found, _ = oracle("k10").adapted(plain_policy.preprocessed(inputs[name]), scales, patch, 79, 0.7)
    assert found == reference.frames(0)


@given(
    st.sampled_from([((32, 96), 16), ((40, 80), 10), ((24, 72), 8), ((56, 112), 14), ((16, 48), 16)]),
    st.sampled_from(["reference", "consistent"]),
    st.none() | st.sampled_from([0.3, 0.6, 0.9]),
    st.integers(1, 2),
    st.integers(0, 7),
)
@settings(deadline=None, derandomize=True, max_examples=16)
def test_gaze_at_any_scales_equals_the_plain_policys(
    small, small_policy, plain_policy, clips, kind, positions, threshold, count, seed
):
    """Several tiles, part of them padding, and fewer patches than the network's own. Each clip's tiles are a batch."""
    vocabulary = PatchVocabulary(*kind)
    frames, model = clips(count, 2, seed, vocabulary.frame_size), small_policy(seed, 3, positions)
    gaze = model.gaze(frames, max_ratio=0.5, loss_threshold=threshold, vocabulary=vocabulary)
    for b in range(count):
        clip, plain = plain_policy.preprocessed(frames[b]), small(seed, 3)[1]
        wanted, margin = plain.adapted(clip, *kind, 10, threshold, positions == "consistent")
        assume(margin > 1e-4)
        assert gaze.frames(b) == wanted


def test_the_networks_own_vocabulary_is_no_adaptation_and_keeps_the_order(small_policy, clips):
    model, frames = small_policy(), clips(2, 2)
    gaze = model.gaze(frames, max_ratio=0.5, vocabulary=PatchVocabulary((32, 64), 16))
    assert torch.equal(gaze.tokens, model.gaze(frames, max_ratio=0.5).tokens)
    assert not torch.equal(gaze.tokens[:10], gaze.tokens[:10].sort().values)


@pytest.mark.parametrize("positions", ["reference", "consistent"])
@pytest.mark.parametrize("limits", [{"max_ratio": 0.5}, {"max_ratio": 0.7, "loss_threshold": 0.6}])
@pytest.mark.parametrize("sampled", [False, True])
def test_neither_mates_nor_order_change_an_adapted_clip(small_policy, clips, positions, limits, sampled):
    model, frames, vocabulary = small_policy(3, 3, positions), clips(3, 2, side=96), PatchVocabulary((32, 96), 16)

    def gazed(rows: list[int]) -> Gaze:
        sample = Sampling(temperature=2.0, top_k=9, seeds=rows) if sampled else None
        return model.gaze(frames[rows], **limits, vocabulary=vocabulary, sample=sample)

    single = [gazed([b]).frames(0) for b in range(3)]
    for rows in ([0, 1, 2], [2, 0]):
        assert [clip.frames(0) for clip in gazed(rows)] == [single[b] for b in rows]


@pytest.mark.parametrize("scales", [(24, 92), (40, 76)])
def test_scales_that_are_no_multiple_of_the_patch_are_cut_down_as_in_the_reference(
    small, small_policy, plain_policy, clips, scales
):
    """The last pixels are in no patch: beyond them lies padding (92), or they are left out themselves (76)."""
    frames, vocabulary = clips(1, 2, 5, scales[-1]), PatchVocabulary(scales, 16)
    gaze = small_policy(5, 3, "consistent").gaze(frames, max_ratio=0.5, vocabulary=vocabulary)
    wanted, margin = small(5, 3)[1].adapted(plain_policy.preprocessed(frames[0]), scales, 16, 10, None, True)
    assert margin > 1e-4 and gaze.frames(0) == wanted
