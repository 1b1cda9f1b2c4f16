"""A small dataset made on the spot, without videos, decoding or Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autogaze import greedy, reconstruction
from autogaze.patches import VOCABULARY
from jobs.threads import one_torch_thread
from pipelines.corpus.plan import ClipConfig
from pipelines.dataset import shards
from pipelines.dataset.frames import encode_frames
from pipelines.dataset.shards import DATASET_FORMAT, Outcome
from tests.support.plain_plan import make_plan, plan_bytes

SIDE = VOCABULARY.frame_size


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Clips of a few frames take longer on several threads than on one."""
    with one_torch_thread():
        yield


def busy_clip(number: int, frames: int) -> np.ndarray:
    """Blocks of noise over a slope, some of them moving; uint8 [T, S, S, 3]."""
    random = np.random.default_rng(number)
    picture = np.broadcast_to(np.arange(SIDE, dtype=np.uint8)[:, None, None], (SIDE, SIDE, 3)).copy()
    for _ in range(20):
        y, x = random.integers(0, SIDE - 24, 2)
        picture[y : y + 24, x : x + 24] = random.integers(0, 256, 3)
    clip = np.stack([picture] * frames)
    for t in range(frames):
        clip[t, 40:80, 20 + 30 * t : 60 + 30 * t] = (250, 40, 40)
    return clip


@pytest.fixture(scope="session")
def gazed_dataset() -> Callable[..., str]:
    """Makes a dataset in a folder, and returns its place: videos of two clips of three frames each, gazed by greedy on
    canvas; the clips at the places `failing` of the plan have failed."""

    def make(
        folder: Path,
        videos: int = 4,
        storage: str = "raw",
        per_shard: int = 3,
        failing: tuple[int, ...] = (1,),
        root: str = "/data/corpus/train",
        threshold: float = 0.03,
    ) -> str:
        frames = 3
        uris = [f"{root}/v{number}.mp4" for number in range(videos)]
        manifest = pd.DataFrame(
            {
                "uri": uris,
                "object": uris,
                "offset": 0,
                "bytes": 1,
                "fingerprint": "0",
                "width": 64,
                "height": 48,
                "rotation": 0,
                "fps": 25.0,
                "frames": 2 * frames,
                "status": "ok",
                "reason": None,
                "detail": None,
            }
        )
        plan = make_plan(manifest, root, ClipConfig(frames=frames), per_shard)
        data = plan_bytes(plan)
        canvas = reconstruction.load("canvas")
        about = {
            "format": DATASET_FORMAT,
            "config": {"gaze": "canvas", "threshold": threshold, "max_ratio": 0.75, "frames": storage},
            "models": {"canvas": canvas.fingerprint},
            "units": canvas.units,
            "vocabulary": {"scales": list(VOCABULARY.scales), "patch_size": VOCABULARY.patch_size},
            "plan": hashlib.sha256(data).hexdigest(),
        }
        folder.mkdir(parents=True)
        (folder / "dataset.json").write_text(json.dumps(about))
        (folder / "plan.parquet").write_bytes(data)
        for shard, rows in plan.groupby("shard"):
            outcomes = []
            for number, row in zip(rows.index, rows.to_dict("records"), strict=True):
                if number in failing:
                    outcomes.append(Outcome(reason="decode_error", detail="damaged"))
                    continue
                clip = busy_clip(number, row["frames"])
                gaze = greedy.label(clip[None], canvas, threshold=threshold, max_ratio=0.75)
                outcomes.append(Outcome(gaze=gaze, members=encode_frames(clip, storage, 90)))
            shards.commit_shard(str(folder), int(shard), *shards.build_shard(rows, outcomes, threshold))
        return str(folder)

    return make
