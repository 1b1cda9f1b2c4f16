"""The public reference implementation (NVlabs/AutoGaze) on one case, in a process of its own; and the clock both share.

    PYTHON benchmarks/reference.py CHECKOUT < case.json

For benchmarks/generation.py and benchmarks/rl.py, which start it. CHECKOUT is a clone of the reference, PYTHON an
interpreter that has what it imports and uses (torch, transformers 4.57, einops, omegaconf, loguru); docs/benchmarks.md
says how to make one. It also imports wandb and timm, and uses neither here: where they are missing, something stands in
for them. Its package has the name of ours, so it is imported from CHECKOUT alone, and nothing of ours is. The case
comes as JSON, and so does the result, as the last line of the output; see `run_case`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor


def run_case(
    case: dict[str, Any],
    decoder: Any,
    parts: Sequence[Tensor],
    call: Callable[[Tensor], Any],
    save: Callable[[list[Any]], dict[str, np.ndarray]],
) -> dict[str, Any]:
    """Call on every part in turn, once to warm up and case["rounds"] times on the clock.

    decoder: tells a forward hook of its passes. parts: floats [B, T, 3, 224, 224], preprocessed. save: what the calls
    of a round gave -> arrays for case["out"].

    Returns the least seconds of process CPU and of wall time each part took, decoder passes in a round, and the most
    memory the process (on a GPU: the tensors) has had, in bytes.
    """
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    parts = [part.to(case["device"]) for part in parts]
    wait = torch.cuda.synchronize if case["device"].startswith("cuda") else lambda: None
    hook = decoder.register_forward_hook(count)
    results = [call(part) for part in parts]
    hook.remove()
    if case["out"]:
        np.savez(case["out"], **save(results))
    cpu, wall = [float("inf")] * len(parts), [float("inf")] * len(parts)
    for _ in range(case["rounds"]):
        for i, part in enumerate(parts):
            wait()
            began, cpu_began = time.perf_counter(), time.process_time()
            call(part)
            wait()
            cpu[i] = min(cpu[i], time.process_time() - cpu_began)
            wall[i] = min(wall[i], time.perf_counter() - began)
    return {"cpu": cpu, "wall": wall, "passes": calls, "peak": peak(case["device"])}


def load_parts(case: dict[str, Any]) -> list[Tensor]:
    """The case's clips, case["batch"] at a time. Only those are read, so that memory is the case's own."""
    clips = np.load(case["frames"], mmap_mode="r")
    starts = range(0, case["clips"], case["batch"])
    return [torch.from_numpy(clips[start : start + case["batch"]].copy()) for start in starts]


def peak(device: str) -> int:
    """Bytes. Of the process's own pages: getrusage would count those of the process that started it."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise SystemExit("no VmHWM in /proc/self/status: peak memory is read there, which needs Linux")


def reply(result: dict[str, Any]) -> None:
    print(json.dumps(result))


def padded(results: list[Any]) -> dict[str, np.ndarray]:
    """The gaze of each call, in the reference's layout."""
    names = ("gazing_pos", "num_gazing_each_frame", "if_padded_gazing")
    return {f"{name}_{i}": part[name].cpu().numpy() for i, part in enumerate(results) for name in names}


def scores(results: list[Any]) -> dict[str, np.ndarray]:
    (both,) = results
    return {name: tensor.detach().cpu().numpy() for name, tensor in zip(("log_probs", "losses"), both, strict=True)}


class StandIns:
    """Finds modules that are imported and never used: every name in them is there, and to use one is an error."""

    def __init__(self, *packages: str) -> None:
        self.packages = {name for name in packages if importlib.util.find_spec(name) is None}

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in self.packages:
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)

        def unused(*given: Any, **named: Any) -> Any:
            raise ModuleNotFoundError(f"{spec.name} is used after all: install it for the reference's Python")

        module.__getattr__ = lambda name: _absent(name) if name.startswith("__") else unused  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        return None


def _absent(name: str) -> Any:
    raise AttributeError(name)


def main() -> None:
    checkout = sys.argv[1]
    case = json.loads(sys.stdin.read())
    sys.path.insert(0, checkout)
    sys.meta_path.append(StandIns("wandb", "timm"))  # type: ignore[arg-type]
    from autogaze.models.autogaze import AutoGaze  # type: ignore[import-not-found]  # the reference's, not ours

    torch.set_num_threads(case.get("threads", 1))
    model = AutoGaze.from_pretrained(case["weights"]).eval().to(case["device"])
    limits: dict[str, Any] = {"gazing_ratio": case["max_ratio"]}
    if case["loss_threshold"] is not None:
        limits["task_loss_requirement"] = case["loss_threshold"]

    @torch.no_grad()
    def gaze(clips: Tensor) -> Any:
        return model({"video": clips}, generate_only=True, **limits)

    @torch.no_grad()
    def stream(clips: Tensor) -> Any:
        past: dict[str, Any] = {}
        frames = []
        for t in range(clips.shape[1]):
            out = model({"video": clips[:, t : t + 1]}, generate_only=True, use_cache=True, **limits, **past)
            past = {f"past_{name}": out[f"past_{name}"] for name in ("key_values", "attention_mask", "conv_values")}
            past["past_inputs_embeds"] = out["past_input_embeds"]
            frames.append(out)
        size = model.num_vision_tokens_each_frame
        return {  # each frame's ids start at 0 here
            "gazing_pos": torch.cat([frame["gazing_pos"] + size * t for t, frame in enumerate(frames)], dim=1),
            "num_gazing_each_frame": torch.cat([frame["num_gazing_each_frame"] for frame in frames]),
            "if_padded_gazing": torch.cat([frame["if_padded_gazing"] for frame in frames], dim=1),
        }

    def score(clips: Tensor) -> tuple[Tensor, Tensor]:
        out = model({"video": clips}, gazing_info=dict(given))
        return out["log_action_probs"], out["task_loss_prediction"]

    def train(clips: Tensor) -> tuple[Tensor, Tensor]:
        model.zero_grad()
        both = score(clips)
        (both[0].sum() + both[1].sum()).backward()
        return both

    def rl(clip: Tensor) -> None:
        """A step of its RL: a clip as often as the group is large, sampled, scored, learned from. Rewards cost nothing
        here: they are made up."""
        clips = clip.repeat(case["group"], 1, 1, 1, 1)
        slots = torch.full((clips.shape[1],), case["slots"])
        drawn = model.gazing_model.generate(
            clips, max_gaze_tokens_each_frame=slots, do_sample=True, temperature=1.0, top_k=50
        )
        out = model({"video": clips}, gazing_info=drawn)
        log_probs, losses = out["log_action_probs"], out["task_loss_prediction"]
        rewards = torch.linspace(-1, 1, case["group"])[:, None]
        loss = -(rewards * (log_probs - log_probs.detach()).exp()).mean() + (losses - rewards).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    if case["mode"] in ("score", "train"):
        given = {name: torch.from_numpy(array).to(case["device"]) for name, array in np.load(case["gaze"]).items()}
    calls = {"gaze": gaze, "stream": stream, "score": torch.no_grad()(score), "train": train, "rl": rl}
    save = padded if case["mode"] in ("gaze", "stream") else scores
    reply(run_case(case, model.gazing_model.gaze_decoder, load_parts(case), calls[case["mode"]], save))


if __name__ == "__main__":
    main()
