"""How fast `autogaze encode` makes features of a gaze dataset, beside plain transformers on all patches.

    python benchmarks/encode.py --data GAZE --shards 2                          # SigLIP of base size, random weights
    python benchmarks/encode.py --data GAZE --encoder build/dinov2-small --scales 28+56+112+224 --convert coverage

The job's own actor is called in a loop in this process, without Ray, on clips that were read before: `read` is the
stored frames and gazes, `forward` the encoder, `pack` tar, index, commit. `dense` runs transformers' own model on all
patches of the same frames and stores what it gives as float16, in an .npy for each clip. CPU seconds, of whatever
threads; on a GPU wall time, synchronised by what is copied back. A shard's frames are in memory here.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autogaze.vision import GazedEncoder
from jobs.config import load
from pipelines.encode.config import EncodeConfig, check_encode_config
from pipelines.encode.encode_stage import EncodeStage, GazedClip, Storing
from pipelines.encode.graph import clip_source
from pipelines.encode.job import EncodeJob, plan_encode
from pipelines.preprocess.layout import Layout
from pipelines.preprocess.rows import DecodedClip, Effort


def random_encoder(folder: Path, small: bool) -> None:
    """Write a SigLIP with random weights, which take as long as trained ones: of base size, or a tiny one."""
    import transformers

    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.SiglipVisionConfig(image_size=224, patch_size=16, **(size if small else {}))
    transformers.SiglipVisionModel(config).save_pretrained(folder)


class Clock:
    """Seconds by name: of the CPU, or on a GPU of the wall."""

    def __init__(self, device: str) -> None:
        self.now = time.process_time if device == "cpu" else time.perf_counter  # nothing else works meanwhile
        self.seconds: dict[str, float] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        began = self.now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - began


class TimedStage(EncodeStage):
    """The encoding actor, with a clock on its forward passes."""

    clock: Clock

    def _encoded(self, encoder: GazedEncoder, part: list[GazedClip]) -> Any:
        began = self.clock.now()
        found = super()._encoded(encoder, part)
        self.clock.seconds["forward"] = self.clock.seconds.get("forward", 0.0) + self.clock.now() - began
        return found


def dense(encoder: GazedEncoder, decoded: list[DecodedClip], folder: Path, clock: Clock) -> int:
    """All patches of a shard's clips through transformers' model, and into files; how many tokens."""
    mean, std = (torch.tensor(part, device=encoder.device).view(1, 3, 1, 1) for part in encoder.normalisation)
    tokens = 0
    for clip in [each.frames for each in decoded if each.frames is not None]:
        with clock.time("dense forward"), torch.inference_mode():
            pixels = torch.from_numpy(clip).to(encoder.device).permute(0, 3, 1, 2).float() / 255
            out = encoder.model(pixel_values=((pixels - mean) / std).to(encoder.dtype)).last_hidden_state
            values = out[:, encoder.prefix_count :].to(torch.float16).cpu().numpy()
        with clock.time("dense pack"):
            np.save(folder / "dense.npy", values)
        tokens += values.shape[0] * values.shape[1]
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="gaze dataset with stored frames")
    parser.add_argument("--encoder", help="folder of a checkpoint; without: SigLIP of base size, random weights")
    parser.add_argument("--small", action="store_true", help="a tiny random SigLIP")
    parser.add_argument("--scales", default="32+64+112+224")
    parser.add_argument("--convert", default="", choices=["", "coverage"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--shards", type=int, default=1, help="how many are encoded")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not options.encoder:
            random_encoder(folder / "encoder", options.small)
        words = {
            "data": options.data,
            "output": folder / "features",
            "encoder.checkpoint": options.encoder or folder / "encoder",
            "encoder.scales": options.scales,
            "encoder.dtype": options.dtype,
            "convert": options.convert,
        }
        config = load(EncodeConfig, [f"{key}={value}" for key, value in words.items()])
        check_encode_config(config)
        job = plan_encode(config)
        assert job.source is not None
        source, storing = clip_source(job, Layout(1, 1, 1, 1.0)), Storing([], config.store, config.batch)
        stage = TimedStage(job.output, source, job.encoder, storing, job.source.vocabulary, options.device)
        clock = stage.clock = Clock(options.device)
        read = stage.source.clips
        counts = {"gazed": 0, "dense": 0, "frames": 0}
        for shard in job.missing[: options.shards]:
            with clock.time("read"):
                decoded = list(read(shard, Effort()))
            stage.source.clips = lambda shard, effort, decoded=decoded: iter(decoded)  # type: ignore[method-assign]
            with clock.time("commit"):
                done = stage.make(shard)
            counts["frames"] += done.frames
            counts["gazed"] += done.tokens
            counts["dense"] += dense(stage.encoder, decoded, folder, clock)
        stage.close()
        clock.seconds["pack"] = clock.seconds["commit"] - clock.seconds["forward"]
        show(job, clock.seconds, counts)


def show(job: EncodeJob, seconds: dict[str, float], counts: dict[str, int]) -> None:
    frames, ways = counts["frames"], {"gazed": "", "dense": "dense "}
    print(f"{job.encoder.words}; {frames} frames")
    total = {}
    for name, prefix in ways.items():
        parts = {part: seconds[part if part == "read" else prefix + part] for part in ("read", "forward", "pack")}
        total[name] = sum(parts.values())
        words = ", ".join(f"{part} {spent:.2f}" for part, spent in parts.items())
        print(
            f"{name}: {counts[name] / frames:6.1f} tokens a frame, {total[name]:8.2f} s ({words}), "
            f"{frames / total[name]:8.1f} frames/s"
        )
    forward, whole = seconds["dense forward"] / seconds["forward"], total["dense"] / total["gazed"]
    print(f"gazed beside dense: {forward:.1f}x in the encoder, {whole:.1f}x from stored frames to stored features")


if __name__ == "__main__":
    main()
