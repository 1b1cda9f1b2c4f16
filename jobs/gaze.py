"""autogaze gaze VIDEO output=DIR: gaze one video and look at it.

Writes overlay.mp4 (original, gazed patches and reconstruction side by side), contact_sheet.png (frames spread over the
video) and gaze.json (the reference's label schema, with what produced it). Any length of video: one clip of frames is
held at a time. With clip.tiles=native the picture is gazed in tiles at its own resolution, and drawn in its own shape.

What gazes is canvas, a policy or the learned reconstructor. The reconstruction is the canvas' in all cases: it shows
what the patches show. The errors are those of what gazed: of a policy the losses it predicts, unless verify=true
measures them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import av
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from autogaze.tiling import TileGrid
from jobs.pictures import render
from jobs.pictures.gaze_files import LABELS, OVERLAY, SHEET, LabelWriter, Overlay, finished, save_png
from jobs.threads import one_torch_thread
from jobs.wording import fewer, plural, times, vit_tokens
from pipelines.corpus.plan import ClipConfig, check_clip_config, clip_starts
from pipelines.errors import PipelineError
from pipelines.gazing.settings import GazeSettings, check_gaze
from pipelines.schema import check, section, setting
from pipelines.storage import store
from pipelines.storage.location import Location
from pipelines.video.base import REASONS, DecodeConfig, DecoderName, Source, VideoError, VideoInfo
from pipelines.video.isolated import IsolatedDecoder

if TYPE_CHECKING:
    from jobs.pictures.gaze_views import GazedFrame, View
    from pipelines.gazing.gazers import Gazer

FRAMES_AT_ONCE = 512  # decoded frames held in memory, 150 KB each; fewer where they are larger


@dataclass
class GazeConfig(GazeSettings):
    """Gaze one video."""

    usage: ClassVar[str] = "autogaze gaze VIDEO output=FOLDER"

    video: str = setting("", "a video file, or an s3:// URL of one", required=True, place="location")
    output: str = setting(
        "", "local folder for overlay.mp4, contact_sheet.png, gaze.json", required=True, place="location"
    )
    clip: ClipConfig = section(ClipConfig)
    decoder: DecoderName = setting("pyav", "pyav, decord, torchcodec or torchcodec-cuda")


@dataclass
class Tally:
    """What a run has gazed so far."""

    frames: int = 0
    tokens: int = 0
    error: float = 0.0  # sum over frames
    met: float = 0.0  # sum over frames, each the share of its tiles
    failed: int = 0  # frames of clips that could not be decoded
    origins: list[int] = field(default_factory=lambda: [0, 0, 0])  # patches of a verified gaze: Gaze.origins

    possible: int = 0  # patches of all frames
    unit: str = "frames"  # what has an error of its own

    @property
    def ratio(self) -> float:
        return self.tokens / self.possible if self.possible else 0.0

    def add(self, frame: GazedFrame[Any]) -> None:
        self.frames += 1
        self.possible += frame.possible
        self.tokens += frame.tokens
        self.error += frame.error
        self.met += frame.met

    def facts(self, gazer: Gazer) -> str:
        """One line: limits, tokens, reduction, error."""
        of_vit = self.possible * vit_tokens(gazer.vocabulary) / gazer.vocabulary.size
        less = f"{times(of_vit / self.tokens)} fewer than a ViT's tokens" if self.tokens else "no patches"
        error = f"mean {gazer.measure} {self.error / max(self.frames, 1):.3f}"
        patches = plural(self.tokens, "patch", "patches")
        return f"{gazer.limits} · {less} · {plural(self.frames, 'frame')} · {patches} · {error}"


def check_gaze_config(config: GazeConfig) -> None:
    """Raise PipelineError, in one line, for the first value that cannot work."""
    check(config)
    check_gaze(config)
    if config.labels.lengths != "threshold":
        raise PipelineError(
            f"labels.lengths={config.labels.lengths}: is for autogaze preprocess, whose clips have names; "
            "give threshold= or max_ratio="
        )
    check_clip_config(config.clip)
    if not Location(config.output).is_local:
        raise PipelineError(f"output={config.output}: the pictures are written to a local folder; give one")
    if "libx264" not in av.codecs_available:
        raise PipelineError("this PyAV has no H.264 encoder (libx264); install the av wheel: pip install --force av")


def run(config: GazeConfig, console: Console) -> Path:
    """Gaze the video, write the three files, print a summary; the output folder.

    Raises PipelineError: no such video, not a video, no frame of it can be decoded, output not writable.
    """
    check_gaze_config(config)
    output = Path(Location(config.output))
    with _local(config.video) as source, one_torch_thread():
        from pipelines.gazing import gazers  # here, since it imports torch: a video that is not there is told at once

        gazer = gazers.load(config, gazers.device_of(config.device))
        gazer.require_clips(asdict(config.clip))
        decode = DecodeConfig(decoder=config.decoder, size=gazer.vocabulary.frame_size)
        try:
            with IsolatedDecoder(decode) as decoder:
                info = decoder.probe(source)
                store.require_writable(str(output))
                tally, failures = _gaze_video(config, gazer, decoder, source, info, output, console)
        except VideoError as error:
            raise PipelineError(_explain(config.video, error)) from error
        except ImportError as error:  # an optional decoder
            raise PipelineError(str(error)) from error  # it names the decoder
    _summarise(tally, failures, gazer, output, console)
    return output


@contextmanager
def _local(video: str) -> Iterator[Source]:
    url = Location(video)
    if url.is_local:
        if Path(url).is_dir():
            raise PipelineError(f"{video}: is a folder; for many videos use: autogaze preprocess input={video}")
        if not Path(url).exists():
            raise PipelineError(f"{video}: no such file")
        yield Source(url)
        return
    from pipelines.corpus.videos import local_copy  # brings Ray, which a local file does without

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
    config: GazeConfig,
    gazer: Gazer,
    decoder: IsolatedDecoder,
    source: Source,
    info: VideoInfo,
    output: Path,
    console: Console,
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
    view = _view(config, gazer, info)
    wanted = {numbers[i] for i in np.linspace(0, len(numbers) - 1, min(view.columns, len(numbers))).round().astype(int)}
    tally = Tally(unit=view.unit)
    failures: list[VideoError] = []
    chosen: dict[int, Any] = {}
    with finished(output) as scratch:
        with (
            Overlay(scratch / OVERLAY, info.fps / stride, view.background.size) as overlay,
            (scratch / LABELS).open("w", encoding="utf-8") as sink,
            _progress(console, len(numbers)) as advance,
        ):
            writer = LabelWriter(sink, Location(config.video))
            for clip_number, frames in _decode(decoder, source, clips, view.native):
                shown = clips[clip_number]
                if isinstance(frames, VideoError):
                    failures.append(frames)
                    tally.failed += len(shown)
                    writer.add(shown[0], {"start": shown[0], "stride": stride, "failed": frames.reason})
                    lines = (f"frames {shown[0]}-{shown[-1]}: {frames.reason}", REASONS.get(frames.reason, ""))
                    overlay.add(render.slate(view.background, lines), repeat=len(shown))
                    advance(len(shown))
                    continue
                labels, seen = view.look(shown, stride, frames)
                for tile, label in labels.items():
                    writer.add(shown[0], label, tile)
                    for frame_origins in label.get("origins", ()):
                        tally.origins = [a + b for a, b in zip(tally.origins, frame_origins, strict=True)]
                for frame in seen:
                    overlay.add(frame.overlay)
                    tally.add(frame)
                    # At least one column, even if every frame meant for the sheet is in a clip that failed.
                    if frame.number in wanted or not chosen:
                        chosen[frame.number] = frame.picture
                    advance(1)
            writer.close()
        if not tally.frames:
            raise failures[0] if failures else VideoError("too_short", "the video has no frames")
        pictures = [chosen[number] for number in sorted(chosen)]
        save_png(view.sheet(pictures, tally.facts(gazer)), scratch / SHEET)
    return tally, failures


def _view(config: GazeConfig, gazer: Gazer, info: VideoInfo) -> View[Any]:
    from jobs.pictures.gaze_views import TiledView, WholeView

    title = Location(config.video).name + (f" · {gazer.note}" if gazer.note else "")
    if config.clip.tiles == "whole":
        return WholeView(gazer, title, info.fps)
    height, width = (info.width, info.height) if info.rotation % 180 else (info.height, info.width)
    grid = TileGrid(height, width, gazer.vocabulary.frame_size)
    return TiledView(gazer, title, info.fps, grid, config.policy.batch)


def _decode(
    decoder: IsolatedDecoder, source: Source, clips: list[list[int]], native: tuple[int, int] | None
) -> Iterator[tuple[int, np.ndarray | VideoError]]:
    """decoder.decode_clips some clips at a time, since it holds all frames of a call in memory."""
    size = decoder.config.size
    height, width = native or (size, size)
    at_once = max(1, FRAMES_AT_ONCE * size * size // (height * width) // max(len(clip) for clip in clips))
    lost: VideoError | None = None
    for begin in range(0, len(clips), at_once):
        batch = clips[begin : begin + at_once]
        decoded = decoder.decode_clips(source, batch, native=native)
        for place, frames in decoded if lost is None else enumerate([lost] * len(batch)):
            # A file that kills or hangs its decoder is not tried again for every batch.
            if isinstance(frames, VideoError) and frames.reason.startswith("decoder_"):
                lost = frames
            yield begin + place, frames


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


def _summarise(tally: Tally, failures: list[VideoError], gazer: Gazer, output: Path, console: Console) -> None:
    reduction = fewer(tally.tokens, tally.possible, gazer.vocabulary)
    ends = "at or under" if gazer.settings.measured else "predicted to be at or under"
    met = f"{tally.met / tally.frames:.1%} of {tally.unit} {ends} the threshold of {gazer.bound:g}"
    lines = [
        f"gaze     {gazer.about}; {gazer.limits}",
        f"frames   {tally.frames:,}",
        f"patches  {tally.tokens:,} of {tally.possible:,} ({tally.ratio:.2%}): {reduction}",
        f"error    {tally.error / tally.frames:.4f} mean" + ("" if gazer.threshold is None else f"; {met}"),
        f"         ({gazer.units})",
    ]
    if gazer.settings.verify:
        prefix, continuation, by_search = tally.origins
        chosen = f"{prefix:,} patches by the policy, {continuation:,} after it would have stopped"
        lines.append(f"verified {chosen}, {by_search:,} by greedy search")
    if failures:
        reasons = ", ".join(sorted({failure.reason for failure in failures}))
        lines.append(f"failed   {tally.failed:,} frames in {plural(len(failures), 'clip')}: {reasons}")
    lines += [f"see      {output / name}" for name in (OVERLAY, SHEET, LABELS)]
    for line in lines:
        style = "red" if line.startswith("failed") else ""
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
