"""How far a trained reconstructor came: pixels it rebuilds beside the canvas, which repeats the last gazed pixels.

    python benchmarks/reconstructor_learning.py --data VAL_DATASET name=CHECKPOINT_FOLDER ...

All frames of each clip are rebuilt from the same patches by both: the stored gaze, and random gaze of some shares of
all patches (the same for every reconstructor). The error is the mean absolute difference of RGB, as a share of 255.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from autogaze import reconstruction
from autogaze.gaze import Gaze
from autogaze.patches import VOCABULARY
from autogaze.reconstruction import base
from pipelines.loading.loader import ShardLoader
from pipelines.loading.reading import LoaderConfig

RATIOS = (0.01, 0.03, 0.1, 0.3)


def random_gaze(frames: int, ratio: float, random: np.random.Generator) -> Gaze:
    """So many patches of every frame, any of them."""
    count = VOCABULARY.cap(ratio)
    return Gaze.from_lists([[random.permutation(VOCABULARY.size)[:count].tolist() for _ in range(frames)]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reconstructors", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--data", required=True)
    parser.add_argument("--clips", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    models: dict[str, base.Reconstructor] = {"canvas": reconstruction.load("canvas")}
    models |= {
        name: reconstruction.load(folder) for name, folder in (t.split("=", 1) for t in arguments.reconstructors)
    }
    found: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    loader = ShardLoader(LoaderConfig(data=[arguments.data], global_batch=1, workers=0), split="all", epochs=1)
    clips = 0
    for batch in loader:
        if clips == arguments.clips:
            break
        clips += 1
        random = np.random.default_rng(clips)
        gazes = {"stored": batch.gaze}
        gazes |= {f"random {ratio}": random_gaze(batch.frames.shape[1], ratio, random) for ratio in RATIOS}
        for kind, gaze in gazes.items():
            for name, model in models.items():
                pixels = model.reconstruct(batch.frames, gaze).pixels.float().cpu()
                error = float((pixels - batch.frames.float()).abs().mean()) / 255
                found[name].setdefault(kind, []).append(error)
    print(f"{clips} clips; mean absolute difference of RGB by what was shown")
    print(f"{'':16}" + "".join(f"{kind:>14}" for kind in found["canvas"]))
    for name, errors in found.items():
        print(f"{name:16}" + "".join(f"{np.mean(each):>14.4f}" for each in errors.values()))


if __name__ == "__main__":
    main()
