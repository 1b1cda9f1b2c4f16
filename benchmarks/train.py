"""How fast training goes at the released sizes, and what a step of it waits for: data, rollouts, checkpoints.

    python benchmarks/train.py --data DATASET                                # a dataset made by autogaze preprocess,
    python benchmarks/train.py --task reconstructor --batch 1 --every 0      # frames stored; without one, drawn clips
    python benchmarks/train.py --task rl --device cuda --dtype bfloat16 --every 0

Runs the training job itself, on one rank. A step's own time is without the wait for data; medians, over the run but its
first steps. Of a task of RL the whole step counts, rollouts and all, and the shares of reading, gazing and rewards.
The checkpoint bump (--every N) is how much longer the steps during and right after a save take than the others, beside
the same run without checkpoints; saves are asynchronous, so what shows is the snapshot and the writing thread's share.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from clips import clips, labelled, write_dataset
from results import Results

from autogaze.reconstruction.videomae.config import VideoMAEConfig
from autogaze.reconstruction.videomae.reconstructor import VideoMAE
from pipelines.loading.config import ReadConfig
from pipelines.rl.config import ObjectiveConfig, RLConfig, RolloutsConfig, SampleConfig
from pipelines.rl.task import RLTask
from pipelines.runs.events import read_events
from pipelines.train.config import (
    EveryConfig,
    OptimizerConfig,
    PolicySizeConfig,
    PolicyTrainConfig,
    ReconstructorSizeConfig,
    ReconstructorTrainConfig,
    ScaleConfig,
    TrainConfig,
)
from pipelines.train.loop import train
from pipelines.train.policy import PolicyTask
from pipelines.train.reconstructor import ReconstructorTask

WARM = 3  # steps that are not counted


class EnoughError(Exception):
    """Ends a run without the checkpoint that stopping would write: of the reconstructor it is 4 GB."""


TASKS = {"policy": PolicyTask, "rl": RLTask, "reconstructor": ReconstructorTask}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder or s3:// prefix of a dataset; default: one of drawn clips")
    parser.add_argument("--task", choices=("policy", "rl", "reconstructor"), default="policy")
    parser.add_argument("--batch", type=int, nargs="+", default=[4], help="samples of a step (groups, of rl)")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=8, help="steps between checkpoints; 0: do not measure them")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="float32, bfloat16 (autocast)")
    parser.add_argument("--workers", type=int, default=2, help="reading threads")
    parser.add_argument("--ratio", type=float, default=0.1, help="share of patches that rollouts gaze at")
    parser.add_argument("--groups", type=int, default=1, help="of rl: in a request, and in a pass of the learner")
    parser.add_argument("--reconstructor", help="of rewards: canvas (default), or videomae: released size, random")
    parser.add_argument("--recompute", action="store_true", help="of the reconstructor: activations computed again")
    parser.add_argument("--compile", action="store_true", help="of policy and reconstructor: by torch.compile")
    parser.add_argument("--tf32", action="store_true", help="products of float32 by TF32, on a GPU")
    parser.add_argument("--micro-tokens", type=int, default=0, help="parts of so many tokens, not of --batch samples")
    parser.add_argument("--small", action="store_true", help="tiny networks, to try the benchmark itself")
    Results.add_option(parser)
    arguments = parser.parse_args()
    results = Results(arguments.json)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.data is None:
            frames, _ = clips(max(16, *arguments.batch))
            gaze = labelled(frames, 26, arguments.device)
            arguments.data = write_dataset(Path(folder, "data"), frames, gaze)
        if arguments.reconstructor == "videomae":
            arguments.reconstructor = save_reconstructor(Path(folder, "reconstructor"), arguments.small)
        for batch in arguments.batch:
            for dtype in arguments.dtype:
                one(arguments, results, Path(folder, f"{batch}-{dtype}"), batch, dtype)


def one(arguments: argparse.Namespace, results: Results, folder: Path, batch: int, dtype: str) -> None:
    """Measure one size of step in one precision."""
    if arguments.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    plain = steps_of(arguments, folder / "plain", batch, dtype, 0)
    own = (plain["seconds"] - plain["waited"]).median()
    wait = plain["waited"].sum() / plain["seconds"].sum()
    sizes = "tiny sizes" if arguments.small else "released sizes"
    sizes += "".join(
        f", {name}" for name in ("recompute", "compile", "tf32", "micro_tokens") if getattr(arguments, name)
    )
    print(
        f"{arguments.task}, {len(plain)} steps of {batch} in {dtype} on {arguments.device}, {sizes}, one CPU thread:"
        f" {own * 1000:.1f} ms each, {batch / own:.1f} samples/s, and {wait:.2%} of the time waits",
        flush=True,
    )
    facts: dict[str, float | str] = {"dtype": dtype, "batch": batch, "ms_a_step": own * 1000, "wait": wait}
    facts |= {name: 1 for name in ("recompute", "compile", "tf32") if getattr(arguments, name)}
    facts["with_waits"] = float(batch / plain["seconds"].mean())
    if "mfu" in plain:
        facts["mfu"] = float(plain["mfu"].iloc[-1])
    if "cuda_mb" in plain and arguments.device != "cpu":
        facts["gb"] = float(plain["cuda_mb"].max()) / 1000
    rate = batch / own
    if arguments.task == "rl":
        # What makes the groups is the learner itself here: its work is what the step waits for.
        whole = plain["seconds"].median()
        rate = batch / whole
        facts["ms_a_step"] = whole * 1000
        del facts["wait"], facts["with_waits"]
        facts |= {name: float(plain[name].iloc[-1]) for name in plain if name.startswith("busy_")}
        shares = ", ".join(f"{name.removeprefix('busy_')} {facts[name]:.0%}" for name in facts if name[:5] == "busy_")
        print(f"  a step with its rollouts takes {whole * 1000:.1f} ms; of all time: {shares}", flush=True)
    what = {"policy": "training step", "rl": "RL group", "reconstructor": "reconstructor step"}[arguments.task]
    reward = "" if arguments.task != "rl" else ", canvas" if arguments.reconstructor is None else ", videomae"
    results.add(f"{what}{reward}", "groups/s" if arguments.task == "rl" else "clips/s", rate, **facts)
    if arguments.every:
        saving = steps_of(arguments, folder / "saving", batch, dtype, arguments.every)
        # A save begins when a step that it is due at has been counted: the step after it carries the snapshot.
        after = saving["step"].to_numpy() % arguments.every == 1
        mean, median = saving["seconds"].mean() / plain["seconds"].mean(), np.median(plain["seconds"])
        print(f"  a step after a checkpoint takes {np.median(saving['seconds'][after]) / median - 1:+.1%}")
        print(f"  all steps of a run that saves every {arguments.every} take {mean - 1:+.1%}")


def steps_of(arguments: argparse.Namespace, run: Path, batch: int, dtype: str, every: int) -> pd.DataFrame:
    """The steps of a run but the first."""
    asked = iter(range(arguments.steps))
    config = config_of(arguments, str(run), batch, dtype, every)

    def stopping() -> bool:
        if next(asked, None) is None:
            raise EnoughError
        return False

    with suppress(EnoughError):
        train(config, TASKS[arguments.task], stopping=stopping)
    events = read_events(str(run))
    warm = min(WARM, arguments.steps - 1)
    return events[(events["kind"] == "step") & (events["step"] > warm)].reset_index(drop=True)


def config_of(arguments: argparse.Namespace, run: str, batch: int, dtype: str, every: int) -> TrainConfig:
    common = {
        "data": arguments.data,
        "run": run,
        "epochs": 10_000,
        "global_batch": batch,
        "optimizer": OptimizerConfig(schedule="constant"),
        "loader": ReadConfig(val_fraction=0.0, workers=arguments.workers),
        "every": EveryConfig(checkpoint=every, validate=0),
        "val_clips": 0,
        "scale": ScaleConfig(device=arguments.device, dtype=dtype, tf32=arguments.tf32),
        "micro_tokens": arguments.micro_tokens,
        "compile": arguments.compile,
    }
    if arguments.task == "reconstructor":
        tiny = {"hidden_size": 48, "num_layers": 2, "num_heads": 4}
        tiny |= {f"decoder_{name}": value for name, value in tiny.items()}
        sizes = ReconstructorSizeConfig(**tiny) if arguments.small else ReconstructorSizeConfig()
        return ReconstructorTrainConfig(**common, micro_batch=batch, model=sizes, recompute=arguments.recompute)
    tiny = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
    policy = PolicySizeConfig(**tiny) if arguments.small else PolicySizeConfig()
    if arguments.task == "policy":
        return PolicyTrainConfig(**common, micro_batch=batch, policy=policy)
    return RLConfig(
        **common,
        micro_batch=arguments.groups,
        policy=policy,
        max_ratio=arguments.ratio,
        reconstructor=arguments.reconstructor or "canvas",
        sample=SampleConfig(strategy="ratio", min_temperature=1.0),
        objective=ObjectiveConfig(frames=2),
        rollouts=RolloutsConfig(groups=arguments.groups),
    )


def save_reconstructor(folder: Path, small: bool) -> str:
    """A checkpoint of random weights."""
    tiny = {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "intermediate_size": 96}
    tiny |= {f"decoder_{name}": value for name, value in tiny.items()}
    torch.manual_seed(0)
    VideoMAE(VideoMAEConfig(**tiny) if small else VideoMAEConfig()).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()
