"""Distances to the features of full frames, and their gradients, against plain sums over clips, frames and places."""

import pytest
import torch
from torch import Tensor

from autogaze.vision import TokenFeatures, load
from autogaze.vision.distillation import FullFeatures, distances, shares_of_places

AT = torch.tensor([[0, 2], [1, 3]])
SCALES = (16, 32, 64)


def plain(out: TokenFeatures, full: FullFeatures) -> dict[str, Tensor]:
    """As docs/training.md has it: one number after another."""
    grid, vocabulary = 8, out.encoder.vocabulary
    dense, pooled = out.dense(), out.pool().frames

    def apart(s: Tensor, t: Tensor) -> Tensor:
        return (s - t).square().sum() / (2 * t.square().sum())

    found: dict[str, list[Tensor]] = {"own": [], "dense": [], "pooled": []}
    for b, numbers in enumerate(full.at.tolist()):
        own, places, frames = [], [], []
        for f, t in enumerate(numbers):
            target = full.places[b, f].view(grid, grid, -1)
            for token in range(len(out.tokens)):
                if (int(out.clip[token]), int(out.frame[token])) == (b, t):
                    scale, row, column = vocabulary.locate(int(out.id[token]))
                    wide = grid // vocabulary.grids[scale]
                    region = target[row * wide : (row + 1) * wide, column * wide : (column + 1) * wide]
                    own.append(apart(out.tokens[token], region.mean(dim=(0, 1))))
            for y in range(grid):
                for x in range(grid):
                    if dense[b, t, y, x].any():
                        places.append(apart(dense[b, t, y, x], target[y, x]))
            if full.pooled is not None and int(out.plan.lengths[b, : t + 1].sum()):
                frames.append(apart(pooled[b, t], full.pooled[b, f]))
        for name, parts in (("own", own), ("dense", places), ("pooled", frames)):
            found[name].append(torch.stack(parts).mean() if parts else torch.zeros(()))
    return {name: torch.stack(values) for name, values in found.items()}


@pytest.mark.parametrize("family", ["siglip", "dinov2"])
def test_distances_and_gradients_are_those_of_plain_sums(checkpoint, family, gazes):
    teacher = load(checkpoint(family, 1), scales=SCALES)
    student = load(checkpoint(family), scales=SCALES, attention="newest").requires_grad_()
    random = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 4, 64, 64, 3), generator=random, dtype=torch.uint8)
    gaze = gazes([[9, 3, 5, 4], [0, 6, 0, 2]])  # frame 0 of clip 1: nothing is seen yet
    full = FullFeatures.of(teacher, frames, AT)
    assert full.pooled is not None and not full.places.requires_grad
    each = teacher.sharing(attention="frame").encode(frames).dense().flatten(2, 3)
    torch.testing.assert_close(full.places, torch.stack([each[b, AT[b]] for b in range(2)]), atol=1e-5, rtol=0)

    gradients = []
    for measure in (distances, plain):
        student.zero_grad()
        found = measure(student.encode(frames, gaze), full)
        sum(found[name].sum() * weight for name, weight in (("own", 1.0), ("dense", 2.0), ("pooled", 0.5))).backward()
        gradients.append({n: w.grad.clone() for n, w in student.named_parameters() if w.grad is not None})
        if measure is distances:
            values = found
    for name, wanted in found.items():
        torch.testing.assert_close(values[name], wanted, atol=1e-5, rtol=1e-4)
    assert gradients[0].keys() == gradients[1].keys()
    for name, wanted in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], wanted, atol=1e-5, rtol=1e-3)


def test_a_student_with_every_feature_right_has_no_distance(encoder, gazes):
    teacher = encoder("siglip", "frame")
    frames = torch.randint(0, 256, (2, 4, 64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    found = distances(teacher.encode(frames), FullFeatures.of(teacher, frames, AT))
    assert all(float(value.abs().max()) < 1e-9 for value in found.values()) and found.keys() == {
        "own",
        "dense",
        "pooled",
    }


def test_clips_in_which_nothing_was_gazed_have_no_distance(encoder, gazes):
    teacher = encoder("dinov2", "frame")
    frames = torch.zeros(2, 4, 64, 64, 3, dtype=torch.uint8)
    found = distances(teacher.encode(frames, gazes([[0] * 4] * 2)), FullFeatures.of(teacher, frames, AT))
    assert all(value.tolist() == [0.0, 0.0] for value in found.values())


def test_a_coarse_patch_stands_for_all_its_places(encoder):
    shares = shares_of_places(encoder().vocabulary)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(84))
    assert torch.equal(shares[20:], torch.eye(64)) and int((shares[0] > 0).sum()) == 16
