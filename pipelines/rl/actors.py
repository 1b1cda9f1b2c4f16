"""Groups made by Ray actors, which a thread keeps busy and replaces when they die.

A request is some groups of one step, cut by their places in it. They are a function of the request, so dead actors cost
no bookkeeping: what one held is requested of another. Weights travel with every request, as a reference to the one
object that holds their version.

An actor holds two requests: while it samples and rewards the groups of one, it reads the clips of the next. When it
dies both are suspects, and each is tried again alone, so that the one to blame is known.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pipelines.errors import PipelineError
from pipelines.rl.groups import Group, RolloutRequest
from pipelines.rl.sources import MakeMaker, in_requests
from pipelines.train.stopping import StopRequested, never

_AT_ONCE = 2  # requests an actor holds: the one it makes, and the next, whose clips it reads meanwhile
_KILLS = 3  # actors that may die over one request, or in a row at their start
_LOOK_S = 0.2
_COMES_UP_S = 600.0  # for the first actor to start: it loads a reconstructor and reads the datasets' indexes


_Request = tuple[RolloutRequest, ...]
"""The groups that are asked for at once."""


class _Held(NamedTuple):
    """A request that an actor holds: the reference to its answer, and its place among those of its step."""

    reference: Any
    request: _Request
    place: int


@dataclass
class _Actor:
    handle: Any
    held: deque[_Held] = field(default_factory=deque)
    starting: Any = None  # a reference that is ready once the actor has started; None: it has
    since: float = field(default_factory=time.monotonic)  # when it was started, or began its current request
    failed_starts: int = 0  # of the actors before it in its place, in a row

    def drop(self, reference: Any) -> _Held:
        """Take the request of this reference off the actor."""
        [dropped] = [held for held in self.held if held.reference == reference]
        self.held.remove(dropped)
        self.since = time.monotonic()
        return dropped


class ActorRollouts:
    """A source of groups (see pipelines/rl/sources.py): `actors` Ray actors. Needs a running Ray.

    Args:
        make: makes the maker, in each actor.
        actors: how many.
        cpus, gpus: of each.
        timeout_s: an actor that takes longer over one request is considered hung, and replaced.
        groups: of a request.
    """

    def __init__(
        self, make: MakeMaker, actors: int, cpus: float, gpus: float, timeout_s: float, groups: int = 1
    ) -> None:
        self._size = groups
        self._make, self._options, self._timeout = make, {"num_cpus": cpus, "num_gpus": gpus}, timeout_s
        self._lock = threading.Condition()
        self._weights: dict[int, Any] = {}
        self._queue: deque[tuple[_Request, int]] = deque()
        self._groups: dict[int, dict[int, list[Group]]] = {}  # by step, and place among the step's requests
        self._requested: dict[int, list[_Request]] = {}
        self._kills: dict[_Request, int] = {}  # actors that died while they held it
        self._failed: PipelineError | None = None
        self._over = False
        self.deaths = 0
        self._actors = [self._start() for _ in range(actors)]
        self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)
        self._thread.start()

    def publish(self, version: int, weights: bytes) -> None:
        """See Rollouts. Weights become one object, which all actors of a node map into their memory."""
        import ray

        reference = ray.put(np.frombuffer(weights, np.uint8))
        with self._lock:
            self._weights[version] = reference

    def request(self, requests: Sequence[RolloutRequest]) -> None:
        """See Rollouts."""
        with self._lock:
            cut = in_requests(requests, self._size)
            self._queue.extend((request, place) for place, request in enumerate(cut))
            self._groups[requests[0].step], self._requested[requests[0].step] = {}, cut
            self._lock.notify_all()

    def take(self, step: int, stopping: Callable[[], bool] = never) -> list[Group]:
        """See Rollouts. Raises PipelineError: what a maker raised, or a group that several actors died over."""
        with self._lock:
            while len(self._groups[step]) < len(self._requested[step]):
                if self._failed is not None:
                    raise self._failed
                if not self._thread.is_alive():
                    raise PipelineError("the rollout pool stopped; run the same command again to go on")
                if stopping():
                    raise StopRequested
                self._lock.wait(1.0)
            made, requests = self._groups.pop(step), self._requested.pop(step)
            groups = [group for place in range(len(requests)) for group in made[place]]
            # Steps are taken in order, so no later request needs a version older than this step's.
            for old in [version for version in self._weights if version < requests[0][0].version]:
                del self._weights[old]
        return groups

    def close(self) -> None:
        """Stop the thread and the actors."""
        import ray

        with self._lock:
            self._over = True
            self._lock.notify_all()
        self._thread.join()
        for actor in self._actors:
            ray.kill(actor.handle)

    def _start(self, failed_starts: int = 0) -> _Actor:
        import ray

        # Outside the placement group of a learner that Ray Train started: it has room for learners only.
        kind = ray.remote(_Maker).options(scheduling_strategy="DEFAULT", max_concurrency=_AT_ONCE, **self._options)
        handle: Any = kind.remote(self._make)
        return _Actor(handle, starting=handle.ready.remote(), failed_starts=failed_starts)

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except PipelineError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 (`take` raises it)
            self._fail(PipelineError(f"the rollout pool: {type(error).__name__}: {error}"))

    def _fail(self, error: PipelineError) -> None:
        with self._lock:
            self._failed = error
            self._lock.notify_all()

    def _turn(self) -> bool:
        """Hand out requests, wait a little, take in groups, replace dead actors; False when closed."""
        import ray

        with self._lock:
            if self._over:
                return False
            self._hand_out()
            self._require_a_start()
            references = [held.reference for actor in self._actors for held in actor.held]
            if not references:
                self._lock.wait(_LOOK_S)
        ready, _ = ray.wait(references, num_returns=len(references), timeout=0.02) if references else ([], [])
        if references and not ready:
            ready, _ = ray.wait(references, num_returns=1, timeout=_LOOK_S)
        for reference in ready:
            # All that a dead actor held is ready, as errors. The first replaces the actor; the rest then have no owner.
            owner = next((a for a in self._actors if any(held.reference == reference for held in a.held)), None)
            if owner is not None:
                self._take_in(owner, reference)
        for actor in list(self._actors):
            if actor.starting is not None and ray.wait([actor.starting], timeout=0)[0]:
                self._take_start(actor)
            elif actor.starting is None and actor.held and time.monotonic() - actor.since > self._timeout:
                ray.kill(actor.handle)
                self._replace(actor, f"took longer than {self._timeout:g} s")
        return True

    def _hand_out(self) -> None:
        """Give requests to the actors that hold fewest, not to those still starting: Ray may have no room for them."""
        started = [actor for actor in self._actors if actor.starting is None]
        while self._queue and started:
            request, place = self._queue[0]
            actor = min(started, key=lambda actor: len(actor.held))
            suspect = any(each in self._kills for each in (request, *(held.request for held in actor.held)))
            if len(actor.held) >= (1 if suspect else _AT_ONCE):
                return
            self._queue.popleft()
            if not actor.held:
                actor.since = time.monotonic()
            reference = actor.handle.make.remote(request, self._weights[request[0].version])
            actor.held.append(_Held(reference, request, place))

    def _require_a_start(self) -> None:
        """Raise PipelineError if groups have waited long for a first actor to start. Ray would wait for ever."""
        waited = min(time.monotonic() - actor.since for actor in self._actors)
        if self._queue and waited > _COMES_UP_S and all(actor.starting is not None for actor in self._actors):
            raise PipelineError(
                f"no rollout actor started in {_COMES_UP_S:g} s; Ray may have no room for one: look at `ray status`, "
                "and lower scale.max_workers or rollouts.actors"
            )

    def _take_start(self, actor: _Actor) -> None:
        """An actor has started, or failed to."""
        import ray
        from ray.exceptions import RayActorError

        try:
            ray.get(actor.starting)
        except RayActorError as error:
            if actor.failed_starts + 1 >= _KILLS:
                raise PipelineError(
                    f"{_KILLS} rollout actors in a row failed to start ({_reason(error)}); "
                    "look at memory and at the logs of Ray"
                ) from error
            self._replace(actor, _reason(error))
        else:
            actor.starting, actor.failed_starts = None, 0

    def _take_in(self, actor: _Actor, reference: Any) -> None:
        """An actor has made a group, or failed to."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        try:
            groups = ray.get(reference)
        except RayActorError as error:
            self._replace(actor, _reason(error))
            return
        except RayTaskError as error:
            if isinstance(error.cause, PipelineError):
                raise PipelineError(str(error.cause)) from error
            raise PipelineError(f"a rollout actor: {str(error).strip().splitlines()[-1]}") from error
        except Exception:  # noqa: BLE001 (such as an object lost with its node: the group can be made again)
            with self._lock:
                lost = actor.drop(reference)
                self._queue.appendleft((lost.request, lost.place))
            return
        with self._lock:
            made = actor.drop(reference)
            self._kills.pop(made.request, None)
            self._groups[made.request[0].step][made.place] = groups
            self._lock.notify_all()

    def _replace(self, dead: _Actor, reason: str) -> None:
        """Start another actor in a dead one's place, and put what it held back at the front of the queue, in order."""
        with self._lock:
            self.deaths += 1
            suspects = [held.request for held in dead.held]
            self._queue.extendleft((held.request, held.place) for held in reversed(dead.held))
            failed_starts = 0 if dead.starting is None else dead.failed_starts + 1
            self._actors[self._actors.index(dead)] = self._start(failed_starts)
        for request in suspects:
            self._kills[request] = self._kills.get(request, 0) + 1
            if self._kills[request] >= _KILLS:
                names = "+".join(str(one.id) for one in request)
                raise PipelineError(
                    f"sample {names} (step {request[0].step}): {_KILLS} rollout actors died over it ({reason}); "
                    "look at memory and at the logs of Ray, or raise rollouts.timeout_s"
                )


class _Maker:
    """The actor: makes groups with the weights that come with each request, and reads the next clips meanwhile."""

    def __init__(self, make: MakeMaker) -> None:
        self.maker = make()
        self.reading, self.making = threading.Lock(), threading.Lock()
        self.idle_since = time.perf_counter()

    def ready(self) -> None:
        """Returns once the actor has started."""

    def make(self, request: _Request, weights: np.ndarray) -> list[Group]:
        with self.reading:
            began = time.perf_counter()
            clips = self.maker.read(request)
            read = time.perf_counter()
        with self.making:
            waited = max(0.0, read - max(began, self.idle_since))
            self.maker.load(request[0].version, weights)
            groups = self.maker.make_all(request, clips, waited)
            self.idle_since = time.perf_counter()
        return groups


def _reason(error: Exception) -> str:
    """Why an actor died, from Ray's many lines."""
    lines = str(error).strip().splitlines()
    if "creation task" in lines[0]:
        return lines[-1].strip()
    kind = re.search(r"exit type: (\w+)", str(error))
    return f"its process ended: {kind.group(1)}" if kind else lines[0]
