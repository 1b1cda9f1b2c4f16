"""Mirrored clips: other ones in every epoch, with labels that are true; and datasets that are used unevenly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autogaze.gaze import Gaze
from autogaze.measuring import measure_errors
from autogaze.mirror import mirror_frames, mirror_gaze, mirror_ids
from autogaze.patches import VOCABULARY
from autogaze.reconstruction.canvas import Canvas
from pipelines.errors import PipelineError
from pipelines.loading.reading import Batch
from pipelines.rl.config import check_rl_config
from pipelines.runs.audit import audit
from pipelines.train.augment import flip_clips, flipped_samples
from pipelines.train.config import check_train_config
from pipelines.train.task import RandomKey
from tests.support.training import canvas_gaze, clip_of, end_of, policy_config, rl_config, task_of, train, write_dataset

CANVAS = Canvas()


def of_canvas(folder: Path, clips: int = 8, units: str = Canvas.units) -> str:
    url = write_dataset(folder, clips=clips, gaze=lambda number: canvas_gaze(clip_of(number)))
    place = Path(url, "dataset.json")
    place.write_text(json.dumps(json.loads(place.read_text()) | {"units": units}))
    return url


def test_a_patch_and_its_mirror_image_show_the_same_pixels() -> None:
    """Painted one by one, each patch of a frame and the mirror image of the patch in the mirrored frame."""
    ids = mirror_ids(VOCABULARY)
    assert torch.equal(ids[ids], torch.arange(VOCABULARY.size))
    frame = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 1, 224, 224, 3), np.uint8))
    exact = [token for token in range(0, VOCABULARY.size, 7) if not 4 <= token < 20]  # 64 does not divide 224
    for token in exact:
        gaze = Gaze.from_lists([[[token]]])
        painted = CANVAS.reconstruct(frame, gaze).pixels
        mirrored = CANVAS.reconstruct(mirror_frames(frame), mirror_gaze(gaze)).pixels
        assert torch.equal(mirror_frames(mirrored), painted), token


def test_half_of_the_clips_are_mirrored_and_other_ones_in_the_next_epoch() -> None:
    first, again, later = (flipped_samples(RandomKey(3, epoch, tuple(range(400)))) for epoch in (0, 0, 1))
    assert first == again != later
    assert 150 < sum(first) < 250 and 150 < sum(a != b for a, b in zip(first, later, strict=True)) < 250
    assert flipped_samples(RandomKey(3, 0, (7, 9))) == [first[7], first[9]], "whatever else is in the batch"


def test_the_errors_of_a_mirrored_label_are_measured_and_the_others_are_as_they_were() -> None:
    frames = torch.from_numpy(np.stack([clip_of(number) for number in range(6)]))
    gaze = Gaze.cat([canvas_gaze(clip_of(number)) for number in range(6)])
    key = RandomKey(0, 0, tuple(range(6)))
    flipped = flipped_samples(key)
    assert 0 < sum(flipped) < 6
    seen, labels = flip_clips(frames, gaze, key, CANVAS)
    for b, mirrored in enumerate(flipped):
        assert torch.equal(seen[b], mirror_frames(frames[b]) if mirrored else frames[b])
        measured = measure_errors(seen[b : b + 1], replace(labels[b], losses=None, initial=None), CANVAS)
        assert torch.equal(labels[b].losses, measured.losses) and torch.equal(labels[b].initial, measured.initial)
        assert labels[b].lengths.tolist() == gaze[b].lengths.tolist()
        ids = mirror_ids(VOCABULARY)[gaze[b].tokens] if mirrored else gaze[b].tokens
        assert torch.equal(labels[b].tokens, ids)
    assert torch.equal(gaze[0].tokens, canvas_gaze(clip_of(0)).tokens), "what is stored is not changed"


def test_a_policy_is_trained_on_what_it_sees_in_the_mirror(tmp_path: Path) -> None:
    data = of_canvas(tmp_path / "data")
    words = ("steps=2", "loader.val_fraction=0")
    config = policy_config(data, tmp_path / "run", *words, "augment.flip=true")
    train(config)
    train(policy_config(data, tmp_path / "plain", *words))
    assert end_of(tmp_path / "run") != end_of(tmp_path / "plain")
    assert not audit(str(tmp_path / "run")).count

    task = task_of(config)(config, torch.device("cpu"))
    frames = torch.from_numpy(np.stack([clip_of(number) for number in range(4)]))
    gaze = Gaze.cat([canvas_gaze(clip_of(number)) for number in range(4)])
    batch = Batch(0, 0, np.arange(4), ["a", "b", "c", "d"], frames, gaze, np.zeros(4, bool), [])
    seen, (mirrored, labels) = task.augmented(batch), flip_clips(frames, gaze, RandomKey(0, 0, (0, 1, 2, 3)), CANVAS)
    assert torch.equal(seen.frames, mirrored)
    assert [seen.gaze[b].to_npz() for b in range(4)] == [labels[b].to_npz() for b in range(4)]


def test_labels_of_another_reconstructor_are_refused(tmp_path: Path) -> None:
    data = of_canvas(tmp_path / "data", 2, "a loss of another network")
    config = policy_config(data, tmp_path / "run", "augment.flip=true")
    with pytest.raises(PipelineError, match=r"augment.flip=true: the errors of .*/data are of another reconstructor"):
        task_of(config)(config, torch.device("cpu"))
    with pytest.raises(PipelineError, match=r"augment\.flip=true: actors sample gazes of clips as they are"):
        check_rl_config(rl_config(data, tmp_path / "run", "augment.flip=true", "loader.val_fraction=0"))


# -- weights of datasets -----------------------------------------------------------------------------------------------


def test_datasets_are_used_as_often_as_their_weights_say(tmp_path: Path) -> None:
    both = f"{write_dataset(tmp_path / 'a', clips=8)},{write_dataset(tmp_path / 'b', clips=8)}"
    words = ("loader.val_fraction=0", "epochs=2", "every.checkpoint=100")
    train(policy_config(both, tmp_path / "run", *words, "data_weights=2,0.5"))
    done = audit(str(tmp_path / "run"))
    assert not done.count, done.problems
    # Eight of the first twice, four of the second; in the next epoch the other four.
    assert [(epoch.used, epoch.repeats) for epoch in done.epochs] == [(12, 8), (12, 8)]
    with pytest.raises(PipelineError, match=r"was begun with data_weights=2,0.5, not 1,1"):
        train(policy_config(both, tmp_path / "run", *words, "data_weights=1,1"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("1", "data_weights=1: 1 for 2 datasets; give one for each"),
        ("1,0", "data_weights=1,0: numbers above 0 with commas expected"),
        ("1,a", "data_weights=1,a: numbers above 0"),
        ("1,nan", "data_weights=1,nan: numbers above 0"),
        ("1,inf", "data_weights=1,inf: numbers above 0"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(PipelineError, match=told):
        check_train_config(policy_config("a,b", tmp_path, f"data_weights={text}"))
