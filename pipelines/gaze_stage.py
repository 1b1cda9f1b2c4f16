"""The second actor of preprocess: a decoded shard -> gazed, packed and committed.

Frames cross one process boundary, as uint8 at model resolution; what leaves is a row of counts.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import numpy as np
import torch

from autogaze import greedy, reconstruction
from autogaze.patches import VOCABULARY
from pipelines import shards, store
from pipelines.frames import encode_frames
from pipelines.plan import PlanReader
from pipelines.shards import Outcome
from pipelines.stopwatch import Stopwatch


class GazeStage:
    """Ray Data actor: a decoded shard -> gazed, packed and committed; what is left is a row of counts."""

    def __init__(self, dataset: str, gaze: str, threshold: float, max_ratio: float, storage: str, on_gpu: bool) -> None:
        torch.set_num_threads(1)  # one CPU was asked of Ray
        self.dataset, self.threshold, self.max_ratio, self.storage = dataset, threshold, max_ratio, storage
        self.device = torch.device("cuda" if on_gpu else "cpu")
        self.reconstructor = reconstruction.load(gaze)
        self.plan = PlanReader(store.join(dataset, "plan.parquet"))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        watch, shard = Stopwatch(json.loads(row["decode_seconds"])), int(row["shard"])
        with watch.time("gaze"):
            rows = self.plan.shard(shard)
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
            kept = reconstruction.as_clips(frames if ok.all() else frames[ok], VOCABULARY).to(self.device)
            gaze = greedy.label(kept, self.reconstructor, threshold=self.threshold, max_ratio=self.max_ratio)
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
                members = encode_frames(frames[number], self.storage, 0)
            outcomes.append(Outcome(gaze=gaze[taken], members=members))
            taken += 1
        return outcomes
