"""A vision transformer on gazed patches: how fast beside the whole network, and how near its features come.

    python benchmarks/vision.py speed                                        # base size, one CPU thread
    python benchmarks/vision.py speed --device cuda --dtype bfloat16 --clips 16
    python benchmarks/vision.py fidelity --encoder build/dinov2-small --corpus VIDEOS
    python benchmarks/vision.py picture --encoder build/dinov2-small --corpus VIDEO --output features.png
    python benchmarks/vision.py memory --frames 128 --layers 1

speed: a SigLIP of base size (768 wide, 12 layers, 12 heads, 224/16, random weights) on clips of 16 frames of a moving
picture, all ways in turns, the least time of the rounds (CPU seconds of one thread; on a GPU wall time, synchronised).
`dense` is transformers' own model on all patches of all frames. `gazed` encodes a gaze that is there already; `end to
end` chooses it too (greedy on canvas, exactly so many tokens). ToMe and frame subsampling see as many tokens.

fidelity: features of full frames beside those of gazed ones, at equal tokens: frame 0 in full, then a share of the
patches of every other frame. benchmarks/dinov2_small.py makes an encoder. Videos: 16 frames evenly spaced, at most
--stride frames apart.

picture: feature maps of full and gazed frames of one video, in the colours of their principal components.

memory: the peak of a base-size network on frames of 1,360 patches.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import torch
import transformers
from PIL import Image

from autogaze import greedy
from autogaze.gaze import Gaze
from autogaze.lengths import mean_lengths
from autogaze.patches import VOCABULARY
from autogaze.reconstruction.canvas import Canvas
from autogaze.vision import GazedEncoder, TokenFeatures, gaze_and_encode, load
from autogaze.vision.agreement import agreement, cosine, every_nth_frame, retrieval
from autogaze.vision.attention import MODES
from autogaze.vision.choose import changed_most, random_places, stalest
from autogaze.vision.colours import Colours
from autogaze.vision.families import FAMILIES
from autogaze.vision.merging import least_share, merge, tokens_per_layer, within_reach

FRAMES = 16
RATIOS = (0.02, 0.068, 0.125, 0.25, 0.5)
VIDEOS = {".mp4", ".mkv", ".avi", ".webm", ".mov"}


def base_encoder(
    options: argparse.Namespace, layers: int = 12, scales: tuple[int, ...] = VOCABULARY.scales
) -> GazedEncoder:
    """SigLIP of base size with random weights, which take as long as trained ones."""
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(
        image_size=224, patch_size=16, num_hidden_layers=layers, vision_use_head=False
    )
    model = transformers.SiglipVisionModel(config).eval().requires_grad_(False)
    model.to(options.device, getattr(torch, options.dtype))
    return GazedEncoder(FAMILIES[0], model, ((0.5,) * 3, (0.5,) * 3), scales, options.attention)


def moving_clips(clips: int, size: int = 224) -> np.ndarray:
    """uint8 [clips, 16, size, size, 3]: a window that moves slowly over a texture, and a disc that crosses it."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (clips, size // 16 + 4, size // 16 + 4, 3), np.uint8)
    texture = coarse.repeat(16, axis=1).repeat(16, axis=2) // 2 + 64
    out = np.empty((clips, FRAMES, size, size, 3), np.uint8)
    y, x = np.ogrid[:size, :size]
    for t in range(FRAMES):
        out[:, t] = texture[:, t // 4 : t // 4 + size, t // 4 : t // 4 + size]
        disc = (y - size / 2) ** 2 + (x - size * (t + 1) / (FRAMES + 1)) ** 2 < (size / 8) ** 2
        out[:, t, disc] = (250, 200, 40)
    return out


def least_time(ways: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Seconds of each way, the least of all rounds, the ways in turns."""

    def once(way: Callable[[], object]) -> float:
        if device == "cpu":
            began = time.process_time()
            way()
            return time.process_time() - began
        torch.cuda.synchronize()
        began = time.perf_counter()
        way()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    for way in ways.values():
        if device != "cpu":
            way()  # warm
    found = {name: [once(way)] for name, way in ways.items()}
    for _ in range(rounds - 1):
        for name, way in ways.items():
            found[name].append(once(way))
    return {name: min(seconds) for name, seconds in found.items()}


def speed(options: argparse.Namespace) -> None:
    encoder = base_encoder(options)
    clips = moving_clips(options.clips)
    frames = torch.from_numpy(clips).to(options.device)
    canvas = Canvas(VOCABULARY)
    floats = frames.flatten(0, 1).movedim(-1, 1).to(encoder.dtype) / 127.5 - 1

    def dense() -> object:
        with torch.inference_mode():
            return encoder.model(pixel_values=floats)

    patches = FRAMES * VOCABULARY.counts[-1]
    print(
        f"{options.clips} clip(s) of {FRAMES} frames, {options.dtype} on {options.device}, attention"
        f" {options.attention}; dense: {patches} patches a clip",
        flush=True,
    )
    whole = least_time({"dense": dense}, options.rounds, options.device)["dense"]
    print(f"{'':>16} tokens a clip  seconds   beside dense\n{'dense':>16} {patches:13d} {whole:8.3f}", flush=True)
    for ratio in options.ratios:
        total = round(ratio * patches)
        lengths = mean_lengths(total / (FRAMES * VOCABULARY.size), FRAMES).expand(options.clips, -1)

        def gazer(some: np.ndarray, lengths: torch.Tensor = lengths) -> Gaze:
            return greedy.label(torch.from_numpy(some).to(options.device), canvas, lengths=lengths[: len(some)])

        gaze = gazer(clips)
        sampled = every_nth_frame(options.clips, FRAMES, total, VOCABULARY)
        ways: dict[str, Callable[[], object]] = {
            "gazed": lambda gaze=gaze: encoder.encode(frames, gaze),  # type: ignore[misc]
            "end to end": lambda gazer=gazer: gaze_and_encode(frames, gazer, encoder),  # type: ignore[misc]
            "every nth frame": lambda sampled=sampled: encoder.encode(frames, sampled),  # type: ignore[misc]
        }
        tokens = {name: int(gaze.counts()[0]) for name in ways} | {"every nth frame": int(sampled.counts()[0])}
        kept = tokens_per_layer(VOCABULARY.counts[-1], 12, ratio)
        if within_reach(encoder, ratio):
            ways["ToMe"] = lambda ratio=ratio: merge(encoder, frames, ratio)  # type: ignore[misc]
            tokens["ToMe"] = round(FRAMES * sum(kept) / len(kept))
        print(f"at {ratio:.1%} of the patches")
        for name, seconds in least_time(ways, options.rounds, options.device).items():
            print(f"{name:>16} {tokens[name]:13d} {seconds:8.3f} {whole / seconds:10.1f}x", flush=True)
    least = sum(tokens_per_layer(VOCABULARY.counts[-1], 12, 0.0)) / (12 * VOCABULARY.counts[-1])
    print(f"ToMe merges at most {least_share():.0%} of a layer's tokens: its MLPs see {least:.1%} on average or more")


def clip_of(path: Path, size: int, stride: int) -> np.ndarray | None:
    """16 frames of a video, evenly spaced, squashed: uint8 [16, size, size, 3]; None if it has fewer."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        count = sum(1 for _ in container.decode(video=0))
    step = min(stride, (count - 1) // (FRAMES - 1))
    if step < 1:
        return None
    wanted, found = {step * n for n in range(FRAMES)}, []
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                image = Image.fromarray(frame.to_ndarray(format="rgb24"))
                found.append(np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)))
            if len(found) == FRAMES:
                return np.stack(found)
    return None


WAYS = (
    ("random", "block_causal"),
    ("canvas", "block_causal"),
    ("canvas", "first_frame"),
    ("canvas", "newest"),
    ("contrast", "newest"),
    ("stalest", "newest"),
    ("every nth", "frame"),
)
"""Choice and attention of what `fidelity` compares."""


@dataclass
class Found:
    """What was measured of one way at one share, clip by clip."""

    tokens: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cosines: list[torch.Tensor] = field(default_factory=list)  # [3]: own, dense, pooled
    pooled: list[torch.Tensor] = field(default_factory=list)  # [1, D]

    def add(self, full: TokenFeatures, out: TokenFeatures, tokens: float, seconds: float, own: bool = True) -> None:
        found = agreement(full, out)
        self.cosines.append(torch.cat((found.tokens if own else found.tokens * torch.nan, found.dense, found.pooled)))
        self.pooled.append(out.pool().clips)
        self.tokens.append(tokens)
        self.seconds.append(seconds)


def lengths_of(share: float, finest: int) -> np.ndarray:
    """Frame 0 in full, and a share of the finest patches, rounded down, in every other frame: [1, FRAMES]."""
    lengths = np.full((1, FRAMES), int(share * finest))
    lengths[:, 0] = finest
    return lengths


def fidelity(options: argparse.Namespace) -> None:
    encoder = load(options.encoder, scales=options.scales, device=options.device, dtype=getattr(torch, options.dtype))
    vocabulary, alone = encoder.vocabulary, encoder.sharing(attention="frame")
    size, finest = vocabulary.frame_size, vocabulary.counts[-1]
    paths = [options.corpus] if options.corpus.is_file() else sorted(options.corpus.rglob("*"))
    paths = [path for path in paths if path.suffix in VIDEOS][:: options.every]
    rows: dict[tuple[float, str], Found] = {}
    targets, still = [], []
    for path in paths:
        frames = clip_of(path, size, options.stride)
        if frames is None:
            continue
        frames = frames[None]
        full = alone.encode(frames)
        target = full.dense()
        targets.append(full.pool().clips)
        still.append(float(cosine(target[:, :1].expand_as(target), target).mean()))
        for share in options.shares:
            lengths = lengths_of(share, finest)
            gazes = {
                "random": random_places(frames, lengths, [path.name], vocabulary=vocabulary),
                "canvas": changed_most(frames, lengths, vocabulary=vocabulary, contrast=False),
                "contrast": changed_most(frames, lengths, vocabulary=vocabulary),
                "stalest": stalest(frames, lengths, vocabulary=vocabulary),
                "every nth": every_nth_frame(1, FRAMES, int(lengths.sum()), vocabulary),
            }
            for name, mode in WAYS:
                began = time.process_time()
                out = encoder.sharing(attention=mode).encode(frames, gazes[name])
                took = time.process_time() - began
                rows.setdefault((share, f"{name}, {mode}"), Found()).add(full, out, len(out.tokens), took)
            total = float(lengths.sum()) / (FRAMES * finest)
            if within_reach(alone, total):
                began = time.process_time()
                merged = merge(alone, frames, total)
                took = time.process_time() - began
                tokens = FRAMES * merged.tokens_per_frame
                rows.setdefault((share, "ToMe"), Found()).add(full, merged.features, tokens, took, own=False)
        now = ", ".join(f"{share:.0%} {name} {found.cosines[-1][1]:.3f}" for (share, name), found in rows.items())
        print(f"{path.name}: dense map of frame 0 carried on {still[-1]:.3f}; {now}", flush=True)
    if not targets:
        raise SystemExit(f"{options.corpus} holds no video of {FRAMES} frames or more")
    everything = torch.cat(targets)
    print("own: cosine of gazed finest patches; dense: of dense maps; pooled: of clips; found: share nearest to itself")
    print(f"{len(targets)} clips; dense map of frame 0 carried on: {np.mean(still):.3f}")
    print(
        f"{'a frame':>8} {'gaze, attention':>26} {'tokens':>7} {'own':>6} {'dense':>6} {'pooled':>7} {'found':>6}"
        f" {'CPU s':>6}"
    )
    for (share, name), found in rows.items():
        own, dense, pool = torch.stack(found.cosines).mean(dim=0).tolist()
        hit = retrieval(torch.cat(found.pooled), everything).first if len(everything) > 1 else float("nan")
        print(
            f"{share:8.0%} {name:>26} {np.mean(found.tokens):7.0f} {own:6.3f} {dense:6.3f} {pool:7.3f} {hit:6.2f}"
            f" {np.mean(found.seconds):6.2f}"
        )


def picture(options: argparse.Namespace) -> None:
    """Frames 3, 7, 11 and 15 of one video: pixels, features of full frames, and of gazed ones at each share."""
    encoder = load(options.encoder, scales=options.scales, attention="newest", device=options.device)
    size, finest = encoder.vocabulary.frame_size, encoder.vocabulary.counts[-1]
    clip = clip_of(options.corpus, size, options.stride)
    if clip is None:
        raise SystemExit(f"{options.corpus} has fewer than {FRAMES} frames")
    full = encoder.sharing(attention="frame").encode(clip[None]).dense()[0]
    colours = Colours.of(full)
    rows = [clip, np.asarray(colours(full))]
    for share in options.shares:
        gaze = stalest(clip[None], lengths_of(share, finest), vocabulary=encoder.vocabulary)
        rows.append(np.asarray(colours(encoder.encode(clip[None], gaze).dense()[0])))
    cells = [[np.asarray(Image.fromarray(row[t]).resize((160, 160), 0)) for t in (3, 7, 11, 15)] for row in rows]
    Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in cells])).save(options.output)


def memory(options: argparse.Namespace) -> None:
    encoder = base_encoder(options, options.layers, (64, 128, 256, 512))
    size = encoder.vocabulary.size
    gaze = Gaze(
        tokens=torch.arange(size).repeat(options.frames),
        lengths=torch.full((1, options.frames), size),
        vocabulary=encoder.vocabulary,
    )
    frames = np.zeros((1, options.frames, 256, 256, 3), np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.process_time()
    out = encoder.encode(frames, gaze)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{options.frames} frames x {size} tokens, {options.layers} layer(s), {options.attention}: {len(out.tokens):,}"
        f" tokens, peak {peak / 1e9:.2f} GB ({before / 1e9:.2f} GB before), {time.process_time() - began:.0f} CPU s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "fidelity", "picture", "memory"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--attention", default="block_causal", choices=MODES)
    parser.add_argument("--clips", type=int, default=1, help="speed: clips encoded at once")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS, help="speed: shares of all patches")
    parser.add_argument("--encoder", help="fidelity: folder of a checkpoint")
    parser.add_argument("--scales", type=int, nargs="+", default=[56, 112, 224], help="fidelity: of the encoder")
    parser.add_argument("--corpus", type=Path, help="fidelity: folder of videos; picture: one video")
    parser.add_argument("--output", type=Path, default=Path("features.png"), help="picture: where to write it")
    parser.add_argument("--every", type=int, default=1, help="fidelity: take every so-manieth video")
    parser.add_argument("--stride", type=int, default=8, help="fidelity: most frames between two of a clip")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.25], help="fidelity: of later frames")
    parser.add_argument("--frames", type=int, default=128, help="memory: of the clip")
    parser.add_argument("--layers", type=int, default=12, help="memory: of the network")
    options = parser.parse_args()
    if options.what in ("fidelity", "picture") and not (options.encoder and options.corpus):
        parser.error(f"{options.what} needs --encoder FOLDER and --corpus PATH")
    torch.set_num_threads(options.threads)
    {"speed": speed, "fidelity": fidelity, "picture": picture, "memory": memory}[options.what](options)


if __name__ == "__main__":
    main()
