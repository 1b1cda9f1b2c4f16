"""jobs.cli and jobs.terminal: what is wrong with a command is said at once, and on any terminal."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

import autogaze
from autogaze.gaze import Gaze
from autogaze.model.scoring import Scores
from jobs import cli, terminal
from jobs.cli import COMMANDS, main
from tests.support import places


@pytest.mark.parametrize(
    "words, told",
    [
        (
            "train",
            "train: no such job; did you mean autogaze train policy, autogaze train reconstructor or "
            "autogaze train encoder?",
        ),
        ("train polcy data=x", "train polcy: no such job; did you mean autogaze train policy?"),
        ("prepocess input=x", "prepocess: no such job; did you mean autogaze preprocess?"),
        ("export x", "export: no such job; did you mean autogaze export-labels?"),
        ("export_labels x", "export_labels: no such job; did you mean autogaze export-labels?"),
        ("cluster lgos 3", "cluster lgos: no such job; did you mean autogaze cluster logs?"),
        ("sumbit preprocess", "sumbit: no such job; did you mean autogaze submit?"),
        ("submit prepocess", "prepocess: no such job; did you mean autogaze preprocess?"),
        ("submit", f"no job is named: {cli._SUBMIT}"),
        ("nonsense", "nonsense: no such job; `autogaze --help` lists all"),
    ],
)
def test_a_job_that_is_not_there_is_one_line_with_the_nearest(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    assert capsys.readouterr().err == f"autogaze: {told}\n"


@pytest.mark.parametrize(
    "words, shown",
    [
        ("", list(COMMANDS)),
        ("--help", list(COMMANDS)),
        ("cluster --help", [name for name in COMMANDS if name.startswith("cluster ")]),
        ("train -h", ["train policy", "train reconstructor"]),
        ("submit --help", [cli._SUBMIT, "cluster=FILE ", "--dry-run", "  preprocess   "]),
        ("submit preprocess --help", ["usage: autogaze submit preprocess [KEY=VALUE ...] cluster=FILE"]),
        ("--version", [f"autogaze-pipelines {autogaze.__version__}"]),
    ],
)
def test_help_and_version_are_printed_and_end_well(
    words: str, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words.split())
    out = capsys.readouterr().out
    assert end.value.code == 0 and [text for text in shown if text not in out] == []


def test_what_is_wrong_is_said_without_loading_torch(tmp_path: Path) -> None:
    """In one process, since starting one costs more than all that it does here."""
    commands = [
        "preprocess input=x ouput=y",
        "preprocess input=x output=y threshold=7",
        f"preprocess input={tmp_path}/nothing output={tmp_path}/new",
        f"encode data={tmp_path}/nothing output={tmp_path}/new encoder.checkpoint=x",
        f"encode input={tmp_path}/nothing output={tmp_path}/new encoder.checkpoint=x",
        "gaze x.mp4 outpt=y",
        f"gaze x.mp4 output={tmp_path} device=none",
        *(f"{job} {tmp_path}/nothing" for job in ("status", "verify", "report", "export-labels", "audit")),
        *(f"evaluate {words}" for words in (f"{tmp_path}/nothing", f"{tmp_path} methods=all", f"{tmp_path} ratios=2")),
        f"import-labels labels.json data={tmp_path}/nothing output={tmp_path}/new",
        "train policy data=x rum=y",
        f"train policy data={tmp_path}/nothing run={tmp_path}/run",
        f"rl data={tmp_path}/nothing run={tmp_path}/run init=x",
        f"gaze {tmp_path}/nothing.mp4 output={tmp_path}/one",
        "rl data=x run=y init=z objective.beta=-1",
    ]
    code = f"import sys\nfrom jobs.cli import main\nprint([main(words.split()) for words in {commands}])\n"
    code += "print({'torch', 'ray', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=places.ROOT, capture_output=True, text=True, check=True)
    statuses, loaded = done.stdout.splitlines()
    assert statuses == str([2] * len(commands)), done.stderr
    assert loaded == "set()"
    assert len(done.stderr.splitlines()) == len(commands), done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_path_is_printed_on_any_terminal(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.escape_what_is_missing()
    Console().print("dataset: /数据/视频/\udcff", soft_wrap=True)
    terminal.write_exactly("autogaze preprocess input=/数据/\udcff\n")
    stream.flush()
    first, second = stream.buffer.getvalue().splitlines()  # type: ignore[attr-defined]
    assert first == b"dataset: " + "/数据/视频/\udcff".encode(encoding, "backslashreplace")
    assert second == "autogaze preprocess input=/数据/\udcff".encode("utf-8", "surrogateescape")


def test_a_job_that_is_done_says_so_to_a_log_of_ascii(
    gazed_dataset: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = gazed_dataset(tmp_path / "数据", videos=1, failing=())
    for job in (["status", place], ["status", place, "format=json"], ["verify", place], ["report", place, "clips=0"]):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", stream)
        assert main([*job, *([f"output={tmp_path}/报告.html"] if job[0] == "report" else [])]) in (0, 1)
        stream.flush()
        printed = stream.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
        assert "all good" in printed or "\\u6570\\u636e" in printed or "\\u62a5\\u544a.html" in printed
        if "format=json" in job:
            assert json.loads(printed)["url"] == place


def test_gaze_and_scores_are_a_line_each() -> None:
    gaze = Gaze.from_lists([[[1, 2], []]] * 3, [[[0.5, 0.25], []]] * 3)
    assert repr(gaze) == "Gaze(3 clips of 2 frames, 6 tokens, with losses)"
    scores = Scores(torch.zeros(3, 4), torch.zeros(3, 4))
    assert repr(scores) == f"{scores}" == "Scores(log_probs=[3, 4], loss_predictions=[3, 4], entropies=None)"
