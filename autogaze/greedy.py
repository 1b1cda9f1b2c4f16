"""Greedy labels: the gaze that removes, token by token, as much reconstruction error as one token can.

It is the ground truth that the policy is trained on (docs/method.md, section 'Greedy labels'; the authors released no
code), and with the canvas reconstructor a gaze that needs no training. Any reconstructor will do.
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

    Frame by frame, given the gaze of all earlier frames, the next token is the one that leaves the least error (of
    equals the lowest id; none twice in a frame). A frame ends when its error is at or under `threshold`, when no token
    lowers it, or when it has `max_ratio` of all patches (at least one). A frame that meets the threshold at once gets
    no token.

    lengths: int64 [B, T]. If given, every frame gets exactly so many tokens, even where none lowers the error (the
    paper's labels); threshold and max_ratio do not apply.

    exact: try every patch for every token. False allows two savings, for reconstructors whose every try is costly:
    candidates: try only so many patches, those that the canvas reconstructor finds best at this point.
    step: take so many tokens from each round of tries, in the order of the error each left by itself. The error after
        each of them is still measured.

    The frames' device does the work; the gaze is on the CPU. A clip's gaze does not depend on the rest of the batch.
    Raises ValueError for frames, a threshold, a ratio, lengths or savings that do not fit.
    """
    frames = as_clips(frames, reconstructor.vocabulary)
    _check_savings(exact, candidates, step)
    limit, room = _frame_ends(frames, reconstructor, threshold, max_ratio, lengths)
    clips, num_frames = frames.shape[:2]
    gazing = _Gazing(frames, reconstructor, candidates, step)
    nothing = torch.zeros(0, dtype=torch.int64, device=frames.device)
    chosen = [(nothing, nothing, nothing)]  # by round: clip * T + t, token, error after it
    initial = []  # by frame: errors [B]
    for t in range(num_frames):
        initial.append(gazing.open(t))
        while True:
            gazing.keep((gazing.error > limit) & (gazing.taken < room[gazing.clips, t]))
            if not len(gazing.clips):
                break
            token, after = gazing.best()
            if lengths is None:
                helps = after < gazing.error
                gazing.keep(helps)
                token, after = token[helps], after[helps]
                if not len(gazing.clips):
                    break
            gazing.take(token, after)
            chosen.append((gazing.clips * num_frames + t, token, after))

    frame, token, after = (torch.cat(part).cpu() for part in zip(*chosen, strict=True))
    order = frame.argsort(stable=True)  # from the order of rounds to clip by clip
    return Gaze(
        tokens=token[order],
        lengths=torch.bincount(frame, minlength=clips * num_frames).view(clips, num_frames),
        losses=reconstructor.loss(after[order]),
        initial=reconstructor.loss(torch.stack(initial, dim=1)),
        vocabulary=reconstructor.vocabulary,
    )


class _Gazing:
    """The n clips that still gaze at the current frame.

    clips: int64 [n], their places in the batch. error: [n], of their frame so far. taken: tokens each has in the frame.
    """

    def __init__(self, frames: torch.Tensor, reconstructor: Reconstructor, candidates: int | None, step: int) -> None:
        self.all = torch.arange(len(frames), device=frames.device)
        self.search = reconstructor.search(frames)
        self.guide = None if candidates is None else Canvas(reconstructor.vocabulary).search(frames)
        self.candidates, self.step = candidates, step

    def open(self, t: int) -> torch.Tensor:
        """Turn to frame t with all clips; its errors [B] without a token."""
        self.clips, self.error, self.taken = self.all, self.search.open(t), 0
        if self.guide is not None:
            self.guide.open(t)
        self.ranked = self.all.new_zeros(len(self.all), 0)  # tokens of the last round of tries, best first
        return self.error

    def keep(self, wanted: torch.Tensor) -> None:
        """Go on with the clips where wanted, bool [n], is true."""
        places = wanted.nonzero().squeeze(1)
        if len(places) == len(self.clips):
            return
        self.search.keep(places)
        if self.guide is not None:
            self.guide.keep(places)
        self.clips, self.error, self.ranked = self.clips[places], self.error[places], self.ranked[places]

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The next token of each clip, int64 [n], and the frame's error after it [n]."""
        place = self.taken % self.step
        if place:
            token = self.ranked[:, place]
            return token, self.search.errors(token[:, None])[:, 0]
        tokens = None
        if self.guide is not None and self.candidates is not None:
            tokens = smallest(self.guide.errors(), self.candidates)
        errors = self.search.errors(tokens)
        # Of equals the first, which is the lowest id, since candidates are in the order of ids.
        order = errors.argmin(dim=1, keepdim=True) if self.step == 1 else errors.argsort(dim=1, stable=True)
        self.ranked = order[:, : self.step] if tokens is None else tokens.gather(1, order[:, : self.step])
        return self.ranked[:, 0], errors.gather(1, order[:, :1]).squeeze(1)

    def take(self, token: torch.Tensor, after: torch.Tensor) -> None:
        """Each clip takes its token, int64 [n], which leaves the error `after` [n]."""
        self.search.take(token)
        if self.guide is not None:
            self.guide.take(token)
        self.error, self.taken = after, self.taken + 1


def _check_savings(exact: bool, candidates: int | None, step: int) -> None:
    if exact and (candidates is not None or step != 1):
        raise ValueError("exact=True tries every patch for every token; give exact=False with candidates= or step=")
    if step < 1 or (candidates is not None and candidates < step):
        raise ValueError(f"step={step}, candidates={candidates}: wanted 1 <= step <= candidates")


def _frame_ends(
    frames: torch.Tensor,
    reconstructor: Reconstructor,
    threshold: float | None,
    max_ratio: float,
    lengths: torch.Tensor | np.ndarray | None,
) -> tuple[float, torch.Tensor]:
    """What ends a frame: an error of the search at or under the limit, or as many tokens as its room, int64 [B, T]."""
    shape, vocabulary = tuple(frames.shape[:2]), reconstructor.vocabulary
    if lengths is not None:
        if threshold is not None or max_ratio != 1.0:
            raise ValueError("give lengths, or threshold and max_ratio: lengths fix what the others would decide")
        return -float("inf"), _checked_lengths(lengths, shape, vocabulary.size).to(frames.device)
    room = torch.full(shape, vocabulary.cap(max_ratio), device=frames.device)
    if threshold is None:
        return -float("inf"), room
    return checked_limit(reconstructor, threshold), room


def checked_limit(reconstructor: Reconstructor, threshold: float) -> float:
    """The largest error of a search that meets the threshold. Raises ValueError for a threshold that is no error."""
    if not 0 <= threshold <= torch.finfo(torch.float32).max:
        raise ValueError(f"threshold is an error and cannot be {threshold}")
    return reconstructor.limit(threshold)


def smallest(errors: torch.Tensor, count: int) -> torch.Tensor:
    """The tokens of the `count` smallest errors [n, V], in the order of ids: int64 [n, count]."""
    return errors.topk(min(count, errors.shape[1]), dim=1, largest=False).indices.sort(dim=1).values


def _checked_lengths(lengths: torch.Tensor | np.ndarray, shape: tuple[int, ...], size: int) -> torch.Tensor:
    lengths = torch.as_tensor(lengths)
    if tuple(lengths.shape) != shape or lengths.is_floating_point():
        raise ValueError(f"lengths must be whole numbers {list(shape)}, not {lengths.dtype} {list(lengths.shape)}")
    if lengths.numel() and (int(lengths.min()) < 0 or int(lengths.max()) > size):
        raise ValueError(f"lengths lie in 0..{size}, the patches of a frame; found {lengths.min()}..{lengths.max()}")
    return lengths.to(torch.int64)
