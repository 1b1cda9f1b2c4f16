"""Rewards of several groups in one pass, as on a GPU, are those of group after group."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autogaze import reconstruction
from autogaze.baselines import random_patches
from autogaze.reconstruction.base import Reconstructor
from autogaze.reconstruction.refiner.config import RefinerConfig
from autogaze.reconstruction.refiner.reconstructor import Refiner
from autogaze.reconstruction.videomae.config import VideoMAEConfig
from autogaze.reconstruction.videomae.reconstructor import VideoMAE
from pipelines.rl.rewards import RewardedClip, Rewards
from tests.support.training import clip_of

AT = [[0, 2], [0, 1], [1, 2]]


class WideVideoMAE(VideoMAE):
    wide = True


class WideRefiner(Refiner):
    wide = True


def reconstructor(name: str) -> Reconstructor:
    torch.manual_seed(0)
    if name == "refiner":
        return WideRefiner(RefinerConfig(width=8, deep_width=16)).eval()
    if name == "videomae":
        widths = {"hidden_size": 32, "num_layers": 1, "num_heads": 4, "intermediate_size": 64}
        widths |= {f"decoder_{name}": value for name, value in widths.items()}
        return WideVideoMAE(VideoMAEConfig(**widths)).eval()
    return reconstruction.load("canvas")


@pytest.mark.parametrize("name", ["canvas", "videomae", pytest.param("refiner", marks=pytest.mark.slow)])
def test_errors_of_groups_together_are_those_of_each_alone(name: str) -> None:
    rewards = Rewards(reconstructor(name), torch.device("cpu"))
    clips, gazes = [], []
    for number, at in enumerate(AT):
        frames = torch.from_numpy(clip_of(number))[: at[-1] + 1]
        members = frames.expand(2, *frames.shape)
        clips.append(RewardedClip(frames, at, None))
        gazes.append(random_patches(members, np.full((2, len(frames)), 5), [f"{number} {member}" for member in (0, 1)]))
    together = rewards.together(clips, gazes)
    for clip, gaze, found in zip(clips, gazes, together, strict=True):
        [alone] = rewards.errors([clip], [gaze])
        assert found.shape == (2, 2)
        torch.testing.assert_close(
            found, alone, atol=0 if name == "canvas" else 1e-5, rtol=0 if name == "canvas" else 1e-4
        )
