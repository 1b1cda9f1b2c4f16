"""Statistics of a promise: how loose a stopping rule may be so that few frames of a new video miss their threshold.

A policy ends a frame by the loss it predicts, and predictions are off. Calibration turns them into a promise, on videos
that the policy was not trained on (docs/method.md, section 'Calibrated gaze'):

    curve = StopCurve.fit(predicted, losses)       # half A of the videos: what frames lose, by where they stop
    stops = [curve.at_most(aim) for aim in aims]   # strictest first
    losses = ...                                   # half B, gazed at with each of the stops: float [videos, stops]
    place = loosest_stop(losses, risk=0.05)        # the loosest stop that keeps the promise, or -1

A loss lies in [0, 1] and is one number for a whole video and stop, such as the share of its frames over the threshold.
Videos are what must be exchangeable: frames of one video are much alike, so they count once, together.

Sources: Angelopoulos et al., "Conformal risk control" (arXiv 2208.02814); Angelopoulos et al., "Learn then test" (arXiv
2110.01052), with the Hoeffding-Bentkus bound of Bates et al. (arXiv 2101.02703). numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

Method: TypeAlias = Literal["crc", "ltt"]
"""crc, conformal risk control: the mean loss of a new video is at most `risk`. Means are over videos, and over which
videos calibrated it. ltt, learn then test: with probability 1 - delta over the calibrating videos, the mean loss of new
ones is at most `risk`."""

_STOPS = 1024  # most that a curve knows


@dataclass(frozen=True, eq=False)
class StopCurve:
    """What frames lose if each ends at the first predicted loss at or under a stop: an estimate, from whole gazes.

    stops: float64 [K], strictly rising, from 0 up. losses: float64 [K], rising: the mean loss at each.
    """

    stops: np.ndarray
    losses: np.ndarray

    @classmethod
    def fit(cls, predicted: Sequence[np.ndarray], losses: Sequence[np.ndarray]) -> StopCurve:
        """From frames that were gazed at for long. Each has two arrays [n], n > 0: after each of its tokens the
        predicted loss, and the loss in [0, 1] that it has if it ends there. A frame that no stop ends has its last one.

        Raises ValueError: no frames, or numbers that are not finite.
        """
        if not len(predicted):
            raise ValueError("there are no frames to learn from")
        if not all(np.isfinite(each).all() for each in (*predicted, *losses)):
            raise ValueError("a predicted or measured loss is not a finite number")
        # A frame ends at the first token whose prediction is a new low, at or under the stop.
        lows = [np.minimum.accumulate(each) for each in predicted]
        stops = np.unique(np.maximum(np.concatenate(lows), 0.0).astype(np.float64))
        if len(stops) > _STOPS:
            stops = np.unique(np.quantile(stops, np.linspace(0, 1, _STOPS)))
        total = np.zeros(len(stops))
        for low, loss in zip(lows, losses, strict=True):
            ends = np.searchsorted(-low, -stops, side="left")
            total += np.asarray(loss, np.float64)[np.minimum(ends, len(loss) - 1)]
        return cls(stops, np.maximum.accumulate(total / len(lows)))

    def at_most(self, loss: float) -> float:
        """The largest stop whose loss is at or under `loss`; 0 where none is."""
        at = int(np.searchsorted(self.losses, loss, "right"))
        return float(self.stops[at - 1]) if at else 0.0


def conformal_bounds(losses: np.ndarray) -> np.ndarray:
    """Of each stop, the bound of conformal risk control on a new video's mean loss.

    losses: float [..., videos, stops] in [0, 1], strictest stop first. A stop's loss counts as the largest of all that
    are at most as loose: the guarantee is for losses that rise. Returns float64 [..., stops], rising: (sum + 1) /
    (videos + 1), which is as if the new video missed altogether.
    """
    worst = np.maximum.accumulate(_checked(losses), axis=-1)
    bounds: np.ndarray = (worst.sum(axis=-2) + 1) / (worst.shape[-2] + 1)
    return bounds


def p_values(losses: np.ndarray, risk: float) -> np.ndarray:
    """Of each stop, the p-value of "the mean loss of new videos is above `risk`", by Hoeffding and Bentkus.

    losses: float [..., videos, stops] in [0, 1]. Returns float64 [..., stops].
    """
    losses = _checked(losses)
    videos, mean = losses.shape[-2], losses.mean(axis=-2)
    below = np.minimum(mean, risk)
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.where(below > 0, below * np.log(below / risk), 0.0)
        second = np.where(below < 1, (1 - below) * np.log((1 - below) / (1 - risk)), 0.0)
    hoeffding = np.exp(-videos * (first + second))
    # Rounded up, but not because of the last digit of a sum of shares.
    missing = np.ceil(losses.sum(axis=-2) - 1e-9).astype(np.int64)
    bentkus = math.e * binomial_cdf(videos, risk)[missing]
    p: np.ndarray = np.minimum(np.minimum(hoeffding, bentkus), 1.0)
    return p


def loosest_stop(losses: np.ndarray, risk: float, method: Method = "crc", delta: float = 0.1) -> np.ndarray:
    """The loosest stop that keeps the promise, going from the strictest to the first that does not; -1: none does.

    losses: float [..., videos, stops] in [0, 1], strictest stop first. delta: of ltt. Returns int64 [...].
    """
    keeps = conformal_bounds(losses) <= risk if method == "crc" else p_values(losses, risk) <= delta
    chosen: np.ndarray = keeps.cumprod(axis=-1).sum(axis=-1) - 1
    return chosen


def fewest_videos(risk: float, method: Method = "crc", delta: float = 0.1) -> int:
    """How many videos it takes to promise `risk` if none of their frames misses; fewer cannot promise it at all."""
    if method == "crc":
        return max(1, math.ceil(1 / risk - 1 - 1e-9))
    return max(1, math.ceil(math.log(delta) / math.log1p(-risk) - 1e-9))


def binomial_cdf(count: int, share: float) -> np.ndarray:
    """P(Bin(count, share) <= k) for k = 0..count: float64 [count + 1]. share: more than 0 and less than 1."""
    k = np.arange(count + 1)
    factorials = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, count + 1)))))
    logs = factorials[count] - factorials[k] - factorials[count - k] + k * math.log(share)
    cdf: np.ndarray = np.minimum(np.cumsum(np.exp(logs + (count - k) * math.log1p(-share))), 1.0)
    return cdf


def _checked(losses: np.ndarray) -> np.ndarray:
    losses = np.asarray(losses, np.float64)
    if losses.ndim < 2 or not losses.shape[-2] or not ((losses >= 0) & (losses <= 1)).all():
        raise ValueError("losses are numbers from 0 to 1, [..., videos, stops], of one video or more")
    return losses
