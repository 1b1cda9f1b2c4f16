"""The two actors of preprocess: DecodeStage (CPU) turns a shard's number into frames, GazeStage commits it.

Frames cross one process boundary, as uint8 at model resolution; JPEGs are made where the frames are decoded, beside
the decoding child, so that a GPU never waits for an encoder.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pandas as pd
import PIL
import pyarrow.parquet as pq
import torch
from PIL import features

from autogaze import greedy, reconstruction
from pipelines import shards, store
from pipelines.decode import DecodeConfig, IsolatedDecoder, Source, VideoError
from pipelines.manifest import fingerprint, local_copy
from pipelines.plan import frame_numbers
from pipelines.shards import Outcome


def jpeg_fingerprint() -> str:
    """Pillow and JPEG library versions: what the stored frames' bytes depend on."""
    library = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
    return f"pillow-{PIL.__version__}/{library}-{features.version_codec('jpg')}"


class Stopwatch(Counter[str]):
    """Seconds by name."""

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self[name] += time.perf_counter() - began


class DecodeStage:
    """Ray Data actor: {"shard"} -> the shard's frames, encoded frames and failures, as one row.

    A row holds: frames uint8 [K, T, S, S, 3] (K planned clips; failed ones are zero), ok bool [K], encoded uint8 [bytes]
    with encoded_sizes int64 [K * T] (JPEGs of the ok clips, one after another), failures (JSON {row: [reason, detail]}).
    """

    def __init__(self, dataset: str, config: DecodeConfig, storage: str, quality: int) -> None:
        self.plan = pq.ParquetFile(store.open_read(store.join(dataset, "plan.parquet")))
        self.config = config
        self.storage, self.quality = storage, quality
        self.decoder = IsolatedDecoder(config)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        began, watch, restarts = time.time(), Stopwatch(), self.decoder.restarts
        with watch.time("decode"):
            rows = self.plan.read_row_group(int(row["shard"])).to_pandas()
            result = self._shard(rows, watch)
        return result | {
            "shard": int(row["shard"]),
            "began": began,
            "decode_seconds": json.dumps(watch),
            "restarts": self.decoder.restarts - restarts,
        }

    def _shard(self, rows: pd.DataFrame, watch: Stopwatch) -> dict[str, Any]:
        size = self.config.size
        frames = np.zeros((len(rows), int(rows["frames"].iloc[0]), size, size, 3), np.uint8)
        encoded: dict[int, list[bytes]] = {}
        failures: dict[int, tuple[str, str | None]] = {}
        planned = rows["reason"].notna()
        for number in np.flatnonzero(planned):
            failures[int(number)] = (str(rows["reason"].iloc[number]), None)
        videos = [part for _, part in rows[~planned].groupby(["object", "offset"], sort=False)]
        for video, opened in _ahead(videos, watch):
            numbers = video.index.to_numpy()
            try:
                with opened as source:
                    with watch.time("fetch"):
                        _require_unchanged(source, video.iloc[0])
                    clips = [
                        frame_numbers(c.start, c.stride, c.frames, c.video_frames).tolist() for c in video.itertuples()
                    ]
                    for clip, decoded in self.decoder.decode_clips(source, clips):
                        number = int(numbers[clip])
                        if isinstance(decoded, VideoError):
                            failures[number] = (decoded.reason, decoded.detail)
                            continue
                        frames[number] = decoded
                        if self.storage == "jpeg":
                            with watch.time("encode"):
                                members = shards.encode_frames(decoded, "jpeg", self.quality)
                                encoded[number] = [data for _, data in members]
            except VideoError as error:
                failures.update({int(number): (error.reason, error.detail) for number in numbers})
        ok = np.array([number not in failures for number in range(len(rows))])
        jpegs = [data for number in sorted(encoded) if ok[number] for data in encoded[number]]
        return {
            "frames": frames,
            "ok": ok,
            "encoded": np.frombuffer(b"".join(jpegs) or b"\0", np.uint8),
            "encoded_sizes": np.array([len(data) for data in jpegs] or [0], np.int64),
            "failures": json.dumps(failures),
        }


def _ahead(
    videos: list[pd.DataFrame], watch: Stopwatch
) -> Iterator[tuple[pd.DataFrame, AbstractContextManager[Source]]]:
    """Each video with its local copy, the next one being fetched while this one decodes."""
    with ThreadPoolExecutor(1) as pool:
        pending = [pool.submit(_Opened, video) for video in videos[:1]]
        for number, video in enumerate(videos):
            with watch.time("fetch"):
                opened = pending.pop().result()
            if number + 1 < len(videos):
                pending.append(pool.submit(_Opened, videos[number + 1]))
            yield video, opened


class _Opened(AbstractContextManager[Source]):
    """A local copy made at once; what goes wrong with the video itself is raised on entering."""

    def __init__(self, video: pd.DataFrame) -> None:
        first = video.iloc[0]
        self.copy = local_copy(str(first["object"]), int(first["offset"]), int(first["bytes"]))
        self.error: FileNotFoundError | None = None
        try:
            self.source = self.copy.__enter__()
        except FileNotFoundError as error:
            self.error = error

    def __enter__(self) -> Source:
        if self.error is not None:
            raise VideoError("missing", "removed since it was planned")
        return self.source

    def __exit__(self, *details: Any) -> None:
        if self.error is None:
            self.copy.__exit__(*details)


def _require_unchanged(source: Source, planned: pd.Series) -> None:
    try:
        mark = fingerprint(source.path, source.offset, source.size)
    except FileNotFoundError:
        raise VideoError("missing", "removed since it was planned") from None
    if mark != planned["fingerprint"]:
        raise VideoError("source_changed", "its bytes are not those that were planned")


class GazeStage:
    """Ray Data actor: a decoded shard -> gazed, packed and committed; what is left is a row of counts."""

    def __init__(self, dataset: str, gaze: str, threshold: float, max_ratio: float, storage: str, on_gpu: bool) -> None:
        torch.set_num_threads(1)  # one CPU was asked of Ray
        self.dataset, self.threshold, self.max_ratio, self.storage = dataset, threshold, max_ratio, storage
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self.reconstructor = reconstruction.load(gaze)
        self.plan = pq.ParquetFile(store.open_read(store.join(dataset, "plan.parquet")))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        watch, shard = Stopwatch(json.loads(row["decode_seconds"])), int(row["shard"])
        with watch.time("gaze"):
            rows = self.plan.read_row_group(shard).to_pandas()
            with watch.time("search"):
                outcomes = self._outcomes(row)
            with watch.time("write"):
                tar, index = shards.build_shard(rows, outcomes, self.threshold)
                shards.commit_shard(self.dataset, shard, tar, index)
        gazes = [outcome.gaze for outcome in outcomes if outcome.gaze is not None]
        return {
            "shard": shard,
            "clips": len(rows),
            "ok": len(gazes),
            "frames": sum(gaze.num_frames for gaze in gazes),
            "tokens": sum(int(gaze.counts()[0]) for gaze in gazes),
            "loss": float(sum(float(gaze.final().mean()) for gaze in gazes)),
            "met": float(sum(float(gaze.met(self.threshold).float().mean()) for gaze in gazes)),
            "failed": json.dumps(Counter(str(outcome.reason) for outcome in outcomes if outcome.gaze is None)),
            "restarts": int(row["restarts"]),
            "seconds": json.dumps(watch),
            "began": float(row["began"]),
            "ended": time.time(),
        }

    def _outcomes(self, row: dict[str, Any]) -> list[Outcome]:
        frames, ok = row["frames"], np.asarray(row["ok"])
        failures = {int(number): reason for number, reason in json.loads(row["failures"]).items()}
        if not ok.any():
            gaze = None
        else:
            kept = frames if ok.all() else frames[ok]
            kept = torch.from_numpy(kept if kept.flags.writeable else np.array(kept))
            gaze = greedy.label(
                kept.to(self.device), self.reconstructor, threshold=self.threshold, max_ratio=self.max_ratio
            )
        ends = np.concatenate([[0], np.cumsum(row["encoded_sizes"])])
        blob, per_clip, taken = np.asarray(row["encoded"]), frames.shape[1], 0
        digits = max(2, len(str(per_clip - 1)))
        outcomes: list[Outcome] = []
        for number in range(len(ok)):
            if not ok[number]:
                reason, detail = failures[number]
                outcomes.append(Outcome(reason=reason, detail=detail))
                continue
            assert gaze is not None
            if self.storage == "jpeg":
                span = range(taken * per_clip, (taken + 1) * per_clip)
                members = [(f"{i:0{digits}d}.jpg", blob[ends[j] : ends[j + 1]].tobytes()) for i, j in enumerate(span)]
            else:
                members = shards.encode_frames(frames[number], self.storage, 0)
            outcomes.append(Outcome(gaze=gaze[taken], members=members))
            taken += 1
        return outcomes
