"""Rows of pixels: those of the whole frame resized by PyTorch, of gazed patches alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from autogaze.patches import PatchVocabulary
from autogaze.vision.rows import cut_rows

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.5, 0.2, 0.1])
VOCABULARY = PatchVocabulary((16, 32, 56), 8)


def all_rows(images: torch.Tensor, vocabulary: PatchVocabulary) -> torch.Tensor:
    """Rows [F, V, 3 * p * p] of whole frames [F, 3, H, W]: resize, cut."""
    rows = []
    for scale in vocabulary.scales:
        resized = F.interpolate(images, size=(scale, scale), mode="bicubic", align_corners=False)
        rows.append(F.unfold(resized, vocabulary.patch_size, stride=vocabulary.patch_size).transpose(1, 2))
    return torch.cat(rows, dim=1)


@pytest.mark.parametrize("size", [(56, 56), (90, 64), (20, 37), (300, 200)])
def test_rows_equal_those_of_resized_frames(size):
    random = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, *size, generator=random)
    ids = torch.arange(VOCABULARY.size).repeat(2)
    frame = torch.arange(2).repeat_interleave(VOCABULARY.size)
    found = cut_rows(images.movedim(1, -1), frame, ids, VOCABULARY, MEAN, STD)
    torch.testing.assert_close(found, all_rows(images, VOCABULARY).flatten(0, 1), atol=1e-5, rtol=0)


def test_bytes_are_normalised():
    frames = np.random.default_rng(0).integers(0, 256, (1, 56, 56, 3), np.uint8)
    ids = torch.tensor([60, 3, 17])
    images = (torch.from_numpy(frames).movedim(-1, 1) / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    found = cut_rows(torch.from_numpy(frames), torch.zeros(3, dtype=torch.int64), ids, VOCABULARY, MEAN, STD)
    torch.testing.assert_close(found, all_rows(images, VOCABULARY)[0, ids], atol=1e-5, rtol=1e-5)


def test_only_pixels_of_gazed_patches_are_read():
    frames = torch.full((1, 56, 56, 3), torch.nan)
    frames[0, 8:16, 16:24] = 1.0
    (id,) = (VOCABULARY.id(2, 1, 2),)
    found = cut_rows(frames, torch.tensor([0]), torch.tensor([id]), VOCABULARY, MEAN, STD)
    assert torch.equal(found, torch.ones(1, 3 * 64))
