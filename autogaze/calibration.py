"""Statistics of a promise: how loose a stopping rule may be so that few frames of a new video miss their threshold.

A policy ends a frame by the loss it predicts, and predictions are off. Calibration turns them into a promise, on videos
that the policy was not trained on (docs/method.md, section 'Calibrated gaze'):

    curve = QuantileCurve.fit(predicted, measured, level=0.95)   # half A of the videos: what a prediction is worth
    stops = [curve.at_most(scale * threshold) for scale in scales]   # strictest first
    losses = ...                                 # half B, gazed at with each of the stops: float [videos, stops]
    place = loosest_stop(losses, risk=0.05)            # the loosest stop that keeps the promise, or -1

A loss lies in [0, 1] and is one number for a whole video and stop, such as the share of its frames over the threshold.
Videos are what must be exchangeable: frames of one video are much alike, so they count once, together.

Sources: Angelopoulos et al., "Conformal risk control" (arXiv 2208.02814); Angelopoulos et al., "Learn then test" (arXiv
2110.01052), with the Hoeffding-Bentkus bound of Bates et al. (arXiv 2101.02703). numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

Method: TypeAlias = Literal["crc", "ltt"]
"""crc, conformal risk control: the mean loss of a new video is at most `risk`. Means are over videos, and over which
videos calibrated it. ltt, learn then test: with probability 1 - delta over the calibrating videos, the mean loss of new
ones is at most `risk`."""

_BINS, _OF_BIN = 32, 16  # most bins of a curve, and fewest pairs in one


@dataclass(frozen=True, eq=False)
class QuantileCurve:
    """A quantile of the measured error, given the predicted loss: rising, linear between its knots.

    predicted: float64 [K], strictly rising. errors: float64 [K], rising.
    """

    predicted: np.ndarray
    errors: np.ndarray

    @classmethod
    def fit(cls, predicted: np.ndarray, measured: np.ndarray, level: float) -> QuantileCurve:
        """Isotonic regression of the `level`-quantile of measured on predicted losses, both [N].

        Pairs in the order of their predictions are cut into bins of as many pairs each; neighbours whose quantiles
        fall are pooled until all rise. A knot lies at the mean prediction of a bin.

        Raises ValueError: no pairs, or some that are not finite.
        """
        predicted, measured = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
        if not len(predicted) or predicted.shape != measured.shape:
            raise ValueError(f"a curve needs pairs of numbers, not {predicted.shape} and {measured.shape}")
        if not (np.isfinite(predicted).all() and np.isfinite(measured).all()):
            raise ValueError("a predicted or measured loss is not a finite number")
        order = np.argsort(predicted, kind="stable")
        predicted, measured = predicted[order], measured[order]
        pooled: list[tuple[np.ndarray, list[float]]] = []  # measured errors and mean predictions of pooled bins
        for part in np.array_split(np.arange(len(order)), min(_BINS, max(1, len(order) // _OF_BIN))):
            errors, places = measured[part], [float(predicted[part].mean())]
            while pooled and _quantile(pooled[-1][0], level) >= _quantile(errors, level):
                before, further = pooled.pop()
                errors, places = np.concatenate((before, errors)), further + places
            pooled.append((errors, places))
        knots = np.array([place for _, places in pooled for place in places])
        values = np.array([_quantile(errors, level) for errors, places in pooled for _ in places])
        knots, first = np.unique(knots, return_index=True)  # equal predictions may fill several bins
        last = np.append(first[1:], len(values)) - 1
        return cls(knots, values[last])

    def at_most(self, error: float) -> float:
        """The largest predicted loss at which the quantile is at or under `error`; never below 0.

        Below the first knot the curve is a line through the origin, above the last knot nothing is known.
        """
        at = int(np.searchsorted(self.errors, error, "right"))  # knots at or under it
        if at == len(self.errors):
            found = self.predicted[-1]
        elif at == 0:
            found = self.predicted[0] * max(error, 0.0) / self.errors[0]
        else:
            share = (error - self.errors[at - 1]) / (self.errors[at] - self.errors[at - 1])
            found = self.predicted[at - 1] + share * (self.predicted[at] - self.predicted[at - 1])
        return max(0.0, float(found))


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


def _quantile(values: np.ndarray, level: float) -> float:
    """The smallest of some values that has a share of at least `level` of them at or under it."""
    return float(np.quantile(values, level, method="inverted_cdf"))
