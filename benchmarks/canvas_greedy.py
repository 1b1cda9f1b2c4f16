"""How fast greedy labels on the canvas reconstructor are, on one thread, beside the plain implementation of the tests.

    python benchmarks/canvas_greedy.py --corpus /data/videos
    python benchmarks/canvas_greedy.py --device cuda --data DATASET --batch 64 256 --plain 0      # on a GPU

Decodes the first 16 frames of a sample of the videos (PyAV, scaled to 224x224), which is not timed, labels them in
batches, and prints frames/s. Then the plain implementation labels a few of the same clips in the same run, its gaze is
checked to be equal, and the factor is printed. A frame that needs no token is cheap, so the rate depends on how still
the footage is: tokens per frame and the share of frames without any are printed too. With --data the clips are those
of a dataset, over again where there are fewer. On a GPU the gaze must equal the CPU's, bit for bit.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from clips import clips as clips_of
from results import Results

from autogaze.gaze import Gaze
from autogaze.greedy import label
from autogaze.patches import VOCABULARY
from autogaze.reconstruction import load

FRAMES = 16


def decode(path: Path) -> np.ndarray | None:
    """The first 16 frames as uint8 [16, 224, 224, 3]; None if there are fewer."""
    import av

    size = VOCABULARY.frame_size
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            frames.append(frame.reformat(size, size, format="rgb24").to_ndarray())
            if len(frames) == FRAMES:
                return np.stack(frames)
    return None


def sample(corpus: Path, count: int) -> np.ndarray:
    """uint8 [clips, 16, 224, 224, 3]: one clip of each of `count` videos, evenly spread over the sorted folder."""
    videos = sorted(path for path in corpus.iterdir() if path.is_file())
    if not videos:
        raise SystemExit(f"no files in {corpus}")
    picked = [videos[i] for i in np.linspace(0, len(videos) - 1, min(count, len(videos))).astype(int)]
    clips = [clip for clip in map(decode, picked) if clip is not None]
    print(f"{len(clips)} clips of {FRAMES} frames from {corpus}")
    return np.stack(clips)


def label_all(clips: torch.Tensor, batch: int, threshold: float) -> Gaze:
    """The gaze of all clips, `batch` at a time, on the device they are on."""
    canvas = load("canvas")
    return Gaze.cat([label(part, canvas, threshold=threshold) for part in clips.split(batch)])


def same(one: Gaze, other: Gaze) -> bool:
    """Whether two gazes are equal, losses bit for bit."""
    parts = ("tokens", "lengths", "losses", "initial")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in parts)


def plain_greedy_of_the_tests():
    """The function in tests/autogaze/plain_greedy.py."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.autogaze.plain_greedy import plain_greedy

    return plain_greedy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="folder of videos")
    parser.add_argument("--clips", type=int, default=64, help="videos to take a clip of (default 64)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64], help="clips labelled together")
    parser.add_argument("--threshold", type=float, nargs="+", default=[0.05, 0.02], help="error to reach, 0 to 1")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many runs counts (default 3)")
    parser.add_argument("--plain", type=int, default=4, help="clips for the plain implementation; 0: none (default 4)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--data", metavar="DATASET", help="a dataset whose clips are used; drawn: drawn ones")
    Results.add_option(parser)
    args = parser.parse_args()
    if not args.corpus and not args.data:
        parser.error("give --corpus FOLDER, any folder of videos, or --data")

    torch.set_num_threads(1)
    results = Results(args.json)
    if args.data:
        found, what = clips_of(args.clips, None if args.data == "drawn" else args.data)
        print(what)
    else:
        found = sample(args.corpus, args.clips)
    clips = torch.from_numpy(found).to(args.device)
    frames, few = clips.shape[0] * FRAMES, clips[:4]
    for threshold in args.threshold:
        for batch in args.batch:
            seconds = []
            for _ in range(args.repeats):
                begin = time.perf_counter()
                gaze = label_all(clips, batch, threshold)
                seconds.append(time.perf_counter() - begin)
            empty = float((gaze.lengths == 0).double().mean())
            print(
                f"threshold {threshold}  batch {batch:3d}: {frames / min(seconds):7.0f} frames/s"
                f"  ({len(gaze.tokens) / frames:.2f} tokens/frame, {empty:.0%} of frames without,"
                f" {float(gaze.met(threshold).double().mean()):.1%} met)"
            )
            facts = {"threshold": threshold, "batch": batch, "tokens_a_frame": len(gaze.tokens) / frames}
            results.add("canvas greedy", "clips/s", len(clips) / min(seconds), **facts)
        if args.device != "cpu":
            equal = same(label_all(few, len(few), threshold), label_all(few.cpu(), len(few), threshold))
            print(
                f"threshold {threshold}: the gaze of {len(few)} clips {'equals' if equal else 'DIFFERS FROM'} the CPU's"
            )
            if not equal:
                raise SystemExit(1)

    if args.plain:
        plain_greedy, threshold = plain_greedy_of_the_tests(), args.threshold[0]
        subset = clips[np.linspace(0, len(clips) - 1, args.plain).astype(int).tolist()]
        begin = time.perf_counter()
        ours = label_all(subset, len(subset), threshold)
        our_rate = subset.shape[0] * FRAMES / (time.perf_counter() - begin)
        begin = time.perf_counter()
        plain = [
            plain_greedy(clip, VOCABULARY.scales, VOCABULARY.patch_size, threshold) for clip in subset.cpu().numpy()
        ]
        plain_rate = subset.shape[0] * FRAMES / (time.perf_counter() - begin)
        equal = all(tokens == ours.frames(b) for b, (tokens, _, _) in enumerate(plain))
        print(
            f"{len(subset)} clips, threshold {threshold}: ours {our_rate:.0f} frames/s, plain {plain_rate:.2f} frames/s"
        )
        print(f"factor {our_rate / plain_rate:.0f}x, gaze {'equal' if equal else 'DIFFERENT'}")
        if not equal:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
