"""How near features of few patches come to those of full frames, before and after distillation, in one run.

    python benchmarks/distillation.py --encoder build/dinov2-small --student RUN/checkpoints/step-000100/encoder \
        --corpus VIDEOS

The target is --encoder on full frames, each alone. Beside it, with the same gaze and the same attention: --encoder as
it is, and --student, which `autogaze train encoder` made of it. Frame 0 in full, then a share of the finest patches for
every other frame. Videos: 16 frames evenly spaced, at most --stride frames apart, seen whole.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from vision import FRAMES, VIDEOS, clip_of

from autogaze.gaze import Gaze
from autogaze.vision import GazedEncoder, load
from autogaze.vision.agreement import agreement
from autogaze.vision.attention import MODES
from autogaze.vision.choose import random_places, stalest

MEASURES = ("own", "dense", "pooled")


def gazes_of(name: str, clip: np.ndarray, share: float, encoder: GazedEncoder) -> dict[str, Gaze]:
    """One clip's gazes by the way they are chosen, of a share of the finest patches after frame 0."""
    finest, vocabulary = encoder.vocabulary.counts[-1], encoder.vocabulary
    lengths = np.full((1, FRAMES), int(share * finest + 0.5))
    lengths[:, 0] = finest
    return {
        "random": random_places(clip[None], lengths, [name], vocabulary=vocabulary),
        "stalest": stalest(clip[None], lengths, vocabulary=vocabulary),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True, help="folder of the checkpoint that was distilled")
    parser.add_argument("--student", required=True, help="folder of what came of it")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of videos, none of them trained on")
    parser.add_argument("--scales", type=int, nargs="+", default=[56, 112, 224])
    parser.add_argument("--attention", default="newest", choices=MODES)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.25], help="of later frames")
    parser.add_argument("--stride", type=int, default=8, help="most frames between two of a clip")
    parser.add_argument("--every", type=int, default=1, help="take every so-manieth video")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    before = load(options.encoder, options.scales, options.attention)
    encoders = {"before": before, "after": load(options.student, options.scales, options.attention)}
    full_encoder = before.sharing(attention="frame")
    rows: dict[tuple[float, str], dict[str, list[list[float]]]] = {}
    clips = 0
    for path in [path for path in sorted(options.corpus.rglob("*")) if path.suffix in VIDEOS][:: options.every]:
        clip = clip_of(path, before.vocabulary.frame_size, options.stride)
        if clip is None:
            continue
        clips += 1
        full = full_encoder.encode(clip[None])
        for share in options.shares:
            for name, gaze in gazes_of(path.name, clip, share, before).items():
                row = rows.setdefault((share, name), {"before": [], "after": [], "tokens": []})
                row["tokens"].append([float(len(gaze.tokens))])
                for when, encoder in encoders.items():
                    found = agreement(full, encoder.encode(clip[None], gaze))
                    row[when].append([float(value) for value in (found.tokens, found.dense, found.pooled)])
        print(f"{path.name}: done", flush=True)
    print(f"{clips} clips, attention {options.attention}: means after distillation, (before), and in how many better")
    print(f"{'a frame':>8} {'gaze':>10} {'tokens':>7}" + "".join(f"{name:>24}" for name in MEASURES))
    for (share, name), row in rows.items():
        after, start = np.array(row["after"]), np.array(row["before"])
        tokens = round(float(np.mean(row["tokens"])))
        cells = [
            f"{a:10.3f} ({b:.3f}) {int(n):2d}/{clips:<2d}"
            for a, b, n in zip(
                np.nanmean(after, axis=0), np.nanmean(start, axis=0), (after > start).sum(axis=0), strict=True
            )
        ]
        print(f"{share:8.0%} {name:>10} {tokens:7d}" + "".join(f"{cell:>24}" for cell in cells))


if __name__ == "__main__":
    main()
