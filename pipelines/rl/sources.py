"""Where the learner's groups come from: made by the learner itself, or read from a recording. ActorRollouts is a third.

    rollouts.publish(version, weights)      # groups of this version can be requested from now on
    rollouts.request(requests)              # of one step; actors begin at once
    groups = rollouts.take(step)            # in the order of the requests; waits

A group is a function of its request, so all sources give the same groups. What makes them takes `rollouts.groups` of a
step at a time, in the order of the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from pipelines.errors import PipelineError
from pipelines.loading.reading import Batch
from pipelines.rl.groups import Group, RolloutRequest
from pipelines.rl.rollouts import RolloutMaker
from pipelines.storage import store
from pipelines.storage.location import Location
from pipelines.train.stopping import StopRequested, never

MakeMaker = Callable[[], RolloutMaker]
"""Makes the maker, in the process that is to run it."""


class Rollouts(Protocol):
    """A source of groups; see the module. Steps are requested and taken in order."""

    def publish(self, version: int, weights: bytes) -> None:
        """Hand over the weights of a version, safetensors."""

    def request(self, requests: Sequence[RolloutRequest]) -> None:
        """Ask for the groups of one step, all of one version that was published."""

    def take(self, step: int, stopping: Callable[[], bool] = never) -> list[Group]:
        """The groups of a step, in the order of their requests.

        Raises PipelineError if one cannot be made, StopRequested after a yes of `stopping`, which is asked meanwhile.
        """

    def close(self) -> None:
        """Release what the source holds."""


def in_requests(asked: Sequence[RolloutRequest], groups: int) -> list[tuple[RolloutRequest, ...]]:
    """What one step asks for, cut into requests of so many groups by their places in it, and by nothing else."""
    return [tuple(asked[first : first + groups]) for first in range(0, len(asked), groups)]


class OwnRollouts:
    """Groups that the learner makes itself, when it takes them. The clips of the next request are read meanwhile.

    groups: of a request, made as one batch.
    """

    def __init__(self, make: MakeMaker, groups: int = 1) -> None:
        self.maker, self._groups = make(), groups
        self._weights: dict[int, bytes] = {}
        self._requested: dict[int, list[tuple[RolloutRequest, ...]]] = {}
        self._reading = ThreadPoolExecutor(1, "autogaze-rollouts")
        self._ahead: dict[tuple[RolloutRequest, ...], Future[Batch]] = {}

    def publish(self, version: int, weights: bytes) -> None:
        self._weights[version] = weights

    def request(self, requests: Sequence[RolloutRequest]) -> None:
        self._requested[requests[0].step] = in_requests(requests, self._groups)
        self._read_ahead()

    def take(self, step: int, stopping: Callable[[], bool] = never) -> list[Group]:
        requested = self._requested[step]
        version = requested[0][0].version
        for old in [other for other in self._weights if other < version]:
            del self._weights[old]
        groups: list[Group] = []
        while requested:
            if stopping():
                raise StopRequested
            self._read_ahead()
            began = time.perf_counter()
            clips = self._ahead.pop(request := requested.pop(0)).result()
            waited = time.perf_counter() - began
            self._read_ahead()
            self.maker.load(version, self._weights[version])
            groups += self.maker.make_all(request, clips, waited)
        del self._requested[step]
        return groups

    def close(self) -> None:
        self._reading.shutdown(cancel_futures=True)
        self.maker.close()

    def _read_ahead(self) -> None:
        """Have the clips of the next request read, whichever step it is of, if none are being read."""
        following = next((requests[0] for requests in self._requested.values() if requests), None)
        if following is not None and following not in self._ahead:
            self._ahead[following] = self._reading.submit(self.maker.read, following)


class Recording:
    """Groups that another run recorded at `url`. Nothing is sampled, so their versions are that run's."""

    def __init__(self, url: str) -> None:
        self.url = Location(url)
        self._requested: dict[int, list[RolloutRequest]] = {}

    def publish(self, version: int, weights: bytes) -> None:
        pass

    def request(self, requests: Sequence[RolloutRequest]) -> None:
        self._requested[requests[0].step] = list(requests)

    def take(self, step: int, stopping: Callable[[], bool] = never) -> list[Group]:
        return [self._read(request) for request in self._requested.pop(step)]

    def close(self) -> None:
        pass

    def _read(self, request: RolloutRequest) -> Group:
        url = _recorded_url(self.url, request)
        try:
            group = Group.from_npz(store.read(url))
        except FileNotFoundError as error:
            raise PipelineError(
                f"{url}: is missing; rollouts.replay= needs what rollouts.dump= recorded in a run with the same data, "
                "seed, batch, lag and steps"
            ) from error
        except ValueError as error:
            raise PipelineError(f"{url}: damaged: {error}") from error
        if group.request != request:
            raise PipelineError(
                f"{url}: is {_described(group.request)}, this run needs {_described(request)}; "
                "replay a run with the same lag and steps"
            )
        return group


def record(url: str, groups: Sequence[Group]) -> None:
    """Write groups to where `Recording` reads them."""
    for group in groups:
        store.publish(group.to_npz(), _recorded_url(url, group.request))


def _recorded_url(url: str, request: RolloutRequest) -> str:
    return Location(url) / f"step-{request.step:06d}" / f"{request.epoch:04d}-{request.id:09d}.npz"


def _described(request: RolloutRequest) -> str:
    return f"sample {request.id} of epoch {request.epoch} for step {request.step} by version {request.version}"
