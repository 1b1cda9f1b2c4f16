"""Verified gaze on a GPU: the CPU's tokens and the very same errors, with CUDA graphs or without."""

from __future__ import annotations

import pytest
import torch

from autogaze import verified
from autogaze.reconstruction import load


@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "no-graphs"])
@pytest.mark.parametrize("positions", ["reference", "consistent"])
def test_float32_gaze_and_errors_are_the_cpus(policy, device, video, graphs, positions):
    if graphs and device.type != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    canvas, how = load("canvas"), {"threshold": 0.05, "max_ratio": 0.2, "stops": 0.0}
    model = policy("k4", device, positions, cuda_graphs=graphs)
    for _ in range(2):  # the second time on steps that were captured before
        gaze = verified.gaze(video.to(device), model, canvas, **how)
        wanted = verified.gaze(video, policy("k4", "cpu", positions), canvas, **how)
        for name in ("tokens", "lengths", "losses", "initial", "origins"):
            assert torch.equal(getattr(gaze, name), getattr(wanted, name)), name
