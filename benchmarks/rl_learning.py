"""Does RL learn: held-out error at equal gaze, and the gaze needed at equal error, of the policies of some runs.

    python benchmarks/rl_learning.py --data VAL_DATASET name=POLICY ... --error 0.08
    python benchmarks/rl_learning.py --data VAL_DATASET name=POLICY ... --reconstructor FOLDER --verify
    python benchmarks/rl_learning.py --data VAL_DATASET name=POLICY ... --temperatures 0.1,0.3,1

Each clip of the dataset is gazed at greedily by each policy. Error at equal gaze: the error that the reconstructor
measures when every frame gets so many patches. Gaze at equal error: the patches per frame, the same for all frames, at
which the mean error over all clips falls to --error (between the numbers tried, linearly).

Beside the policies stand `random` patches and `search`, greedy search on the reconstructor (up to --search patches; on
a learned one it tries the --candidates best on canvas for each).

With --verify each policy also stops by itself, at a threshold of --error: alone, where it predicts that, and verified,
where the reconstructor measures it. Shown are the frames that meet it and the patches of a frame; beside them, the
search alone.

With --temperatures instead: can RL find anything better than what the policy does already? At each temperature --group
gazes of --patches a frame are sampled of each clip. Shown are the mean error of one gaze, that of each frame's best
gaze, and in how many frames the best is better than the greedy gaze, which is the one that is used in the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from autogaze import greedy, reconstruction, verified
from autogaze.draws import numbered_generator, patch_orders
from autogaze.gaze import Gaze
from autogaze.model import AutoGaze, Sampling
from autogaze.reconstruction.base import Reconstructor
from pipelines.loading.config import LoaderConfig
from pipelines.loading.loader import ShardLoader
from pipelines.networks.open import open_policy, open_reconstructor

COUNTS = (1, 2, 3, 5, 8, 12, 18, 26, 40)  # patches of each frame

Chooser = Callable[[int, torch.Tensor, int], Gaze]
"""(number of the clip, clip, patches of each frame) -> gaze."""


def by_policy(policy: AutoGaze) -> Chooser:
    def choose(_: int, clip: torch.Tensor, count: int) -> Gaze:
        gaze = policy.gaze(clip, max_ratio=(count + 0.5) / policy.vocabulary.size)
        assert int(gaze.lengths.max()) == count
        return gaze

    return choose


def at_random(reconstructor: Reconstructor) -> Chooser:
    def choose(number: int, clip: torch.Tensor, count: int) -> Gaze:
        orders = patch_orders(numbered_generator(number), clip.shape[1], reconstructor.vocabulary.size)
        return Gaze.from_lists([orders[:, :count].tolist()])

    return choose


def savings(reconstructor: Reconstructor, candidates: int) -> dict[str, Any]:
    """Of greedy search: none on canvas, where trying every patch costs nothing."""
    return {} if reconstructor.name == "canvas" else {"exact": False, "candidates": candidates}


def by_search(reconstructor: Reconstructor, candidates: int) -> Chooser:
    def choose(_: int, clip: torch.Tensor, count: int) -> Gaze:
        lengths = torch.full(clip.shape[:2], count)
        return greedy.label(clip, reconstructor, lengths=lengths, **savings(reconstructor, candidates))

    return choose


def curve(
    choose: Chooser, clips: list[torch.Tensor], reconstructor: Reconstructor, most: int = max(COUNTS)
) -> dict[int, float]:
    """Mean error over all frames of all clips, by patches per frame, up to `most`."""
    found = {}
    for count in COUNTS:
        if count <= most:
            gazes = [choose(number, clip, count) for number, clip in enumerate(clips)]
            errors = [measured(reconstructor, clip, gaze) for clip, gaze in zip(clips, gazes, strict=True)]
            found[count] = float(torch.cat(errors).mean())
    return found


def measured(reconstructor: Reconstructor, clip: torch.Tensor, gaze: Gaze) -> torch.Tensor:
    """Error of each frame [1, T]."""
    return reconstructor.reconstruct(clip, gaze).error


def needed(found: dict[int, float], error: float) -> float:
    """Patches per frame at which the curve falls to an error; nan where it does not."""
    counts, errors = np.array(list(found)), np.array(list(found.values()))
    if errors.min() > error:
        return float("nan")
    return float(np.interp(-error, -errors, counts))


def show_verified(
    policies: dict[str, AutoGaze],
    clips: list[torch.Tensor],
    reconstructor: Reconstructor,
    arguments: argparse.Namespace,
) -> None:
    """A line for each policy alone and verified, and one for the search."""
    cap, size = {"max_ratio": (max(COUNTS) + 0.5) / reconstructor.vocabulary.size}, arguments.error
    search = savings(reconstructor, arguments.candidates)
    ways: dict[str, Callable[[torch.Tensor], Gaze]] = {}
    for name, policy in policies.items():
        ways[f"{name}, alone"] = lambda clip, policy=policy: policy.gaze(clip, loss_threshold=size, **cap)
        ways[f"{name}, verified"] = lambda clip, policy=policy: verified.gaze(
            clip, policy, reconstructor, threshold=size, **cap, candidates=search.get("candidates")
        )
    ways["search"] = lambda clip: greedy.label(clip, reconstructor, threshold=size, **cap, **search)
    print(
        f"until each frame's error is {size}, at most {max(COUNTS)} patches: frames meeting it, patches a frame, error"
    )
    for name, way in ways.items():
        gazes = [way(clip) for clip in clips]
        errors = torch.cat([measured(reconstructor, clip, gaze) for clip, gaze in zip(clips, gazes, strict=True)])
        patches = float(torch.cat([gaze.lengths for gaze in gazes]).double().mean())
        print(
            f"{name:24}{float((errors <= size).double().mean()):8.1%}{patches:8.2f}{float(errors.mean()):8.4f}",
            flush=True,
        )


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
    parser.add_argument("policies", nargs="+", metavar="NAME=PLACE", help="a run that trains one, or its folder")
    parser.add_argument("--data", required=True)
    parser.add_argument("--reconstructor", default="canvas", help="canvas, a run that trains one, or its folder")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--patches", type=int, default=5, help="of each frame, with --temperatures")
    parser.add_argument("--error", type=float, default=0.08)
    parser.add_argument(
        "--search", type=int, default=0, help="most patches of a frame that greedy search chooses; 0: none"
    )
    parser.add_argument(
        "--candidates", type=int, default=8, help="patches that the search tries on a learned reconstructor"
    )
    parser.add_argument("--verify", action="store_true")
    parser.add_argument("--temperatures", default="", help="with commas: sample instead")
    parser.add_argument("--group", type=int, default=8, help="gazes of each clip")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loader = ShardLoader(LoaderConfig(data=[arguments.data], global_batch=1, workers=0), split="all", epochs=1)
    clips = [batch.frames for batch, _ in zip(loader, range(arguments.clips), strict=False)]
    places = dict(text.split("=", 1) for text in arguments.policies)
    policies = {name: open_policy(place, name) for name, place in places.items()}
    if arguments.temperatures:
        print(f"{len(clips)} clips of {clips[0].shape[1]} frames; mean error at {arguments.patches} patches per frame")
        for name, policy in policies.items():
            print(name)
            show_sampled(policy, clips, arguments)
        return
    reconstructor = open_reconstructor(arguments.reconstructor, "--reconstructor")
    print(f"{len(clips)} clips of {clips[0].shape[1]} frames; mean error by patches per frame")
    print(f"{'':24}" + "".join(f"{count:>8}" for count in COUNTS) + f"{f'for {arguments.error}':>12}")
    choosers = {"random": (at_random(reconstructor), max(COUNTS))}
    choosers |= {name: (by_policy(policy), max(COUNTS)) for name, policy in policies.items()}
    if arguments.search:
        choosers["search"] = (by_search(reconstructor, arguments.candidates), arguments.search)
    for name, (choose, most) in choosers.items():
        found = curve(choose, clips, reconstructor, most)
        row = "".join(f"{found[count]:8.4f}" if count in found else " " * 8 for count in COUNTS)
        print(f"{name:24}{row}{needed(found, arguments.error):12.1f}", flush=True)
    if arguments.verify:
        show_verified(policies, clips, reconstructor, arguments)


if __name__ == "__main__":
    main()
