"""autogaze gaze VIDEO output=DIR: gaze one video and look at it.

Writes overlay.mp4 (original, gazed patches and reconstruction side by side), contact_sheet.png (frames spread over the
video) and gaze.json (the reference's label schema, with what produced it). Any length of video: one clip of frames is
held at a time.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from autogaze import greedy, reconstruction
from autogaze.gaze import Gaze
from autogaze.patches import VOCABULARY
from jobs import render
from jobs.threads import one_torch_thread
from pipelines import store
from pipelines.decode import DECODERS, REASONS, DecodeConfig, IsolatedDecoder, Source, VideoError, VideoInfo
from pipelines.errors import PipelineError
from pipelines.plan import ClipConfig, check_clip_config, clip_starts

GAZES = ("canvas",)
OVERLAY, SHEET, LABELS = "overlay.mp4", "contact_sheet.png", "gaze.json"
SHEET_COLUMNS = 8
FRAMES_AT_ONCE = 512  # decoded frames held in memory, 150 KB each


@dataclass
class GazeConfig:
    """Gaze one video. `video` and `output` must be given."""

    video: str = field(default="", metadata={"help": "a video file, or an s3:// URL of one"})
    output: str = field(default="", metadata={"help": "local folder for overlay.mp4, contact_sheet.png, gaze.json"})
    gaze: str = field(default="canvas", metadata={"help": "what gazes: canvas (greedy, training-free)"})
    threshold: float = field(
        default=0.05, metadata={"help": "stop a frame at this reconstruction error (mean |difference| in [0, 1])"}
    )
    max_ratio: float = field(default=0.75, metadata={"help": "at most this share of a frame's 265 patches"})
    clip: ClipConfig = field(default_factory=ClipConfig)
    decoder: str = field(default="pyav", metadata={"help": "pyav, decord or torchcodec"})


@dataclass
class Tally:
    """What a run has gazed so far."""

    frames: int = 0
    tokens: int = 0
    error: float = 0.0  # sum over frames
    met: int = 0
    failed: int = 0  # frames of clips that could not be decoded

    @property
    def ratio(self) -> float:
        return self.tokens / (self.frames * VOCABULARY.size) if self.frames else 0.0

    def facts(self, threshold: float) -> str:
        """One line: threshold, tokens, reduction, error."""
        fewer = f"{1 / self.ratio:,.0f}x fewer patches ({self.ratio:.2%})" if self.tokens else "no patches"
        return (
            f"threshold {threshold:g} · {fewer} · {render.plural(self.frames, 'frame', 'frames')}"
            f" · {render.plural(self.tokens, 'patch', 'patches')} · mean error {self.error / max(self.frames, 1):.3f}"
        )


def check_config(config: GazeConfig) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    for name in ("video", "output"):
        if not getattr(config, name):
            raise PipelineError(f"{name}= is missing: autogaze gaze VIDEO output=FOLDER")
    if config.gaze not in GAZES:
        raise PipelineError(f"gaze={config.gaze}: must be one of {', '.join(GAZES)}")
    if not 0 <= config.threshold <= 1:
        raise PipelineError(f"threshold={config.threshold}: must be between 0 and 1")
    if not 0 < config.max_ratio <= 1:
        raise PipelineError(f"max_ratio={config.max_ratio}: must be more than 0 and at most 1")
    if config.decoder not in DECODERS:
        raise PipelineError(f"decoder={config.decoder}: must be one of {', '.join(DECODERS)}")
    check_clip_config(config.clip, 1)
    if not store.is_local(config.output):
        raise PipelineError(f"output={config.output}: the pictures are written to a local folder; give one")
    if "libx264" not in av.codecs_available:
        raise PipelineError("this PyAV has no H.264 encoder (libx264); install the av wheel: pip install --force av")


def run(config: GazeConfig, console: Console) -> Path:
    """Gaze the video, write the three files, print a summary; the output folder.

    Raises PipelineError: no such video, not a video, no frame of it can be decoded, output not writable.
    """
    check_config(config)
    output = Path(store.normalise(config.output))
    decode = DecodeConfig(decoder=config.decoder, size=VOCABULARY.frame_size)
    with _local(config.video) as source, one_torch_thread():
        try:
            with IsolatedDecoder(decode) as decoder:
                info = decoder.probe(source)
                store.require_writable(str(output))
                tally, failures = _gaze_video(config, decoder, source, info, output, console)
        except VideoError as error:
            raise PipelineError(_explain(config.video, error)) from error
        except ImportError as error:  # an optional decoder
            raise PipelineError(f"decoder={config.decoder}: {error}") from error
    _summarise(tally, failures, config.threshold, output, console)
    return output


@contextmanager
def _local(video: str) -> Iterator[Source]:
    url = store.normalise(video)
    if store.is_local(url):
        if Path(url).is_dir():
            raise PipelineError(f"{video}: is a folder; for many videos use: autogaze preprocess input={video}")
        if not Path(url).exists():
            raise PipelineError(f"{video}: no such file")
        yield Source(url)
        return
    from pipelines.manifest import local_copy  # brings Ray, which a local file does without

    try:
        with local_copy(url, 0, store.size(url)) as source:
            yield source
    except FileNotFoundError as error:
        raise PipelineError(f"{video}: no such object") from error


def _explain(video: str, error: VideoError) -> str:
    detail = " ".join(str(error.detail or "").split())
    meaning = REASONS.get(error.reason, "")
    return f"{video}: {error.reason}" + (f": {meaning}" if meaning else "") + (f" ({detail})" if detail else "")


def _gaze_video(
    config: GazeConfig, decoder: IsolatedDecoder, source: Source, info: VideoInfo, output: Path, console: Console
) -> tuple[Tally, list[VideoError]]:
    """Everything between opening the video and the summary; files appear complete or not at all."""
    clip = config.clip
    if info.frames < clip.min_frames:
        raise VideoError("too_short", f"{info.frames} frames, clip.min_frames={clip.min_frames}")
    stride = max(1, round(info.fps / clip.fps)) if clip.fps and info.fps > 0 else clip.stride
    # The last clip is as short as the video leaves it: a picture or a label of a repeated frame would show nothing.
    clips = [
        list(range(start, min(start + clip.frames * stride, info.frames), stride))
        for start in clip_starts(info.frames, clip.frames, stride, clip.per_video).tolist()
    ]
    numbers = [number for frames in clips for number in frames]
    wanted = {
        numbers[i] for i in np.linspace(0, len(numbers) - 1, min(SHEET_COLUMNS, len(numbers))).round().astype(int)
    }
    title = store.normalise(config.video).rsplit("/", 1)[-1]
    background = render.overlay_background(title)
    reconstructor = reconstruction.load(config.gaze)
    tally = Tally()
    failures: list[VideoError] = []
    chosen: dict[int, render.Picture] = {}
    with _finished(output) as scratch:
        with (
            _Overlay(scratch / OVERLAY, info.fps / stride, background.size) as overlay,
            (scratch / LABELS).open("w", encoding="utf-8") as labels,
            _progress(console, len(numbers)) as advance,
        ):
            writer = _Labels(labels, _label_key(config.video))
            for clip_number, frames in _decode(decoder, source, clips):
                shown = clips[clip_number]
                if isinstance(frames, VideoError):
                    failures.append(frames)
                    tally.failed += len(shown)
                    writer.add(shown[0], {"start": shown[0], "stride": stride, "failed": frames.reason})
                    lines = (f"frames {shown[0]}-{shown[-1]}: {frames.reason}", REASONS.get(frames.reason, ""))
                    overlay.add(render.slate(background, lines), repeat=len(shown))
                    advance(len(shown))
                    continue
                gaze = greedy.label(
                    frames[None],
                    reconstructor,
                    threshold=config.threshold,
                    max_ratio=config.max_ratio,
                )
                rebuilt = reconstructor.reconstruct(frames[None], gaze).pixels[0].numpy()
                writer.add(shown[0], _label(config, gaze, shown[0], stride))
                for picture in _pictures(shown, frames, gaze, rebuilt, info.fps, config.threshold):
                    overlay.add(render.overlay_frame(background, picture, config.threshold))
                    tally.frames += 1
                    tally.tokens += len(picture.tokens)
                    tally.error += picture.error
                    tally.met += picture.met
                    # At least one column, even if every frame meant for the sheet is in a clip that failed.
                    if picture.number in wanted or not chosen:
                        chosen[picture.number] = replace(picture, frame=picture.frame.copy())  # of a whole batch
                    advance(1)
            writer.close()
        if not tally.frames:
            raise failures[0] if failures else VideoError("too_short", "the video has no frames")
        pictures = [chosen[number] for number in sorted(chosen)]
        sheet = render.contact_sheet(pictures, title, tally.facts(config.threshold), config.threshold)
        _save_png(sheet, scratch / SHEET)
    return tally, failures


def _decode(
    decoder: IsolatedDecoder, source: Source, clips: list[list[int]]
) -> Iterator[tuple[int, np.ndarray | VideoError]]:
    """decoder.decode_clips some clips at a time, since it holds all frames of a call in memory."""
    at_once = max(1, FRAMES_AT_ONCE // max(len(clip) for clip in clips))
    lost: VideoError | None = None
    for begin in range(0, len(clips), at_once):
        batch = clips[begin : begin + at_once]
        for place, frames in decoder.decode_clips(source, batch) if lost is None else enumerate([lost] * len(batch)):
            # A file that kills or hangs its decoder is not tried again for every batch.
            if isinstance(frames, VideoError) and frames.reason.startswith("decoder_"):
                lost = frames
            yield begin + place, frames


def _pictures(
    numbers: list[int], frames: np.ndarray, gaze: Gaze, rebuilt: np.ndarray, fps: float, threshold: float
) -> Iterator[render.Picture]:
    """The frames of one gazed clip; frames and rebuilt are uint8 [T, S, S, 3]."""
    final, met = gaze.final()[0].tolist(), gaze.met(threshold)[0].tolist()
    for place, (number, tokens) in enumerate(zip(numbers, gaze.frames(0), strict=True)):
        seconds = number / fps if fps > 0 else None
        yield render.Picture(number, seconds, frames[place], tokens, rebuilt[place], final[place], met[place])


def _label(config: GazeConfig, gaze: Gaze, start: int, stride: int) -> dict[str, Any]:
    """The reference's label of one clip (ids over the clip: frame * vocabulary + id), with what produced it."""
    return gaze.to_label(0) | {
        "start": start,
        "stride": stride,
        "initial_losses": gaze.initial[0].tolist() if gaze.initial is not None else None,
        "final_losses": gaze.final()[0].tolist(),
        "met": gaze.met(config.threshold)[0].tolist(),
        "gaze": config.gaze,
        "threshold": config.threshold,
        "max_ratio": config.max_ratio,
        "scales": list(VOCABULARY.scales),
        "patch_size": VOCABULARY.patch_size,
        "vocabulary": VOCABULARY.size,
    }


def _label_key(video: str) -> str:
    """The reference's key of a video: the last three parts of its path."""
    return "/".join(store.normalise(video).split("/")[-3:]).lstrip("/")


class _Labels:
    """Writes gaze.json clip by clip. A clip from frame 0 has the video's own key, so that the reference, which knows
    one clip per video, reads the file as it is; later clips, and failed ones, append #<first frame>."""

    def __init__(self, sink: TextIO, key: str) -> None:
        self.sink, self.key, self.before = sink, key, "{\n"

    def add(self, start: int, label: dict[str, Any]) -> None:
        key = self.key if start == 0 and "failed" not in label else f"{self.key}#{start}"
        # Names that are not UTF-8 hold lone surrogates, which JSON writes as escapes.
        self.sink.write(f"{self.before}{json.dumps(key)}: {json.dumps(label)}")
        self.before = ",\n"

    def close(self) -> None:
        self.sink.write("\n}\n")


class _Overlay(AbstractContextManager["_Overlay"]):
    """An H.264 file that any browser plays, written frame by frame."""

    def __init__(self, path: Path, fps: float, size: tuple[int, int]) -> None:
        rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001)) if fps > 0 else Fraction(25)
        self.container = av.open(str(path), "w", options={"movflags": "+faststart"})
        self.stream = self.container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "18"})
        self.stream.width, self.stream.height = size
        self.stream.pix_fmt = "yuv420p"
        # Said in the file, so that players do not guess the colours from the picture's height.
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
def _finished(output: Path) -> Iterator[Path]:
    """A scratch folder inside `output` whose files move into it at the end; after an error nothing of it is left."""
    scratch = Path(tempfile.mkdtemp(prefix=store.TEMPORARY_PREFIX, dir=output))
    try:
        yield scratch
        for path in scratch.iterdir():
            path.replace(output / path.name)
    except OSError as error:
        raise PipelineError(f"output={output}: cannot write: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _save_png(image: Image.Image, path: Path) -> None:
    image.save(path, "PNG", optimize=True)


@contextmanager
def _progress(console: Console, frames: int) -> Iterator[Any]:
    """A callable that counts frames done; shows a bar on a terminal and nothing elsewhere."""
    if not console.is_terminal:
        yield lambda count: None
        return
    columns = (TextColumn("frames"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("frames", total=frames)
        yield lambda count: progress.update(task, advance=count)


def _summarise(tally: Tally, failures: list[VideoError], threshold: float, output: Path, console: Console) -> None:
    possible = tally.frames * VOCABULARY.size
    reduction = f"{1 / tally.ratio:,.1f}x fewer" if tally.tokens else "nothing was gazed"
    lines = [
        f"frames   {tally.frames:,}",
        f"patches  {tally.tokens:,} of {possible:,} ({tally.ratio:.2%}): {reduction}",
        f"error    {tally.error / tally.frames:.4f} mean; "
        f"{tally.met / tally.frames:.1%} of frames at or under the threshold of {threshold:g}",
    ]
    if failures:
        reasons = ", ".join(sorted({failure.reason for failure in failures}))
        lines.append(f"failed   {tally.failed:,} frames in {render.plural(len(failures), 'clip', 'clips')}: {reasons}")
    lines += [f"see      {output / name}" for name in (OVERLAY, SHEET, LABELS)]
    for line in lines:
        style = "red" if line.startswith("failed") else ""
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
