"""What training waits for: data, and checkpoints. One policy run on this machine, one CPU thread.

    python benchmarks/train.py --data DATASET            # a dataset made by autogaze preprocess, frames stored

Data-wait is the share of a step's time in which the loop waited for the loader, over the run but its first step. The
checkpoint bump is how much longer the steps during and right after a save take than the others, beside the same run
without checkpoints; saves are asynchronous, so what shows is the snapshot and the writing thread's share of the core.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from pipelines.runs.events import read_events
from pipelines.train.config import DataConfig, EveryConfig, OptimizerConfig, PolicySizeConfig, PolicyTrainConfig
from pipelines.train.loop import train
from pipelines.train.policy import PolicyTask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder or s3:// prefix of a dataset")
    parser.add_argument("--batch", type=int, default=4, help="samples of a step")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=8, help="steps between checkpoints")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plain = steps_of(arguments, str(Path(folder, "plain")), 0)
        saving = steps_of(arguments, str(Path(folder, "saving")), arguments.every)
    wait = plain["waited"].sum() / plain["seconds"].sum()
    # A save begins when a step that it is due at has been counted: the step after it carries the snapshot.
    after = saving["step"].to_numpy() % arguments.every == 1
    mean, median = saving["seconds"].mean() / plain["seconds"].mean(), np.median(plain["seconds"])
    print(f"{len(plain)} steps of {arguments.batch} clips, {median:.2f} s each; released sizes, one CPU thread")
    print(f"data-wait: {wait:.2%} of step time")
    print(f"a step after a checkpoint takes {np.median(saving['seconds'][after]) / median - 1:+.1%}")
    print(f"all steps of a run that saves every {arguments.every} take {mean - 1:+.1%}")


def steps_of(arguments: argparse.Namespace, run: str, every: int):
    """The steps of a run but the first, as a frame."""
    config = PolicyTrainConfig(
        data=arguments.data,
        run=run,
        epochs=1000,
        global_batch=arguments.batch,
        micro_batch=arguments.batch,
        optimizer=OptimizerConfig(schedule="constant"),
        loader=DataConfig(val_fraction=0.0),
        every=EveryConfig(checkpoint=every, validate=0),
        val_clips=0,
        policy=PolicySizeConfig(),
    )
    asked = iter(range(arguments.steps))
    train(config, PolicyTask, stopping=lambda: next(asked, None) is None)
    events = read_events(run)
    return events[(events["kind"] == "step") & (events["step"] > 1)].reset_index(drop=True)


if __name__ == "__main__":
    main()
