"""autogaze status as a user or a script runs it."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from jobs.status import StatusConfig, run
from pipelines.dataset import shards
from pipelines.errors import PipelineError
from tests.support import training
from tests.support.training import train


def printed(config: StatusConfig) -> tuple[int, str]:
    sink = io.StringIO()
    return run(config, Console(file=sink, width=150)), sink.getvalue()


def test_a_finished_dataset_is_a_table_and_0(gazed_dataset: Callable[..., str], tmp_path: Path) -> None:
    url = gazed_dataset(tmp_path / "data")
    status, text = printed(StatusConfig(url))
    assert status == 0
    for words in (url, "done", "8 of 8 (100.0%)", "4 of 4 committed", "7 ok, 0 filtered, 1 failed", "1 decode_error"):
        assert words in text


def test_a_dataset_that_is_not_going_on_is_1(gazed_dataset: Callable[..., str], tmp_path: Path) -> None:
    url = gazed_dataset(tmp_path / "data")
    shards.uncommit_shards(url, [2])
    status, text = printed(StatusConfig(url))
    assert status == 0 and "running" in text and "3 of 4 committed" in text
    long_ago = time.time() - 3000
    for shard in (0, 1, 3):
        os.utime(shards.index_url(url, shard), (long_ago, long_ago))
    status, text = printed(StatusConfig(url))
    assert status == 1 and "stalled" in text and "no commit for 50 min: is it running?" in text
    assert printed(StatusConfig(url, stall_s=4000))[0] == 0


def test_json_is_one_object_a_line_with_the_same_numbers(gazed_dataset: Callable[..., str], tmp_path: Path) -> None:
    url = gazed_dataset(tmp_path / "data")
    status, text = printed(StatusConfig(url, format="json"))
    document = json.loads(text)
    assert status == 0 and text.count("\n") == 1
    assert document["what"] == "dataset" and document["well"] and document["state"] == "done"
    assert document["outcomes"] == {"ok": 7, "filtered": 0, "failed": 1} and document["reasons"] == {"decode_error": 1}
    quick = json.loads(printed(StatusConfig(url, format="json", outcomes=False))[1])
    assert quick["outcomes"] is None and quick["clips"] == 8


def test_a_run_is_a_table_too(tmp_path: Path) -> None:
    data, place = training.write_dataset(tmp_path / "data", clips=8), tmp_path / "run"
    assert train(training.policy_config(data, place, "epochs=1", "loader.val_fraction=0")) == "done"
    status, text = printed(StatusConfig(str(place)))
    assert status == 0
    for words in ("done", "loss", "clips/s", "checkpoint", "attempts"):
        assert words in text
    document = json.loads(printed(StatusConfig(str(place), format="json"))[1])
    assert document["what"] == "run" and document["step"] == document["steps"] == document["checkpoint"]


def test_watching_ends_with_the_job(gazed_dataset: Callable[..., str], tmp_path: Path) -> None:
    url = gazed_dataset(tmp_path / "data")
    index = Path(shards.index_url(url, 2))
    kept = index.read_bytes()
    index.unlink()

    class Sink(io.StringIO):
        def write(self, text: str) -> int:  # the job makes its last shard once it was looked at twice
            if self.getvalue().count("\n") == 1:
                index.write_bytes(kept)
            return super().write(text)

    sink = Sink()
    assert run(StatusConfig(url, watch=0.05, format="json"), Console(file=sink)) == 0
    states = [json.loads(line)["state"] for line in sink.getvalue().splitlines()]
    assert states[0] == "running" and states[-1] == "done"


def test_names_that_look_like_markup_are_shown_as_they_are(gazed_dataset: Callable[..., str], tmp_path: Path) -> None:
    url = gazed_dataset(tmp_path / "[red]data[/red]")
    assert "[red]data[/red]" in printed(StatusConfig(url))[1]


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    for config, told in (
        (StatusConfig(), "place= is missing: autogaze status"),
        (StatusConfig(str(tmp_path)), "neither a dataset"),
        (StatusConfig("/x", format="xml"), "format=xml: must be one of text, json"),
        (StatusConfig("/x", watch=-1), "watch=-1: must be 0 or more"),
        (StatusConfig("/x", stall_s=float("nan")), "stall_s=nan: must be 0 or more"),
    ):
        with pytest.raises(PipelineError, match=told) as error:
            printed(config)
        assert "\n" not in str(error.value)
