"""A gaze of one vocabulary as one of another, by coverage."""

import pytest
import torch

from autogaze.gaze import Gaze
from autogaze.patches import VOCABULARY, PatchVocabulary
from autogaze.vision import by_coverage

DINO = PatchVocabulary((28, 56, 112, 224), 14)  # grids of 2, 4, 8, 16; the policy's are 2, 4, 7, 14
FINE = PatchVocabulary((224,), 14)


def boxes(vocabulary: PatchVocabulary, ids: list[int]) -> list[tuple[float, ...]]:
    """(top, left, bottom, right) as shares of the frame."""
    found = []
    for id in ids:
        scale, row, column = vocabulary.locate(id)
        grid = vocabulary.grids[scale]
        found.append((row / grid, column / grid, (row + 1) / grid, (column + 1) / grid))
    return found


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    height = min(one[2], other[2]) - max(one[0], other[0])
    width = min(one[3], other[3]) - max(one[1], other[1])
    return max(height, 0) * max(width, 0)


def test_the_same_vocabulary_gives_the_same_patches():
    gaze = Gaze.from_lists([[[7, 3, 100], [], [264]]])
    assert by_coverage(gaze, VOCABULARY).frames(0) == [[3, 7, 100], [], [264]]


def test_equal_grids_give_equal_ids():
    twin = PatchVocabulary((28, 56, 98, 196), 14)
    ids = list(range(0, 265, 3))
    assert by_coverage(Gaze.from_lists([[ids]]), twin).frames(0) == [ids]


def test_everything_of_one_is_everything_of_the_other():
    gaze = Gaze.from_lists([[list(range(265))]])
    assert by_coverage(gaze, DINO).frames(0) == [list(range(DINO.size))]


@pytest.mark.parametrize("id", range(0, 265, 11))
def test_no_gazed_patch_is_lost_and_none_becomes_more_than_four(id):
    (ids,) = by_coverage(Gaze.from_lists([[[id]]]), DINO).frames(0)
    (box,) = boxes(VOCABULARY, [id])
    found = boxes(DINO, ids)
    assert 1 <= len(ids) <= 4 and all(overlap(box, other) > 0 for other in found)
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    assert any(top <= centre[0] <= bottom and left <= centre[1] <= right for top, left, bottom, right in found)


def test_what_is_covered_by_half_is_taken():
    """All fine patches of the left half: the left 8 of 16 columns, and nothing else."""
    left = [VOCABULARY.id(3, row, column) for row in range(14) for column in range(7)]
    (ids,) = by_coverage(Gaze.from_lists([[left]]), FINE).frames(0)
    assert ids == [row * 16 + column for row in range(16) for column in range(8)]


def test_a_coarse_patch_becomes_all_it_covers_where_there_is_nothing_as_coarse():
    (ids,) = by_coverage(Gaze.from_lists([[[0]]]), FINE).frames(0)  # the top left quarter
    assert ids == [row * 16 + column for row in range(8) for column in range(8)]


def test_clips_and_frames_stay_apart(encoder, pixels):
    gaze = Gaze.from_lists([[[5], []], [[], [200, 9]]])
    found = by_coverage(gaze, DINO)
    assert (found.lengths > 0).tolist() == [[True, False], [False, True]]
    one = encoder()
    small = Gaze.from_lists([[[0], [3]]], vocabulary=PatchVocabulary((32, 64), 16))
    out = one.encode(pixels(1, 2), small, convert="coverage")
    assert torch.equal(out.id, by_coverage(small, one.vocabulary).tokens)
