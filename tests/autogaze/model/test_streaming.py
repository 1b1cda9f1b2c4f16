"""Streaming: frames as they come give the gaze of the whole clip, and a fork goes its own way."""

import itertools

import pytest
import torch

from autogaze.gaze import Gaze
from autogaze.model import Sampling

WARM = Sampling(temperature=2.0, top_k=12, seeds=[4, 11])


def streamed(stream, frames) -> list[Gaze]:
    """The gaze of each frame of [B, T, ...], pushed one by one."""
    return [stream.push(frames[:, t]) for t in range(frames.shape[1])]


def assert_is_the_whole(parts: list[Gaze], whole: Gaze) -> None:
    """Each part is its frame of the whole: tokens and slots exactly, losses and initial losses to rounding."""
    for t, part in enumerate(parts):
        assert (part.clips, part.num_frames) == (whole.clips, 1)
        for b in range(whole.clips):
            assert part.frames(b)[0] == whole.frames(b)[t]
        torch.testing.assert_close(part.initial[:, 0], whole.initial[:, t], atol=1e-4, rtol=0)
    for b in range(whole.clips):
        slots = torch.cat([part[b].padded()["if_padded_gazing"] for part in parts], dim=1)
        assert torch.equal(slots, whole[b].padded()["if_padded_gazing"])
        losses = torch.cat([part[b].losses for part in parts])
        torch.testing.assert_close(losses, whole[b].losses, atol=1e-4, rtol=0)


def test_a_stream_without_threshold_equals_the_references(policy, video, golden):
    reference = golden("k10__stream_ratio")
    parts = streamed(policy("k10").stream(max_ratio=0.1, batch=2), video)
    for key, name in (("gazing_pos", "gazing_pos_concat_frame_local"), ("if_padded_gazing", "if_padded_gazing_concat")):
        assert torch.equal(torch.cat([part.padded()[key] for part in parts], dim=1), reference[name])


def test_a_stream_with_threshold_equals_a_row_of_the_reference(policy, video, golden):
    reference = golden("k10__stream_ratio_tlr")
    used = ~reference["if_padded_gazing_concat"][1]
    parts = streamed(policy("k10").stream(max_ratio=0.4, loss_threshold=0.7, batch=2), video)
    tokens = torch.cat([part[1].tokens for part in parts])
    assert torch.equal(tokens, reference["gazing_pos_concat_frame_local"][1, used])


@pytest.mark.parametrize("positions", ["reference", "consistent"])
@pytest.mark.parametrize("name", ["k10", "k4"])
def test_a_stream_gives_what_the_whole_clip_gives(policy, plain_policy, video, name, positions):
    model = policy(name, positions)
    whole = model.gaze(video, max_ratio=0.4, loss_threshold=0.7)
    for frames in (video, video.numpy(), plain_policy.preprocessed(video)):
        assert_is_the_whole(streamed(model.stream(max_ratio=0.4, loss_threshold=0.7, batch=2), frames), whole)


@pytest.mark.parametrize(
    ("threshold", "sample", "positions"),
    [
        (None, WARM, "reference"),
        ([[0.3], [0.9]], None, "consistent"),
        *(
            pytest.param(*how, marks=pytest.mark.slow)
            for how in itertools.product((None, 0.6, [[0.3], [0.9]]), (None, WARM), ("reference", "consistent"))
            if how not in ((None, WARM, "reference"), ([[0.3], [0.9]], None, "consistent"))
        ),
    ],
)
def test_so_it_does_on_long_clips_sampled_and_with_a_threshold_a_row(small_policy, clips, positions, sample, threshold):
    frames, model = clips(2, 40), small_policy(3, 4, positions)
    how = {"max_ratio": 0.7, "loss_threshold": threshold, "sample": sample}
    assert_is_the_whole(streamed(model.stream(**how, batch=2), frames), model.gaze(frames, **how))


def test_one_clip_is_pushed_frame_by_frame_without_a_batch_axis(small_policy, plain_policy, clips):
    model, frames = small_policy(), clips(1, 3)
    whole = model.gaze(frames, max_ratio=0.5)
    for clip in (frames[0], frames[0].numpy(), plain_policy.preprocessed(frames[0])):
        stream = model.stream(max_ratio=0.5)
        assert_is_the_whole([stream.push(frame) for frame in clip], whole)


def test_a_streams_limits_are_the_checkpoints_where_none_is_named(small_policy, clips):
    model, frames = small_policy(3), clips(1, 3)
    assert_is_the_whole(streamed(model.stream(), frames), model.gaze(frames, max_ratio=0.5, loss_threshold=0.7))


@pytest.mark.parametrize("positions", ["reference", "consistent"])
@pytest.mark.parametrize("sample", [None, WARM])
def test_forks_disturb_neither_each_other_nor_their_parent(small_policy, clips, positions, sample):
    """Three futures of one past, their frames taking turns: each is as if it had been alone."""
    model, past = small_policy(3, 4, positions), clips(2, 5)
    futures = [clips(2, 6, seed) for seed in (1, 2, 3)]
    how = {"max_ratio": 0.7, "loss_threshold": 0.6, "sample": sample}
    parent = model.stream(**how, batch=2)
    parts = streamed(parent, past)
    streams = [parent, parent.fork()]
    streams.append(streams[1].fork())
    found = [list(parts) for _ in streams]
    for t in range(6):
        for stream, future, mine in zip(streams, futures, found, strict=True):
            mine.append(stream.push(future[:, t]))
    for future, mine in zip(futures, found, strict=True):
        assert_is_the_whole(mine, model.gaze(torch.cat([past, future], dim=1), **how))


def test_a_fork_outlives_its_parent_and_its_past_stays_as_it_was(small_policy, clips):
    model, frames = small_policy(), clips(1, 4)
    parent = model.stream(max_ratio=0.5)
    parts = streamed(parent, frames[:, :2])
    kept = [part.frames(0) for part in parts]
    fork = parent.fork()
    del parent
    assert_is_the_whole(parts + streamed(fork, frames[:, 2:]), model.gaze(frames, max_ratio=0.5))
    assert [part.frames(0) for part in parts] == kept
