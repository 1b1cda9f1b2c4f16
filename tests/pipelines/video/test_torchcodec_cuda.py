"""decoder=torchcodec-cuda without a GPU: what it refuses, what it leaves to PyAV and counts, how it is compared.

torchcodec's CPU decoder stands in for NVDEC, in a process of its own: several ffmpegs in one process do not get along.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.corpus.parity import Parity, are_misplaced, sampled
from pipelines.corpus.videos import video_fingerprint
from pipelines.dataset.run_records import RunRecord
from pipelines.encode.config import EncodeConfig, check_encode_config
from pipelines.errors import PipelineError
from pipelines.preprocess.config import PreprocessConfig
from pipelines.preprocess.rows import CommittedShard, Effort
from pipelines.preprocess.totals import Totals
from pipelines.preprocess.workers import share_workers
from pipelines.video import child
from pipelines.video.backends import outcomes
from pipelines.video.base import DecodeConfig, LeftToPyAV, Source
from pipelines.video.decode import decode_clips
from pipelines.video.isolated import IsolatedDecoder
from tests.support import places
from tests.support.records import run_record
from tests.support.videos import write_video

SMALL = DecodeConfig(size=64)
ON_CPU = """
import json, sys
from collections import Counter
from contextlib import AbstractContextManager
import numpy as np, pandas as pd, torch
try:
    from pipelines.video import torchcodec_cuda
except ImportError as error:
    print(json.dumps({"skip": str(error)})); raise SystemExit
from pipelines.corpus import parity
from pipelines.video.backends import outcomes, ready_backend
from pipelines.video.base import DecodeConfig, Source, frame_shape
try:
    torchcodec_cuda.require_device()
except ImportError as error:
    refused = str(error)
torchcodec_cuda._device, torchcodec_cuda.require_device = lambda: torch.device("cpu"), lambda: None

class Here(AbstractContextManager):
    def __init__(self, config):
        self.config, self.fallbacks = config, Counter()
    def __exit__(self, *details): pass
    def decode_clips(self, source, clips):
        frames = [np.empty((len(clip), *frame_shape(self.config, None)), np.uint8) for clip in clips]
        count = lambda why: self.fallbacks.update([why])
        decoder = ready_backend(self.config.decoder)
        for i, error in outcomes(decoder, source, clips, self.config, frames.__getitem__, None, count):
            yield i, error or frames[i]

parity.IsolatedDecoder = Here
config = DecodeConfig(decoder="torchcodec-cuda", size=64)
plain, deep, rows, out = sys.argv[1:]
decoder, found = Here(config), {}
for name, clips in ((plain, [[30, 31, 12], [0, 5], [40]]), (deep, [[3]])):
    for i, frames in decoder.decode_clips(Source(name), clips):
        found[f"{'plain' if name == plain else 'deep'}{i}"] = frames if isinstance(frames, np.ndarray) else str(frames)
np.savez(out, **found)
compared = parity.compare(pd.read_json(rows).to_dict("records"), config)
print(json.dumps({"refused": refused, "fallbacks": decoder.fallbacks, "parity": compared.to_json()}))
"""


def smooth_video(path: Path, frames: int, pixels: str = "yuv420p") -> Path:
    """A pattern without edges that moves, as the scaling of edges is each library's own."""
    import av

    y, x = np.mgrid[:64, :96]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "12"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
        for number in range(frames):
            waves = [np.sin((x + 2 * number) / 25), np.cos((y - number) / 20), np.sin((x + y) / 30)]
            picture = np.stack([128 + 80 * wave for wave in waves], axis=2).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.slow
def test_frames_are_those_of_pyav_and_what_it_cannot_do_is_left_to_pyav(tmp_path: Path) -> None:
    plain = smooth_video(tmp_path / "a.mp4", 40)
    deep = smooth_video(tmp_path / "b.mkv", 10, "yuv444p")  # which NVDEC does not decode
    facts = {"offset": 0, "status": "ok", "frames": 10}
    rows = [
        facts | {"uri": str(path), "object": str(path), "bytes": path.stat().st_size, "frames": frames}
        | {"fingerprint": video_fingerprint(str(path), 0, path.stat().st_size)}
        for path, frames in ((plain, 40), (deep, 10))
    ]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    words = [
        sys.executable,
        "-c",
        ON_CPU,
        str(plain),
        str(deep),
        str(tmp_path / "rows.json"),
        str(tmp_path / "out.npz"),
    ]
    done = subprocess.run(words, capture_output=True, text=True, cwd=places.ROOT)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    if "skip" in said:
        pytest.skip(said["skip"])
    assert said["refused"].startswith("decoder=torchcodec-cuda: no GPU is here") and "\n" not in said["refused"]
    found, wanted = np.load(tmp_path / "out.npz"), dict(decode_clips(Source(str(plain)), [[30, 31, 12], [0, 5]], SMALL))
    for i in (0, 1):
        assert np.abs(found[f"plain{i}"].astype(int) - wanted[i]).mean() < 3
    assert str(found["plain2"]).startswith("too_short")
    [(_, left)] = decode_clips(Source(str(deep)), [[3]], SMALL)
    assert np.array_equal(found["deep0"], left) and said["fallbacks"] == {"pixels are yuv444p": 1}
    parity = said["parity"]
    assert (parity["videos"], parity["left"], parity["frames"]) == (1, 1, 8)
    assert (
        parity["misplaced"] == []
        and 0 < parity["mean"] <= parity["worst"] < parity["most_worst"]
        and parity["worst_video"] == str(plain)
    )


def test_a_decoder_that_shows_something_else_is_refused_in_one_line() -> None:
    near = Parity("torchcodec-cuda", 16, 128, 2, 0.9, 3.0, "a.mp4")
    near.require()
    for wrong in ({"mean": 3.5}, {"worst": 19.0}):
        with pytest.raises(PipelineError, match=r"^decoder=torchcodec-cuda: its frames .*a\.mp4.*use decoder=pyav$"):
            Parity(**{**vars(near), **wrong}).require()
    with pytest.raises(PipelineError, match=r"of 1 of 16 videos, such as b\.mp4, it shows other frames than PyAV"):
        Parity(**{**vars(near), "misplaced": ("b.mp4",)}).require()


def test_the_frame_before_is_told_from_rounding_even_where_little_moves() -> None:
    random = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    moving = np.stack([128 + 90 * np.sin((x + 0.1 * t) / 9 + y / 5) for t in range(9)])[..., None].repeat(3, axis=3)
    noise = random.normal(2, 2, moving.shape)  # brighter, and noisier than what moves
    wanted, off = moving.round().astype(np.uint8), (moving + noise).clip(0, 255).round().astype(np.uint8)
    assert np.abs(wanted[1:].astype(int) - wanted[:-1]).mean() < np.abs(off.astype(int) - wanted).mean()
    assert not are_misplaced(off[1:], wanted[1:])
    assert are_misplaced(off[:-1], wanted[1:])


def test_the_videos_that_are_compared_depend_on_their_names_alone() -> None:
    manifest = pd.DataFrame({"uri": [f"{n}.mp4" for n in range(30)], "status": ["ok"] * 29 + ["failed"]})
    chosen = {row["uri"] for row in sampled(manifest, 5)}
    again = sampled(manifest.sample(frac=1, random_state=1), 5)
    assert chosen == {row["uri"] for row in again} and len(chosen) == 5
    assert len(sampled(manifest, 99)) == 29


# -- what is left to PyAV ----------------------------------------------------------------------------------------------


class Leaves:
    """A back end that leaves every video to PyAV."""

    @staticmethod
    def fingerprint() -> str:
        return "none"

    @staticmethod
    def decode_into(*arguments: Any) -> Iterator[Any]:
        raise LeftToPyAV("pixels are odd")
        yield


def test_pyavs_frames_come_in_its_place_and_somebody_is_told(tmp_path: Path) -> None:
    source, clips = Source(str(write_video(tmp_path / "a.mp4"))), [[3, 4], [39]]
    frames, told = [np.zeros((len(clip), 64, 64, 3), np.uint8) for clip in clips], []
    found = list(outcomes(Leaves, source, clips, SMALL, frames.__getitem__, None, told.append))  # type: ignore[arg-type]
    assert found == [(0, None), (1, None)] and told == ["pixels are odd"]
    for i, wanted in decode_clips(source, clips, SMALL):
        assert np.array_equal(frames[i], wanted)


def test_the_child_tells_its_parent_which_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_video(tmp_path / "a.mp4"))
    request = {"source": {"path": path, "offset": 0, "size": None}, "native": None, "clips": [[None, [3]]]}
    answers = list(child._answers(Leaves, SMALL, request, memoryview(bytearray(64 * 64 * 3))))  # type: ignore[arg-type]
    assert answers == [{"fallback": "pixels are odd"}, {"clip": 0}]
    decoder = IsolatedDecoder(SMALL)
    monkeypatch.setattr(decoder, "_converse", lambda *given: iter(answers))
    assert [i for i, _ in decoder.decode_clips(Source(path), [[3]])] == [0]
    assert decoder.fallbacks == {"pixels are odd": 1}


def test_counts_go_from_a_shard_to_the_record_of_the_run() -> None:
    counts = {"pixels are odd": 2}
    effort = Effort()
    effort.add(Effort(fallbacks=Counter(counts)))
    committed = CommittedShard(0).committed(1, effort)
    totals = Totals()
    for _ in range(2):
        totals.add(CommittedShard.from_row(committed.to_row()))
    assert totals.fallbacks == {"pixels are odd": 4}
    record = run_record(decoder_fallbacks=dict(totals.fallbacks))
    assert RunRecord.from_json(record.to_json()).decoder_fallbacks == {"pixels are odd": 4}
    assert b"fallbacks" not in run_record().to_json(), "records of other decoders stay as they were"


# -- where it runs -----------------------------------------------------------------------------------------------------


def test_decoders_and_gaze_share_the_gpus() -> None:
    workers = share_workers(PreprocessConfig(decoder="torchcodec-cuda"), 32, 2)
    assert (workers.decode, workers.gaze, workers.device) == (8, 2, "cuda")
    assert workers.decode * workers.decode_gpus + workers.gaze * workers.gaze_gpus == 2
    plain = share_workers(PreprocessConfig(), 32, 2)
    assert (plain.decode_gpus, plain.gaze_gpus) == (0.0, 1.0)
    with pytest.raises(PipelineError, match="decoder=torchcodec-cuda: this cluster has no GPU; use decoder=pyav"):
        share_workers(PreprocessConfig(decoder="torchcodec-cuda"), 32, 0)


def test_encode_does_not_take_it() -> None:
    config = EncodeConfig(input="/videos", output="/features", decoder="torchcodec-cuda")
    config.encoder.checkpoint = "/models/x"
    with pytest.raises(PipelineError, match="decoder=torchcodec-cuda: encode decodes on CPUs"):
        check_encode_config(config)
