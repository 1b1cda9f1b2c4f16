"""What the tests of training share: a tiny dataset, a policy whose step takes milliseconds, and ranks in processes."""

from __future__ import annotations

import hashlib
import itertools
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

from autogaze import greedy, reconstruction
from autogaze.gaze import Gaze
from autogaze.patches import VOCABULARY
from jobs.config import load
from pipelines.corpus.plan import ClipConfig
from pipelines.dataset import units
from pipelines.dataset.frames import encode_frames
from pipelines.dataset.shards import Outcome, build_shard, commit_shard
from pipelines.rl.config import RLConfig
from pipelines.rl.task import RLTask
from pipelines.runs.audit import audit
from pipelines.storage import store
from pipelines.train import loop
from pipelines.train.config import PolicyTrainConfig, ReconstructorTrainConfig, TrainConfig
from pipelines.train.encoder import EncoderTask
from pipelines.train.encoder_config import EncoderTrainConfig
from pipelines.train.policy import PolicyTask
from pipelines.train.reconstructor import ReconstructorTask
from pipelines.train.refiner import RefinerTask
from pipelines.train.task import MakeTask
from tests.support.forks import FORKS
from tests.support.plain_plan import make_plan, plan_bytes

T, SIDE = 3, VOCABULARY.frame_size
CHECKPOINT_EVERY = 2
THRESHOLD = 0.003
SMALL = ["policy.hidden_size=16", "policy.num_layers=1", "policy.num_heads=2", "policy.intermediate_size=16"]
SMALL += ["policy.block_size=4", "max_ratio=0.03", "global_batch=4", "micro_batch=4", "epochs=3"]
SMALL += ["loader.workers=0", "loader.window=2", "loader.val_fraction=0.25", f"every.checkpoint={CHECKPOINT_EVERY}"]
SMALL += ["every.validate=0", "val_clips=0"]

RL = [
    "epochs=2",
    "micro_batch=1",
    "objective.label_prediction=0",
    "sample.group=3",
    "optimizer.schedule=linear",
    "sample.min_temperature=0.3",
]


# -- data ------------------------------------------------------------------------------------------------------------


def short_gaze(number: int) -> Gaze:
    """A few patches of each frame and errors that fall, made up: training takes any."""
    random = np.random.default_rng(number)
    ids = [random.permutation(VOCABULARY.size)[: random.integers(1, 7)].tolist() for _ in range(T)]
    losses = [[0.3 / (place + 1) for place in range(len(frame))] for frame in ids]
    return Gaze.from_lists([ids], losses=[losses], initial=[[0.5] * T])


def canvas_gaze(clip: np.ndarray) -> Gaze:
    """The labels that greedy search on the canvas gives a clip, at most 8 a frame."""
    return greedy.label(clip[None], reconstruction.load("canvas"), threshold=THRESHOLD, max_ratio=0.03)


def clip_of(number: int) -> np.ndarray:
    """Two bright squares of their own places and colours on black, which move: uint8 [T, S, S, 3]."""
    random = np.random.default_rng(number)
    clip = np.zeros((T, SIDE, SIDE, 3), np.uint8)
    for size in random.integers(16, 64, 2):
        y, x = random.integers(0, SIDE - 96, 2)
        colour = random.integers(100, 256, 3)
        for t in range(T):
            clip[t, y : y + size, x + 16 * t : x + 16 * t + size] = colour
    return clip


def write_dataset(
    folder: Path, clips: int = 24, gaze: Callable[[int], Gaze] = short_gaze, videos_of: int = 2, per_shard: int = 4
) -> str:
    """What preprocess would leave: clips of T frames, `videos_of` to a video; `gaze` of each clip's number."""
    videos = clips // videos_of
    uris = [f"/v/{number}.mp4" for number in range(videos)]
    facts = {"offset": 0, "bytes": 1, "fingerprint": "0", "width": 64, "height": 48, "rotation": 0, "fps": 25.0}
    facts |= {"frames": videos_of * T, "status": "ok", "reason": None, "detail": None}
    plan = make_plan(
        pd.DataFrame([{"uri": uri, "object": uri} | facts for uri in uris]), "/v", ClipConfig(T), per_shard
    )
    url = str(folder)
    store.publish(plan_bytes(plan), f"{url}/plan.parquet")
    for shard, rows in plan.groupby("shard"):
        made = [Outcome(gaze(number), encode_frames(clip_of(number), "raw", 90)) for number in rows.index]
        commit_shard(url, int(shard), *build_shard(rows.reset_index(drop=True), made, THRESHOLD))
    about: dict[str, Any] = {
        "config": {"clip": {"frames": T}, "frames": "raw", "decoder": "pyav", "threshold": THRESHOLD},
        "plan": hashlib.sha256(plan_bytes(plan)).hexdigest(),
        "shards": int(plan["shard"].max()) + 1,
        "units": units.CANVAS,
        "vocabulary": {"scales": list(VOCABULARY.scales), "patch_size": VOCABULARY.patch_size},
    }
    store.publish(json.dumps(about).encode(), f"{url}/dataset.json")
    return url


# -- runs ------------------------------------------------------------------------------------------------------------


def settings(data: str, run: Path, *changed: str) -> list[str]:
    """KEY=VALUE words of a small run; later ones win."""
    words = dict(word.split("=", 1) for word in [*SMALL, f"data={data}", f"run={run}", *changed])
    if words.get("init"):  # which brings its sizes along
        words = {name: value for name, value in words.items() if not name.startswith("policy.")}
    return [f"{name}={value}" for name, value in words.items()]


def policy_config(data: str, run: Path, *changed: str) -> PolicyTrainConfig:
    return load(PolicyTrainConfig, settings(data, run, *changed))


def rl_config(data: str, run: Path, *changed: str) -> RLConfig:
    return load(RLConfig, settings(data, run, *RL, *changed))


def task_of(config: TrainConfig) -> MakeTask:
    """What a config trains."""
    tasks: dict[type, MakeTask] = {RLConfig: RLTask, ReconstructorTrainConfig: ReconstructorTask}
    tasks[EncoderTrainConfig] = EncoderTask
    if isinstance(config, ReconstructorTrainConfig) and config.kind == "refiner":
        return RefinerTask
    return tasks.get(type(config), PolicyTask)


def train(config: TrainConfig, **where: Any) -> str:
    """The training loop on the task of a config."""
    return loop.train(config, task_of(config), **where)


def newest(run: Path) -> Path:
    """The folder of the newest checkpoint."""
    return run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()


def end_of(run: Path) -> dict[str, str]:
    """Name of the newest checkpoint, and hashes of its files: the model and the optimizer, bit for bit."""
    folder = newest(run)
    found = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "state.json"
    }
    return found | {"step": folder.name}


def require_clean(run: Path) -> None:
    found = audit(str(run))
    assert not found.count, found.problems


def _rank(config: TrainConfig, rank: int, world: int, meet: str, after: int | None) -> None:
    """One rank as a process: what became of it goes into a file, its exit status is 0 if that is no error.

    after: steps after which it asks to stop.
    """
    asked = itertools.count()
    torch.set_num_threads(1)
    told = Path(f"{meet}.{rank}")
    try:
        if world > 1:
            dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
        told.write_text(train(config, rank=rank, world=world, stopping=lambda: next(asked) == after))
    except Exception as error:  # noqa: BLE001 (the test looks at it)
        told.write_text(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        raise SystemExit(1) from None


class Ranks:
    """A run on `world` ranks, one process each, without Ray. Rank `stops` asks to stop after so many steps."""

    def __init__(
        self, config: TrainConfig, world: int, scratch: Path, stops: int = -1, after: int | None = None
    ) -> None:
        scratch.mkdir(parents=True, exist_ok=True)
        self.meet = str(scratch / f"meet-{len(list(scratch.iterdir()))}")
        told = [(config, rank, world, self.meet, after if rank == stops else None) for rank in range(world)]
        self.processes = [FORKS.Process(target=_rank, args=arguments, daemon=True) for arguments in told]
        for process in self.processes:
            process.start()

    def join(self) -> list[str]:
        """What each rank came to: what train returned, or the error it ended with, traceback after it."""
        for process in self.processes:
            process.join()
        return [path.read_text() if (path := Path(f"{self.meet}.{r}")).exists() else "" for r in range(self.world)]

    def kill(self) -> None:
        """kill -9, all of them."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    @property
    def world(self) -> int:
        return len(self.processes)

    @property
    def alive(self) -> list[int]:
        return [process.pid or 0 for process in self.processes if process.is_alive()]


def run_ranks(config: TrainConfig, world: int, scratch: Path) -> list[str]:
    return Ranks(config, world, scratch).join()
