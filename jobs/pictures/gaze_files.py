"""The files that `autogaze gaze` writes, a video, a picture and labels: all of them complete, or none."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image

from pipelines.errors import PipelineError
from pipelines.labels.keys import clip_key, video_key
from pipelines.storage.location import TEMPORARY_PREFIX

OVERLAY, SHEET, LABELS = "overlay.mp4", "contact_sheet.png", "gaze.json"


class LabelWriter:
    """Writes gaze.json clip by clip, with the keys of every label file (pipelines/labels/files.py)."""

    def __init__(self, sink: TextIO, video: str) -> None:
        self.sink, self.video, self.before = sink, video, "{\n"

    def add(self, start: int, label: dict[str, Any], tile: str = "") -> None:
        """The label of the clip that begins at frame `start`, or of one of its tiles."""
        key = clip_key(self.video, start, tile)
        if key == video_key(self.video) and "failed" in label:
            key += f"#{start}"  # the reference reads the video's own key, which must not lack a gaze
        # JSON escapes the lone surrogates that names hold if they are not UTF-8.
        self.sink.write(f"{self.before}{json.dumps(key)}: {json.dumps(label)}")
        self.before = ",\n"

    def close(self) -> None:
        self.sink.write("\n}\n")


class Overlay(AbstractContextManager["Overlay"]):
    """An H.264 file that any browser plays, written frame by frame."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001)) if fps > 0 else Fraction(25)
        self.container = av.open(str(path), "w", options={"movflags": "+faststart"})
        self.stream = self.container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "18"})
        self.stream.width, self.stream.height = size
        self.stream.pix_fmt = "yuv420p"
        # Named in the file, or players guess the colour space from the picture's height.
        self.stream.codec_context.colorspace = Colorspace.ITU709
        self.stream.codec_context.color_primaries = ColorPrimaries.BT709
        self.stream.codec_context.color_trc = ColorTrc.BT709
        self.stream.codec_context.color_range = ColorRange.MPEG

    def add(self, image: np.ndarray, repeat: int = 1) -> None:
        """Append a frame uint8 [H, W, 3], `repeat` times."""
        for _ in range(repeat):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            self.container.mux(self.stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None:
            self.container.mux(self.stream.encode(None))
        self.container.close()


@contextmanager
def finished(output: Path) -> Iterator[Path]:
    """A temporary folder inside `output`, whose files move into it at the end. After an error nothing is left."""
    output.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=output))
    try:
        yield scratch
        for path in scratch.iterdir():
            path.replace(output / path.name)
    except OSError as error:
        raise PipelineError(f"output={output}: cannot write: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def save_png(image: Image.Image, path: Path) -> None:
    image.save(path, "PNG")  # optimize=True: a twentieth smaller, and five times as long
