"""What a threshold of canvas looks like and costs: the evidence for its default, in figures and in pictures.

    python benchmarks/thresholds.py --corpus VIDEOS --clips 20 --sheet thresholds.png

Greedy gaze of the first 16 frames of some videos, at each threshold. The sheet shows the last frame of each clip as it
was, and as each threshold leaves it.

fewer    than the 265 multi-scale patches of a frame, and than the 196 tokens that a ViT with 16-pixel patches reads.
blank    share of the last frame that no patch of the clip has ever painted; a reconstruction shows it grey.
worst    mean absolute difference in the worst of the 7 x 7 parts of the last frame, mean over clips: what the eye sees.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from clips import decoded
from PIL import Image, ImageDraw

from autogaze import greedy, reconstruction
from autogaze.gaze import Gaze
from autogaze.patches import VOCABULARY
from jobs.pictures.lettering import draw_text

THRESHOLDS = (0.05, 0.04, 0.03, 0.025, 0.02, 0.015, 0.01)
SIDE, VIT_TOKENS = VOCABULARY.frame_size, VOCABULARY.counts[-1]  # the finest scale: every 16-pixel patch of the frame


def blank(gaze: Gaze) -> float:
    """Share of the last frame that no patch has painted."""
    painted = np.zeros((gaze.clips, SIDE, SIDE), bool)
    for clip in range(gaze.clips):
        for token in {token for frame in gaze.frames(clip) for token in frame}:
            top, left, bottom, right = VOCABULARY.box(token)
            painted[clip, top:bottom, left:right] = True
    return 1 - float(painted.mean())


def worst(rebuilt: np.ndarray, frames: np.ndarray) -> float:
    """Error, 0 to 1, of the worst 32x32 part of each frame [B, S, S, 3], mean over frames."""
    error = np.abs(rebuilt.astype(np.float32) - frames).mean(axis=-1) / 255
    parts = error.reshape(len(frames), SIDE // 32, 32, SIDE // 32, 32).mean(axis=(2, 4))
    return float(parts.reshape(len(frames), -1).max(axis=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder of videos")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--thresholds", type=float, nargs="+", default=list(THRESHOLDS))
    parser.add_argument("--sheet", help="PNG to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    canvas, clips = reconstruction.load("canvas"), decoded(arguments.corpus, arguments.clips)
    print(f"{len(clips)} clips of {clips.shape[1]} frames, first of each video in {arguments.corpus}")
    print("threshold  patches a frame  of 265  fewer  fewer than ViT  error  worst part  blank")
    columns = [("original", clips[:, -1])]
    for threshold in arguments.thresholds:
        gazes, rebuilt = [], []
        for clip in clips:
            gazes.append(greedy.label(clip[None], canvas, threshold=threshold, max_ratio=0.75))
            rebuilt.append(canvas.reconstruct(clip[None], gazes[-1], [clips.shape[1] - 1]).pixels[0, 0].numpy())
        gaze, last = Gaze.cat(gazes), np.stack(rebuilt)
        count, error = float(gaze.lengths.double().mean()), float(gaze.final().mean())
        print(
            f"{threshold:9g}{count:17.2f}{count / VOCABULARY.size:9.2%}{VOCABULARY.size / count:7.1f}"
            f"{VIT_TOKENS / count:16.1f}{error:7.4f}{worst(last, clips[:, -1]):12.3f}{blank(gaze):7.1%}",
            flush=True,
        )
        columns.append((f"{threshold:g}: {count:.1f} a frame", last))
    if arguments.sheet:
        sheet = Image.new("RGB", (len(columns) * SIDE, len(clips) * SIDE + 24))
        for number, (name, pictures) in enumerate(columns):
            draw_text(ImageDraw.Draw(sheet), (number * SIDE + 6, 4), name, 14)
            for row, picture in enumerate(pictures):
                sheet.paste(Image.fromarray(picture), (number * SIDE, 24 + row * SIDE))
        sheet.save(arguments.sheet)


if __name__ == "__main__":
    main()
