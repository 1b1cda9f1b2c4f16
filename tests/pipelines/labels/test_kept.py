"""The labels of a plan's clips are kept on disk: found by their keys, in memory that does not grow with the clips."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pandas as pd

from pipelines.corpus.plan_reader import DatasetPlan
from pipelines.labels.kept import KeptLabels, LabelledClip
from tests.support.places import ROOT


class Plan(DatasetPlan):
    """Shards of 500 clips of one video each. Not all of a plan: what keys need."""

    def __init__(self, shards: int, video: str = "/data/corpus/train/v{}.mp4") -> None:
        self.shards, self.video = shards, video

    def clips_of(self, shard: int) -> pd.DataFrame:
        starts = range(0, 1000, 2)
        of_each = {"video": self.video.format(shard), "tile": "", "frames": 16, "stride": 1}
        return pd.DataFrame({"position": range(500), "start": starts, **of_each})

    straddling = outline = refused = uris = damage = frames = None  # type: ignore[assignment]


Plan.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]


def test_a_clip_is_found_by_its_path_and_by_its_key() -> None:
    kept = KeptLabels(Plan(3))
    clip = LabelledClip(1, 5, 16, 1, "/data/corpus/train/v1.mp4")
    assert kept.by_path("/data/corpus/train/v1.mp4#10") == kept.by_key("corpus/train/v1.mp4#10") == [clip]
    assert kept.by_key("corpus/train/v1.mp4") == [LabelledClip(1, 0, 16, 1, clip.video)]
    for unknown in ("corpus/train/v9.mp4", "corpus/train/v1.mp4#11", "corpus/train/v1.mp4#0", "", "\ud800", "a\0b"):
        assert kept.by_key(unknown) == kept.by_path(unknown) == []
    kept.close()


def test_two_clips_with_one_key_are_both_given() -> None:
    kept = KeptLabels(Plan(3, "/data{}/corpus/train/v.mp4"))
    assert len(kept.by_key("corpus/train/v.mp4#4")) == 2
    assert [clip.shard for clip in kept.by_path("/data2/corpus/train/v.mp4#4")] == [2]
    kept.close()


def test_a_label_is_kept_once() -> None:
    kept = KeptLabels(Plan(2))
    (clip,) = kept.by_key("corpus/train/v1.mp4")
    assert kept.of(1, 0) is None
    assert kept.keep(clip, b"one") and kept.keep(clip, b"one") and not kept.keep(clip, b"two")
    assert (kept.of(1, 0), kept.of(1, 1), kept.of(0, 0)) == (b"one", None, None)
    kept.close()


def test_memory_does_not_grow_with_clips() -> None:
    def peak(shards: int) -> int:
        tracemalloc.start()
        kept = KeptLabels(Plan(shards))
        for shard in range(shards):
            for start in range(0, 1000, 2):
                (clip,) = kept.by_path(f"/data/corpus/train/v{shard}.mp4" + (f"#{start}" if start else ""))
                kept.keep(clip, os.urandom(64))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        kept.close()
        return most

    small, large = peak(2), peak(20)
    assert large < 1.5 * small + (64 << 10)


KEEPING = """
from pipelines.labels.kept import LabelledClip
from tests.pipelines.labels.test_kept import KeptLabels, Plan
import os, signal
kept = KeptLabels(Plan(1))
for position in range(400):
    kept.keep(LabelledClip(0, position, 16, 1, "v"), bytes(1 << 18))  # more than the 64 MiB that are in memory
os.kill(os.getpid(), signal.SIGKILL)
"""


def keeping(folder: Path) -> subprocess.CompletedProcess[str]:
    """Keep 100 MiB in a folder and die, in a process of its own: SQLite reads the folder's name once."""
    environment = os.environ | {"SQLITE_TMPDIR": str(folder)}
    return subprocess.run([sys.executable, "-c", KEEPING], env=environment, cwd=ROOT, capture_output=True, text=True)


def test_a_kill_leaves_nothing(tmp_path: Path) -> None:
    assert keeping(tmp_path).returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == [], "the file has no name while it is used"


def test_a_disk_without_room_is_one_line(small_disk: Path) -> None:
    done = keeping(small_disk)
    assert done.returncode == 1
    assert "PipelineError: the labels cannot be kept in a temporary file (database or disk is full)" in done.stderr
