"""A small gaze dataset, a small random encoder, and the features of the one by the other, made without Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import runs
from tests.support.encoders import write_encoder
from tests.support.runs import Run
from tests.support.videos import write_video

SHORT = ["clip.frames=4", "shard.clips=2", "threshold=0.04"]


@dataclass(frozen=True)
class Encoded(Run):
    """Features that an undisturbed job made; gaze: of this dataset, if it is not of videos."""

    gaze: Path


@pytest.fixture(scope="session")
def few_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny videos, cut into five clips of four frames, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("few")
    for number, frames in enumerate((12, 8)):
        write_video(folder / f"{number}.mp4", frames=frames, size=(64, 48), seed=number)
    (folder / "broken.mp4").write_bytes(b"this is no video" * 100)
    return folder


@pytest.fixture(scope="session")
def gazed(few_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their gaze dataset."""
    return preprocessed(few_videos, tmp_path_factory.mktemp("gazed") / "gaze")


def preprocessed(videos: Path, output: Path, *settings: str) -> Path:
    done = runs.plainly("preprocess", f"input={videos}", *SHORT, *settings, f"output={output}")
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="session")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="session")
def encoded(gazed: Path, siglip: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """`gazed` encoded, with two layers and both pooled features."""
    output = tmp_path_factory.mktemp("encoded") / "features"
    settings = [f"data={gazed}", f"encoder.checkpoint={siglip}", "layers=final,-2", "pooled=both"]
    done = runs.plainly("encode", *settings, f"output={output}")
    assert done.returncode == 0, done.stderr
    return Encoded(settings, output, runs.tree(output), done.stdout, gazed)
