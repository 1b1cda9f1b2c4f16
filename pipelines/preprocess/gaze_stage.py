"""The second actor of preprocess: a decoded shard -> gazed, packed and committed.

Frames cross one process boundary, as uint8 at model resolution; what leaves is a row of counts.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from autogaze.gaze import Gaze
from pipelines.corpus.plan import PlanReader
from pipelines.dataset import shards
from pipelines.dataset.frames import encode_frames
from pipelines.dataset.shards import Outcome
from pipelines.dataset.targets import make_targets
from pipelines.gazing import gazers
from pipelines.gazing.gazers import ResolvedGaze
from pipelines.preprocess.stopwatch import Stopwatch
from pipelines.storage import urls


def _each(gaze: Gaze) -> list[Gaze]:
    """The gaze of each clip as it would be alone: unused slots are a clip's own matter, not its batch's."""
    clips = [gaze[b] for b in range(gaze.clips)]
    return [clip if _has_holes(clip) else replace(clip, places=None, slots=None) for clip in clips]


def _has_holes(clip: Gaze) -> bool:
    return clip.slots is not None and not torch.equal(clip.slots, clip.lengths)


class GazeStage:
    """Ray Data actor: a decoded shard -> gazed, packed and committed; what is left is a row of counts."""

    def __init__(self, dataset: str, gazer: ResolvedGaze, storage: str, device: str) -> None:
        torch.set_num_threads(1)  # one CPU was asked of Ray
        self.dataset, self.storage = dataset, storage
        self.gazer = gazers.start(gazer, device)
        self.plan = PlanReader(urls.join(dataset, "plan.parquet"))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        watch, shard = Stopwatch(json.loads(row["decode_seconds"])), int(row["shard"])
        with watch.time("gaze"):
            rows = self.plan.shard(shard)
            with watch.time("search"):
                outcomes = self._outcomes(row, rows["clip"].tolist())
            with watch.time("write"):
                tar, index = shards.build_shard(rows, outcomes, self.gazer.bound)
                shards.commit_shard(self.dataset, shard, tar, index)
        gazes = [outcome.gaze for outcome in outcomes if outcome.gaze is not None]
        return {
            "shard": shard,
            "clips": len(rows),
            "bytes": len(tar) + len(index),
            "ok": len(gazes),
            "frames": sum(gaze.num_frames for gaze in gazes),
            "tokens": sum(int(gaze.counts()[0]) for gaze in gazes),
            "loss": float(sum(float(gaze.final().mean()) for gaze in gazes)),
            "met": float(sum(float(gaze.met(self.gazer.bound).float().mean()) for gaze in gazes)),
            "failed": json.dumps(Counter(str(outcome.reason) for outcome in outcomes if outcome.gaze is None)),
            "restarts": int(row["restarts"]),
            "seconds": json.dumps(watch),
            "began": float(row["began"]),
            "ended": time.time(),
        }

    def _outcomes(self, row: dict[str, Any], clips: list[str]) -> list[Outcome]:
        frames, ok = row["frames"], np.asarray(row["ok"])
        failures = {int(number): reason for number, reason in json.loads(row["failures"]).items()}
        named = [clip for clip, good in zip(clips, ok, strict=True) if good]
        gazes = _each(self.gazer.gaze(frames if ok.all() else frames[ok], named)) if named else []
        ends = np.concatenate([[0], np.cumsum(row["encoded_sizes"])])
        blob, per_clip, taken = np.asarray(row["encoded"]), frames.shape[1], 0
        digits = max(2, len(str(per_clip - 1)))
        outcomes: list[Outcome] = []
        for number in range(len(ok)):
            if not ok[number]:
                reason, detail = failures[number]
                outcomes.append(Outcome(reason=reason, detail=detail))
                continue
            if self.storage == "jpeg":
                span = range(taken * per_clip, (taken + 1) * per_clip)
                members = [(f"{i:0{digits}d}.jpg", blob[ends[j] : ends[j + 1]].tobytes()) for i, j in enumerate(span)]
            else:
                members = encode_frames(frames[number], self.storage, 0)
            if self.gazer.reconstructor is not None and self.gazer.settings.targets:
                count = self.gazer.settings.targets
                members.append(make_targets(clips[number], frames[number], members, count, self.gazer.reconstructor))
            outcomes.append(Outcome(gaze=gazes[taken], members=members))
            taken += 1
        return outcomes
