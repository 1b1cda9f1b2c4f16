"""Whether an RL run still learns: what is looked for in its numbers, and told once."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from pipelines.rl.config import RLConfig

_STEPS = 5  # in a row that a mean is taken over
_MOST = 0.5  # share of frames or groups
_BAND = 0.9, 1.1  # of importance weights of a policy against itself


class Health:
    """Looks at each step of an attempt. Tells each thing once."""

    def __init__(self, config: RLConfig) -> None:
        self.config = config
        self.recent: deque[Mapping[str, float]] = deque(maxlen=_STEPS)
        self.told: set[str] = set()

    def look_at(self, row: Mapping[str, float]) -> str | None:
        """A sentence about what goes wrong from this step on, or None. row: the numbers of the step's event."""
        self.recent.append(row)
        for name, sentence in (
            ("zero_variance", self._zero_variance()),
            ("resampled", self._resampled()),
            ("weights", self._weights(row)),
        ):
            if sentence and name not in self.told:
                self.told.add(name)
                return sentence
        return None

    def _mean(self, name: str) -> float:
        """Over the last steps; 0 before there are enough."""
        return sum(row[name] for row in self.recent) / _STEPS if len(self.recent) == _STEPS else 0.0

    def _zero_variance(self) -> str | None:
        share = self._mean("zero_variance")
        if share < _MOST:
            return None
        remedy = (
            "raise sample.temperature"
            if self.config.sample.zero_variance == "warmer"
            else "raise sample.min_temperature, or set sample.zero_variance=warmer"
        )
        return (
            f"over {_STEPS} steps {share:.0%} of the rewarded frames had the same error under every gaze of their "
            f"group, which teaches nothing: {remedy}"
        )

    def _resampled(self) -> str | None:
        share = self._mean("resampled")
        if share < _MOST:
            return None
        heat = self._mean("temperature")
        return (
            f"over {_STEPS} steps {share:.0%} of the groups came out all alike at the step's temperature and were "
            f"sampled again, warmer (at {heat:.2g} in the mean): a higher sample.min_temperature saves that time"
        )

    def _weights(self, row: Mapping[str, float]) -> str | None:
        low, high = row.get("weight_min", 1.0), row.get("weight_max", 1.0)
        if self.config.rollouts.lag or (low >= _BAND[0] and high <= _BAND[1]):
            return None
        return (
            f"at lag 0 importance weights of single patches lie between {low:.2f} and {high:.2f}, and should be 1: "
            "learner and rollouts compute differently; use the same device and scale.dtype=float32, or limit them by "
            "objective.truncate="
        )
