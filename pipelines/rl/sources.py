"""Where the learner's rollouts come from: made by itself, or recorded as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from pipelines.errors import PipelineError
from pipelines.rl.rollouts import Group, RolloutMaker, RolloutRequest
from pipelines.storage import store, urls

Make = Callable[[], RolloutMaker]


class Rollouts(Protocol):
    """See the module."""

    def publish(self, version: int, weights: bytes) -> None: ...

    def ask(self, asks: Sequence[RolloutRequest]) -> None: ...

    def take(self, step: int) -> list[Group]: ...

    def close(self) -> None: ...


class OwnRollouts:
    """Made by the learner, when they are taken."""

    def __init__(self, make: Make) -> None:
        self.maker = make()
        self._weights: dict[int, bytes] = {}
        self._asked: dict[int, list[RolloutRequest]] = {}

    def publish(self, version: int, weights: bytes) -> None:
        self._weights[version] = weights

    def ask(self, asks: Sequence[RolloutRequest]) -> None:
        self._asked[asks[0].step] = list(asks)

    def take(self, step: int) -> list[Group]:
        asks = self._asked.pop(step)
        for old in [version for version in self._weights if version < asks[0].version]:
            del self._weights[old]
        groups = []
        for ask in asks:
            self.maker.load(ask.version, self._weights[ask.version])
            groups.append(self.maker.make(ask))
        return groups

    def close(self) -> None:
        self.maker.close()


class Recording:
    """Read from where another run recorded them. Nothing is sampled, so versions are those of that run."""

    def __init__(self, url: str) -> None:
        self.url = urls.normalise(url)
        self._asked: dict[int, list[RolloutRequest]] = {}

    def publish(self, version: int, weights: bytes) -> None:
        pass

    def ask(self, asks: Sequence[RolloutRequest]) -> None:
        self._asked[asks[0].step] = list(asks)

    def take(self, step: int) -> list[Group]:
        return [self._read(ask) for ask in self._asked.pop(step)]

    def close(self) -> None:
        pass

    def _read(self, ask: RolloutRequest) -> Group:
        url = recorded_url(self.url, ask)
        try:
            group = Group.from_npz(store.read(url))
        except FileNotFoundError as error:
            raise PipelineError(
                f"{url}: is not there; rollouts.replay= needs what rollouts.dump= recorded of a run of the same data, "
                "seed, batch, lag and steps"
            ) from error
        except ValueError as error:
            raise PipelineError(f"{url}: damaged: {error}") from error
        if group.ask != ask:
            raise PipelineError(
                f"{url}: is of {group.ask}, this run wants {ask}; replay a run with the same lag and steps"
            )
        return group


def record(url: str, groups: Sequence[Group]) -> None:
    """Write groups where `Recording` reads them."""
    for group in groups:
        store.publish(group.to_npz(), recorded_url(url, group.ask))


def recorded_url(url: str, ask: RolloutRequest) -> str:
    return urls.join(urls.normalise(url), f"step-{ask.step:06d}", f"{ask.epoch:04d}-{ask.id:09d}.npz")
