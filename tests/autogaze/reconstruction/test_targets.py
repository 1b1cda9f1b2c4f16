"""Targets: what is stored is what the loss would compute, and is refused by any other loss."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autogaze import npz
from autogaze.reconstruction.losses import FrameLoss, Teacher
from autogaze.reconstruction.targets import Targets, target_frames

transformers = pytest.importorskip("transformers")

TINY = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


@pytest.fixture(scope="module")
def teachers() -> list[Teacher]:
    torch.manual_seed(20260)
    siglip = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TINY))
    config = transformers.Dinov2WithRegistersConfig(**{k: v for k, v in TINY.items() if k != "intermediate_size"})
    dino = transformers.Dinov2WithRegistersModel(config)
    return [
        Teacher("dinov2_reg", dino, (0.4,) * 3, (0.2,) * 3, size=32),
        Teacher("siglip2", siglip, (0.5,) * 3, (0.5,) * 3, size=32),
    ]


@pytest.fixture(scope="module")
def loss(teachers) -> FrameLoss:
    return FrameLoss(1.0, teachers)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def targets(loss, frames) -> Targets:
    return Targets.of(loss, frames, [2, 7, 11])


def test_stored_targets_give_the_error_that_computed_ones_give(loss, frames, targets):
    read = Targets.from_npz(targets.to_npz())
    read.require(loss)
    assert read.at.tolist() == [2, 7, 11] and list(read.features) == ["dinov2_reg", "siglip2"]
    predicted = 0.8 * frames
    order = [2, 0, 1, 0]  # any frames, in any order, more than once
    stored = read.for_frames([[2, 7, 11][place] for place in order])
    assert [target.dtype for target in stored] == [torch.float16] * 2
    error = loss(predicted[order], frames[order], stored)
    torch.testing.assert_close(error, loss(predicted, frames)[order], rtol=1e-3, atol=1e-4)
    for target, computed in zip(stored, loss.targets(frames[order]), strict=True):
        torch.testing.assert_close(target.float(), computed, rtol=1e-3, atol=1e-3)


def test_the_file_is_plain_arrays_and_its_bytes_depend_on_the_content_alone(targets, monkeypatch):
    first = targets.to_npz()
    with np.load(io.BytesIO(first), allow_pickle=False) as archive:
        types = {name: (archive[name].dtype.str, archive[name].shape) for name in archive.files}
    assert types == {
        "at": ("<i8", (3,)),
        "fingerprint": ("|S64", ()),
        "features_dinov2_reg": ("<f2", (3, 4, 32)),
        "features_siglip2": ("<f2", (3, 4, 32)),
    }
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    assert Targets.from_npz(first).to_npz() == first


def test_targets_of_other_teachers_are_refused_by_name(teachers, loss, targets):
    targets.require(FrameLoss(0.0, teachers))  # other weights of the sum: the same features
    one = FrameLoss(1.0, teachers[1:])
    with pytest.raises(ValueError) as refused:
        targets.require(one)
    said = str(refused.value)
    assert "are of dinov2_reg, siglip2 (" in said and "the loss has siglip2 (" in said and "\n" not in said
    assert loss.targets_fingerprint[:16] in said and one.targets_fingerprint[:16] in said
    with pytest.raises(ValueError, match="the loss has no teacher"):
        targets.require(FrameLoss())
    changed = Teacher("siglip2", teachers[1].model, (0.5,) * 3, (0.25,) * 3, size=32)
    with pytest.raises(ValueError, match="the loss has dinov2_reg, siglip2"):
        targets.require(FrameLoss(1.0, [teachers[0], changed]))
    with pytest.raises(ValueError, match="fingerprint"):  # their order is that of the features
        targets.require(FrameLoss(1.0, teachers[::-1]))


def test_frames_without_targets_are_named(targets):
    with pytest.raises(ValueError, match=r"no targets of frames \[3, 0\], only of \[2, 7, 11\]"):
        targets.for_frames([3, 7, 0])
    assert [len(target) for target in targets.for_frames([])] == [0, 0]


class Loud(FrameLoss):
    """A loss whose teacher's features reach a value."""

    def __init__(self, teacher: Teacher, largest: float) -> None:
        super().__init__(1.0, [teacher])
        self.largest = largest

    def targets(self, frames):
        return [torch.tensor([1.0, self.largest]).view(1, 1, 2)]


def test_features_that_float16_cannot_hold_are_an_error_not_infinity(teachers, frames):
    assert float(Targets.of(Loud(teachers[1], -65504.0), frames[:1], [0]).features["siglip2"].min()) == -65504.0
    for largest in (65505.0, -7e4, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="features of siglip2 reach"):
            Targets.of(Loud(teachers[1], largest), frames[:1], [0])


def test_what_is_no_targets_file_is_refused(loss, frames, targets):
    good = targets.to_npz()
    features = np.zeros((1, 2, 2), np.float16)
    mark = np.array(b"a" * 64)
    for content in (
        b"",
        b"text",
        good[: len(good) // 2],
        npz.write({"at": np.array([0])}),
        npz.write({"at": np.array([0]), "fingerprint": np.array([1.0])}),
        npz.write({"at": np.array([0.0]), "fingerprint": mark}),
        npz.write({"at": np.array([0]), "fingerprint": mark, "features_siglip2": features.astype(np.float32)}),
        npz.write({"at": np.array([0, 1]), "fingerprint": mark, "features_siglip2": features}),
        npz.write({"at": np.array([0]), "fingerprint": mark, "features_siglip2": features + np.float16(np.nan)}),
    ):
        with pytest.raises(ValueError):
            Targets.from_npz(content)
    with pytest.raises(ValueError, match="rise"):
        Targets.of(loss, frames, [2, 1, 3])
    with pytest.raises(ValueError, match="3 frames for 2 frame numbers"):
        Targets.of(loss, frames, [1, 2])


def test_which_frames_have_targets_is_fixed_by_the_clips_name():
    # Written down: another version of this must choose the same, or stored targets would miss frames.
    assert target_frames("bikes-0123abcd-0", 16, 2) == [7, 10]
    assert target_frames("bikes-0123abcd-0", 16, 16) == list(range(16))
    assert target_frames("bikes-0123abcd-0", 16, 0) == []
    chosen = [frame for clip in range(2000) for frame in target_frames(f"clip-{clip}", 16, 2)]
    assert all(150 < chosen.count(frame) < 350 for frame in range(16))  # 250 each, were it by chance
    with pytest.raises(ValueError, match=r"targets of 9 frames are wanted of clip-1, which has 8"):
        target_frames("clip-1", 8, 9)


@given(st.text(), st.integers(1, 40), st.data())
def test_more_target_frames_are_the_same_and_others(clip, frames, data):
    count = data.draw(st.integers(0, frames))
    chosen = target_frames(clip, frames, count)
    assert len(chosen) == count and chosen == sorted(set(chosen) & set(range(frames)))
    assert set(chosen) >= set(target_frames(clip, frames, max(0, count - 1)))
