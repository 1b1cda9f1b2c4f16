"""A dataset made in parts that know nothing of each other: the same bytes as one run's, whatever their order."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cli import main
from jobs.config import load
from pipelines.errors import PipelineError
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.job import missing_parts
from tests.support import runs
from tests.support.runs import Run


def preprocess(run: Run, output: Path, *settings: str) -> str:
    done = runs.plainly("preprocess", *run.settings, f"output={output}", *settings)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def missing(run: Run, output: Path, parts: int) -> list[int]:
    return missing_parts(load(PreprocessConfig, [*run.settings, f"output={output}"]), parts)


def shards_there(output: Path) -> list[int]:
    return sorted(int(path.stem) for path in output.glob("index/*.parquet"))


def made(files: dict[str, str]) -> dict[str, str]:
    """All but the manifest, which holds the times of the videos: other tests move them away and back."""
    return {name: digest for name, digest in files.items() if not name.startswith("manifest.parquet/")}


def test_parts_in_any_order_make_the_bytes_of_one_run(undisturbed: Run, tmp_path: Path) -> None:
    output = tmp_path / "gaze"
    shards = shards_there(undisturbed.output)
    assert len(shards) > 3 and missing(undisturbed, output, 3) == [0, 1, 2], "nothing planned: all of it is missing"
    assert "planned: " in preprocess(undisturbed, output, "part=plan")
    assert not shards_there(output) and (output / "dataset.json").exists(), "a plan, and no work"
    plan = (output / "plan.parquet" / "000000.parquet").stat().st_mtime_ns

    preprocess(undisturbed, output, "part=2/3")
    assert shards_there(output) == shards[len(shards) * 2 // 3 :] and missing(undisturbed, output, 3) == [0, 1]
    (output / "shards" / ".tmp-left-by-a-killed-part").write_bytes(b"half a tar")
    preprocess(undisturbed, output, "part=0/3")
    assert (output / "shards" / ".tmp-left-by-a-killed-part").exists(), "it might be another part's work"
    preprocess(undisturbed, output, "part=1/3")
    assert made(runs.tree(output)) == made(undisturbed.files) and not missing(undisturbed, output, 3)
    assert (output / "plan.parquet" / "000000.parquet").stat().st_mtime_ns == plan, "nobody planned again"

    said = preprocess(undisturbed, output, "part=1/3")
    middle = shards[len(shards) // 3 : len(shards) * 2 // 3]
    assert f"all {len(middle)} shards of part 1/3 are committed" in said


@pytest.mark.slow
def test_parts_that_start_together_without_a_plan(undisturbed: Run, tmp_path: Path) -> None:
    output = tmp_path / "gaze"
    jobs = [runs.start("preprocess", *undisturbed.settings, f"output={output}", f"part={part}/2") for part in range(2)]
    assert [job.wait() for job in jobs] == [0, 0]
    assert made(runs.tree(output)) == made(undisturbed.files)


def test_more_parts_than_shards_leave_some_with_nothing_to_do(undisturbed: Run, tmp_path: Path) -> None:
    output, parts = tmp_path / "gaze", len(shards_there(undisturbed.output)) + 1
    said = preprocess(undisturbed, output, f"part=0/{parts}")
    assert "nothing to do: all 0 shards" in said
    assert missing(undisturbed, output, parts) == list(range(1, parts))


@pytest.mark.parametrize("part", ["3/3", "-1/3", "1", "1/0", "a/b", "0/3/3", "all"])
def test_a_part_that_is_none_is_refused_in_one_line(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preprocess", f"input={tmp_path}", f"output={tmp_path}/out", f"part={part}"]) == 2
    error = capsys.readouterr().err
    assert f"part={part}: must be plan, or K/N with K from 0 to N-1" in error and error.count("\n") == 1


def test_no_parts_at_all_are_refused(undisturbed: Run) -> None:
    with pytest.raises(PipelineError, match="parts=0: must be at least 1"):
        missing(undisturbed, undisturbed.output, 0)
