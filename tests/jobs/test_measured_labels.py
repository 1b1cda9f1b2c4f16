"""Labels without losses: their errors are measured on the frames of the dataset."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from autogaze import reconstruction
from autogaze.gaze import Gaze
from autogaze.measuring import measure_errors
from jobs import labels as job
from jobs.labels import ExportConfig, ImportConfig
from jobs.threads import one_torch_thread
from pipelines.dataset import shards
from pipelines.errors import PipelineError
from tests.support.training import canvas_gaze, clip_of


def test_a_greedy_gaze_is_measured_to_the_errors_it_came_with() -> None:
    gazes = [canvas_gaze(clip_of(number)) for number in (0, 1)]
    both = Gaze.cat(gazes)
    frames = torch.stack([torch.from_numpy(clip_of(number)) for number in (0, 1)])
    bare = Gaze(tokens=both.tokens, lengths=both.lengths, vocabulary=both.vocabulary)
    again = measure_errors(frames, bare, reconstruction.load("canvas"))
    assert both.losses is not None and both.initial is not None and again.losses is not None
    assert torch.equal(again.losses, both.losses) and torch.equal(again.initial, both.initial)


def test_a_gaze_of_other_clips_is_refused() -> None:
    with pytest.raises(ValueError, match="the gaze is of"):
        measure_errors(clip_of(0)[None, :2], canvas_gaze(clip_of(0)), reconstruction.load("canvas"))


def test_labels_without_losses_become_a_dataset_that_trains(gazed_dataset: Callable[..., str], tmp_path: Path) -> None:
    data, file = gazed_dataset(tmp_path / "gaze", storage="raw"), tmp_path / "labels.json"
    quiet = Console(file=io.StringIO())
    with one_torch_thread():
        job.export(ExportConfig(data=data, output=str(file)), quiet)
        bare = {key: {"gazing_pos": label["gazing_pos"]} for key, label in json.loads(file.read_text()).items()}
        file.write_text(json.dumps(bare))
        config = ImportConfig(labels=str(file), data=data, output=str(tmp_path / "new"))
        with pytest.raises(PipelineError, match="has no task_losses; measure=canvas measures the errors"):
            job.import_(config, quiet)
        config.measure = "canvas"
        assert job.import_(config, quiet) == 0
    before, after = shards.open_dataset(data), shards.open_dataset(str(tmp_path / "new"))
    assert after.about["units"] == before.about.get("units", reconstruction.load("canvas").units)
    assert after.about["models"]["measured_by"] == reconstruction.load("canvas").fingerprint
    for shard in before.committed():
        rows = zip(*(shards.read_index(each.url, shard).to_pylist() for each in (before, after)), strict=True)
        for old, new in rows:
            if old["outcome"] == "ok":
                assert torch.equal(after.read_gaze(new).losses, before.read_gaze(old).losses)
