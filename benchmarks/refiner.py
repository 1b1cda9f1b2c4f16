"""What a refiner gains over the canvas at each share of patches shown, and what its greedy search costs.

    python benchmarks/refiner.py --data VAL_DATASET --refiner RUN_OR_FOLDER
    python benchmarks/refiner.py --data VAL_DATASET                # untrained: the canvas with the network's cost

Errors: some frames of each clip (--frames), rebuilt by both from the same random patches, as many of every frame, in
random order; mean absolute difference of RGB, as a share of 255. Every clip counts the same. `filled` is what needs no
training: the canvas with a smooth surface where nothing was painted. Beside the means over clips stands on how many of
them the refiner has a smaller error than the canvas.

Labels: greedy gaze of some clips, with the same number of patches in every frame; tokens per CPU second of one thread,
and the error that the refiner measures of each gaze: that of the canvas' labels, and of its own, where it tries the
patches that are best on canvas.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from results import Results

from autogaze import greedy
from autogaze.draws import numbered_generator, patch_orders
from autogaze.gaze import Gaze
from autogaze.patches import VOCABULARY
from autogaze.reconstruction.canvas import Canvas
from autogaze.reconstruction.refiner.config import RefinerConfig
from autogaze.reconstruction.refiner.fill import surfaces
from autogaze.reconstruction.refiner.memory import NEVER
from autogaze.reconstruction.refiner.reconstructor import Refiner
from pipelines.loading.config import LoaderConfig
from pipelines.loading.loader import ShardLoader
from pipelines.networks.open import open_reconstructor

RATIOS = (0.01, 0.03, 0.1, 0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a dataset with frames, of videos that it was not trained on")
    parser.add_argument("--refiner", help="a run that trains one, or its folder; default: an untrained one")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--frames", type=int, default=4, help="of each clip that are rebuilt, evenly spread")
    parser.add_argument("--label-clips", type=int, default=4, help="clips whose greedy gaze is made; 0: none")
    parser.add_argument("--label-frames", type=int, default=8, help="of each of these clips, from the first")
    parser.add_argument("--tokens", type=int, default=3, help="patches of a frame in greedy gaze")
    parser.add_argument("--candidates", type=int, default=8, help="patches tried for each, the best on canvas")
    Results.add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(arguments.json)
    torch.manual_seed(0)
    refiner = open_reconstructor(arguments.refiner, "refiner") if arguments.refiner else Refiner(RefinerConfig())
    if not isinstance(refiner, Refiner):
        raise SystemExit(f"--refiner {arguments.refiner}: is no refiner")
    clips = read_clips(arguments.data, arguments.clips)
    parameters = sum(each.numel() for each in refiner.parameters())
    name = Path(arguments.refiner).name if arguments.refiner else "untrained"
    print(f"refiner {name} of {parameters:,} parameters; {len(clips)} clips")
    compare(refiner, clips, arguments.frames, results)
    if arguments.label_clips:
        labels(refiner, clips[: arguments.label_clips], arguments, results)


def read_clips(data: str, count: int) -> list[torch.Tensor]:
    """Clips uint8 [1, T, S, S, 3] of a dataset: the first of every video, then the second, up to `count`."""
    loader = ShardLoader(LoaderConfig(data=[data], global_batch=1, workers=0), split="all", epochs=1)
    return [batch.frames for batch, _ in zip(loader, range(count), strict=False)]


def random_patches(frames: int, ratio: float, seed: int) -> Gaze:
    count = VOCABULARY.cap(ratio)
    orders = patch_orders(numbered_generator(seed), frames, VOCABULARY.size)
    return Gaze.from_lists([orders[:, :count].tolist()])


def compare(refiner: Refiner, clips: list[torch.Tensor], frames: int, results: Results) -> None:
    canvas = Canvas()
    print(f"{'shown':>8}{'canvas':>10}{'filled':>10}{'refiner':>10}{'change':>9}{'better':>10}")
    for ratio in RATIOS:
        found = []
        for number, clip in enumerate(clips):
            length = clip.shape[1]
            at = sorted({round((part + 1) * length / frames) - 1 for part in range(frames)})
            gaze = random_patches(length, ratio, number)
            rebuilt = [model.reconstruct(clip, gaze, at).pixels[0] for model in (canvas, refiner)]
            rebuilt.insert(1, filled(refiner, clip, gaze, at))
            found.append([float((pixels.float() - clip[0, at].float()).abs().mean()) / 255 for pixels in rebuilt])
        errors = np.mean(found, axis=0)
        better = sum(theirs > ours for theirs, _, ours in found)
        columns = "".join(f"{error:>10.4f}" for error in errors)
        print(f"{ratio:>8.0%}{columns}{errors[2] / errors[0] - 1:>9.1%}{better:>5} of {len(clips)}", flush=True)
        for who, error in zip(("canvas", "filled", "refiner"), errors, strict=True):
            results.add(f"error of {who}, {ratio:.0%} shown", "share of 255", float(error), clips=len(clips))


def filled(refiner: Refiner, clip: torch.Tensor, gaze: Gaze, at: list[int]) -> torch.Tensor:
    """The canvas with the finest surface where nothing was painted: uint8 [F, S, S, 3]."""
    block = refiner.config.block
    memory = refiner.memories(clip, gaze, [0], [at])
    canvas, painted = memory.canvas().movedim(3, 1).float() / 255, memory.newest != NEVER
    surface = surfaces(canvas, painted, block)[:, 0]
    kept = painted.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, None]
    return torch.where(kept, canvas, surface).mul(255).round().to(torch.uint8).movedim(1, 3)


def labels(refiner: Refiner, clips: list[torch.Tensor], arguments: argparse.Namespace, results: Results) -> None:
    frames = torch.cat([clip[:, : arguments.label_frames] for clip in clips])
    lengths = torch.full(frames.shape[:2], arguments.tokens)
    ways = {
        "canvas": (Canvas(), {}),
        f"refiner, candidates={arguments.candidates}": (refiner, {"exact": False, "candidates": arguments.candidates}),
    }
    print(f"\ngreedy gaze of {len(clips)} clips of {frames.shape[1]} frames, {arguments.tokens} patches each")
    print(f"{'labels':<26}{'tokens/s':>10}{'error':>9}   (of the refiner)")
    for name, (model, options) in ways.items():
        greedy.label(frames[:1, :1], model, lengths=lengths[:1, :1], **options)  # warm
        began = time.process_time()
        gaze = greedy.label(frames, model, lengths=lengths, **options)
        speed = int(lengths.sum()) / (time.process_time() - began)
        error = float(refiner.reconstruct(frames, gaze).error.mean())
        print(f"{name:<26}{speed:>10.1f}{error:>9.4f}")
        results.add(f"greedy labels, {name}", "tokens/s", speed, error=error)


if __name__ == "__main__":
    main()
