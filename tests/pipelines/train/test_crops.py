"""Clips of which a part is shown, or that other frames of a video take the place of: with labels of what is seen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autogaze import greedy
from autogaze.gaze import Gaze
from autogaze.reconstruction.canvas import Canvas
from jobs.config import load
from pipelines.errors import PipelineError
from pipelines.loading.reading import Batch
from pipelines.rl.config import check_rl_config
from pipelines.train.augment import CanvasLabels, augment_batch, crop_clip, crop_window, labels_for
from pipelines.train.config import AugmentConfig, ReconstructorTrainConfig
from pipelines.train.task import RandomKey
from tests.support.training import (
    SIDE,
    THRESHOLD,
    canvas_gaze,
    clip_of,
    end_of,
    policy_config,
    rl_config,
    task_of,
    train,
    write_dataset,
)

CANVAS = Canvas()
CLIPS = torch.from_numpy(np.stack([clip_of(number) for number in range(6)]))
CROPPED = AugmentConfig(crop=0.5)
WINDOWS = [crop_window(RandomKey(4, 1, ()), sample, 0.5, SIDE) for sample in range(6)]


@pytest.fixture(scope="module")
def batch() -> Batch:
    gaze = Gaze.cat([canvas_gaze(clip.numpy()) for clip in CLIPS])
    return Batch(0, 1, np.arange(6), list("abcdef"), CLIPS, gaze, np.zeros(6, bool), [])


def same(one: Gaze, other: Gaze) -> bool:
    """Whether two gazes are equal, bit for bit, errors included."""
    return one.to_npz() == other.to_npz()


def of_canvas(folder: Path, **config: Any) -> str:
    """A dataset as gaze=canvas leaves it; config: what else its settings are."""
    url = write_dataset(folder, clips=8, gaze=lambda number: canvas_gaze(clip_of(number)))
    about = json.loads(Path(url, "dataset.json").read_text())
    about["config"] |= {"gaze": "canvas", "max_ratio": 0.03} | config
    Path(url, "dataset.json").write_text(json.dumps(about))
    return url


def test_half_of_the_clips_show_a_part_that_lies_within_the_frame() -> None:
    key, many = RandomKey(3, 0, ()), range(400)
    windows = [crop_window(key, sample, 0.5, SIDE) for sample in many]
    some = np.array([window for window in windows if window is not None])
    assert 150 < len(some) < 250
    top, left, side = some.T
    assert (side >= SIDE // 2).all() and (np.maximum(top, left) + side <= SIDE).all() and (some.min(0)[:2] >= 0).all()
    assert side.min() < 0.55 * SIDE and side.max() > 0.95 * SIDE, "all sizes from the least to the whole"
    assert windows != [crop_window(RandomKey(3, 1, ()), sample, 0.5, SIDE) for sample in many], "others in an epoch"


def test_a_part_is_enlarged_to_the_size_of_a_frame_the_same_in_all_frames() -> None:
    ramp = torch.arange(SIDE, dtype=torch.uint8)[None, None, :, None].expand(2, SIDE, SIDE, 3)
    seen = crop_clip(ramp, 10, 100, 56)
    assert seen.shape == ramp.shape and torch.equal(seen[0], seen[1])
    at = np.clip((np.arange(SIDE) + 0.5) / 4 - 0.5, 0, 55) + 100  # pixel centres of the part, by hand
    assert np.abs(seen[0, 7, :, 1].numpy() - at).max() <= 0.5
    assert torch.equal(crop_clip(CLIPS[0], 0, 0, SIDE), CLIPS[0])


def test_labels_of_a_part_are_those_that_search_finds_on_it(batch: Batch) -> None:
    cropped = [window is not None for window in WINDOWS]
    assert 0 < sum(cropped) < 6
    gaze = batch.gaze
    seen = augment_batch(CROPPED, batch, 4, CanvasLabels(CANVAS, THRESHOLD, 0.03, False))
    for b, window in enumerate(WINDOWS):
        clip = CLIPS[b] if window is None else crop_clip(CLIPS[b], *window)
        assert torch.equal(seen.frames[b], clip)
        found = greedy.label(clip[None], CANVAS, threshold=THRESHOLD, max_ratio=0.03)
        assert same(seen.gaze[b], found)
    assert torch.equal(batch.frames, CLIPS) and batch.gaze is gaze, "what was read is not changed"
    alone = replace(batch, ids=np.array([3]), frames=CLIPS[3:4], gaze=batch.gaze[3])
    one = augment_batch(CROPPED, alone, 4, CanvasLabels(CANVAS, THRESHOLD, 0.03, False))
    assert torch.equal(one.frames[0], seen.frames[3]) and same(one.gaze, seen.gaze[3]), "whatever else is in the batch"


def test_lengths_that_were_drawn_stay_drawn(batch: Batch) -> None:
    seen = augment_batch(CROPPED, batch, 4, CanvasLabels(CANVAS, None, 1.0, True))
    assert torch.equal(seen.gaze.lengths, batch.gaze.lengths)


def test_a_clip_whose_gaze_is_lost_has_none_where_none_is_needed(batch: Batch) -> None:
    seen = augment_batch(CROPPED, batch, 4, None)
    assert [int(seen.gaze[b].counts().sum()) > 0 for b in range(6)] == [window is None for window in WINDOWS]
    assert not augment_batch(AugmentConfig(starts=True), batch, 4, None).gaze.counts().sum()


def test_parts_are_trained_on_and_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    data = of_canvas(tmp_path / "data")
    words = ["augment.crop=0.5", "augment.flip=true", "ema.decay=0.5", "loader.val_fraction=0", "steps=3"]
    words += ["global_batch=2"]
    train(policy_config(data, tmp_path / "plain", *words))
    asked = iter([False, False, True])
    assert train(policy_config(data, tmp_path / "run", *words), stopping=lambda: next(asked, True)) == "stopped"
    train(policy_config(data, tmp_path / "run", *words))
    assert end_of(tmp_path / "run") == end_of(tmp_path / "plain")


def test_a_refiner_sees_random_patches_of_parts(batch: Batch, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", clips=4)
    words = ["kind=refiner", "refiner.width=8", "refiner.deep_width=8", "augment.crop=0.5", "augment.flip=true"]
    config = load(ReconstructorTrainConfig, [*words, f"data={data}", f"run={tmp_path / 'run'}"])
    seen = task_of(config)(config, torch.device("cpu")).augmented(batch)
    assert 0 < sum(int(seen.gaze[b].counts().sum()) > 0 for b in range(6)) < 6 and seen.gaze.losses is None


def test_labels_that_could_not_be_made_again_are_refused(tmp_path: Path) -> None:
    config = AugmentConfig(crop=0.5)
    other = of_canvas(tmp_path / "policy", gaze="policy")
    with pytest.raises(PipelineError, match=r"augment\.crop=0\.5: the labels of .*/policy are not of gaze=canvas"):
        labels_for(config, [other], CANVAS.vocabulary)
    mixed = [of_canvas(tmp_path / "a"), of_canvas(tmp_path / "b", threshold=0.1)]
    with pytest.raises(PipelineError, match=r"/a and .*/b end their frames differently \(threshold=0.003, .*=0.1"):
        labels_for(config, mixed, CANVAS.vocabulary)
    with pytest.raises(
        PipelineError, match=r"augment\.starts=true: .*/a stores the frames of its clips, and no others"
    ):
        train(policy_config(mixed[0], tmp_path / "run", "augment.starts=true"))
    with pytest.raises(PipelineError, match=r"augment\.crop=0\.5: actors sample gazes of clips as they are"):
        check_rl_config(rl_config(mixed[0], tmp_path / "run", "augment.crop=0.5", "loader.val_fraction=0"))
