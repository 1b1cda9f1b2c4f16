"""autogaze import-labels on datasets of older formats."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from jobs import labels as job
from jobs.labels import ExportConfig, ImportConfig
from pipelines.dataset import shards
from pipelines.errors import PipelineError
from pipelines.inspection.verify import verify

pytestmark = pytest.mark.usefixtures("one_thread")


def test_labels_go_into_a_dataset_of_format_2_and_no_unknown_one(
    gazed_dataset: Callable[..., str], tmp_path: Path
) -> None:
    old = gazed_dataset(tmp_path / "old", videos=2, storage="jpeg")  # its plan has a row per clip
    file, console = str(tmp_path / "labels.json"), Console(file=io.StringIO())
    place = tmp_path / "old" / "dataset.json"
    for format in (2, 9):
        place.write_text(json.dumps(json.loads(place.read_text()) | {"format": format}))
        job.export(ExportConfig(data=old, output=file), console)
        config = ImportConfig(labels=file, data=old, output=str(tmp_path / f"new-{format}"))
        if format == 2:
            assert job.import_(config, console) == 0
            verdict, new = verify(config.output), shards.open_dataset(config.output)
            assert verdict.problems == [] and (verdict.ok, verdict.failed) == (3, 1) and new.about["format"] == 2
        else:
            with pytest.raises(PipelineError, match="holds format 9, this version reads 2 and 3"):
                job.import_(config, console)
