"""Other frames of a video in each epoch, where frames are decoded again."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.corpus.plan import frame_numbers
from pipelines.corpus.scan import probe_object
from pipelines.corpus.videos import local_copy
from pipelines.loading.config import LoaderConfig
from pipelines.loading.loader import ShardLoader
from pipelines.loading.redecode import drawn_place
from pipelines.storage import store
from pipelines.video.base import DecodeConfig
from pipelines.video.decode import decode_clips
from pipelines.video.isolated import IsolatedDecoder
from tests.pipelines.loading.test_loader import T, write_dataset

ROW = {"start": 4, "stride": 2, "frames": 4, "video_frames": 20, "clip": "a"}


def drawn(row: dict[str, Any], **how: Any) -> set[tuple[int, int]]:
    """Start and stride of 2,000 samples."""
    given = {"starts": False, "max_stride": 0} | how
    rows = [drawn_place(row, 0, 0, sample, **given) for sample in range(2000)]
    assert all(one["clip"] == "a" and one["frames"] == row["frames"] for one in rows)
    return {(one["start"], one["stride"]) for one in rows}


def test_a_clip_begins_wherever_a_whole_one_fits() -> None:
    assert drawn(ROW, starts=True) == {(start, 2) for start in range(20 - 6)}
    assert drawn(ROW, max_stride=3) == {(4, 1), (4, 2), (4, 3)}
    assert drawn(ROW, starts=True, max_stride=9) == {(s, n) for n in range(1, 7) for s in range(20 - 3 * n)}
    assert drawn(ROW | {"start": 18}, max_stride=1) == {(16, 1)}, "as late as it fits"
    short = ROW | {"start": 0, "video_frames": 3}
    assert drawn(short, starts=True, max_stride=4) == {(0, 2)}, "no whole clip fits: the planned one"
    assert drawn(ROW | {"frames": 1}, starts=True) == {(start, 2) for start in range(20)}


def test_the_frames_are_those_drawn_others_in_each_epoch_and_the_same_for_any_reader(
    tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    path = make_video(tmp_path / "videos" / "a.mp4", frames=24, size=(64, 48), seed=0)
    with IsolatedDecoder(DecodeConfig()) as decoder:
        rows = probe_object(store.list_objects(str(path)).__iter__().__next__(), decoder)
    url = write_dataset(str(tmp_path / "gaze"), pd.DataFrame(rows), frames="none")
    config = LoaderConfig(data=[url], global_batch=2, seed=5, workers=0, starts=True, max_stride=3)
    loader = ShardLoader(config, epochs=2)
    batches = list(loader)
    table = loader.datasets[0]
    seen: dict[int, list[tuple[int, int]]] = {}
    for batch in batches:
        for sample, frames in zip(batch.ids.tolist(), batch.frames.numpy(), strict=True):
            row = drawn_place(table.row(sample), 5, batch.epoch, sample, starts=True, max_stride=3)
            seen.setdefault(sample, []).append((row["start"], row["stride"]))
            numbers = frame_numbers(row["start"], row["stride"], T, 24).tolist()
            with local_copy(row["object"], 0, row["bytes"]) as source:
                [(_, wanted)] = decode_clips(source, [numbers], DecodeConfig(), None)
            np.testing.assert_array_equal(frames, wanted)
    assert sum(len(set(places)) > 1 for places in seen.values()) > len(seen) / 2
    again = ShardLoader(config, rank=1, world=2, epochs=2)
    halves = [batch.frames for batch in itertools.islice(again, 2)]
    assert all(np.array_equal(half, batch.frames[1:]) for half, batch in zip(halves, batches, strict=False))
