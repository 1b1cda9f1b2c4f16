"""Does RL learn: held-out error at equal gaze, and the gaze needed at equal error, of the policies of some runs.

    python benchmarks/rl_learning.py --data VAL_DATASET name=CHECKPOINT_FOLDER ... --error 0.08
    python benchmarks/rl_learning.py --data VAL_DATASET name=CHECKPOINT_FOLDER ... --temperatures 0.1,0.3,1

Each clip of the dataset is gazed at greedily by each policy. Error at equal gaze: the canvas error when every frame
gets so many patches. Gaze at equal error: the patches per frame, the same for all frames, at which the mean error over
all clips falls to --error (between the numbers tried, linearly).

With --temperatures instead: can RL find anything better than what the policy does already? At each temperature --group
gazes of --patches a frame are sampled of each clip. Shown are the mean error of one gaze, that of each frame's best
gaze, and in how many frames the best is better than the greedy gaze, which is the one that is used in the end.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from autogaze import reconstruction
from autogaze.model import AutoGaze, Sampling
from pipelines.loading.config import LoaderConfig
from pipelines.loading.loader import ShardLoader

COUNTS = (1, 2, 3, 5, 8, 12, 18, 26, 40)  # patches of each frame


def curve(policy: AutoGaze, clips: list[torch.Tensor]) -> dict[int, float]:
    """Mean canvas error over all frames of all clips, by patches per frame. One gaze serves all: orders are greedy."""
    canvas, size = reconstruction.load("canvas"), policy.vocabulary.size
    found = {}
    for count in COUNTS:
        errors = []
        for clip in clips:
            gaze = policy.gaze(clip, max_ratio=(count + 0.5) / size)
            assert int(gaze.lengths.max()) == count
            errors.append(float(canvas.reconstruct(clip, gaze).error.mean()))
        found[count] = float(np.mean(errors))
    return found


def needed(found: dict[int, float], error: float) -> float:
    """Patches per frame at which the curve falls to an error; nan where it does not."""
    counts, errors = np.array(list(found)), np.array(list(found.values()))
    if errors.min() > error:
        return float("nan")
    return float(np.interp(-error, -errors, counts))


def sampled(policy: AutoGaze, clips: list[torch.Tensor], temperature: float, group: int, patches: int) -> np.ndarray:
    """Canvas errors of sampled gazes, [clips, group, frames]."""
    canvas, found = reconstruction.load("canvas"), []
    for number, clip in enumerate(clips):
        seeds = [number * group + member for member in range(group)]
        copies = policy.encode(clip).repeat(group)
        rollout = policy.rollout(copies, Sampling(temperature, 50, seeds), slots=[patches] * clip.shape[1])
        found.append(canvas.reconstruct(clip.expand(group, *clip.shape[1:]), rollout.gaze).error.numpy())
    return np.stack(found)


def show_sampled(policy: AutoGaze, clips: list[torch.Tensor], arguments: argparse.Namespace) -> None:
    """A line for the greedy gaze, and one for each temperature."""
    canvas, ratio = reconstruction.load("canvas"), (arguments.patches + 0.5) / policy.vocabulary.size
    errors = [canvas.reconstruct(clip, policy.gaze(clip, max_ratio=ratio)).error[0].numpy() for clip in clips]
    greedy = np.stack(errors)  # [clips, frames]
    print(f"  greedy: {greedy.mean():.4f}")
    for temperature in map(float, arguments.temperatures.split(",")):
        found = sampled(policy, clips, temperature, arguments.group, arguments.patches)
        best = found.min(axis=1)
        alike = (found == found[:, :1]).all(axis=1).mean()
        print(
            f"  temperature {temperature:g}: one gaze {found.mean():.4f}, best of {arguments.group} {best.mean():.4f}, "
            f"better than greedy in {(best < greedy).mean():.0%} of frames, all alike in {alike:.0%}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--data", required=True)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--patches", type=int, default=5, help="of each frame, for the error at equal gaze")
    parser.add_argument("--error", type=float, default=0.08)
    parser.add_argument("--temperatures", default="", help="with commas: sample instead")
    parser.add_argument("--group", type=int, default=8, help="gazes of each clip")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loader = ShardLoader(LoaderConfig(data=[arguments.data], global_batch=1, workers=0), split="all", epochs=1)
    clips = [batch.frames for batch, _ in zip(loader, range(arguments.clips), strict=False)]
    if arguments.temperatures:
        print(f"{len(clips)} clips of {clips[0].shape[1]} frames; mean error at {arguments.patches} patches per frame")
        for name, folder in (text.split("=", 1) for text in arguments.policies):
            print(name)
            show_sampled(AutoGaze.from_pretrained(folder), clips, arguments)
        return
    print(f"{len(clips)} clips of {clips[0].shape[1]} frames; mean error by patches per frame")
    print(f"{'':24}" + "".join(f"{count:>8}" for count in COUNTS) + f"{f'for {arguments.error}':>12}")
    for name, folder in (text.split("=", 1) for text in arguments.policies):
        found = curve(AutoGaze.from_pretrained(folder), clips)
        row = "".join(f"{error:8.4f}" for error in found.values())
        print(f"{name:24}{row}{needed(found, arguments.error):12.1f}", flush=True)


if __name__ == "__main__":
    main()
