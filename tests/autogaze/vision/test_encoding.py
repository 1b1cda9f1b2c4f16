"""Packed encoding: attention by its definition, and everything that must change nothing."""

import pytest
import torch

from autogaze.gaze import Gaze
from autogaze.vision import load
from tests.autogaze.vision import plain_attention

MODES = ("block_causal", "frame", "first_frame", "newest")
LENGTHS = [[12, 0, 5, 9], [0, 7, 1, 30]]  # frames without patches, also the first of a clip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["siglip", "dinov2_with_registers", "dinov3"])
def test_attention_is_what_its_definition_masks(encoder, model, kind, pixels, gazes, mode):
    one, gaze, frames = encoder(kind, mode), gazes(LENGTHS), pixels()
    out = one.encode(frames, gaze, hidden_states=True)
    plan = out.plan
    x = torch.zeros(1, plan.rows, 32)
    x[0, plan.row] = out.hidden_states[0]
    prefix = one.family.prefix(one.model)
    if prefix is not None:
        x[0, plan.prefix_rows.flatten()] = prefix.repeat(len(plan.prefix_rows), 1)
    mask = plain_attention.mask(gaze, mode, one.prefix_count)[None, None]
    reference = model(kind)
    with torch.no_grad():
        if kind == "dinov3":
            cosine, sine = one._tables(False).turned(plan)
            places = (cosine[:, 0], sine[:, 0])
            wanted = reference.norm(reference.model(x, attention_mask=mask, position_embeddings=places)[0])
        elif kind == "siglip":
            wanted = reference.post_layernorm(reference.encoder(inputs_embeds=x, attention_mask=mask)[0])
        else:
            wanted = reference.layernorm(reference.encoder(x, attention_mask=mask)[0])
    torch.testing.assert_close(out.tokens, wanted[0, plan.row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_batch_mates_change_nothing(encoder, kind, pixels, gazes, mode):
    one, gaze, frames = encoder(kind, mode), gazes(LENGTHS), pixels()
    together = one.encode(frames, gaze)
    for clip in range(2):
        alone = one.encode(frames[clip : clip + 1], gaze[clip])
        torch.testing.assert_close(alone.tokens, together.tokens[together.clip == clip], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.prefix[0], together.prefix[clip], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_equals_the_whole_clips(encoder, kind, pixels, gazes, mode):
    one, gaze, frames = encoder(kind, mode), gazes(LENGTHS), pixels()
    whole, stream, parts = one.encode(frames, gaze, hidden_states=True), one.stream(batch=2), []
    for t in range(4):
        of_frame = Gaze.from_lists([[gaze.frames(b)[t]] for b in range(2)], vocabulary=gaze.vocabulary)
        parts.append(stream.push(frames[:, t], of_frame, hidden_states=True))
    order = (torch.cat([part.clip for part in parts]) * 4 + torch.cat([part.frame for part in parts])).argsort(
        stable=True
    )
    for name in ("clip", "frame", "id"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts])[order], getattr(whole, name))
    torch.testing.assert_close(torch.cat([part.tokens for part in parts])[order], whole.tokens, atol=1e-5, rtol=0)
    for n, state in enumerate(whole.hidden_states):
        found = torch.cat([part.hidden_states[n] for part in parts])[order]
        torch.testing.assert_close(found, state, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat([part.dense() for part in parts], dim=1), whole.dense(), atol=1e-5, rtol=0)
    for how in (None, "mean"):  # LENGTHS has frames without tokens, which have the newest feature before
        pooled = torch.cat([part.pool(how).frames for part in parts], dim=1)
        torch.testing.assert_close(pooled, whole.pool(how).frames, atol=1e-5, rtol=0)


def test_a_long_stream_of_newest_keeps_no_more_rows_than_places(encoder, pixels, gazes):
    one, lengths = encoder("dinov2", "newest"), [[20] * 12]
    gaze, frames = gazes(lengths, seed=3), pixels(1, 12, seed=3)
    whole, stream = one.encode(frames, gaze), one.stream()
    for t in range(12):
        part = stream.push(frames[0, t], Gaze.from_lists([[gaze.frames(0)[t]]], vocabulary=gaze.vocabulary))
        torch.testing.assert_close(part.tokens, whole.tokens[whole.frame == t], atol=1e-5, rtol=0)
        assert stream._memory[0].used <= 64


def test_permuting_patches_inside_a_frame_permutes_outputs(encoder, kind, pixels, gazes):
    gaze, frames = gazes([[12, 3, 5, 9]]), pixels(1)
    order = [torch.randperm(n) for n in gaze.lengths[0].tolist()]
    mixed = Gaze.from_lists(
        [[[ids[i] for i in places] for ids, places in zip(gaze.frames(0), order, strict=True)]],
        vocabulary=gaze.vocabulary,
    )
    starts = [0, 12, 15, 20]
    places = torch.cat([part + start for part, start in zip(order, starts, strict=True)])
    one = encoder(kind)
    torch.testing.assert_close(
        one.encode(frames, mixed).tokens, one.encode(frames, gaze).tokens[places], atol=1e-5, rtol=0
    )


def test_how_many_rows_are_multiplied_at_once_changes_nothing(encoder, kind, pixels, gazes, monkeypatch):
    one, gaze, frames = encoder(kind), gazes(LENGTHS), pixels()
    whole = one.encode(frames, gaze)
    monkeypatch.setattr(type(one), "rows_at_once", 7)
    parts = one.encode(frames, gaze)
    torch.testing.assert_close(parts.tokens, whole.tokens, atol=1e-5, rtol=0)


def test_without_a_gaze_every_patch_of_the_finest_scale_is_kept(encoder, pixels):
    one, frames = encoder(), pixels(1, 2)
    out = one.encode(frames)
    assert out.id.tolist() == list(range(20, 84)) * 2 and out.frame.tolist() == [0] * 64 + [1] * 64
    finest = Gaze.from_lists([[list(range(20, 84))] * 2], vocabulary=one.vocabulary)
    assert torch.equal(out.tokens, one.encode(frames, finest).tokens)


def test_bytes_and_normalised_floats_are_the_same(encoder, gazes):
    frames = torch.randint(0, 256, (1, 2, 50, 70, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    one, gaze = encoder("dinov2"), gazes([[8, 4]])
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in one.normalisation)
    floats = (frames.movedim(-1, 2) / 255 - mean) / std
    torch.testing.assert_close(one.encode(frames, gaze).tokens, one.encode(floats, gaze).tokens, atol=1e-5, rtol=0)
    torch.testing.assert_close(one.encode(frames.numpy(), gaze).tokens, one.encode(frames, gaze).tokens, atol=0, rtol=0)


def test_clips_without_any_patch_give_no_tokens(encoder, kind, pixels, gazes):
    out = encoder(kind).encode(pixels(1, 2), gazes([[0, 0]]), hidden_states=True)
    assert out.tokens.shape == (0, 32) and all(state.shape == (0, 32) for state in out.hidden_states)
    assert not out.dense().any() and not out.pool().clips.any() and not out.pool().frames.any()


def test_hidden_states_can_be_chosen(encoder, pixels, gazes):
    one, gaze, frames = encoder(), gazes([[5, 5]]), pixels(1, 2)
    every = one.encode(frames, gaze, hidden_states=True).hidden_states
    some = one.encode(frames, gaze, hidden_states=[-2, 0]).hidden_states
    assert torch.equal(some[0], every[2]) and torch.equal(some[1], every[0])
    assert one.encode(frames, gaze).hidden_states == []


def test_gradients_reach_the_weights_when_they_are_asked_for(checkpoint, kind, pixels, gazes):
    one, gaze, frames = load(checkpoint(kind), scales=(16, 32, 64)), gazes([[5, 4]]), pixels(1, 2)
    assert not one.encode(frames, gaze).tokens.requires_grad
    one.requires_grad_()
    before = one.encode(frames, gaze)
    before.tokens.square().sum().backward()
    weight, _ = one.family.patch(one.model)
    with torch.no_grad():  # a step of training shows in the next encoding, positions included
        for parameter in one.parameters():
            if parameter.grad is not None:
                parameter -= 1e-5 * parameter.grad
    with torch.no_grad():
        after = one.encode(frames, gaze).tokens
    assert weight.requires_grad and after.square().sum() < before.tokens.square().sum()


def test_a_fingerprint_changes_with_what_changes_results(checkpoint, encoder):
    prints = [
        encoder("siglip", "frame").fingerprint,
        encoder("siglip", "newest").fingerprint,
        encoder("siglip", "frame", (64,)).fingerprint,
        load(checkpoint("siglip", 1), scales=(16, 32, 64), attention="frame").fingerprint,
        load(checkpoint("siglip"), (16, 32, 64), "frame", dtype=torch.bfloat16).fingerprint,
    ]
    assert len(set(prints)) == 5
    assert load(checkpoint("siglip"), scales=(16, 32, 64), attention="frame").fingerprint == prints[0]
    assert encoder("siglip").sharing(attention="frame").fingerprint == prints[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_float32(checkpoint, encoder, kind, pixels, gazes, dtype):
    gaze, frames = gazes([[9, 4]]), pixels(1, 2)
    half = load(checkpoint(kind), scales=(16, 32, 64), dtype=dtype).encode(frames, gaze).tokens
    whole = encoder(kind).encode(frames, gaze).tokens
    assert half.dtype == dtype
    assert torch.nn.functional.cosine_similarity(half.float(), whole, dim=1).min() > 0.99
