"""How fast RL goes, beside the way the reference goes about it; how sampling scales; what publishing weights costs.

    python benchmarks/rl.py --data DATASET --rounds 3       # a dataset made by autogaze preprocess, frames stored
    python benchmarks/rl.py --scaling                       # 1 to 8 actors that sleep, nothing else

Speed: one clip a step, a group of 12, canvas rewards for 2 of its frames, the released sizes with random weights, one
CPU thread a process, the same steps and clips for each way, taken in turns:
  reference   one process does what the reference does: repeats the clip 12 times; encodes, gazes at and scores all
              copies at all frames, and rebuilds the frames that earn rewards
  ours        rollouts.actors=0: one process; a clip is encoded once, and only frames up to the last reward are gazed at
  actors      rollouts.actors=1 rollouts.lag=1: one more process samples the next step's group meanwhile
Trajectories and steps per second are the median of the rounds, ratios those of each round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from autogaze import reconstruction
from autogaze.model import AutoGaze, Sampling
from autogaze.objectives import group_advantages, grpo_loss, last_slots, loss_prediction_loss, slot_advantages
from cluster.local import RayConfig, running
from pipelines.loader import LoaderConfig, ShardLoader
from pipelines.metrics import read_events
from pipelines.rl_config import ObjectiveConfig, RLConfig, RolloutsConfig, SampleConfig
from pipelines.rollout_pool import ActorRollouts
from pipelines.rollouts import Ask
from pipelines.train import make_task, train
from pipelines.train_config import DataConfig, EveryConfig, OptimizerConfig

GROUP, SERVICE_S = 12, 0.25


def config_of(arguments: argparse.Namespace, run: str, **rollouts: object) -> RLConfig:
    """One clip a step; `steps` of them are a run."""
    loader = ShardLoader(LoaderConfig(data=[arguments.data], global_batch=1, workers=0))
    return RLConfig(
        data=arguments.data,
        run=run,
        epochs=arguments.steps / loader.steps_per_epoch,
        global_batch=1,
        micro_batch=1,
        max_ratio=arguments.ratio,
        optimizer=OptimizerConfig(schedule="constant"),
        loader=DataConfig(val_fraction=0.0, workers=0),
        every=EveryConfig(checkpoint=0, validate=0),
        val_clips=0,
        sample=SampleConfig(group=GROUP, strategy="ratio", min_temperature=1.0),
        objective=ObjectiveConfig(frames=2),
        rollouts=RolloutsConfig(**rollouts),  # type: ignore[arg-type]
    )


def reference_steps(config: RLConfig, steps: int) -> float:
    """Seconds of so many steps the reference's way. The first is not counted."""
    task = make_task(config, torch.device("cpu"))
    policy: AutoGaze = task.policy  # type: ignore[attr-defined]
    canvas = reconstruction.load("canvas")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-4)
    random = np.random.default_rng(0)
    began = 0.0
    for batch in ShardLoader(LoaderConfig(data=[config.data], global_batch=1, workers=0)):
        if batch.step == 1:
            began = time.perf_counter()
        if batch.step == steps + 1:
            break
        copies = batch.frames.repeat(GROUP, 1, 1, 1, 1)
        at = sorted(random.permutation(copies.shape[1])[:2].tolist())
        sample = Sampling(1.0, 50, seeds=batch.step)
        rollout = policy.rollout(copies, sample, max_ratio=config.max_ratio)
        errors = canvas.reconstruct(copies, rollout.gaze, at).error
        scores = policy.score(copies, rollout.gaze)
        padded = rollout.gaze.padded()
        valid, slots = ~padded["if_padded_gazing"], padded["num_gazing_each_frame"]
        advantages = group_advantages(-errors[None])[0]
        each = slot_advantages(advantages, torch.tensor(at).expand(GROUP, -1), valid, slots, 0.995)
        frame = torch.repeat_interleave(torch.arange(len(slots)), slots)
        counted = last_slots(valid, slots) & torch.isin(frame, torch.tensor(at))
        measured = torch.zeros(valid.shape)
        for place, t in enumerate(at):
            measured[:, frame == t] = errors[:, place : place + 1]
        loss = grpo_loss(scores.log_probs, each, valid).mean()
        loss = loss + loss_prediction_loss(scores.loss_predictions, measured, valid, counted).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def our_steps(config: RLConfig) -> tuple[float, float]:
    """Seconds of a run's steps but the first, and the share of it that publishing weights took."""
    assert train(config) == "done"
    events = read_events(config.run)
    steps = events[events["kind"] == "step"].iloc[1:]
    return float(steps["seconds"].sum()), float(steps["publish_s"].sum() / steps["seconds"].sum())


def speed(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {"reference": [], "ours": [], "actors": []}
    published = []
    with tempfile.TemporaryDirectory() as folder, running(RayConfig(cpus=2)):
        for number in range(arguments.rounds):
            runs = Path(folder, str(number))
            arguments.steps += 1  # the first of each is not counted
            found["reference"].append(reference_steps(config_of(arguments, ""), arguments.steps - 1))
            seconds, share = our_steps(config_of(arguments, str(runs / "ours")))
            found["ours"].append(seconds)
            published.append(share)
            seconds, share = our_steps(config_of(arguments, str(runs / "actors"), actors=1, lag=1))
            found["actors"].append(seconds)
            arguments.steps -= 1
    print(f"{arguments.steps} steps of one clip, {GROUP} trajectories each, ratio {arguments.ratio}")
    for name, seconds in found.items():
        rate = arguments.steps / statistics.median(seconds)
        ratios = [one / other for one, other in zip(found["reference"], seconds, strict=True)]
        print(
            f"{name:10} {rate:6.3f} steps/s {rate * GROUP:6.2f} trajectories/s"
            f"   {statistics.median(ratios):.2f}x the reference ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    print(f"publishing weights: {statistics.median(published):.2%} of step time")


class Sleeper:
    """Makes nothing, in SERVICE_S seconds."""

    def load(self, version: int, weights: object) -> None:
        pass

    def make(self, ask: Ask) -> int:
        time.sleep(SERVICE_S)
        return ask.id


def scaling(counts: Sequence[int] = (1, 2, 4, 8), groups: int = 16, steps: int = 8) -> None:
    """Groups per second of actors whose service takes a fixed time: what the pool itself costs. The learner takes a
    tenth of a step's sampling by eight actors for itself, at lag 1."""
    import sys

    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    learn = groups * SERVICE_S / 8 / 10
    print(f"{groups} groups of {SERVICE_S} s a step, {steps} steps, lag 1, the learner works {learn:.2f} s a step")
    with running(RayConfig(cpus=2)):
        for count in counts:
            pool = ActorRollouts(Sleeper, count, 0, 0, 60)  # type: ignore[arg-type]
            pool.publish(0, b"weights")
            pool.ask([Ask(-1, 0, number, 0) for number in range(4 * count)])  # so that all are up
            pool.take(-1)
            for step in (0, 1):
                pool.ask([Ask(step, 0, number, 0) for number in range(groups)])
            began, waited = time.perf_counter(), 0.0
            for step in range(steps):
                asked = time.perf_counter()
                pool.take(step)
                waited += time.perf_counter() - asked
                time.sleep(learn)
                if step + 2 < steps:
                    pool.ask([Ask(step + 2, 0, number, 0) for number in range(groups)])
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
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ratio", type=float, default=0.05, help="share of patches of every frame")
    parser.add_argument("--scaling", action="store_true")
    arguments = parser.parse_args()
    if arguments.scaling:
        scaling()
    if arguments.data:
        speed(arguments)


if __name__ == "__main__":
    main()
