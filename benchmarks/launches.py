"""What one unit of each job asks of a GPU, counted on a CPU: kernels, waits of the host, bytes, operations.

    python benchmarks/launches.py                        # released sizes, one thread
    python benchmarks/launches.py --units gaze-64 --calls 12
    python benchmarks/launches.py --narrow               # as many layers of a few channels: the same kernels, sooner

A GPU takes at least as long as the launches need (LAUNCH_S each, as one stream of small kernels does), as its memory
needs for the bytes, and as its arithmetic needs for the operations, at an H100's data-sheet rates. Where the launches
are the longest of the three, the GPU waits for Python. Kernels are PyTorch's operations, unfused; a CUDA graph is one
launch, captured before.

units (random weights, drawn clips of 16 frames, a tenth of the patches):
  gaze-1 -12 -64   gazing at so many clips as a GPU does, by CUDA graphs
  gaze-12-eager -64-eager   the same, kernel by kernel
  gaze-12-stops    frames that a threshold ends, by CUDA graphs
  ntp-step         next-token prediction of 8 clips: forward, backward, clipping, Adam
  rl-rollout -8    a group of 12 sampled gazes at one clip; a request of 8 groups
  rl-reward -8     its two rewarded frames, rebuilt by the VideoMAE; those of 8 groups
  rl-learner -8    its loss, forward and backward; that of 8 groups, packed
  reconstructor-1 -8   the VideoMAE's loss of so many clips, each with its gaze and frames, forward and backward
  search-1 -8      one round of greedy search in so many clips: 16 patches tried in a frame of each, by the VideoMAE
  refiner-1 -8     the refiner's loss of so many clips, forward and backward
  refiner-search   one round of greedy search in 8 clips: 16 patches tried in a frame of each, by the refiner
  vision           a SigLIP of base size on the gazed patches of a clip
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from clips import FRAMES, clips
from counting import Counting, as_graphs
from results import Results
from torch import Tensor, nn

from autogaze.baselines import random_patches
from autogaze.gaze import Gaze
from autogaze.model import AutoGaze, AutoGazeConfig, Encoded, Sampling
from autogaze.objectives import next_token_loss
from autogaze.patches import VOCABULARY
from autogaze.reconstruction.refiner.config import RefinerConfig
from autogaze.reconstruction.refiner.reconstructor import Refiner
from autogaze.reconstruction.videomae.config import VideoMAEConfig
from autogaze.reconstruction.videomae.reconstructor import VideoMAE
from pipelines.rl.config import RLConfig
from pipelines.rl.groups import Group, RolloutRequest
from pipelines.rl.losses import GroupLosses
from pipelines.train.reconstructor import ReconstructorLosses
from pipelines.train.refiner import RefinerLosses

RATIO, MEMBERS = 0.1, 12
LIMITS = {False: (RATIO, None), True: (0.75, 0.0)}  # of random weights' predicted losses, half are below 0
LAUNCH_S = 5e-6
BYTES_PER_S, FLOPS_PER_S = 3.35e12, 989e12  # H100 SXM: memory; dense bfloat16
NARROW = {"hidden_size": 24, "num_heads": 6, "head_dim": 4, "intermediate_size": 48}


class Size(NamedTuple):
    """narrow: as many layers as released, of a few channels. frames: of each clip."""

    narrow: bool = False
    frames: int = FRAMES

    @property
    def rewarded(self) -> list[int]:
        return [self.frames // 2 - 1, self.frames - 1]


Unit = tuple[Callable[[], Any], Sequence[Tensor]]
"""What is done, and what is on the device before."""


class GpuPolicy(AutoGaze):
    """A policy that gazes on a CPU as it does on a GPU. cuda_graphs: of `counting.as_graphs`."""

    wide = True

    @property
    def cuda_graphs(self) -> bool:
        return self.wants_graphs is not False


class GpuVideoMAE(VideoMAE):
    """A reconstructor that computes on a CPU as it does on a GPU."""

    wide = True


class GpuRefiner(Refiner):
    """A refiner that computes on a CPU as it does on a GPU."""

    wide = True


def policy_of(narrow: bool, graphs: bool = True) -> GpuPolicy:
    return GpuPolicy(AutoGazeConfig(**(NARROW if narrow else {})), graphs).eval()


def videomae_of(narrow: bool) -> GpuVideoMAE:
    widths = {"hidden_size": 32, "num_heads": 4, "intermediate_size": 64}
    widths |= {f"decoder_{name}": value for name, value in widths.items()}
    return GpuVideoMAE(VideoMAEConfig(**(widths if narrow else {}))).eval()


def frames_of(size: Size, count: int = 1) -> Tensor:
    return torch.from_numpy(clips(count)[0])[:, : size.frames]


def gazes_of(size: Size, count: int = 1) -> Gaze:
    lengths = np.full((count, size.frames), VOCABULARY.cap(RATIO))
    return random_patches(frames_of(size, count), lengths, [str(number) for number in range(count)])


def gaze(count: int, graphs: bool = True, stops: bool = False) -> Callable[[Size], Unit]:
    def unit(size: Size) -> Unit:
        policy, frames = policy_of(size.narrow, graphs), frames_of(size, count)
        return lambda: policy.gaze(frames, *LIMITS[stops]), [*policy.parameters(), frames]

    return unit


def ntp_step(size: Size) -> Unit:
    policy, frames, labels = policy_of(size.narrow).train(), frames_of(size, 8), gazes_of(size, 8)
    optimizer, valid = torch.optim.AdamW(policy.parameters(), foreach=True), ~labels.padded()["if_padded_gazing"]
    policy.lay_out_tokens(labels)  # as the training loop does, ahead of the step

    def step() -> None:
        scores = policy.score(frames, labels)
        loss = next_token_loss(scores.log_probs, valid).mean() + scores.loss_predictions.square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, [*policy.parameters(), frames]


def rollout(policy: AutoGaze, frames: Tensor) -> Any:
    with torch.inference_mode():
        encoded = policy.encode(frames)
    members = Encoded(encoded.tokens).repeat(MEMBERS)
    return policy.rollout(members, Sampling(1.0, 50, range(len(members.tokens))), max_ratio=RATIO)


def rl_rollout(groups: int) -> Callable[[Size], Unit]:
    def unit(size: Size) -> Unit:
        policy, frames = policy_of(size.narrow), frames_of(size, groups)
        return lambda: rollout(policy, frames), [*policy.parameters(), frames]

    return unit


def rl_reward(groups: int) -> Callable[[Size], Unit]:
    def unit(size: Size) -> Unit:
        model, frames, gazes = videomae_of(size.narrow), frames_of(size, groups), gazes_of(size, groups * MEMBERS)
        of, at = [row // MEMBERS for row in range(groups * MEMBERS)], [size.rewarded] * groups
        return lambda: model.group_errors(frames, gazes, of, at), [*model.parameters(), frames]

    return unit


def rl_learner(count: int) -> Callable[[Size], Unit]:
    def unit(size: Size) -> Unit:
        policy, frames = policy_of(size.narrow), frames_of(size, count)
        sampled = rollout(policy, frames)
        padded = sampled.gaze.padded()
        groups = [
            Group(
                RolloutRequest(0, 0, 0, 0),
                clip="",
                temperature=1.0,
                threshold=float("nan"),
                at=np.array(size.rewarded),
                seeds=np.arange(MEMBERS),
                slots=padded["num_gazing_each_frame"].numpy(),
                drawn=sampled.drawn[rows].numpy().astype(np.int16),
                used=~padded["if_padded_gazing"][rows].numpy(),
                log_probs=sampled.log_probs[rows].numpy(),
                errors=np.random.default_rng(0).random((MEMBERS, len(size.rewarded)), np.float32),
                seconds=np.zeros(3),
            )
            for rows in torch.arange(count * MEMBERS).split(MEMBERS)
        ]
        losses = GroupLosses(policy, None, RLConfig(data="", run=""))
        return lambda: losses(frames, groups)["loss"].sum().backward(), [*policy.parameters(), frames]

    return unit


def reconstructor(count: int) -> Callable[[Size], Unit]:
    def unit(size: Size) -> Unit:
        model, frames = videomae_of(size.narrow).train(), frames_of(size, count)
        shown, losses = list(gazes_of(size, count)), ReconstructorLosses(model)
        at = [size.rewarded for _ in range(count)]
        return lambda: losses(frames, shown, at)["loss"].mean().backward(), [*model.parameters(), frames]

    return unit


def search_round(count: int) -> Callable[[Size], Unit]:
    def unit(size: Size) -> Unit:
        model, frames = videomae_of(size.narrow), frames_of(size, count)
        tried = torch.arange(16).expand(count, -1)

        def step() -> None:
            with torch.no_grad():
                search = model.search(frames)
                search.open(0)
                search.errors(tried)

        return step, [*model.parameters(), frames]

    return unit


def refiner_of(narrow: bool) -> GpuRefiner:
    return GpuRefiner(RefinerConfig(**({"width": 8, "deep_width": 16} if narrow else {}))).eval()


def refiner(count: int) -> Callable[[Size], Unit]:
    def unit(size: Size) -> Unit:
        model, frames = refiner_of(size.narrow).train(), frames_of(size, count)
        shown, losses = list(gazes_of(size, count)), RefinerLosses(model)
        at = [size.rewarded for _ in range(count)]
        return lambda: losses(frames, shown, at)["loss"].mean().backward(), [*model.parameters(), frames]

    return unit


def refiner_search(size: Size) -> Unit:
    model, frames = refiner_of(size.narrow), frames_of(size, 8)
    tried = torch.arange(16).expand(8, -1)

    def step() -> None:
        search = model.search(frames)
        search.open(0)
        search.errors(tried)

    return step, [*model.parameters(), frames]


def vision(size: Size) -> Unit:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    from autogaze.vision import GazedEncoder
    from autogaze.vision.families import FAMILIES

    widths = {"hidden_size": 48, "intermediate_size": 96} if size.narrow else {}
    config = SiglipVisionConfig(image_size=224, patch_size=16, vision_use_head=False, **widths)
    model = SiglipVisionModel(config).eval().requires_grad_(False)
    encoder = GazedEncoder(FAMILIES[0], model, ((0.5,) * 3, (0.5,) * 3), VOCABULARY.scales, "block_causal")
    frames, shown = frames_of(size), gazes_of(size)
    return lambda: encoder.encode(frames, shown), [*model.parameters(), frames]


UNITS: dict[str, Callable[[Size], Unit]] = {
    **{f"gaze-{count}": gaze(count) for count in (1, 12, 64)},
    **{f"gaze-{count}-eager": gaze(count, graphs=False) for count in (12, 64)},
    "gaze-12-stops": gaze(12, stops=True),
    "ntp-step": ntp_step,
    "rl-rollout": rl_rollout(1),
    "rl-rollout-8": rl_rollout(8),
    "rl-reward": rl_reward(1),
    "rl-reward-8": rl_reward(8),
    "rl-learner": rl_learner(1),
    "rl-learner-8": rl_learner(8),
    **{f"reconstructor-{count}": reconstructor(count) for count in (1, 8)},
    **{f"search-{count}": search_round(count) for count in (1, 8)},
    **{f"refiner-{count}": refiner(count) for count in (1, 8)},
    "refiner-search": refiner_search,
    "vision": vision,
}


def count(name: str, size: Size) -> Counting:
    """What one unit asks of a GPU."""
    torch.manual_seed(0)
    with as_graphs():
        unit, on_device = UNITS[name](size)
        unit()  # constants and the optimizer's state are made once
        for tensor in on_device:
            tensor.grad = None
        with Counting(on_device) as counted:
            unit()
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", nargs="+", default=list(UNITS), choices=list(UNITS))
    parser.add_argument("--narrow", action="store_true")
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument(
        "--calls", type=int, default=0, metavar="N", help="the N most frequent operations, and all waits"
    )
    parser.add_argument("--threads", type=int, default=1)
    Results.add_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = Results(options.json)
    rates = f"{LAUNCH_S * 1e6:.0f} us a launch, {BYTES_PER_S / 1e12:.2f} TB/s, {FLOPS_PER_S / 1e12:.0f} TFLOP/s"
    print(f"{rates}{'; narrow: bytes and operations are not those of the released sizes' if options.narrow else ''}")
    print(f"{'unit':15}{'launches':>9}{'in graphs':>10}{'waits':>7}{'GB':>8}{'TFLOP':>8}", end="")
    print(f"{'launch ms':>11}{'bytes ms':>10}{'FLOP ms':>9}")
    for name in options.units:
        began = time.perf_counter()
        counted = count(name, Size(options.narrow, options.frames))
        times = counted.launches * LAUNCH_S, counted.bytes / BYTES_PER_S, counted.flops / FLOPS_PER_S
        launch, memory, arithmetic = (f"{1000 * seconds:.2f}" for seconds in times)
        print(f"{name:15}{counted.launches:9,}{counted.in_graphs.total():10,}{counted.waits:7}", end="")
        print(
            f"{counted.bytes / 1e9:8.2f}{counted.flops / 1e12:8.3f}"
            f"{launch:>11}{memory:>10}{arithmetic:>9}   ({time.perf_counter() - began:.1f} s here)",
            flush=True,
        )
        if options.calls:
            for call, number in counted.calls.most_common(options.calls):
                print(f"    {number:7,} {call}")
            for call, number in counted.in_graphs.most_common(options.calls):
                print(f"    {number:7,} {call}, within graphs")
            print(f"    waits: {', '.join(f'{number} {call}' for call, number in counted.waited.most_common())}")
        facts = {"in_graphs": counted.in_graphs.total(), "waits": counted.waits}
        results.add(name, "launches", counted.launches, **facts, bytes=counted.bytes, flops=counted.flops)


if __name__ == "__main__":
    main()
