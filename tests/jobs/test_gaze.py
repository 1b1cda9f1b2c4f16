"""`autogaze gaze`: real videos in, three files out that agree with each other; bad input is one line."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from autogaze import greedy, reconstruction
from autogaze.gaze import Gaze
from autogaze.patches import VOCABULARY
from autogaze.tiling import TileGrid
from jobs import gaze
from jobs.pictures import gaze_views, lettering
from jobs.pictures.gaze_files import LabelWriter
from pipelines.corpus.plan import ClipConfig
from pipelines.errors import PipelineError
from pipelines.gazing.policy import PolicyConfig
from pipelines.gazing.reconstructor import LabelsConfig, ReconstructorConfig
from pipelines.video.base import DecodeConfig, Source
from pipelines.video.decode import decode_clips
from tests.support import places

CHECKPOINT = places.GOLDEN / "autogaze_small_k10"
RECONSTRUCTOR = places.GOLDEN / "videomae_tiny"
FILES = ["contact_sheet.png", "gaze.json", "overlay.mp4"]


def run(video: Path | str, output: Path, **settings: Any) -> tuple[dict[str, Any], str]:
    """gaze.json and what was printed."""
    told = io.StringIO()
    gaze.run(gaze.GazeConfig(str(video), str(output), **settings), Console(file=told, width=200))
    return json.loads((output / "gaze.json").read_text()), told.getvalue()


def frames_of(video: Path) -> list[np.ndarray]:
    with av.open(str(video)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def decoded(video: Path, count: int, native: tuple[int, int]) -> np.ndarray:
    """The first frames as the job decodes them: to_ndarray converts colours a little differently."""
    ((_, frames),) = decode_clips(Source(str(video)), [range(count)], DecodeConfig(), native)
    assert isinstance(frames, np.ndarray)
    return frames


def refused(video: Path | str, output: Path | str, **settings: Any) -> str:
    with pytest.raises(PipelineError) as caught:
        gaze.run(gaze.GazeConfig(str(video), str(output), **settings), Console(quiet=True))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def gazed(
    make_video: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("gaze")
    video = make_video(folder / "some" / "where" / "ünï 视频.mp4", frames=37)
    labels, told = run(video, folder / "out")
    return folder / "out", labels, told


def test_three_files_and_nothing_else(gazed: tuple[Path, dict[str, Any], str]) -> None:
    assert sorted(path.name for path in gazed[0].iterdir()) == FILES


def test_labels_are_keyed_as_everywhere_but_a_failed_clip_never_has_the_videos_own_key() -> None:
    sink = io.StringIO()
    labels = LabelWriter(sink, "/a/b/c/v.mp4")
    for start, label, tile in ((0, {}, ""), (0, {"failed": "truncated"}, ""), (8, {"failed": "truncated"}, "")):
        labels.add(start, label, tile)
    labels.add(0, {}, "r00c01")
    labels.close()
    assert list(json.loads(sink.getvalue())) == ["b/c/v.mp4", "b/c/v.mp4#0", "b/c/v.mp4#8", "b/c/v.mp4#0-r00c01"]


def test_every_clip_has_a_label_the_reference_schema_reads(gazed: tuple[Path, dict[str, Any], str]) -> None:
    key = "some/where/ünï 视频.mp4"
    labels = gazed[1]
    assert list(labels) == [key, f"{key}#16", f"{key}#32"]
    assert [len(label["gazing_pos"]) for label in labels.values()] == [16, 16, 5], "no repeated frames at the end"
    for label in labels.values():
        read = Gaze.from_label(label)
        assert [len(ids) for ids in label["gazing_pos"]] == [len(losses) for losses in label["task_losses"]]
        for tokens, losses, first, final, met in zip(
            read.frames(0),
            label["task_losses"],
            label["initial_losses"],
            label["final_losses"],
            label["met"],
            strict=True,
        ):
            assert final == (losses[-1] if tokens else first)
            assert met == (np.float32(final) <= np.float32(0.02))
        assert label["scales"] == list(VOCABULARY.scales) and label["vocabulary"] == VOCABULARY.size


def test_the_summary_adds_the_labels_up(gazed: tuple[Path, dict[str, Any], str]) -> None:
    _, labels, told = gazed
    tokens = sum(len(ids) for label in labels.values() for ids in label["gazing_pos"])
    errors = [error for label in labels.values() for error in label["final_losses"]]
    assert "frames   37\n" in told
    assert f"{tokens:,} of {37 * VOCABULARY.size:,}" in told and f"{37 * VOCABULARY.size / tokens:,.1f}x fewer" in told
    assert f"{np.mean(errors):.4f} mean" in told


def test_the_overlay_plays_every_frame_at_the_videos_rate(gazed: tuple[Path, dict[str, Any], str]) -> None:
    with av.open(str(gazed[0] / "overlay.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 25
    shown = frames_of(gazed[0] / "overlay.mp4")
    assert len(shown) == 37
    side = 2 * VOCABULARY.frame_size
    colours = {lettering.scale_colour(level) for level in range(4)}
    first = shown[0][lettering.BAR_TOP : lettering.BAR_TOP + side, side : 2 * side].astype(int)
    near = sum((np.abs(first - colour).max(axis=2) < 40).sum() for colour in colours)
    assert near > 1000, "outlines of gazed patches are in the middle panel"


def test_the_contact_sheet_spreads_over_the_video(gazed: tuple[Path, dict[str, Any], str]) -> None:
    sheet = Image.open(gazed[0] / "contact_sheet.png")
    assert sheet.width > gaze_views.WholeView.columns * VOCABULARY.frame_size
    assert np.asarray(sheet).std() > 20


def test_frames_numbers_follow_stride_rate_and_count(make_video: Callable[..., Path], tmp_path: Path) -> None:
    video = make_video(tmp_path / "v.mp4", frames=40)
    labels, _ = run(video, tmp_path / "a", clip=ClipConfig(frames=4, stride=5))
    assert [(label["start"], label["stride"], len(label["met"])) for label in labels.values()] == [
        (0, 5, 4),
        (20, 5, 4),
    ]
    with av.open(str(tmp_path / "a" / "overlay.mp4")) as container:
        assert container.streams.video[0].average_rate == 5, "as fast as the video was"
    labels, _ = run(video, tmp_path / "b", clip=ClipConfig(frames=8, per_video=2, fps=12.5))
    assert [(label["start"], label["stride"]) for label in labels.values()] == [(0, 2), (25, 2)]


@pytest.mark.parametrize("frames", [1, 2])
def test_very_short_videos(make_video: Callable[..., Path], tmp_path: Path, frames: int) -> None:
    labels, _ = run(make_video(tmp_path / "v.mp4", frames=frames), tmp_path / "out")
    assert [len(label["met"]) for label in labels.values()] == [frames]
    assert len(frames_of(tmp_path / "out" / "overlay.mp4")) == frames


def test_a_long_video_is_decoded_some_frames_at_a_time(
    make_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    decode = gaze.IsolatedDecoder.decode_clips

    def counted(self: Any, source: Any, clips: Any, **how: Any) -> Any:
        calls.append(sum(len(clip) for clip in clips))
        return decode(self, source, clips, **how)

    monkeypatch.setattr(gaze, "FRAMES_AT_ONCE", 8)
    monkeypatch.setattr(gaze.IsolatedDecoder, "decode_clips", counted)
    labels, _ = run(make_video(tmp_path / "v.mp4", frames=22), tmp_path / "out", clip=ClipConfig(frames=4))
    assert calls == [8, 8, 6] and [label["start"] for label in labels.values()] == [0, 4, 8, 12, 16, 20]


def test_no_threshold_and_the_whole_vocabulary(make_video: Callable[..., Path], tmp_path: Path) -> None:
    labels, told = run(make_video(tmp_path / "v.mp4", frames=2), tmp_path / "out", threshold=0.0, max_ratio=0.02)
    (label,) = labels.values()
    assert max(len(ids) for ids in label["gazing_pos"]) == 5
    assert not any(label["met"]) and "0.0% of frames at or under" in told


def test_damaged_stretches_are_told_not_hidden(corpus: Path, tmp_path: Path) -> None:
    labels, told = run(corpus / "hard" / "corrupt_middle.mp4", tmp_path / "out", clip=ClipConfig(frames=8, per_video=3))
    assert [label.get("failed") for label in labels.values()] == [None, "decode_error", None]
    assert "failed   8 frames in 1 clip: decode_error" in told
    assert len(frames_of(tmp_path / "out" / "overlay.mp4")) == 24, "a slate stands where the frames would"


def test_what_is_no_video_is_refused_in_one_line(make_video: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all")
    assert "no such file" in refused(tmp_path / "nowhere.mp4", tmp_path / "o")
    assert "preprocess" in refused(tmp_path, tmp_path / "o")
    assert "empty_file" in refused(tmp_path / "empty.mp4", tmp_path / "o")
    assert "unreadable" in refused(tmp_path / "text.mp4", tmp_path / "o")
    assert not (tmp_path / "o").exists(), "nothing is left where nothing was made"
    video = make_video(tmp_path / "v.mp4", frames=2)
    assert "too_short" in refused(video, tmp_path / "p", clip=ClipConfig(min_frames=10))
    for settings, word in (
        ({"threshold": 2.0}, "threshold"),
        ({"max_ratio": 0.0}, "max_ratio"),
        ({"gaze": "magic"}, "gaze=magic"),
        ({"decoder": "none"}, "decoder=none"),
        ({"clip": ClipConfig(frames=0)}, "clip.frames"),
        ({"device": "tpu"}, "device=tpu"),
        ({"gaze": "policy"}, "policy.checkpoint= is missing"),
        ({"policy": PolicyConfig(str(CHECKPOINT))}, "add gaze=policy"),
        ({"gaze": "policy", "policy": PolicyConfig(str(CHECKPOINT), dtype="int8")}, "policy.dtype=int8"),
        ({"gaze": "policy", "policy": PolicyConfig(str(CHECKPOINT)), "threshold": -1.0}, "threshold=-1.0"),
        ({"gaze": "policy", "policy": PolicyConfig(str(CHECKPOINT)), "threshold": float("nan")}, "threshold=nan"),
    ):
        assert word in refused(video, tmp_path / "p", **settings)
    assert "local folder" in refused(video, "s3://bucket/x")
    assert "video= is missing" in refused("", tmp_path / "p")


def test_audio_only_is_refused(corpus: Path, tmp_path: Path) -> None:
    assert "no_video_stream" in refused(corpus / "hard" / "audio_only.mp4", tmp_path / "o")


def test_an_output_that_cannot_be_written_is_one_line(make_video: Callable[..., Path], tmp_path: Path) -> None:
    video = make_video(tmp_path / "v.mp4", frames=2)
    (tmp_path / "file").write_text("in the way")
    assert str(tmp_path / "file") in refused(video, tmp_path / "file")
    assert str(tmp_path / "file") in refused(video, tmp_path / "file" / "deeper")
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        assert "permission" in refused(video, tmp_path / "locked")


def test_a_run_that_breaks_leaves_the_earlier_files_alone(
    make_video: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video, output = make_video(tmp_path / "v.mp4", frames=3), tmp_path / "out"
    run(video, output)
    before = {path.name: path.read_bytes() for path in output.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gaze, "save_png", full)
    assert "No space left" in refused(video, output, threshold=0.01)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


# -- tiles -----------------------------------------------------------------------------------------------------------


def test_native_tiles_are_gazed_one_by_one_at_the_videos_own_resolution(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    video = make_video(tmp_path / "v.mp4", frames=6, size=(300, 250))
    labels, told = run(video, tmp_path / "out", clip=ClipConfig(frames=4, tiles="native"))
    names = ["r00c00", "r00c01", "r01c00", "r01c01"]
    key = "/".join(video.parts[-3:])
    assert list(labels) == [f"{key}#{start}-{name}" for start in (0, 4) for name in names]
    frames, grid = decoded(video, 6, (250, 300)), TileGrid(250, 300)
    canvas = reconstruction.load("canvas")
    for n, name in enumerate(names):
        label = labels[f"{key}#0-{name}"]
        alone = greedy.label(grid.cut(frames[:4], [n]), canvas, threshold=0.02, max_ratio=0.75)
        assert label["tile"] == name and label["gazing_pos"] == alone.to_label(0)["gazing_pos"]
        assert label["final_losses"] == alone.final()[0].tolist()
    inside = int(grid.inside(VOCABULARY).sum())
    assert f"of {6 * inside:,} (" in told
    error = sum(np.sum(label["final_losses"]) for label in labels.values()) / 4 / 6
    assert f"error    {error:.4f} mean; 100.0% of frames of tiles" in told, "the mean over frames and tiles"


@pytest.mark.slow
def test_the_overlay_of_tiles_has_the_shape_of_the_video_and_shows_patches_in_place(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    video = make_video(tmp_path / "v.mp4", frames=3, size=(320, 256))
    run(video, tmp_path / "out", threshold=0.0, max_ratio=1.0, clip=ClipConfig(tiles="native"))
    shown = frames_of(tmp_path / "out" / "overlay.mp4")
    assert len(shown) == 3
    assert shown[0].shape == (1024 + lettering.BAR_TOP + lettering.BAR_BOTTOM, 1280, 3), "four times as large"
    picture = shown[0][lettering.BAR_TOP : -lettering.BAR_BOTTOM].astype(int)
    colours = {lettering.scale_colour(level) for level in range(4)}
    near = np.min([np.abs(picture - colour).max(axis=2) for colour in colours], axis=0) < 60
    for corner in (near[:512, :640], near[512:, :640], near[:512, 640:], near[512:, 640:]):
        assert corner.mean() > 0.02, "outlines lie all over the picture"
    assert Image.open(tmp_path / "out" / "contact_sheet.png").width >= 1200


# -- a policy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiles", ["whole", "native"])
def test_a_policys_labels_are_its_gaze_of_the_frames(
    make_video: Callable[..., Path], tmp_path: Path, tiles: str
) -> None:
    model = pytest.importorskip("autogaze.model.policy").AutoGaze.from_pretrained(CHECKPOINT)
    video = make_video(tmp_path / "v.mp4", frames=5, size=(224, 224))  # one tile, and no scaling
    labels, told = run(
        video,
        tmp_path / "out",
        gaze="policy",
        policy=PolicyConfig(str(CHECKPOINT)),
        threshold=0.7,
        max_ratio=0.2,
        device="cpu",
        clip=ClipConfig(frames=4, tiles=tiles),
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    frames = decoded(video, 5, (224, 224))
    for label, clip in zip(labels.values(), (frames[:4], frames[4:]), strict=True):
        gaze = model.gaze(clip[None], max_ratio=0.2, loss_threshold=0.7)
        assert label["gazing_pos"] == gaze.to_label(0)["gazing_pos"]
        assert label["final_losses"] == pytest.approx(gaze.final()[0].tolist(), abs=1e-4)
        assert label["met"] == gaze.met(0.7)[0].tolist()
        assert (label["gaze"], label["threshold"], label["max_ratio"]) == ("policy", 0.7, 0.2)
        assert (label["fingerprint"], label["positions"], label["dtype"]) == (model.fingerprint, "reference", "float32")
        assert "predicts" in label["units"]
    assert f"policy {CHECKPOINT.name} ({model.fingerprint[:12]})" in told and "threshold 0.7, max_ratio 0.2" in told


def test_a_policys_limits_are_its_checkpoints_unless_given(make_video: Callable[..., Path], tmp_path: Path) -> None:
    model = pytest.importorskip("autogaze.model.policy").AutoGaze.from_pretrained(CHECKPOINT)
    video = make_video(tmp_path / "v.mp4", frames=1)
    how: dict[str, Any] = {"gaze": "policy", "policy": PolicyConfig(str(CHECKPOINT)), "device": "cpu"}
    (label,) = run(video, tmp_path / "a", **how)[0].values()
    assert (label["threshold"], label["max_ratio"]) == (model.config.loss_threshold, model.config.max_ratio)
    (label,) = run(video, tmp_path / "b", **how, threshold=0.0, max_ratio=0.01)[0].values()
    assert (label["threshold"], label["max_ratio"]) == (0.0, 0.01) and len(label["gazing_pos"][0]) == 2


def test_a_checkpoint_that_does_not_load_is_one_line(make_video: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("autogaze.model.policy")
    video = make_video(tmp_path / "v.mp4", frames=1)
    told = refused(video, tmp_path / "out", gaze="policy", policy=PolicyConfig(str(tmp_path / "nowhere")), device="cpu")
    assert "policy.checkpoint=" in told and "nowhere" in told
    assert not (tmp_path / "out").exists()


# -- the learned reconstructor -----------------------------------------------------------------------------------------


def test_labels_of_the_learned_reconstructor_are_greedy_search_over_its_loss(
    make_video: Callable[..., Path], tmp_path: Path
) -> None:
    video = make_video(tmp_path / "v.mp4", frames=2, size=(224, 224))
    learned = ReconstructorConfig(str(RECONSTRUCTOR))
    how: dict[str, Any] = {"gaze": "videomae", "reconstructor": learned, "device": "cpu"}
    labels, told = run(video, tmp_path / "out", **how, max_ratio=0.02, labels=LabelsConfig(candidates=6, step=2))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    (label,) = labels.values()
    reconstructor = reconstruction.load(RECONSTRUCTOR)
    frames = decoded(video, 2, (224, 224))[None]
    alone = greedy.label(frames, reconstructor, max_ratio=0.02, exact=False, candidates=6, step=2)
    assert label["gazing_pos"] == alone.to_label(0)["gazing_pos"] and any(label["gazing_pos"])
    assert label["final_losses"] == pytest.approx(alone.final()[0].tolist(), abs=1e-4)
    assert (label["threshold"], label["max_ratio"], label["met"]) == (None, 0.02, [True, True])
    assert (label["fingerprint"], label["units"]) == (reconstructor.fingerprint, reconstructor.units)
    assert "the 6 patches best on canvas tried once for 2 taken; max_ratio 0.02" in told and reconstructor.units in told
    assert "threshold" not in told

    assert "give threshold=" in refused(video, tmp_path / "p", **how)
    assert "whose clips have names" in refused(video, tmp_path / "p", **how, labels=LabelsConfig("paper"))
    told = refused(video, tmp_path / "p", **how, threshold=1.0, clip=ClipConfig(frames=32))
    assert "clip.frames=32: this reconstructor takes 16 frames at most" in told
