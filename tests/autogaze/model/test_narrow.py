"""What a CPU gazes with, beside the plain modules that train: a decoder without padding, and Winograd's convolution."""

import pytest
import torch
import torch.nn.functional as F

from autogaze.model import AutoGaze, Sampling
from autogaze.model.config import AutoGazeConfig
from autogaze.model.encoder import Encoder
from autogaze.model.generation import Generation
from autogaze.model.narrow_decoder import _runs
from autogaze.model.winograd import causal_convolution, transformed


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 4, 4), (2, 2, 6), (5, 14, 14)])
def test_winograds_convolution_is_the_plain_one_and_rounds_no_worse(frames, height, width):
    random = torch.Generator().manual_seed(frames)
    x, weight = torch.randn(frames, height, width, 6, generator=random), torch.randn(8, 6, 3, 3, 3, generator=random)
    bias = torch.randn(8, generator=random)
    before = F.pad(x.permute(3, 0, 1, 2)[None], (0, 0, 0, 0, 2, 0))
    plain = F.conv3d(before, weight, bias, padding=(0, 1, 1))[0].permute(1, 2, 3, 0)
    exact = F.conv3d(before.double(), weight.double(), bias.double(), padding=(0, 1, 1))[0].permute(1, 2, 3, 0)
    found = causal_convolution(x, transformed(weight), bias)
    assert found.shape == plain.shape
    assert (found - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-6


@pytest.mark.parametrize("depth", [1, 2])
def test_whole_clips_are_encoded_as_frame_by_frame(depth):
    torch.manual_seed(depth)
    encoder, clips = Encoder(AutoGazeConfig(hidden_size=24, conv_depth=depth)), torch.randn(2, 4, 3, 64, 64)
    with torch.no_grad():
        plain, fast = encoder(clips)[0], encoder.whole_clips(clips)
        assert torch.equal(encoder.whole_clips(clips[:, :, :, :48, :48]), encoder(clips[:, :, :, :48, :48])[0])
        with torch.autocast("cpu", torch.bfloat16):  # as the learner computes, to the bit
            assert torch.equal(encoder.whole_clips(clips), encoder(clips)[0])
    assert torch.allclose(plain, fast, atol=1e-5) and not torch.equal(plain, fast)
    assert encoder.whole_clips(clips).requires_grad


def test_rows_are_cut_into_runs_of_neighbours_that_are_alike():
    lengths, rows, counts = [5, 5, 7, 7, 7, 7], [0, 1, 2, 3, 5], [3, 3, 3, 3, 3]
    runs = list(_runs(lengths, rows, counts, [[2]] * 5))
    assert [(run.rows, run.past, run.read, run.wanted) for run in runs] == [
        (slice(0, 2), 5, slice(0, 6), slice(0, 2)),
        (slice(2, 4), 7, slice(6, 12), slice(2, 4)),
        (slice(5, 6), 7, slice(12, 15), slice(4, 5)),
    ]
    runs = list(_runs([4, 4, 4], [0, 1, 2], [3, 2, 2], [[0, 2], [0, 1], [1, 1]]))
    assert [(run.rows, run.more, run.read, run.places, run.wanted) for run in runs] == [
        (slice(0, 1), 3, slice(0, 3), (0, 2), slice(0, 2)),
        (slice(1, 2), 2, slice(3, 5), (0, 1), slice(2, 4)),
        (slice(2, 3), 2, slice(5, 7), (1, 1), slice(4, 6)),
    ]


@pytest.mark.parametrize("positions", ["reference", "consistent"])
def test_it_gazes_as_the_decoder_that_is_trained(small_policy, clips, positions, monkeypatch):
    model, frames = small_policy(5, 4, positions), clips(4, 3)
    calls = [
        {"max_ratio": 0.3},
        {"max_ratio": 0.8, "loss_threshold": [[0.3], [0.6], [0.9], [0.5]]},
        {"loss_threshold": 0.6, "sample": Sampling(temperature=2.0, seeds=1)},
    ]
    narrow = [model.gaze(frames, **call) for call in calls]
    plain_init = Generation.__init__

    def without(self, *given):
        plain_init(self, *given)
        self.narrow = None

    monkeypatch.setattr(Generation, "__init__", without)
    for one, call in zip(narrow, calls, strict=True):
        other = model.gaze(frames, **call)
        assert torch.equal(one.lengths, other.lengths) and torch.equal(one.tokens, other.tokens)
        assert torch.allclose(one.losses, other.losses, atol=1e-5)


def test_a_stream_gazes_by_the_weights_of_the_moment(small, clips):
    model, frames = AutoGaze.from_pretrained(small()[0]), clips(1, 1)
    stream = model.stream(max_ratio=0.5)
    with torch.no_grad():
        for parameter in model.gazing_model.gaze_decoder.parameters():
            parameter.mul_(-1.5)
    assert torch.equal(stream.push(frames[:, 0]).tokens, model.gaze(frames, max_ratio=0.5).tokens)
