"""Error against gazing ratio on the clips of a dataset: for the gaze it stores, for greedy, and for simple baselines.

At a ratio all methods get the same number of patches for a clip. Baselines and greedy spread them over its frames as
the paper's lengths do on average (10 in frame 0 for every 3 in another frame). The stored gaze keeps its own
proportions: each of its frames is cut to its first patches. In a last comparison each frame gets as many patches from
every method as the stored gaze has in it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from autogaze import baselines, greedy
from autogaze.gaze import Gaze
from autogaze.lengths import apportion, mean_lengths
from autogaze.model import AutoGaze
from autogaze.reconstruction.base import Reconstructor, as_clips
from pipelines.dataset import shards
from pipelines.dataset.shards import Dataset
from pipelines.errors import PipelineError
from pipelines.inspection.policy_gaze import gaze_of_lengths
from pipelines.inspection.reading import read_clip

METHODS = ("stored", "greedy", "frame_difference", "coarse_to_fine", "random")
POLICY = "policy"  # a further one, where a policy is given


@dataclass(frozen=True)
class Point:
    """One method at one ratio.

    Attributes:
        asked: the ratio asked for; None: each frame has as many patches as in the stored gaze.
        ratio: gazed patches over all patches, mean over clips. Below `asked` where a stored gaze has fewer patches.
        error: mean over frames and clips.
        standard_error: of that mean, over clips; None for a single clip.
    """

    asked: float | None
    ratio: float
    error: float
    standard_error: float | None


@dataclass(frozen=True)
class Curve:
    """One method: its points by rising ratio, and `as_stored`, the point with the lengths of the stored gaze.

    For the stored gaze that is its last point. For the other methods it is no point of the curve: with lengths that
    suit each clip they reach another error than with equal ones.
    """

    method: str
    points: list[Point]
    as_stored: Point

    def needed(self, error: float) -> float | None:
        """The ratio at which the curve comes down to an error; between two points error is linear in log(ratio).

        The first point's ratio if its error is low enough; None if no point's is.
        """
        for place, point in enumerate(self.points):
            if point.error <= error:
                if place == 0:
                    return point.ratio
                before = self.points[place - 1]
                share = (before.error - error) / (before.error - point.error)
                between: float = before.ratio * (point.ratio / before.ratio) ** share
                return between
        return None


def sample_clips(dataset: Dataset, clips: int, seed: int) -> list[dict[str, Any]]:
    """Index rows of up to `clips` ok clips, in plan order. Shards in random order give one clip each in turn.

    At first only as many indexes are read as clips are wanted; more only if these hold too few.
    Raises PipelineError when no clip is ok.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(dataset.committed()).tolist()
    taken: list[dict[str, Any]] = []
    with ThreadPoolExecutor(8) as pool:
        for begin in range(0, len(order), clips):
            tables = pool.map(lambda shard: shards.read_index(dataset.url, shard), order[begin : begin + clips])
            queues = []
            for table in tables:
                rows = [row for row in table.to_pylist() if row["outcome"] == "ok"]
                queues.append([rows[place] for place in random.permutation(len(rows))])
            taken += [row for turn in itertools.zip_longest(*queues) for row in turn if row is not None]
            if len(taken) >= clips:
                break
    if not taken:
        raise PipelineError(f"{dataset.url}: no clip in it is ok, so there is nothing to evaluate")
    return sorted(taken[:clips], key=lambda row: (row["shard"], row["position"]))


def measure_curves(
    dataset: Dataset,
    rows: Sequence[dict[str, Any]],
    reconstructor: Reconstructor,
    ratios: Sequence[float],
    methods: Sequence[str],
    *,
    seed: int = 0,
    batch: int = 8,
    device: str = "cpu",
    policy: AutoGaze | None = None,
    on_clips: Callable[[int], None] | None = None,
) -> list[Curve]:
    """The curve of each method over some clips, which all have the same number of frames.

    Args:
        rows: index rows of the clips, as from `sample_clips`.
        ratios: gazing ratios in (0, 1].
        methods: names of METHODS, or POLICY.
        seed: of the random patches.
        batch: clips measured at once.
        policy: on the device, for the method POLICY.
        on_clips: called with the number of clips that were just measured.
    Raises PipelineError: a clip cannot be read, or holds no frames.
    """
    asked: list[tuple[str, float | None]] = list(itertools.product(methods, [*sorted(set(ratios)), None]))
    # (ratio, error) of each clip, by method and ratio asked for.
    measured: dict[tuple[str, float | None], list[tuple[float, float]]] = {key: [] for key in asked}
    for begin in range(0, len(rows), batch):
        part = rows[begin : begin + batch]
        clips = [read_clip(dataset, row) for row in part]
        frames = as_clips(np.stack([clip for clip, _ in clips]), reconstructor.vocabulary).to(device)
        stored = Gaze.cat([gaze for _, gaze in clips])
        keys = [str(row["clip"]) for row in part]
        for method, ratio in asked:
            lengths = stored.lengths if ratio is None else _lengths(method, ratio, stored)
            gaze = _gaze(method, frames, lengths, stored, keys, reconstructor, seed, policy)
            errors = reconstructor.reconstruct(frames, gaze).error.double().mean(dim=1)
            measured[method, ratio] += zip(gaze.ratio().tolist(), errors.tolist(), strict=True)
        if on_clips is not None:
            on_clips(len(part))
    curves = []
    for name in methods:
        whole = measured[name, None]
        points = [_point(ratio, measured[name, ratio]) for ratio in sorted(set(ratios))]
        if name == "stored":
            # A ratio at which no stored gaze was cut is the point of the whole gaze once more.
            points = [point for point in points if measured[name, point.asked] != whole] + [_point(None, whole)]
        curves.append(Curve(name, points, _point(None, whole)))
    return curves


def _point(asked: float | None, values: Sequence[tuple[float, float]]) -> Point:
    ratios, errors = np.array(values).T
    spread = float(errors.std(ddof=1) / math.sqrt(len(errors))) if len(errors) > 1 else None
    return Point(asked, float(ratios.mean()), float(errors.mean()), spread)


def _lengths(method: str, ratio: float, stored: Gaze) -> torch.Tensor:
    """Patches of each frame at a ratio: int64 [B, T]."""
    lengths = mean_lengths(ratio, stored.num_frames, stored.vocabulary)
    if method != "stored":
        return lengths.expand(stored.lengths.shape)
    return torch.stack([apportion(own, int(lengths.sum()), own) for own in stored.lengths.numpy()])


def _gaze(
    method: str,
    frames: torch.Tensor,
    lengths: torch.Tensor,
    stored: Gaze,
    keys: Sequence[str],
    reconstructor: Reconstructor,
    seed: int,
    policy: AutoGaze | None,
) -> Gaze:
    if method == POLICY:
        assert policy is not None
        return cut_gaze(gaze_of_lengths(policy, frames, lengths), lengths)
    if method == "stored":
        return cut_gaze(stored, lengths)
    if method == "greedy":
        return greedy.label(frames, reconstructor, lengths=lengths)
    vocabulary = reconstructor.vocabulary
    if method == "random":
        return baselines.random_patches(frames, lengths, keys, seed=seed, vocabulary=vocabulary)
    baseline = {"frame_difference": baselines.frame_difference, "coarse_to_fine": baselines.coarse_to_fine}[method]
    return baseline(frames, lengths, vocabulary=vocabulary)


def cut_gaze(gaze: Gaze, lengths: torch.Tensor) -> Gaze:
    """The first tokens of each frame: as many as `lengths`, int64 [B, T], says or the frame has. Tokens only."""
    ends = gaze.lengths.reshape(-1).cumsum(0)
    places = torch.arange(len(gaze.tokens)) - torch.repeat_interleave(
        ends - gaze.lengths.reshape(-1), gaze.lengths.reshape(-1)
    )
    kept = places < torch.repeat_interleave(lengths.reshape(-1), gaze.lengths.reshape(-1))
    return Gaze(tokens=gaze.tokens[kept], lengths=lengths, vocabulary=gaze.vocabulary)
