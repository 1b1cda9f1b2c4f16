"""The two views of `autogaze gaze`: the whole picture, resized to the gaze's square, or its tiles at full size.

A view gazes at a clip, and gives the labels to store and the frames of the overlay video. At the end it makes the
contact sheet from the pictures that were kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from PIL import Image

from autogaze import reconstruction
from autogaze.gaze import Gaze
from autogaze.tiling import TileGrid
from jobs.pictures import render, render_tiles
from pipelines.gazing.gazers import Gazer

P = TypeVar("P")


@dataclass(frozen=True)
class GazedFrame(Generic[P]):
    """One gazed frame.

    Attributes:
        number: frame number in the video.
        overlay: the frame of the overlay video, uint8 [H, W, 3].
        picture: what the contact sheet draws of it.
        tokens: how many patches are gazed at, of `possible`.
        error: final error, the mean over tiles.
        met: share of tiles whose error is at or under the threshold.
    """

    number: int
    overlay: np.ndarray
    picture: P
    tokens: int
    possible: int
    error: float
    met: float


class View(Protocol[P]):
    """A view of clips."""

    background: Image.Image
    """An overlay frame without pictures."""
    columns: int
    """How many frames the contact sheet holds."""
    unit: str
    """What has an error of its own, in the plural."""
    native: tuple[int, int] | None
    """Height and width that frames must have; None: those of the gaze's square."""

    def look(
        self, numbers: list[int], stride: int, frames: np.ndarray
    ) -> tuple[dict[str, Any], Iterator[GazedFrame[P]]]:
        """Gaze at a clip uint8 [T, H, W, 3]: labels by tile name ("" for the whole picture), and the gazed frames."""

    def sheet(self, pictures: Sequence[P], facts: str) -> Image.Image:
        """The contact sheet."""


class WholeView:
    """Original, gazed patches and reconstruction side by side, as the gaze's square."""

    columns = 8
    unit = "frames"
    native: tuple[int, int] | None = None

    def __init__(self, gazer: Gazer, title: str, fps: float) -> None:
        self.gazer, self.title, self.fps = gazer, title, fps
        self.background = render.overlay_background(title, gazer.vocabulary)
        self.canvas = reconstruction.load("canvas", gazer.vocabulary)

    def look(
        self, numbers: list[int], stride: int, frames: np.ndarray
    ) -> tuple[dict[str, Any], Iterator[GazedFrame[render.Picture]]]:
        gaze = self.gazer.gaze(frames[None])
        return {"": _label(self.gazer, gaze, numbers[0], stride)}, self._seen(numbers, frames, gaze)

    def _seen(self, numbers: list[int], frames: np.ndarray, gaze: Gaze) -> Iterator[GazedFrame[render.Picture]]:
        vocabulary, bound = self.gazer.vocabulary, self.gazer.bound
        rebuilt = self.canvas.reconstruct(frames[None], gaze).pixels[0].numpy()
        final, met = gaze.final()[0].tolist(), gaze.met(self.gazer.stops)[0].tolist()
        for place, (number, tokens) in enumerate(zip(numbers, gaze.frames(0), strict=True)):
            seconds = number / self.fps if self.fps > 0 else None
            # A copy, since the frames are a view of all that were decoded together.
            picture = render.Picture(
                number, seconds, frames[place].copy(), tokens, rebuilt[place], final[place], met[place]
            )
            overlay = render.overlay_frame(self.background, picture, bound, vocabulary)
            yield GazedFrame(number, overlay, picture, len(tokens), vocabulary.size, final[place], float(met[place]))

    def sheet(self, pictures: Sequence[render.Picture], facts: str) -> Image.Image:
        return render.contact_sheet(pictures, self.title, facts, self.gazer.bound, self.gazer.vocabulary)


class TiledView:
    """The gazed patches of all tiles, in their places in the picture; the sheet also has original and reconstruction.

    Memory: a clip of frames and its reconstruction at full size, and a batch of tiles.
    """

    columns = 4
    unit = "frames of tiles"

    def __init__(self, gazer: Gazer, title: str, fps: float, grid: TileGrid, batch: int) -> None:
        self.gazer, self.title, self.fps, self.grid, self.batch = gazer, title, fps, grid, batch
        self.native: tuple[int, int] | None = (grid.height, grid.width)
        self.background = render_tiles.background(title, (grid.height, grid.width), gazer.vocabulary)
        self.canvas = reconstruction.load("canvas", gazer.vocabulary)

    def look(
        self, numbers: list[int], stride: int, frames: np.ndarray
    ) -> tuple[dict[str, Any], Iterator[GazedFrame[render_tiles.TiledPicture]]]:
        parts, rebuilt = [], np.empty_like(frames)
        for first in range(0, self.grid.count, self.batch):
            tiles = range(first, min(first + self.batch, self.grid.count))
            clips = self.grid.cut(frames, tiles)
            parts.append(self.gazer.gaze(clips))
            for n, pixels in zip(tiles, self.canvas.reconstruct(clips, parts[-1]).pixels.numpy(), strict=True):
                top, left, bottom, right = self.grid.box(n)
                rebuilt[:, top:bottom, left:right] = pixels[:, : bottom - top, : right - left]
        gaze = Gaze.cat(parts)
        names = map(self.grid.name, range(self.grid.count))
        labels = {
            name: {"tile": name} | _label(self.gazer, gaze[n], numbers[0], stride) for n, name in enumerate(names)
        }
        return labels, self._seen(numbers, frames, rebuilt, gaze)

    def _seen(
        self, numbers: list[int], frames: np.ndarray, rebuilt: np.ndarray, gaze: Gaze
    ) -> Iterator[GazedFrame[render_tiles.TiledPicture]]:
        vocabulary, bound = self.gazer.vocabulary, self.gazer.bound
        tokens = np.bincount(self.grid.join(gaze).frame, minlength=len(frames)).tolist()
        possible = int(self.grid.inside(vocabulary).sum())
        of_tile = [gaze.frames(n) for n in range(self.grid.count)]
        final, met = gaze.final().mean(dim=0).tolist(), gaze.met(self.gazer.stops).float().mean(dim=0).tolist()
        for t, number in enumerate(numbers):
            gazed = np.empty_like(frames[t])
            for n, (tile,) in enumerate(self.grid.cut(frames[t : t + 1])):
                top, left, bottom, right = self.grid.box(n)
                drawn = render.gazed_patches(tile, of_tile[n][t], 1, vocabulary)
                gazed[top:bottom, left:right] = drawn[: bottom - top, : right - left]
            when = f"frame {number}" + (f" · {number / self.fps:.2f} s" if self.fps > 0 else "")
            over = round((1 - met[t]) * self.grid.count)
            error = f"error {final[t]:.3f}" + (f", {over} of {self.grid.count} tiles over {bound:g}" if over else "")
            lines = (when, f"{tokens[t]:,} of {possible:,} patches", error)
            picture = render_tiles.TiledPicture.of((frames[t], gazed, rebuilt[t]), lines, not over)
            overlay = render_tiles.overlay_frame(self.background, gazed, lines, not over)
            yield GazedFrame(number, overlay, picture, tokens[t], possible, final[t], met[t])

    def sheet(self, pictures: Sequence[render_tiles.TiledPicture], facts: str) -> Image.Image:
        return render_tiles.contact_sheet(pictures, self.title, facts, self.gazer.vocabulary)


def _label(gazer: Gazer, gaze: Gaze, start: int, stride: int) -> dict[str, Any]:
    """The reference's label of one clip (ids over the clip: frame * vocabulary + id), with what produced it."""
    made = {
        "start": start,
        "stride": stride,
        "initial_losses": gaze.initial[0].tolist() if gaze.initial is not None else None,
        "final_losses": gaze.final()[0].tolist(),
        "met": gaze.met(gazer.stops)[0].tolist(),
        "threshold": gazer.threshold,
        "max_ratio": gazer.max_ratio,
        "units": gazer.units,
        "measured": gazer.settings.measured,  # else the errors are predicted
        "scales": list(gazer.vocabulary.scales),
        "patch_size": gazer.vocabulary.patch_size,
        "vocabulary": gazer.vocabulary.size,
    }
    if gaze.origins is not None:
        made["origins"] = gaze.origins[0].tolist()
    return gaze.to_label(0) | made | gazer.record
