"""Greedy labels: the gaze that removes, token by token, as much reconstruction error as one token can.

It is the ground truth the policy is trained on (paper 3.2 and appendix B; the authors released no code), and with the
canvas reconstructor a gaze that needs no training at all. Any reconstructor will do (autogaze/reconstruction).
"""

import numpy as np
import torch

from autogaze.gaze import Gaze
from autogaze.reconstruction.base import Reconstructor, as_clips
from autogaze.reconstruction.canvas import Canvas


@torch.no_grad()
def label(
    frames: torch.Tensor | np.ndarray,
    reconstructor: Reconstructor,
    *,
    threshold: float | None = None,
    max_ratio: float = 1.0,
    lengths: torch.Tensor | np.ndarray | None = None,
    exact: bool = True,
    candidates: int | None = None,
    step: int = 1,
) -> Gaze:
    """The greedy gaze of uint8 clips [B, T, S, S, 3], with the error before and after every token.

    Frame by frame, given the gaze of all earlier frames, the token that leaves the least error comes next (of equals
    the lowest id; none twice in a frame), until the error is at or under `threshold`, or no token lowers it, or the
    frame has `max_ratio` of all patches (at least one). A frame that meets the threshold as it is gets no token.
    Without a threshold, only the other two end a frame.

    lengths: int64 [B, T]. If given, every frame gets exactly that many tokens, also where the best of them lowers the
    error no more (the paper's labels); threshold and max_ratio do not apply.

    exact: every patch is tried for every token. False allows two savings for reconstructors whose every try costs:
    candidates: tries only these many patches, those that the canvas reconstructor finds best at this point.
    step: takes this many tokens per round of trying, in the order of the error each left alone; errors after each token
        are measured, not assumed.

    The frames' device does the work; the gaze is on the CPU. A clip's gaze does not depend on the rest of the batch.
    Raises ValueError for frames, a threshold, a ratio or lengths that make no sense.
    """
    frames = as_clips(frames, reconstructor.vocabulary)
    clips, num_frames = frames.shape[:2]
    size = reconstructor.vocabulary.size
    room = torch.full((clips, num_frames), reconstructor.vocabulary.cap(max_ratio), device=frames.device)
    limit = -float("inf")
    if lengths is not None:
        if threshold is not None or max_ratio != 1.0:
            raise ValueError("give lengths, or threshold and max_ratio: lengths fix what the others would decide")
        room = _checked_lengths(lengths, (clips, num_frames), size).to(frames.device)
    elif threshold is not None:
        if not 0 <= threshold <= torch.finfo(torch.float32).max:
            raise ValueError(f"threshold is an error and cannot be {threshold}")
        limit = reconstructor.limit(threshold)

    if exact and (candidates is not None or step != 1):
        raise ValueError("exact=True tries every patch for every token; give exact=False with candidates= or step=")
    if step < 1 or (candidates is not None and candidates < step):
        raise ValueError(f"step={step}, candidates={candidates}: wanted 1 <= step <= candidates")

    search = reconstructor.search(frames)
    guide = None if candidates is None else Canvas(reconstructor.vocabulary).search(frames)
    initial = []  # per frame: errors [B]
    nothing = torch.zeros(0, dtype=torch.int64, device=frames.device)
    chosen = [(nothing, nothing, nothing)]  # per step: clip * T + t, token, error after it
    for t in range(num_frames):
        error = search.open(t)
        if guide is not None:
            guide.open(t)
        initial.append(error)
        held = torch.arange(clips, device=frames.device)  # clips still gazing at this frame; all below is theirs
        allowed = room[:, t]
        ranked = torch.zeros(clips, 0, dtype=torch.int64, device=frames.device)  # best first, of the last round
        taken = 0

        def keep(places: torch.Tensor) -> None:
            nonlocal held, allowed, error, ranked
            search.keep(places)
            if guide is not None:
                guide.keep(places)
            held, allowed, error, ranked = held[places], allowed[places], error[places], ranked[places]

        while True:
            places = ((error > limit) & (taken < allowed)).nonzero().squeeze(1)
            if len(places) < len(held):
                keep(places)
            if not len(held):
                break
            if taken % step == 0:
                tokens = None if guide is None or candidates is None else _best(guide.errors(), candidates)
                errors = search.errors(tokens)
                # Of equals the first, which is the lowest id: candidates come in the order of ids.
                order = errors.argmin(dim=1, keepdim=True) if step == 1 else errors.argsort(dim=1, stable=True)
                after = errors.gather(1, order[:, :1]).squeeze(1)
                ranked = order[:, :step] if tokens is None else tokens.gather(1, order[:, :step])
                token = ranked[:, 0]
            else:
                token = ranked[:, taken % step]
                after = search.errors(token[:, None])[:, 0]
            if lengths is None and not bool((helps := after < error).all()):
                places = helps.nonzero().squeeze(1)
                keep(places)
                after, token = after[places], token[places]
                if not len(held):
                    break
            search.take(token)
            if guide is not None:
                guide.take(token)
            chosen.append((held * num_frames + t, token, after))
            error = after
            taken += 1

    # Steps came in the order of frames; a gaze is ordered clip by clip.
    frame, token, after = (torch.cat(part).cpu() for part in zip(*chosen, strict=True))
    order = frame.argsort(stable=True)
    return Gaze(
        token[order],
        torch.bincount(frame, minlength=clips * num_frames).view(clips, num_frames),
        reconstructor.loss(after[order]),
        reconstructor.loss(torch.stack(initial, dim=1)),
        reconstructor.vocabulary,
    )


def _best(errors: torch.Tensor, count: int) -> torch.Tensor:
    """The tokens of the `count` smallest errors [n, V], in the order of ids: int64 [n, count]."""
    return errors.topk(min(count, errors.shape[1]), dim=1, largest=False).indices.sort(dim=1).values


def _checked_lengths(lengths: torch.Tensor | np.ndarray, shape: tuple[int, int], size: int) -> torch.Tensor:
    lengths = torch.as_tensor(lengths)
    if tuple(lengths.shape) != shape or lengths.is_floating_point():
        raise ValueError(f"lengths must be whole numbers {list(shape)}, not {lengths.dtype} {list(lengths.shape)}")
    if lengths.numel() and (int(lengths.min()) < 0 or int(lengths.max()) > size):
        raise ValueError(f"lengths lie in 0..{size}, the patches of a frame; found {lengths.min()}..{lengths.max()}")
    return lengths.to(torch.int64)
