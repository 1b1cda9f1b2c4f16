"""The reference's encoder, its vectors: every hidden state and the output, in both of its attention modes."""

import pytest
import torch

from autogaze.gaze import Gaze
from autogaze.vision import load

CASES = ("p16_224", "p14_448to392", "p16_single")
MODES = {"block_causal": "block_causal", "frame": "frame_independent"}
KEYS = ("gazing_pos", "if_padded_gazing", "num_gazing_each_frame")


def gaze_of(tensors, vocabulary) -> Gaze:
    return Gaze.from_padded(*(tensors[key] for key in KEYS), vocabulary)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_every_hidden_state_equals_the_references(reference, name, mode):
    folder, scales, tensors = reference(name)
    encoder = load(folder, scales=scales, attention=mode)
    out = encoder.encode(tensors["pixel_values"].float(), gaze_of(tensors, encoder.vocabulary), hidden_states=True)
    used = ~tensors["if_padded_gazing"].bool()
    wanted = [tensors[f"{MODES[mode]}.hidden_states.{n}"][used] for n in range(len(out.hidden_states))]
    assert f"{MODES[mode]}.hidden_states.{len(wanted)}" not in tensors
    for found, state in zip(out.hidden_states, wanted, strict=True):
        torch.testing.assert_close(found, state, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.tokens, tensors[f"{MODES[mode]}.last_hidden_state"][used], atol=1e-5, rtol=0)


def test_what_padded_slots_hold_changes_nothing(reference):
    folder, scales, tensors = reference("p16_224")
    encoder, unused = load(folder, scales=scales), tensors["if_padded_gazing"].bool()
    assert unused.any()
    pixels, found = tensors["pixel_values"].float(), []
    for worthless in (-1, 0, 10**9):
        changed = tensors | {"gazing_pos": tensors["gazing_pos"].masked_fill(unused, worthless)}
        found.append(encoder.encode(pixels, gaze_of(changed, encoder.vocabulary)).tokens)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_the_pool_of_a_clip_without_padding_equals_the_references(reference):
    folder, scales, tensors = reference("p14_448to392")
    whole = ~tensors["if_padded_gazing"].bool().any(dim=1)
    assert whole.any(), "no clip of the case is without padding"
    encoder = load(folder, scales=scales)
    out = encoder.encode(tensors["pixel_values"].float(), gaze_of(tensors, encoder.vocabulary))
    wanted = tensors["block_causal.pooler_output"]
    torch.testing.assert_close(out.pool().clips[whole], wanted[whole], atol=1e-5, rtol=0)
