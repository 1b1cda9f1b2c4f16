"""Does RL learn: held-out error at equal gaze, and the gaze needed at equal error, of the policies of some runs.

    python benchmarks/rl_learning.py --data VAL_DATASET name=CHECKPOINT_FOLDER ... --error 0.08

Each clip of the dataset is gazed at greedily by each policy. Error at equal gaze: the canvas error when every frame
gets so many patches. Gaze at equal error: the patches per frame, the same for all frames, at which the mean error over
all clips falls to --error (between the numbers tried, linearly).
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from autogaze import reconstruction
from autogaze.model import AutoGaze
from pipelines.loading.loader import ShardLoader
from pipelines.loading.reading import LoaderConfig

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--data", required=True)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--patches", type=int, default=5, help="of each frame, for the error at equal gaze")
    parser.add_argument("--error", type=float, default=0.08)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loader = ShardLoader(LoaderConfig(data=[arguments.data], global_batch=1, workers=0), split="all", epochs=1)
    clips = [batch.frames for batch, _ in zip(loader, range(arguments.clips), strict=False)]
    print(f"{len(clips)} clips of {clips[0].shape[1]} frames; mean error by patches per frame")
    print(f"{'':24}" + "".join(f"{count:>8}" for count in COUNTS) + f"{f'for {arguments.error}':>12}")
    for name, folder in (text.split("=", 1) for text in arguments.policies):
        found = curve(AutoGaze.from_pretrained(folder), clips)
        row = "".join(f"{error:8.4f}" for error in found.values())
        print(f"{name:24}{row}{needed(found, arguments.error):12.1f}", flush=True)


if __name__ == "__main__":
    main()
