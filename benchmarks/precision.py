"""What bfloat16 changes in losses, rewards and labels: of a reconstructor and its teachers, beside float32.

    python benchmarks/precision.py --dinov2 build/dinov2-small --data DATASET
    python benchmarks/precision.py --dinov2 build/dinov2-small --checkpoint RUN/checkpoints/step-000500/reconstructor
    python benchmarks/precision.py --dinov2 build/dinov2-small --checkpoint RUN/checkpoints/step-002400/refiner

Rewards: some random gazes at each clip, whose errors in the last frame RL would compare with each other. Labels: some
patches tried as the first of a frame, of which greedy search would take the best. "Ordered alike" counts the pairs of a
group, or of a frame's tries, that float32 and the other order the same way; "best" the groups and frames where both
have the same best one, and "lost" what the other's choice costs by float32, as a share of what lies between the best
and the mean.
"""

from __future__ import annotations

import argparse
from itertools import combinations

import numpy as np
import torch
from clips import clips
from results import Results

from autogaze.baselines import random_patches
from autogaze.reconstruction.learned import Learned, learned_class
from autogaze.reconstruction.losses import FrameLoss, Teacher
from autogaze.reconstruction.refiner.reconstructor import Refiner

WAYS = {"float32": (False, False), "bfloat16 teachers": (False, True), "bfloat16": (True, True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tests/golden/videomae_tiny", help="folder of a VideoMAE or a refiner")
    parser.add_argument("--dinov2", metavar="FOLDER", help="a DINOv2 as its teacher, beside l1 (default: l1 alone)")
    parser.add_argument("--data", metavar="DATASET", help="a dataset whose clips are used; default: drawn ones")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--frames", type=int, default=4, help="of each clip")
    parser.add_argument("--gazes", type=int, default=12, help="of a group")
    parser.add_argument("--tries", type=int, default=16, help="of a frame")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    Results.add_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.json)
    frames = torch.from_numpy(clips(options.clips, options.data)[0])[:, : options.frames].to(options.device)
    models = {name: opened(options, *half) for name, half in WAYS.items()}
    if isinstance(models["float32"], Refiner):
        del models["bfloat16"]  # it computes in float32; its teachers may be in bfloat16
    for what, ask in (("rewards", rewards), ("labels", labels)):
        found = {name: ask(model, frames, options) for name, model in models.items()}
        for name, errors in found.items():
            if name != "float32":
                told = compared(found["float32"], errors)
                print(f"{what}, {name}: " + ", ".join(f"{key} {value:.4g}" for key, value in told.items()), flush=True)
                results.add(f"{what} in {name}", "relative difference", told.pop("relative difference"), **told)


def opened(options: argparse.Namespace, half: bool, half_teachers: bool) -> Learned:
    dtype = torch.bfloat16 if half else torch.float32
    model = learned_class(options.checkpoint).from_pretrained(options.checkpoint, None, options.device, dtype)
    teachers = []
    if options.dinov2:
        kept = torch.bfloat16 if half_teachers else torch.float32
        teachers = [Teacher.from_pretrained("dinov2", options.dinov2, device=options.device, dtype=kept)]
    model._loss = [FrameLoss(1.0, teachers)]
    return model


@torch.no_grad()
def rewards(model: Learned, frames: torch.Tensor, options: argparse.Namespace) -> np.ndarray:
    """Errors [clips, gazes] in the last frame."""
    found = []
    for number, clip in enumerate(frames):
        lengths = np.full((options.gazes, options.frames), 26)
        group = clip.expand(options.gazes, *clip.shape)
        gaze = random_patches(group.cpu(), lengths, [f"{number}-{member}" for member in range(options.gazes)])
        found.append(model.errors(group, gaze, [options.frames - 1])[:, 0].numpy())
    return np.stack(found)


@torch.no_grad()
def labels(model: Learned, frames: torch.Tensor, options: argparse.Namespace) -> np.ndarray:
    """Errors [clips, tries] of the first frame with one patch each."""
    search = model.search(frames)
    search.open(0)
    places = np.linspace(0, model.vocabulary.size - 1, options.tries).astype(np.int64)
    return search.errors(torch.from_numpy(places).to(frames.device).expand(len(frames), -1)).cpu().numpy()


def compared(exact: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """What differs, over groups [groups, members]."""
    alike = [
        (row[a] < row[b]) == (half[a] < half[b])
        for row, half in zip(exact, other, strict=True)
        for a, b in combinations(range(len(row)), 2)
    ]
    best, chosen = exact.min(axis=1), np.take_along_axis(exact, other.argmin(axis=1)[:, None], 1)[:, 0]
    return {
        "relative difference": float(np.abs(other / exact - 1).mean()),
        "at most": float(np.abs(other / exact - 1).max()),
        "spread": float((exact.std(axis=1) / exact.mean(axis=1)).mean()),
        "ordered alike": float(np.mean(alike)),
        "best": float((exact.argmin(axis=1) == other.argmin(axis=1)).mean()),
        "lost": float(((chosen - best) / (exact.mean(axis=1) - best)).mean()),
    }


if __name__ == "__main__":
    main()
