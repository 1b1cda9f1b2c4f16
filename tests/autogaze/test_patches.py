"""The patch vocabulary: ids, places, regions, and the reference's numbers."""

import numpy as np
import pytest
import torch

from autogaze.patches import VOCABULARY, PatchVocabulary
from autogaze.reconstruction.canvas import Canvas

VOCABULARIES = [
    VOCABULARY,
    PatchVocabulary((56, 112, 196, 392), 14),
    PatchVocabulary((48, 96, 160, 320), 16),
    PatchVocabulary((6, 8, 16), 2),
    PatchVocabulary((32,), 8),
]


def test_the_default_is_the_references_265_patches():
    assert VOCABULARY.grids == (2, 4, 7, 14)
    assert VOCABULARY.counts == (4, 16, 49, 196)
    assert VOCABULARY.offsets == (0, 4, 20, 69)
    assert VOCABULARY.size == VOCABULARY.eos == 265
    assert VOCABULARY.frame_size == 224


def test_other_scales_count_as_the_reference_counts_them():
    assert PatchVocabulary((56, 112, 196, 392), 14).counts == (16, 64, 196, 784)
    assert PatchVocabulary([48, 96, 160, 320], 16).counts == (9, 36, 100, 400)


def test_regions_of_the_default():
    assert VOCABULARY.box(0) == (0, 0, 112, 112)
    assert VOCABULARY.box(3) == (112, 112, 224, 224)
    assert VOCABULARY.box(VOCABULARY.id(1, 0, 1)) == (0, 56, 56, 112)
    assert VOCABULARY.box(VOCABULARY.id(2, 6, 0)) == (192, 0, 224, 32)
    assert VOCABULARY.box(264) == (208, 208, 224, 224)


@pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=str)
def test_every_id_has_one_place_and_every_place_one_id(vocabulary):
    places = [vocabulary.locate(id) for id in range(vocabulary.size)]
    assert len(set(places)) == vocabulary.size
    assert [vocabulary.id(*place) for place in places] == list(range(vocabulary.size))


@pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=str)
def test_arrays_and_tensors_are_located_as_numbers_are(vocabulary):
    ids = np.random.default_rng(0).integers(0, vocabulary.size, (5, 7))
    expected = np.array([[vocabulary.locate(int(id)) for id in row] for row in ids])
    for located in (vocabulary.locate(ids), vocabulary.locate(torch.from_numpy(ids))):
        assert type(located[0]) in (np.ndarray, torch.Tensor)
        assert np.array_equal(np.stack(located, axis=-1), expected)


@pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=str)
def test_a_box_holds_the_pixels_whose_place_in_the_scale_lies_in_the_patch(vocabulary):
    size, patch = vocabulary.frame_size, vocabulary.patch_size
    for id in range(vocabulary.size):
        scale_index, row, col = vocabulary.locate(id)
        patch_of = np.arange(size) * vocabulary.scales[scale_index] // size // patch
        top, left, bottom, right = vocabulary.box(id)
        assert np.array_equal(np.flatnonzero(patch_of == row), np.arange(top, bottom))
        assert np.array_equal(np.flatnonzero(patch_of == col), np.arange(left, right))


@pytest.mark.parametrize(
    ("call", "scales", "patch_size"),
    [
        ("k10__ratio_tlr", (32, 64, 112, 224), 16),
        ("k10__resadapt_392p14", (56, 112, 196, 392), 14),
        ("k10__resadapt_320p16_padded", (48, 96, 160, 320), 16),
    ],
)
def test_masks_are_the_references(golden, call, scales, patch_size):
    reference, vocabulary = golden(call), PatchVocabulary(scales, patch_size)
    frame = torch.repeat_interleave(
        torch.arange(len(reference["num_gazing_each_frame"])), reference["num_gazing_each_frame"]
    )
    used = ~reference["if_padded_gazing"]
    tokens = (reference["gazing_pos"] - frame * vocabulary.size)[used]
    lengths = torch.stack([used[:, frame == t].sum(dim=1) for t in range(int(frame.max()) + 1)], dim=1)
    for index, mask in enumerate(vocabulary.masks(tokens, lengths)):
        assert torch.equal(mask, reference[f"gazing_mask_{index}"])


@pytest.mark.parametrize(
    ("ratio", "tokens"), [(0.1, 26), (0.2, 53), (0.004, 1), (0.001, 1), (0.03, 7), (0.75, 198), (1, 265)]
)
def test_a_ratio_caps_tokens_as_in_the_reference(ratio, tokens):
    assert VOCABULARY.cap(ratio) == tokens


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, float("nan")])
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio lies in"):
        VOCABULARY.cap(ratio)


@pytest.mark.parametrize(
    ("scales", "patch_size", "message"),
    [
        ((8, 64), 16, "scale 8 is smaller than patch_size 16"),
        ((64, 32), 16, "strictly increasing"),
        ((32, 32), 16, "strictly increasing"),
        ((0, 32), 16, "scale 0"),
        ((), 16, "scales is empty"),
        ((32,), 0, "patch_size"),
    ],
)
def test_scales_that_no_grid_fits_are_refused(scales, patch_size, message):
    with pytest.raises(ValueError, match=message):
        PatchVocabulary(scales, patch_size)


def test_a_scale_has_as_many_patches_as_fit_as_in_the_reference():
    """SigLIP so400m sees 384 pixels as 27 x 27 patches of 14, and the last 6 not at all."""
    vocabulary = PatchVocabulary((96, 192, 384), 14)
    assert vocabulary.grids == (6, 13, 27) and vocabulary.size == 36 + 169 + 729
    assert vocabulary.box(vocabulary.size - 1) == (364, 364, 378, 378)
    assert vocabulary.box(35) == (280, 280, 336, 336), "84 of 96 pixels, four frame pixels each"
    with pytest.raises(ValueError, match="scale 60 is not a positive multiple of patch_size 16; the canvas"):
        Canvas(PatchVocabulary((32, 60), 16))


@pytest.mark.parametrize("ids", [-1, 265, np.array([3, 265]), torch.tensor([[-1, 4]])], ids=repr)
def test_an_id_that_is_no_patch_is_refused(ids):
    with pytest.raises(ValueError, match=r"patch ids lie in 0\.\.264"):
        VOCABULARY.locate(ids)


@pytest.mark.parametrize("place", [(4, 0, 0), (-1, 0, 0), (0, 2, 0), (2, 0, 7), (1, -1, 0)])
def test_a_place_that_is_no_patch_is_refused(place):
    with pytest.raises(ValueError, match="is outside"):
        VOCABULARY.id(*place)


def test_no_ids_are_located_as_no_ids():
    assert [part.shape for part in VOCABULARY.locate(torch.zeros(0, dtype=torch.int64))] == [(0,)] * 3
    assert [part.shape for part in VOCABULARY.locate(np.zeros(0, np.int64))] == [(0,)] * 3
