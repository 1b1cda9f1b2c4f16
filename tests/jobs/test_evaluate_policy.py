"""autogaze evaluate policy=: a policy beside the stored gaze, without preprocessing anything."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from autogaze import reconstruction
from autogaze.model import AutoGaze
from jobs.evaluate import EvaluateConfig, run
from jobs.threads import one_torch_thread
from pipelines.dataset import shards
from pipelines.errors import PipelineError
from pipelines.inspection.policy_gaze import gaze_of_lengths
from pipelines.inspection.reading import read_clip
from pipelines.inspection.sampling import sample_clips
from tests.support import places

CHECKPOINT = places.GOLDEN / "autogaze_small_k4"


def test_a_policy_is_measured_at_every_ratio_and_by_itself(gazed_dataset: Callable[..., str], tmp_path: Path) -> None:
    data, output = gazed_dataset(tmp_path / "gaze"), tmp_path / "results"
    told = Console(file=io.StringIO(), width=250)
    config = EvaluateConfig(
        data=data, output=str(output), ratios="0.02", methods="stored,random", policy=str(CHECKPOINT), clips=2
    )
    with one_torch_thread():
        assert run(config, told) == 0
    found = json.loads((output / "evaluate.json").read_text())
    assert list(found["methods"]) == ["stored", "policy", "random"]

    opened, canvas = shards.open_dataset(data), reconstruction.load("canvas")
    policy = AutoGaze.from_pretrained(CHECKPOINT)
    frames = torch.stack([torch.from_numpy(read_clip(opened, row)[0]) for row in sample_clips(opened, 2, 0)])
    own = policy.gaze(frames, max_ratio=policy.config.max_ratio, loss_threshold=policy.config.loss_threshold)
    error = canvas.reconstruct(frames, own).error
    assert found["policy"]["ratio"] == pytest.approx(float(own.ratio().mean()))
    assert found["policy"]["error"] == pytest.approx(float(error.double().mean()))
    assert found["policy"]["predicted"] == pytest.approx(float(own.final().mean()), rel=1e-5)
    assert "the policy by itself: " in told.file.getvalue()  # type: ignore[attr-defined]
    (point,) = found["methods"]["policy"]["points"]
    assert point["ratio"] == pytest.approx(0.02, rel=0.1)


def test_every_clip_of_a_batch_gets_the_lengths_it_is_to_have() -> None:
    policy = AutoGaze.from_pretrained(CHECKPOINT)
    frames = torch.randint(0, 256, (2, 2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([[3, 1], [2, 0]])
    gaze = gaze_of_lengths(policy, frames, lengths)
    assert gaze.lengths.tolist() == [[3, 1], [2, 1]], "no frame is passed over; evaluate cuts it afterwards"
    alone = gaze_of_lengths(policy, frames[1:], lengths[1:])
    assert gaze.frames(1) == alone.frames(0)


def test_a_method_policy_needs_a_policy(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="policy needs one; give policy=RUN"):
        run(EvaluateConfig(data=str(tmp_path), methods="policy"), Console(quiet=True))
