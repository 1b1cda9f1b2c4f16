"""autogaze verify errors=true: certificates of a learned reconstructor, and what of an index follows from them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from jobs import verify as verify_job
from pipelines.dataset.shards import open_dataset
from pipelines.errors import PipelineError
from pipelines.gazing.reconstructor import ReconstructorConfig, TeachersConfig
from pipelines.inspection.measured import check_errors, measurer_of
from pipelines.inspection.verify import verify
from tests.support import places, runs

LEARNED = places.GOLDEN / "videomae_tiny"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("again")
    make_video(folder / "videos" / "a.mp4", frames=4, size=(64, 48), seed=1)
    words = [f"input={folder / 'videos'}", f"output={folder / 'gaze'}", "gaze=policy", "verify=true", "max_ratio=0.004"]
    words += [f"policy.checkpoint={places.GOLDEN / 'autogaze_small_k4'}", f"reconstructor.checkpoint={LEARNED}"]
    done = runs.plainly(
        "preprocess", *words, "threshold=1.0", "labels.candidates=2", "clip.frames=2", "clip.per_video=1"
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "one clip at once" in done.stdout and "verified by videomae" in done.stdout
    return folder / "gaze"


def verified(dataset: Path, checkpoint: object = "") -> str:
    told = io.StringIO()
    config = verify_job.VerifyConfig(
        str(dataset), errors=True, reconstructor=ReconstructorConfig(str(checkpoint) if checkpoint else "")
    )
    assert verify_job.run(config, Console(file=told, width=200)) == 0, told.getvalue()
    return told.getvalue()


@pytest.mark.slow
def test_a_learned_reconstructor_measures_its_certificate_again(made: Path) -> None:
    told = verified(made, LEARNED)
    assert "1 shard, 1 clip (1 ok, 0 failed)" in told and "1 clip measured again by videomae" in told
    dataset = open_dataset(str(made))
    row = dataset.index().to_dict("records")[0]
    members = dataset.read_clip(row)
    frames, gaze = dataset.frames_of(row, members), dataset.gaze_of(row, members)
    assert frames is not None
    measurer = measurer_of(dataset, ReconstructorConfig(str(LEARNED)), TeachersConfig())
    assert check_errors(dataset, gaze, frames, measurer) == []
    assert "frame 0 ends with" in check_errors(dataset, gaze, 255 - frames, measurer)[0]


def test_what_does_not_measure_it_is_refused(made: Path) -> None:
    with pytest.raises(
        PipelineError, match=r"a learned reconstructor verified it, and reconstructor\.checkpoint= names"
    ):
        verified(made)
    with pytest.raises(PipelineError, match="is for errors=true; add that, or leave it out"):
        verify_job.run(
            verify_job.VerifyConfig(str(made), reconstructor=ReconstructorConfig(str(LEARNED))),
            Console(file=io.StringIO()),
        )
    dataset = open_dataset(str(made))
    dataset.about["models"]["videomae"]["fingerprint"] = "another"
    with pytest.raises(PipelineError, match=r"and .*/gaze was verified by another; give the one that verified it"):
        measurer_of(dataset, ReconstructorConfig(str(LEARNED)), TeachersConfig())


def test_an_index_that_claims_another_share_is_found(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.dataset import shards

    plain = shards.Dataset.read_index
    monkeypatch.setattr(
        shards.Dataset,
        "read_index",
        lambda self, shard, *columns: _with_met(plain(self, shard, *columns).to_pandas(), 0.25),
    )
    assert "of its frames meet the threshold, 0.25 in the index" in verify(str(made)).problems[0]


class _with_met:
    """An index whose `met` says so much; what verify asks of a table."""

    def __init__(self, frame: pd.DataFrame, met: float) -> None:
        self.frame = frame.assign(met=met)

    def to_pandas(self) -> pd.DataFrame:
        return self.frame
