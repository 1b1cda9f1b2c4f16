"""Broken and unusual files through the whole pipeline: each gets the outcome a person would expect."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.support import runs

pytestmark = pytest.mark.slow  # each file by itself: tests/pipelines/video/test_hard_corpus.py

# Clips ok, and failed by reason, in consecutive clips of 16 frames. What is not named here decodes in full.
EXPECTED = {
    "audio_only.mp4": (0, {"no_video_stream": 1}),
    "corrupt_middle.mp4": (14, {"decode_error": 2}),
    "decord_corrupted.mp4": (1, {"decode_error": 3}),
    "lying_stsz.mp4": (0, {"unreadable": 1}),
    "moov_missing.mp4": (0, {"unreadable": 1}),
    "text_renamed.mp4": (0, {"unreadable": 1}),
    "truncated_faststart.mp4": (8, {"truncated": 8}),
    "zero_byte.mp4": (0, {"empty_file": 1}),
}


@pytest.fixture(scope="module")
def hard(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    output = tmp_path_factory.mktemp("hard") / "gaze"
    done = runs.plainly("preprocess", f"input={corpus / 'hard'}", f"output={output}", "shard.clips=16")
    assert done.returncode == 0, done.stderr
    checked = runs.plainly("verify", output)
    assert checked.returncode == 0, checked.stdout
    return pd.read_parquet(output / "index")


def test_each_file_gets_the_outcome_a_person_would_expect(hard: pd.DataFrame, corpus: Path) -> None:
    files = sorted(path.name for path in (corpus / "hard").iterdir())
    found = {
        Path(video).name: (int((rows["outcome"] == "ok").sum()), rows["reason"].value_counts().to_dict())
        for video, rows in hard.groupby("video")
    }
    assert sorted(found) == files
    for name in files:
        ok, failed = found[name]
        assert (ok, failed) == EXPECTED.get(name, (ok, {})), name
        assert ok > 0 or name in EXPECTED, name


def test_short_videos_repeat_their_last_frame_and_say_so(hard: pd.DataFrame) -> None:
    padded = hard.groupby(hard["video"].map(lambda video: Path(video).name))["padded"].max()
    assert padded["one_frame.mp4"] == 15 and padded["tiny_1x1.mp4"] == 11 and padded["huge_gop.mp4"] == 0


@pytest.mark.parametrize(
    "name", ["name with spaces ünïcödé 视频.mp4", pytest.param("corrupt_middle.mp4", marks=pytest.mark.slow)]
)
def test_no_file_changes_the_bytes_of_another(hard: pd.DataFrame, corpus: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / name / "gaze"
    done = runs.plainly("preprocess", f"input={corpus / 'hard' / name}", f"output={output}")
    assert done.returncode == 0, done.stderr
    alone = pd.read_parquet(output / "index").set_index("clip")
    among = hard.set_index("clip").loc[alone.index]
    assert alone["sha256"].fillna("").tolist() == among["sha256"].fillna("").tolist()
    assert alone["outcome"].tolist() == among["outcome"].tolist()
