"""Tiling: every pixel of a picture lies in one tile, and the tiles' gaze is put back where the pixels came from."""

import subprocess
import sys
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autogaze import greedy
from autogaze.gaze import Gaze
from autogaze.model import AutoGaze
from autogaze.patches import VOCABULARY, PatchVocabulary
from autogaze.reconstruction import load
from autogaze.tiling import TileGrid, VideoGaze, gaze_video
from tests.support import places

SMALL = PatchVocabulary((8, 16, 32), 8)  # 1 + 4 + 16 patches of a 32-pixel frame
UNEVEN = PatchVocabulary((33, 55), 11)  # patches of the coarse scale are 18, 19 and 18 pixels of the frame
HOSTILE = [(1, 1), (1, 70), (31, 33), (32, 32), (33, 31), (64, 96), (65, 100)]
CHECKPOINT = places.GOLDEN / "autogaze_small_k10"


def picture(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def everything(grid: TileGrid, frames: int, vocabulary: PatchVocabulary) -> Gaze:
    """Every patch of every tile, in a shuffled order that differs from frame to frame."""
    random = np.random.default_rng(7)
    tokens = [[random.permutation(vocabulary.size).tolist() for _ in range(frames)] for _ in range(grid.count)]
    losses = [
        [[1000.0 * n + 10 * t + i / 100 for i in range(vocabulary.size)] for t in range(frames)]
        for n in range(grid.count)
    ]
    return Gaze.from_lists(tokens, losses, vocabulary=vocabulary)


def some(grid: TileGrid, frames: int, vocabulary: PatchVocabulary, seed: int) -> Gaze:
    """Up to five patches of each tile's frames."""
    random = np.random.default_rng(seed)
    tokens = [
        [random.permutation(vocabulary.size)[: random.integers(0, 6)].tolist() for _ in range(frames)]
        for _ in range(grid.count)
    ]
    return Gaze.from_lists(tokens, vocabulary=vocabulary)


# -- cutting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), HOSTILE)
def test_a_tile_is_its_part_of_the_picture_completed_by_repeating_the_last_pixels(height, width):
    frames, grid = picture(2, height, width), TileGrid(height, width, 32)
    tiles = grid.cut(frames)
    assert tiles.shape == (grid.count, 2, 32, 32, 3) and tiles.dtype == np.uint8
    for n in range(grid.count):
        row, column = grid.place(n)
        for y in range(32):
            for x in range(32):
                there = frames[:, min(32 * row + y, height - 1), min(32 * column + x, width - 1)]
                assert np.array_equal(tiles[n, :, y, x], there)


@given(height=st.integers(1, 200), width=st.integers(1, 200), size=st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_tiles_side_by_side_are_the_picture(height, width, size):
    frames, grid = picture(1, height, width), TileGrid(height, width, size)
    assert (grid.rows - 1) * size < height <= grid.rows * size
    assert (grid.columns - 1) * size < width <= grid.columns * size
    tiles = grid.cut(frames)[:, 0].reshape(grid.rows, grid.columns, size, size, 3)
    whole = tiles.transpose(0, 2, 1, 3, 4).reshape(grid.rows * size, grid.columns * size, 3)
    assert np.array_equal(whole[:height, :width], frames[0])
    missing = [(0, -height % size), (0, -width % size), (0, 0)]
    assert np.array_equal(whole, np.pad(frames[0], missing, mode="edge"))


def test_some_tiles_are_those_of_all_tiles():
    frames, grid = picture(3, 65, 100), TileGrid(65, 100, 32)
    assert np.array_equal(grid.cut(frames, [11, 0, 5]), grid.cut(frames)[[11, 0, 5]])


def test_4k_is_ten_rows_of_eighteen():
    grid = TileGrid(2160, 3840)
    assert (grid.rows, grid.columns, grid.count) == (10, 18, 180)
    tiles = grid.cut(np.zeros((1, 2160, 3840, 3), np.uint8), [0, 179])
    assert tiles.shape == (2, 1, 224, 224, 3)


def test_names_have_one_width_sort_as_numbers_and_are_read_back():
    for grid in (TileGrid(2160, 3840), TileGrid(1, 1), TileGrid(100, 101, 1), TileGrid(3, 1001, 1)):
        names = [grid.name(n) for n in range(grid.count)]
        assert names == sorted(names) and len({len(name) for name in names}) == 1
        assert [grid.parse(name) for name in names] == list(range(grid.count))
        assert [grid.place(n) for n in range(grid.count)] == [divmod(n, grid.columns) for n in range(grid.count)]
    assert TileGrid(2160, 3840).name(19) == "r01c01" and TileGrid(1, 101, 1).name(3) == "r000c003"
    for name in ("", "r0c0", "r00c18", "r10c00", "r00c00x", "c00r00", "r-1c00", "00c00"):
        with pytest.raises(ValueError, match=r"r00c00\.\.r09c17"):
            TileGrid(2160, 3840).parse(name)


# -- joining ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [SMALL, UNEVEN], ids=["small", "uneven"])
@pytest.mark.parametrize(("height", "width"), HOSTILE)
def test_a_tokens_box_in_the_video_holds_the_pixels_of_its_patch_in_the_tile(vocabulary, height, width):
    frames, grid = picture(2, height, width), TileGrid(height, width, vocabulary.frame_size)
    tiles, joined = grid.cut(frames), grid.join(everything(grid, 2, vocabulary))
    assert len(joined.token) + joined.outside == 2 * grid.count * vocabulary.size
    for frame, tile, token, box in zip(joined.frame, joined.tile, joined.token, joined.boxes(), strict=True):
        top, left, bottom, right = box
        assert 0 <= top < bottom <= height and 0 <= left < right <= width
        y, x, y_end, x_end = vocabulary.box(int(token))
        patch = tiles[tile, frame, y:y_end, x:x_end]
        shown = frames[frame, top:bottom, left:right]
        assert np.array_equal(patch[: bottom - top, : right - left], shown)
        if (bottom - top, right - left) != patch.shape[:2]:
            assert bottom == height or right == width, "only the picture's edge cuts a box off"


def test_patches_wholly_in_the_completed_border_are_dropped_and_counted():
    grid = TileGrid(24, 33, 32)  # two tiles; the second has one column of the picture, the lowest quarter is border
    joined = grid.join(everything(grid, 1, SMALL))
    kept = {(tile, token) for tile, token in zip(joined.tile.tolist(), joined.token.tolist(), strict=True)}
    finest = [5 + row * 4 + column for row in range(3) for column in range(4)]
    assert kept == {(0, token) for token in [*range(5), *finest]} | {(1, token) for token in (0, 1, 3, 5, 9, 13)}
    assert joined.outside == 2 * 21 - len(kept)
    assert joined.ratio() == 1.0, "the share is of what there is to see"


def test_tokens_are_ordered_by_frame_then_tile_then_as_gazed():
    grid = TileGrid(64, 64, 32)
    gaze = everything(grid, 3, SMALL)
    joined = grid.join(gaze)
    wanted = [
        (t, n, token, loss)
        for t in range(3)
        for n in range(4)
        for token, loss in zip(gaze.frames(n)[t], gaze[n].losses.view(3, -1)[t].tolist(), strict=True)
    ]
    found = zip(joined.frame, joined.tile, joined.token, joined.losses, strict=True)
    assert [(int(t), int(n), int(i), float(loss)) for t, n, i, loss in found] == wanted
    assert {a.dtype for a in (joined.frame, joined.tile, joined.token, joined.boxes())} == {np.dtype(np.int32)}
    assert joined.losses.dtype == np.float32 and grid.join(some(grid, 3, SMALL, 0)).losses is None


@given(height=st.integers(1, 130), width=st.integers(1, 130), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_masks_are_the_mosaic_of_the_tiles_masks(height, width, seed):
    grid = TileGrid(height, width, 32)
    gaze = some(grid, 2, SMALL, seed)
    joined = grid.join(gaze)
    wanted = [np.zeros((2, grid.rows * g, grid.columns * g), bool) for g in SMALL.grids]
    count = 0
    for n in range(grid.count):
        row, column = grid.place(n)
        for t, tokens in enumerate(gaze.frames(n)):
            for token in tokens:
                scale, y, x = SMALL.locate(token)
                top, left, _, _ = SMALL.box(token)
                if 32 * row + top < height and 32 * column + left < width:
                    wanted[scale][t, row * SMALL.grids[scale] + y, column * SMALL.grids[scale] + x] = True
                    count += 1
    for mask, expected in zip(joined.masks(), wanted, strict=True):
        assert mask.dtype == bool and np.array_equal(mask, expected)
    visible = sum(int(mask.sum()) for mask in grid.join(everything(grid, 2, SMALL)).masks())
    assert joined.ratio() == count / visible


def test_one_tile_is_the_clip_itself():
    gaze = some(TileGrid(32, 32, 32), 4, SMALL, 3)
    joined = TileGrid(32, 32, 32).join(gaze)
    assert np.array_equal(joined.token, gaze.tokens) and joined.outside == 0 and joined.start == 0
    for mask, clip in zip(joined.masks(), gaze.masks(), strict=True):
        assert np.array_equal(mask.reshape(4, -1), clip[0])
    assert joined.ratio() == pytest.approx(float(gaze.ratio()[0]))


# -- a whole video ---------------------------------------------------------------------------------------------------


def canvas(tiles: np.ndarray) -> Gaze:
    return greedy.label(tiles, load("canvas", SMALL), threshold=0.1, max_ratio=0.2)


def chunked(frames: np.ndarray, size: int = 16) -> Iterator[np.ndarray]:
    return (frames[start : start + size] for start in range(0, len(frames), size))


def test_each_tile_of_each_chunk_is_gazed_as_if_alone_whatever_the_batch():
    frames, grid = picture(20, 40, 70), TileGrid(40, 70, 32)
    for batch in (1, 4, 100):
        found = list(gaze_video(chunked(frames), canvas, batch=batch, size=32))
        assert [(gaze.start, gaze.num_frames, gaze.grid) for gaze in found] == [(0, 16, grid), (16, 4, grid)]
        for gaze, chunk in zip(found, chunked(frames), strict=True):
            alone = grid.join(Gaze.cat([canvas(tile[None]) for tile in grid.cut(chunk)]))
            for name in ("frame", "tile", "token", "losses"):
                assert np.array_equal(getattr(gaze, name), getattr(alone, name))
            assert gaze.outside == alone.outside


def test_tiles_go_through_in_wide_batches_that_never_mix_chunks():
    shapes = []

    def gaze(tiles: np.ndarray) -> Gaze:
        shapes.append(tiles.shape)
        return Gaze.from_lists([[[0]] * tiles.shape[1]] * len(tiles), vocabulary=SMALL)

    list(gaze_video(chunked(picture(18, 96, 96)), gaze, batch=4, size=32))
    assert shapes == [(n, t, 32, 32, 3) for t in (16, 2) for n in (4, 4, 1)]


def test_one_chunk_is_alive_at_a_time_and_taken_only_when_asked_for():
    alive, most, made = [0], [0], [0]

    def gone() -> None:
        alive[0] -= 1

    def chunk() -> np.ndarray:
        frames = picture(2, 40, 40)
        weakref.finalize(frames, gone)
        alive[0] += 1
        made[0] += 1
        most[0] = max(most[0], alive[0])
        return frames

    def chunks() -> Iterator[np.ndarray]:
        for _ in range(50):
            yield chunk()

    gazes = gaze_video(chunks(), canvas, size=32)
    assert made[0] == 0
    for taken, _ in enumerate(gazes, start=1):
        assert made[0] == taken and alive[0] == 0
    assert made[0] == 50 and most[0] == 1


def test_a_policys_gaze_of_a_tile_is_that_of_the_tile_alone():
    model = AutoGaze.from_pretrained(CHECKPOINT)
    frames, grid = picture(3, 230, 460), TileGrid(230, 460)
    frames[:, :, :200] //= 3
    (joined,) = gaze_video([frames], lambda tiles: model.gaze(tiles, max_ratio=0.15, loss_threshold=0.7), batch=4)
    parts = [model.gaze(tile[None], max_ratio=0.15, loss_threshold=0.7) for tile in grid.cut(frames)]
    alone = grid.join(Gaze.cat(parts))
    assert len({tuple(part.lengths[0].tolist()) for part in parts}) > 1, "tiles stop at different lengths"
    assert np.array_equal(joined.token, alone.token) and np.array_equal(joined.tile, alone.tile)
    torch.testing.assert_close(torch.from_numpy(joined.losses), torch.from_numpy(alone.losses))
    assert joined.outside == alone.outside > 0


# -- what cannot work ------------------------------------------------------------------------------------------------


def test_bad_input_is_one_line():
    grid, good = TileGrid(40, 40, 32), picture(2, 40, 40)
    fine = some(grid, 2, SMALL, 0)
    cases = [
        (lambda: TileGrid(0, 5), "height must be at least 1 pixel, not 0"),
        (lambda: TileGrid(5, 5, -1), "size must be at least 1 pixel"),
        (lambda: grid.cut(good[:, 1:]), r"\[T, 40, 40, 3\], not uint8 \[2, 39, 40, 3\]"),
        (lambda: grid.cut(good.astype(np.float32)), "float32"),
        (lambda: grid.cut(good, [4]), r"tile 4 of 2 x 2 tiles: they are numbered 0\.\.3"),
        (lambda: grid.name(-1), "tile -1"),
        (lambda: grid.join(Gaze.cat([fine, fine])), "8 clips for 4 tiles"),
        (lambda: TileGrid(40, 40, 224).join(Gaze.from_lists([[[0]]], vocabulary=SMALL)), "32-pixel frames"),
        (lambda: next(gaze_video([good], canvas, batch=0)), "batch must be at least 1 tile, not 0"),
        (lambda: next(gaze_video([picture(17, 8, 8)], canvas)), "t from 1 to 16, not uint8 .17, 8, 8, 3."),
        (lambda: next(gaze_video([good[:0]], canvas)), "t from 1 to 16"),
        (lambda: next(gaze_video([good[0]], canvas)), r"\[t, H, W, 3\]"),
        (lambda: next(gaze_video([good[..., :2]], canvas)), r"\[2, 40, 40, 2\]"),
        (lambda: list(gaze_video([good, good[:, :8]], canvas, size=32)), r"\[T, 40, 40, 3\], not uint8 \[2, 8, 40, 3"),
        (lambda: next(gaze_video([good], lambda tiles: fine[0], size=32)), "1 clips x 2 frames for 4 tiles x 2"),
    ]
    for call, words in cases:
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_geometry_needs_no_torch():
    program = "import sys, autogaze.tiling as t; t.TileGrid(9, 9, 4).name(0); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_4k_gaze_is_put_together_at_once():
    grid = TileGrid(2160, 3840)
    tokens = torch.arange(265).repeat(180 * 2)
    joined = grid.join(Gaze(tokens, torch.full((180, 2), 265)))
    assert isinstance(joined, VideoGaze) and joined.ratio() == 1.0
    assert [mask.shape for mask in joined.masks()] == [(2, 10 * g, 18 * g) for g in VOCABULARY.grids]
    boxes = joined.boxes()
    assert boxes.min(axis=0).tolist()[:2] == [0, 0] and boxes.max(axis=0).tolist()[2:] == [2160, 3840]
