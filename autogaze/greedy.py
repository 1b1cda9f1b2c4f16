"""Greedy labels: the gaze that removes, token by token, as much reconstruction error as one token can.

It is the ground truth the policy is trained on (paper 3.2 and appendix B; the authors released no code), and with the
canvas reconstructor a gaze that needs no training at all. Any reconstructor will do (autogaze/reconstruction).
"""

import numpy as np
import torch

from autogaze.gaze import Gaze
from autogaze.reconstruction import Reconstructor, as_clips


@torch.no_grad()
def label(
    frames: torch.Tensor | np.ndarray,
    reconstructor: Reconstructor,
    *,
    threshold: float | None = None,
    max_ratio: float = 1.0,
    lengths: torch.Tensor | np.ndarray | None = None,
) -> Gaze:
    """The greedy gaze of uint8 clips [B, T, S, S, 3], with the error before and after every token.

    Frame by frame, given the gaze of all earlier frames, the token that leaves the least error comes next (of equals
    the lowest id; none twice in a frame), until the error is at or under `threshold`, or no token lowers it, or the
    frame has `max_ratio` of all patches (at least one). A frame that meets the threshold as it is gets no token.
    Without a threshold, only the other two end a frame.

    lengths: int64 [B, T]. If given, every frame gets exactly that many tokens, also where the best of them lowers the
    error no more (the paper's labels); threshold and max_ratio do not apply.

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
        if not threshold >= 0:
            raise ValueError(f"threshold is an error and cannot be {threshold}")
        limit = reconstructor.limit(threshold)

    search = reconstructor.search(frames)
    initial = []  # per frame: errors [B]
    nothing = torch.zeros(0, dtype=torch.int64, device=frames.device)
    chosen = [(nothing, nothing, nothing)]  # per step: clip * T + t, token, error after it
    for t in range(num_frames):
        error = search.open(t)
        initial.append(error)
        held = torch.arange(clips, device=frames.device)  # clips still gazing at this frame; all below is theirs
        allowed = room[:, t]
        taken = 0
        while True:
            places = ((error > limit) & (taken < allowed)).nonzero().squeeze(1)
            if len(places) < len(held):
                search.keep(places)
                held, allowed, error = held[places], allowed[places], error[places]
            if not len(held):
                break
            after, token = search.errors().min(dim=1)
            if lengths is None and not bool((helps := after < error).all()):
                places = helps.nonzero().squeeze(1)
                search.keep(places)
                held, allowed, after, token = held[places], allowed[places], after[places], token[places]
                if not len(held):
                    break
            search.take(token)
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


def _checked_lengths(lengths: torch.Tensor | np.ndarray, shape: tuple[int, int], size: int) -> torch.Tensor:
    lengths = torch.as_tensor(lengths)
    if tuple(lengths.shape) != shape or lengths.is_floating_point():
        raise ValueError(f"lengths must be whole numbers {list(shape)}, not {lengths.dtype} {list(lengths.shape)}")
    if lengths.numel() and (int(lengths.min()) < 0 or int(lengths.max()) > size):
        raise ValueError(f"lengths lie in 0..{size}, the patches of a frame; found {lengths.min()}..{lengths.max()}")
    return lengths.to(torch.int64)
