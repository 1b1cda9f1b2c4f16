"""What verified gaze costs and brings, beside the policy alone and greedy search alone, on the same clips in one run.

    python benchmarks/verified.py --data HELD_OUT_DATASET --policy CHECKPOINT --threshold 0.05 0.03 0.02

The clips of a dataset, one at a time and on one CPU thread, are gazed at in turns: by the policy, which stops where it
predicts the threshold; verified by canvas, with so many blocks after that (--go-on); and by greedy search. For each:
the share of frames whose measured error meets the threshold, patches a frame, seconds a clip, the factor over the
policy alone, and where the patches of a verified gaze come from. Every verified gaze is measured again by painting it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from autogaze import reconstruction, verified
from autogaze.gaze import Gaze
from autogaze.greedy import label
from autogaze.model import AutoGaze
from pipelines.dataset.shards import open_dataset
from pipelines.inspection.reading import read_clip

Way = Callable[[torch.Tensor], Gaze]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DATASET", help="of videos that did not train the policy")
    parser.add_argument("--policy", required=True, metavar="CHECKPOINT", help="a folder")
    parser.add_argument("--threshold", type=float, nargs="+", default=[0.05, 0.03, 0.02])
    parser.add_argument("--max-ratio", type=float, default=0.75)
    parser.add_argument("--go-on", type=int, nargs="+", default=[0, 1, 2], help="blocks")
    parser.add_argument("--clips", type=int, default=20)
    args = parser.parse_args()

    torch.set_num_threads(1)
    policy, canvas = AutoGaze.from_pretrained(args.policy), reconstruction.load("canvas")
    dataset = open_dataset(args.data)
    index = dataset.index()
    rows = index[index["outcome"] == "ok"].to_dict("records")
    # Evenly spread over the dataset, so over its videos.
    rows = [rows[n * len(rows) // args.clips] for n in range(args.clips)] if len(rows) > args.clips else rows
    clips = [torch.from_numpy(read_clip(dataset, row)[0])[None] for row in rows]
    print(f"{len(clips)} clips of {clips[0].shape[1]} frames, at most {args.max_ratio:g} of a frame's patches")
    print(f"{'threshold':>9}  {'':24}{'met':>7}{'patches':>9}{'s a clip':>10}{'cost':>7}  prefix, continuation, greedy")
    for threshold in args.threshold:
        limits = {"threshold": threshold, "max_ratio": args.max_ratio}
        ways: dict[str, Way] = {
            "policy alone": lambda clip, limits=limits: policy.gaze(
                clip, max_ratio=limits["max_ratio"], loss_threshold=limits["threshold"]
            )
        }
        for go_on in args.go_on:
            ways[f"verified, {go_on} blocks on"] = lambda clip, limits=limits, go_on=go_on: verified.gaze(
                clip, policy, canvas, **limits, go_on=go_on
            )
        ways["greedy alone"] = lambda clip, limits=limits: label(clip, canvas, **limits)
        show(threshold, ways, clips)


def show(threshold: float, ways: dict[str, Way], clips: list[torch.Tensor]) -> None:
    """A line of each way. Raises SystemExit if a stored error of a verified gaze is not that of painting it."""
    canvas = reconstruction.load("canvas")
    seconds = dict.fromkeys(ways, 0.0)
    found: dict[str, list[Gaze]] = {name: [] for name in ways}
    met = dict.fromkeys(ways, 0.0)
    for way in ways.values():
        way(clips[0][:, :1])
    for clip in clips:  # in turns, so that what else the machine does falls on all of them
        for name, way in ways.items():
            begin = time.process_time()
            gaze = way(clip)
            seconds[name] += time.process_time() - begin
            found[name].append(gaze)
            error = canvas.reconstruct(clip, gaze).error
            met[name] += float((error <= torch.tensor(threshold)).double().mean()) / len(clips)
            if gaze.origins is not None and not torch.equal(error, gaze.final()):
                raise SystemExit(f"{name}: a stored error is not that of its gaze")
    for name, gazes in found.items():
        patches = sum(float(gaze.lengths.double().mean()) for gaze in gazes) / len(gazes)
        cost = seconds[name] / seconds["policy alone"]
        line = f"{threshold:9g}  {name:24}{met[name]:7.1%}{patches:9.2f}{seconds[name] / len(clips):10.3f}{cost:7.2f}"
        origins = [gaze.origins for gaze in gazes if gaze.origins is not None]
        if origins:
            parts = torch.cat(origins).double().sum(dim=(0, 1))
            line += "  " + ", ".join(f"{part:.0%}" for part in (parts / parts.sum().clamp(min=1)).tolist())
        print(line, flush=True)


if __name__ == "__main__":
    main()
