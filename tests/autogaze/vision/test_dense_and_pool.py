"""Dense maps and pooled features of packed tokens."""

import pytest
import torch

from autogaze.vision import TokenFeatures
from tests.autogaze.vision import plain_attention

LENGTHS = [[6, 0, 2, 9], [0, 3, 1, 0]]


@pytest.mark.parametrize("fill", ["carry", "zero"])
def test_a_place_shows_the_newest_patch_that_covers_it_and_the_finest_of_a_frame(encoder, pixels, gazes, fill):
    gaze = gazes(LENGTHS, seed=5)
    out = encoder().encode(pixels(), gaze)
    found = out.dense(fill)
    assert found.shape == (2, 4, 8, 8, 32)
    for clip in range(2):
        wanted = plain_attention.dense(gaze, clip, out.tokens[out.clip == clip], fill)
        torch.testing.assert_close(found[clip], wanted, atol=0, rtol=0)


def test_dense_maps_of_other_states(encoder, pixels, gazes):
    out = encoder().encode(pixels(1, 1), gazes([[30]]), hidden_states=[1])
    wanted = plain_attention.dense(gazes([[30]]), 0, out.hidden_states[0], "carry")
    torch.testing.assert_close(out.dense(states=out.hidden_states[0])[0], wanted, atol=0, rtol=0)


def test_the_head_pools_exactly_the_tokens_of_a_frame_or_a_clip(encoder, model, pixels, gazes):
    out, head = encoder().encode(pixels(), gazes(LENGTHS)), model("siglip").head
    pooled = out.pool("head")
    for clip in range(2):
        with torch.no_grad():
            torch.testing.assert_close(pooled.clips[clip], head(out.tokens[out.clip == clip][None])[0])
            for t in range(4):
                tokens = out.tokens[(out.clip == clip) & (out.frame == t)]
                if len(tokens):
                    torch.testing.assert_close(pooled.frames[clip, t], head(tokens[None])[0])


@pytest.mark.parametrize("how", ["mean", "class"])
def test_a_frame_without_tokens_has_the_feature_of_the_one_before(encoder, pixels, gazes, how):
    out = encoder("dinov2").encode(pixels(), gazes(LENGTHS))
    pooled = out.pool(how)
    assert torch.equal(pooled.frames[0, 1], pooled.frames[0, 0]) and torch.equal(
        pooled.frames[1, 3], pooled.frames[1, 2]
    )
    assert not pooled.frames[1, 0].any()  # none before it
    own = [out.tokens[(out.clip == 1) & (out.frame == t)].mean(dim=0) for t in (1, 2)]
    if how == "class":
        own = [out.prefix[1, t, 0] for t in (1, 2)]
        torch.testing.assert_close(pooled.clips[1], torch.stack(own).mean(dim=0))
    for t, feature in zip((1, 2), own, strict=True):
        torch.testing.assert_close(pooled.frames[1, t], feature)


def test_the_plan_says_which_patch_became_which_row(encoder, pixels, gazes):
    gaze = gazes(LENGTHS)
    plan = encoder("dinov2_with_registers").encode(pixels(), gaze).plan
    assert plan.prefix == 4 and plan.tokens == 21 and plan.rows == 21 + 4 * 5
    assert torch.equal(plan.id, gaze.tokens)
    taken = torch.cat((plan.row, plan.prefix_rows.flatten())).sort().values
    assert torch.equal(taken, torch.arange(plan.rows))
    assert plan.prefix_rows[:, 0].tolist() == [0, 10, 16, 29, 36]  # each frame's own tokens come first
    scale, row, column = plan.located
    assert [
        gaze.vocabulary.id(*place) for place in zip(scale.tolist(), row.tolist(), column.tolist(), strict=True)
    ] == gaze.tokens.tolist()


def test_encodings_are_put_together_clip_by_clip(encoder, pixels, gazes):
    one, frames, gaze = encoder("dinov3"), pixels(), gazes(LENGTHS)
    whole = one.encode(frames, gaze)
    parts = TokenFeatures.cat([one.encode(frames[b : b + 1], gaze[b]) for b in range(2)])
    assert torch.equal(parts.clip, whole.clip) and torch.equal(parts.frame, whole.frame)
    torch.testing.assert_close(parts.dense(), whole.dense(), atol=1e-5, rtol=0)
    torch.testing.assert_close(parts.pool().clips, whole.pool().clips, atol=1e-5, rtol=0)
