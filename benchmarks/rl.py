"""How fast RL goes, beside the way the reference goes about it; how sampling scales; what publishing weights costs.

    python benchmarks/rl.py --data DATASET --rounds 3       # a dataset made by autogaze preprocess, frames stored
    python benchmarks/rl.py --data DATASET --reference CHECKOUT --reference-python PYTHON      # and its own code
    python benchmarks/rl.py --data DATASET --parts          # CPU seconds of one thread that each part of a step takes
    python benchmarks/rl.py --scaling                       # 1 to 8 actors that sleep, nothing else

Speed: groups of trajectories, canvas rewards for 2 of a clip's frames, the released sizes with random weights, the same
clips for each way, taken in turns, in trajectories per second of wall time:
  its code    one process runs the reference's own code (NVlabs/AutoGaze): one clip a step, repeated for its group;
              encodes, gazes at and scores all copies at all frames. Its rewards are made up and cost it nothing
  its way     one process does the same with our network, and rebuilds the frames that earn rewards
  ours        rollouts.actors=0: one process; a clip is encoded once, and only frames up to the last reward are gazed at
  actor       rollouts.actors=1 rollouts.lag=1: one more process samples the next step's group meanwhile
  ranks       scale.max_workers=2 rollouts.actors=0: two learners, of two clips a step one each
"1 thread" is of every process, and of actor and ranks; "all cores" gives the one process as many threads as cores
(ours: scale.threads).
Rates are the median of the rounds, ratios those of each round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from autogaze import reconstruction
from autogaze.images import preprocess
from autogaze.model import AutoGaze, Sampling
from autogaze.objectives import group_advantages, grpo_loss, loss_prediction_loss, slot_advantages
from autogaze.patches import VOCABULARY
from cluster.local import RayConfig, running
from pipelines.loading.config import LoaderConfig, ReadConfig
from pipelines.loading.loader import ShardLoader
from pipelines.rl.actors import ActorRollouts
from pipelines.rl.config import ObjectiveConfig, RLConfig, RolloutsConfig, SampleConfig
from pipelines.rl.groups import RolloutRequest
from pipelines.rl.losses import measured_errors
from pipelines.rl.rollouts import RolloutMaker
from pipelines.rl.task import RLTask
from pipelines.runs.events import read_events
from pipelines.train.config import EveryConfig, OptimizerConfig, ScaleConfig
from pipelines.train.loop import train
from pipelines.train.on_ray import train_on_ray

SERVICE_S = 0.25
T = TypeVar("T")


def config_of(
    arguments: argparse.Namespace, run: str, clips: int = 1, threads: int = 1, **rollouts: object
) -> RLConfig:
    """So many clips a step; all steps together are of the same clips."""
    loader = ShardLoader(LoaderConfig(data=[arguments.data], global_batch=clips, workers=0))
    return RLConfig(
        data=arguments.data,
        run=run,
        epochs=(arguments.steps // clips + 1) / loader.steps_per_epoch,  # the first is not counted
        global_batch=clips,
        micro_batch=1,
        max_ratio=arguments.ratio,
        optimizer=OptimizerConfig(schedule="constant"),
        loader=ReadConfig(val_fraction=0.0, workers=0),
        every=EveryConfig(checkpoint=0, validate=0),
        val_clips=0,
        scale=ScaleConfig(min_workers=clips, max_workers=clips, threads=threads),
        sample=SampleConfig(group=arguments.group, strategy="ratio", min_temperature=1.0),
        objective=ObjectiveConfig(frames=2, label_prediction=0.0),  # as its way: the labels are learned from by neither
        rollouts=RolloutsConfig(**rollouts),  # type: ignore[arg-type]
    )


def clips_of(config: RLConfig, count: int) -> list[torch.Tensor]:
    """The clips that the counted steps of one clip are of: uint8 [1, T, S, S, 3]."""
    batches = ShardLoader(LoaderConfig(data=[config.data], global_batch=1, workers=0))
    return [batch.frames for batch, _ in zip(batches, range(count + 1), strict=False)][1:]


def their_code(config: RLConfig, arguments: argparse.Namespace, threads: int) -> float:
    """Seconds that the reference's own code takes for the clips, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        task = RLTask(config, torch.device("cpu"))
        policy: AutoGaze = task.policy  # type: ignore[attr-defined]
        policy.save_pretrained(f"{folder}/weights")
        clips = torch.cat(clips_of(config, arguments.steps))
        np.save(f"{folder}/frames.npy", preprocess(clips, VOCABULARY.frame_size, torch.device("cpu")).numpy())
        case = {
            "mode": "rl", "weights": f"{folder}/weights", "frames": f"{folder}/frames.npy", "out": "", "device": "cpu",
            "clips": arguments.steps, "batch": 1, "rounds": 1, "threads": threads, "max_ratio": config.max_ratio,
            "loss_threshold": None, "group": config.sample.group, "slots": VOCABULARY.cap(config.max_ratio),
        }  # fmt: skip
        command = [arguments.reference_python, str(Path(__file__).with_name("reference.py")), str(arguments.reference)]
        done = subprocess.run(command, input=json.dumps(case), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the reference: {done.stderr.strip()[-2000:]}")
    return float(sum(json.loads(done.stdout.splitlines()[-1])["wall"]))


def their_way(config: RLConfig, steps: int, threads: int) -> float:
    """Seconds of so many steps the reference's way, with our network."""
    task = RLTask(config, torch.device("cpu"))
    policy: AutoGaze = task.policy  # type: ignore[attr-defined]
    canvas = reconstruction.load("canvas")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-4)
    random = np.random.default_rng(0)
    clips = clips_of(config, steps)
    torch.set_num_threads(threads)
    began = time.perf_counter()
    for step, clip in enumerate(clips):
        copies = clip.repeat(config.sample.group, 1, 1, 1, 1)
        at = sorted(random.permutation(copies.shape[1])[:2].tolist())
        sample = Sampling(1.0, 50, seeds=step)
        rollout = policy.rollout(copies, sample, max_ratio=config.max_ratio)
        errors = canvas.reconstruct(copies, rollout.gaze, at).error
        scores = policy.score(copies, rollout.gaze)
        padded = rollout.gaze.padded()
        valid, slots = ~padded["if_padded_gazing"], padded["num_gazing_each_frame"]
        advantages = group_advantages(-errors[None])[0]
        rewarded = torch.tensor(at).expand(len(copies), -1)
        each = slot_advantages(advantages, rewarded, valid, slots, 0.995)
        measured, counted = measured_errors(errors, rewarded, valid, slots)
        loss = grpo_loss(scores.log_probs, each, valid).mean()
        loss = loss + loss_prediction_loss(scores.loss_predictions, measured, valid, counted).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    spent = time.perf_counter() - began
    torch.set_num_threads(1)
    return spent


def our_steps(config: RLConfig) -> tuple[float, float]:
    """Seconds of a run's steps but the first, and the share of it that publishing weights took."""
    if config.scale.max_workers > 1:
        assert train_on_ray(config, RLTask, lambda: False) == "done"
    else:
        assert train(config, RLTask) == "done"
    events = read_events(config.run)
    steps = events[events["kind"] == "step"].iloc[1:]
    return float(steps["seconds"].sum()), float(steps["publish_s"].sum() / steps["seconds"].sum())


def speed(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    found: dict[str, list[float]] = defaultdict(list)
    published = []
    with tempfile.TemporaryDirectory() as folder, running(RayConfig(cpus=3)):
        for number in range(arguments.rounds):
            runs = Path(folder, str(number))
            one = config_of(arguments, "")
            for threads, name in ((1, "1 thread"), (cores, "all cores")):
                if arguments.reference:
                    found[f"its code, {name}"].append(their_code(one, arguments, threads))
                found[f"its way, {name}"].append(their_way(one, arguments.steps, threads))
            for threads, name in ((1, "1 thread"), (cores, "all cores")):
                seconds, share = our_steps(config_of(arguments, str(runs / name), threads=threads))
                found[f"ours, {name}"].append(seconds)
            torch.set_num_threads(1)
            published.append(share)
            found["actor"].append(our_steps(config_of(arguments, str(runs / "actor"), actors=1, lag=1))[0])
            found["ranks"].append(our_steps(config_of(arguments, str(runs / "ranks"), clips=2))[0])
    frames = clips_of(one, 1)[0].shape[1]
    print(
        f"{arguments.steps} clips of {frames} frames, {arguments.group} trajectories each, ratio {arguments.ratio},"
        f" {cores} cores"
    )
    bases = [name for name in found if name.startswith("its")]
    for name, seconds in found.items():
        line = f"{name:20} {arguments.steps * arguments.group / statistics.median(seconds):6.2f} trajectories/s"
        for base in bases if name not in bases else []:
            ratios = [one / other for one, other in zip(found[base], seconds, strict=True)]
            line += f" | {base} x {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(line)
    print(f"publishing weights: {statistics.median(published):.2%} of step time")


def parts(arguments: argparse.Namespace) -> None:
    """CPU seconds of this thread in each part of the step of a group, in the mean of `steps`; and of its way's step."""
    torch.set_num_threads(1)
    config, cpu = config_of(arguments, ""), torch.device("cpu")
    task, spent = RLTask(config, cpu), defaultdict[str, float](float)
    maker = RolloutMaker(config, task.policy.config, task.threshold, arguments.steps, cpu)
    maker.load(0, task._weights())

    def timed(name: str, work: Callable[..., T]) -> Callable[..., T]:
        def run(*given: object, **options: object) -> T:
            began = time.thread_time()
            found = work(*given, **options)
            spent[name] += (time.thread_time() - began) / arguments.steps
            return found

        return run

    for owner, method, name in (
        (maker.reader, "read", "reading"),
        (maker.policy, "encode", "encoding"),
        (maker.policy, "rollout", "gazing"),
        (maker.rewards, "errors", "rewards"),
    ):
        setattr(owner, method, timed(name, getattr(owner, method)))
    optimizer, lengths = torch.optim.AdamW(task.policy.parameters(), lr=5e-4), []
    loader = ShardLoader(LoaderConfig(data=[arguments.data], global_batch=1, workers=0))
    for batch, _ in zip(loader, range(arguments.steps), strict=False):
        group = maker.make(RolloutRequest(0, 0, int(batch.ids[0]), 0))
        lengths.append(len(group.slots))
        losses = timed("learner, forward", task.module)(batch.frames, [group])
        timed("learner, backward", losses["loss"].sum().backward)()
        timed("Adam", optimizer.step)()
        optimizer.zero_grad(set_to_none=True)
    began = time.thread_time()
    their_way(config, arguments.steps, 1)
    theirs = (time.thread_time() - began) / arguments.steps
    frames = batch.frames.shape[1]
    print(f"groups of {arguments.group}, {statistics.mean(lengths):.1f} of {frames} frames in the mean, one thread")
    for name, seconds in spent.items():
        print(f"{name:20} {seconds:7.3f} CPU s a group {seconds / sum(spent.values()):6.1%}")
    print(
        f"{'all':20} {sum(spent.values()):7.3f}; its way {theirs:.3f}, {theirs / sum(spent.values()):.2f} times as long"
    )


class Sleeper:
    """Makes nothing, in SERVICE_S seconds."""

    def load(self, version: int, weights: object) -> None:
        pass

    def read(self, requests: Sequence[RolloutRequest]) -> None:
        pass

    def make_all(self, requests: Sequence[RolloutRequest], clips: None, waited: float) -> list[int]:
        time.sleep(SERVICE_S * len(requests))
        return [request.id for request in requests]


def scaling(counts: Sequence[int] = (1, 2, 4, 8), groups: int = 16, steps: int = 8) -> None:
    """Groups per second of actors whose service takes a fixed time: what the pool itself costs. The learner takes a
    tenth of a step's sampling by eight actors for itself, at lag 1."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    learn = groups * SERVICE_S / 8 / 10
    print(f"{groups} groups of {SERVICE_S} s a step, {steps} steps, lag 1, the learner works {learn:.2f} s a step")
    with running(RayConfig(cpus=2)):
        for count in counts:
            pool = ActorRollouts(Sleeper, count, 0, 0, 60)  # type: ignore[arg-type]
            pool.publish(0, b"weights")
            pool.request([RolloutRequest(-1, 0, number, 0) for number in range(4 * count)])  # so that all are up
            pool.take(-1)
            for step in (0, 1):
                pool.request([RolloutRequest(step, 0, number, 0) for number in range(groups)])
            began, waited = time.perf_counter(), 0.0
            for step in range(steps):
                asked = time.perf_counter()
                pool.take(step)
                waited += time.perf_counter() - asked
                time.sleep(learn)
                if step + 2 < steps:
                    pool.request([RolloutRequest(step + 2, 0, number, 0) for number in range(groups)])
            spent = time.perf_counter() - began
            ideal = groups * steps * SERVICE_S / count
            print(
                f"{count} actors: {groups * steps / spent:6.1f} groups/s, efficiency {ideal / spent:.2f}, "
                f"learner idle {waited / spent:.0%}"
            )
            pool.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder or s3:// prefix of a dataset")
    parser.add_argument("--steps", type=int, default=8, help="clips; an even number")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--group", type=int, default=12, help="trajectories of a clip")
    parser.add_argument("--ratio", type=float, default=0.05, help="share of patches of every frame")
    parser.add_argument("--reference", type=Path, metavar="CHECKOUT", help="a clone of NVlabs/AutoGaze")
    parser.add_argument("--reference-python", default=sys.executable, metavar="PYTHON", help="default: this one")
    parser.add_argument("--parts", action="store_true", help="CPU seconds by part, instead of speed")
    parser.add_argument("--scaling", action="store_true")
    arguments = parser.parse_args()
    if arguments.scaling:
        scaling()
    if arguments.data:
        (parts if arguments.parts else speed)(arguments)


if __name__ == "__main__":
    main()
