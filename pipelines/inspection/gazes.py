"""The gaze of every method that evaluate compares, at equal numbers of patches.

At a ratio all methods get the same number of patches for a clip. Baselines and greedy spread them over its frames as
the paper's lengths do on average (10 in frame 0 for every 3 in another frame). The stored gaze keeps its own
proportions: each of its frames is cut to its first patches. In a last comparison each frame gets as many patches from
every method as the stored gaze has in it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from autogaze import baselines, greedy
from autogaze.gaze import Gaze
from autogaze.images import to_model_size
from autogaze.lengths import apportion, mean_lengths
from autogaze.model import AutoGaze
from autogaze.patches import PatchVocabulary
from autogaze.reconstruction.base import Reconstructor, as_clips
from autogaze.vision.agreement import every_nth_frame
from autogaze.vision.choose import stalest
from autogaze.vision.convert import by_coverage
from pipelines.inspection.methods import EVERY_NTH, POLICY
from pipelines.inspection.policy_gaze import gaze_of_lengths
from pipelines.inspection.reading import ClipBatch


@dataclass(frozen=True, eq=False)
class Chosen:
    """A gaze, and the seconds that choosing it took (as `DeviceClock` counts them); 0 for one that is stored."""

    gaze: Gaze
    seconds: float


class Chooser:
    """Chooses patches in one vocabulary: that of the reconstructor, which greedy searches on.

    The gaze of a batch, method and ratio is chosen once, however many measures ask for it. A stored gaze or a policy of
    another vocabulary is converted by the places it covers, each frame cut so that it fits.

    device: of the policy and of the search. seed: of the random patches.
    """

    def __init__(
        self, reconstructor: Reconstructor, device: str = "cpu", *, seed: int = 0, policy: AutoGaze | None = None
    ) -> None:
        self.reconstructor, self.vocabulary, self.device = reconstructor, reconstructor.vocabulary, device
        self._seed, self._policy = seed, policy
        self._batch: ClipBatch | None = None
        self._chosen: dict[tuple[str, float | None], Chosen] = {}

    def begin(self, batch: ClipBatch) -> None:
        """Go on with these clips."""
        if batch is self._batch:
            return
        self._batch, self._chosen = batch, {}
        self.given = torch.from_numpy(batch.frames).to(self.device)
        self.frames = as_clips(_at_size(self.given, self.vocabulary.frame_size), self.vocabulary)
        same = batch.stored.vocabulary == self.vocabulary
        self.stored = batch.stored if same else by_coverage(batch.stored, self.vocabulary)

    def lengths(self, method: str, ratio: float | None) -> torch.Tensor:
        """Patches that a method gets for each frame at a ratio: int64 [B, T]. None: as the stored gaze has them."""
        own = self.stored.lengths
        if ratio is None:
            return own
        lengths = mean_lengths(ratio, self.stored.num_frames, self.vocabulary)
        if method != "stored":
            return lengths.expand(own.shape)
        return torch.stack([apportion(each, int(lengths.sum()), each) for each in own.numpy()])

    def gaze(self, method: str, ratio: float | None) -> Chosen:
        """The gaze of a method at a ratio, which is chosen now, or was before. Methods are those of
        pipelines.inspection.methods but for token merging.
        """
        if (method, ratio) not in self._chosen:
            clock = DeviceClock(self.device)
            gaze = self._gaze(method, self.lengths(method, ratio))
            self._chosen[method, ratio] = Chosen(gaze, 0.0 if method == "stored" else clock.seconds())
        return self._chosen[method, ratio]

    def _gaze(self, method: str, lengths: torch.Tensor) -> Gaze:
        assert self._batch is not None
        frames, vocabulary = self.frames, self.vocabulary
        if method == "stored":
            return fitted(self._batch.stored, lengths, vocabulary)
        if method == POLICY:
            assert self._policy is not None
            wanted = lengths.clamp(max=self._policy.vocabulary.size)
            return fitted(gaze_of_lengths(self._policy, self.given, wanted), lengths, vocabulary)
        if method == "greedy":
            return greedy.label(frames, self.reconstructor, lengths=lengths)
        if method == "random":
            return baselines.random_patches(frames, lengths, self._batch.keys, seed=self._seed, vocabulary=vocabulary)
        if method == EVERY_NTH:
            clips, count = lengths.shape
            return Gaze.cat([every_nth_frame(1, count, int(lengths[b].sum()), vocabulary) for b in range(clips)])
        baseline = {
            "frame_difference": baselines.frame_difference,
            "coarse_to_fine": baselines.coarse_to_fine,
            "stalest": stalest,
        }[method]
        return baseline(frames, lengths, vocabulary=vocabulary)


def fitted(gaze: Gaze, lengths: torch.Tensor, vocabulary: PatchVocabulary) -> Gaze:
    """The first tokens of each frame, in a vocabulary: the most that are no more than lengths, int64 [B, T], there."""
    if gaze.vocabulary == vocabulary:
        return cut_gaze(gaze, lengths)
    # More tokens never cover less, so the most that fit are found by halving.
    low, high = torch.zeros_like(gaze.lengths), gaze.lengths
    while bool((low < high).any()):
        middle = (low + high + 1) // 2
        fits = by_coverage(cut_gaze(gaze, middle), vocabulary).lengths <= lengths
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle - 1)
    return by_coverage(cut_gaze(gaze, low), vocabulary)


def cut_gaze(gaze: Gaze, lengths: torch.Tensor) -> Gaze:
    """The first tokens of each frame: as many as `lengths`, int64 [B, T], says or the frame has. Tokens only."""
    ends = gaze.lengths.reshape(-1).cumsum(0)
    places = torch.arange(len(gaze.tokens)) - torch.repeat_interleave(
        ends - gaze.lengths.reshape(-1), gaze.lengths.reshape(-1)
    )
    kept = places < torch.repeat_interleave(lengths.reshape(-1), gaze.lengths.reshape(-1))
    return Gaze(tokens=gaze.tokens[kept], lengths=lengths, vocabulary=gaze.vocabulary)


class DeviceClock:
    """Seconds since it was made: CPU seconds of this process, or on a GPU those until what was started is done."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._began = self._now()

    def seconds(self) -> float:
        return self._now() - self._began

    def _now(self) -> float:
        if self._device == "cpu":
            return time.process_time()
        (torch.mps if self._device == "mps" else torch.cuda).synchronize()
        return time.perf_counter()


def _at_size(frames: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [B, T, S, S, 3] at another size, resized as an encoder sees them."""
    if frames.shape[2] == size:
        return frames
    floats = to_model_size(frames.movedim(-1, -3).float(), size)
    return floats.round().clamp(0, 255).to(torch.uint8).movedim(-3, -1).contiguous()
