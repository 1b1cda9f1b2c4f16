"""Where a GPU's time goes in one unit of work: what was launched, how often the host waited, how long kernels ran.

    python benchmarks/gpu_profile.py --device cuda            # gaze of 64 clips, a training step

By PyTorch's profiler, after two runs to warm up. "busy" is the share of the unit's time in which a kernel or copy ran;
the rest the GPU waited for the host. On a CPU operators are counted instead, and there is nothing to be busy.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from clips import clips, labelled
from results import Results
from torch.profiler import ProfilerActivity, profile

from autogaze.gaze import Gaze
from autogaze.model import AutoGaze, AutoGazeConfig
from autogaze.objectives import next_token_loss

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch", type=int, default=64, help="clips")
    parser.add_argument("--data", metavar="DATASET", help="a dataset whose clips are used; default: drawn ones")
    parser.add_argument("--units", nargs="+", default=list(UNITS), choices=list(UNITS))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--top", type=int, default=8, help="kernels to list")
    Results.add_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    frames, _ = clips(options.batch, options.data)
    results = Results(options.json)
    for name in options.units:
        unit = UNITS[name](frames, options.device, getattr(torch, options.dtype))
        report(name, unit, options, results)


def report(name: str, unit: Callable[[], Any], options: argparse.Namespace, results: Results) -> None:
    cuda = options.device != "cpu"
    wait: Callable[[], Any] = torch.cuda.synchronize if cuda else lambda: None
    for _ in range(2):
        unit()
    wait()
    began = time.perf_counter()
    unit()
    wait()
    wall = time.perf_counter() - began
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        unit()
        wait()
    calls: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    busy = 0.0
    for event in seen.events():
        on_device = "CUDA" in str(event.device_type)
        if on_device:
            kernels[event.name] += event.time_range.elapsed_us()
            busy += event.time_range.elapsed_us() / 1e6
        else:
            calls[event.name] += 1
    launches, graphs = sum(calls[call] for call in LAUNCHES), calls["cudaGraphLaunch"]
    waits, copies = sum(calls[call] for call in WAITS), calls["cudaMemcpyAsync"]
    if not cuda:
        operators = sum(count for call, count in calls.items() if call.startswith("aten::"))
        print(
            f"{name}, batch {options.batch}, {options.dtype}: {wall * 1000:.1f} ms; {operators:,} operators", flush=True
        )
        results.add(f"profile: {name}", "ms", wall * 1000, operators=operators, batch=options.batch)
        return
    print(
        f"{name}, batch {options.batch}, {options.dtype}: {wall * 1000:.1f} ms; {launches:,} launches, {graphs} graphs,"
        f" {copies:,} copies, {waits} waits of the host, kernels run {busy * 1000:.1f} ms, {busy / wall:.0%} of it",
        flush=True,
    )
    for kernel, microseconds in kernels.most_common(options.top):
        print(f"  {microseconds / 1000:9.2f} ms  {kernel[:100]}")
    facts = {"launches": launches, "graphs": graphs, "copies": copies, "waits": waits, "busy": busy / wall}
    results.add(f"profile: {name}", "ms", wall * 1000, **facts, batch=options.batch)


def gaze(frames: np.ndarray, device: str, dtype: torch.dtype, graphs: bool) -> Callable[[], Any]:
    policy = AutoGaze(AutoGazeConfig(), cuda_graphs=graphs).to(device, dtype).eval()
    images = torch.from_numpy(frames).to(device)
    return lambda: policy.gaze(images, max_ratio=0.1)


def training_step(frames: np.ndarray, device: str, dtype: torch.dtype) -> Callable[[], Any]:
    policy = AutoGaze(AutoGazeConfig()).to(device).train()
    optimizer, some = torch.optim.AdamW(policy.parameters(), lr=1e-4), frames[:8]
    images, labels = torch.from_numpy(some), labelled(some[:1], 26, device)
    labels = Gaze.cat([labels] * len(some))
    valid = ~labels.padded()["if_padded_gazing"].to(device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            scores = policy.score(images.to(device), labels)
        loss = next_token_loss(scores.log_probs.float(), valid).mean() + scores.loss_predictions.square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


UNITS: dict[str, Callable[..., Callable[[], Any]]] = {
    "gaze": lambda frames, device, dtype: gaze(frames, device, dtype, True),
    "gaze without graphs": lambda frames, device, dtype: gaze(frames, device, dtype, False),
    "training step of 8": training_step,
}


if __name__ == "__main__":
    main()
