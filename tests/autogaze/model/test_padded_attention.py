"""What a GPU does, on the CPU: all rows at once, masks, and decode steps on fixed memory. The results are the same."""

import pytest
import torch

from autogaze.model import Sampling
from autogaze.model import policy as policies
from autogaze.patches import PatchVocabulary

CASES = [
    {"max_ratio": 0.5},
    {"max_ratio": [0.3, 0.05, 0.9]},
    {"max_ratio": 0.7, "loss_threshold": 0.6},
    {"loss_threshold": [[0.9, 0.2, 0.6], [0.1, 0.6, 0.6], [0.6, 0.6, 2.0]]},
    {"max_ratio": 0.6, "loss_threshold": 0.5, "sample": Sampling(temperature=2.0, top_k=7, seeds=[5, 6, 7])},
]


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("positions", ["reference", "consistent"])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_gaze_equals_the_ragged_one(small, clips, take_the_gpus_path, positions, case, graphs):
    model, frames = policies.AutoGaze.from_pretrained(small(2, 3)[0], positions), clips(3, 3, 4)
    wanted = model.gaze(frames, **CASES[case])
    take_the_gpus_path(graphs)
    for _ in range(2):  # again on the memory of the first call
        found = model.gaze(frames, **CASES[case])
        assert torch.equal(found.tokens, wanted.tokens)
        assert torch.equal(found.lengths, wanted.lengths)
        assert torch.allclose(found.losses, wanted.losses, atol=1e-5)


def test_streams_and_forks_equal_the_ragged_ones(small_policy, clips, take_the_gpus_path):
    model, frames = small_policy(2, 3), clips(2, 3, 4)
    wanted = model.gaze(frames, loss_threshold=0.6)
    take_the_gpus_path(graphs=False)
    stream = model.stream(loss_threshold=0.6, batch=2)
    found = [stream.push(frames[:, 0])]
    other = stream.fork()
    other.push(frames[:, 2])
    found += [stream.push(frames[:, t]) for t in (1, 2)]
    assert [[part.frames(b)[0] for part in found] for b in range(2)] == [wanted.frames(b) for b in range(2)]


def test_other_resolutions_equal_the_ragged_ones(policy, inputs, take_the_gpus_path):
    model, vocabulary = policy("k10"), PatchVocabulary((48, 96, 160, 320), 16)
    wanted = model.gaze(inputs["raw_320_uint8"][None], 0.3, 0.7, vocabulary=vocabulary)
    take_the_gpus_path(graphs=False)
    assert torch.equal(model.gaze(inputs["raw_320_uint8"][None], 0.3, 0.7, vocabulary=vocabulary).tokens, wanted.tokens)
