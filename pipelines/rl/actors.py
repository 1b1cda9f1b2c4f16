"""Who makes the groups: the learner itself, Ray actors that may die, or a recording. All give the same ones.

    rollouts.publish(version, weights)      # from now on groups of this version can be made
    rollouts.ask(asks)                      # of a step; begins at once where there are actors
    groups = rollouts.take(step)            # in the order they were asked for; waits

A group is a function of what is asked, so the pool needs no bookkeeping to be exact: whatever an actor was at when it
died is asked of another. Weights travel with every request, as a reference to the one object of their version.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.errors import PipelineError
from pipelines.rl.rollouts import Group, RolloutRequest
from pipelines.rl.sources import Make

_AT_ONCE = 2  # requests an actor holds: one it works on, and one so that it never waits
_KILLS = 3  # actors that one group may take with it
_LOOK_S = 0.2
_COMES_UP_S = 600.0  # what a first actor may take: it loads a reconstructor and reads the datasets' indexes

"""What makes a maker, in the process that is to run it."""


# -- Ray actors ------------------------------------------------------------------------------------------------------


@dataclass
class _Actor:
    handle: Any
    held: deque[tuple[Any, RolloutRequest, int]] = field(default_factory=deque)  # reference, what was asked, its place
    up: Any = None  # a reference that is there when it is; None: it is
    since: float = field(default_factory=time.monotonic)  # when it was started, or began what it works on
    fallen: int = 0  # how many before it, in its place, did not come up

    def drop(self, ref: Any) -> tuple[RolloutRequest, int]:
        [found] = [entry for entry in self.held if entry[0] == ref]
        self.held.remove(found)
        self.since = time.monotonic()
        return found[1], found[2]


class ActorRollouts:
    """Made by `actors` Ray actors, which a thread keeps busy and replaces when they die. Needs a running Ray.

    Args:
        make: makes the maker, in each actor.
        actors: how many. cpus, gpus: of each.
        timeout_s: an actor that takes longer over one group is taken for hung, and replaced.
    """

    def __init__(self, make: Make, actors: int, cpus: float, gpus: float, timeout_s: float) -> None:
        self._make, self._options, self._timeout = make, {"num_cpus": cpus, "num_gpus": gpus}, timeout_s
        self._lock = threading.Condition()
        self._weights: dict[int, Any] = {}
        self._queue: deque[tuple[RolloutRequest, int]] = deque()
        self._groups: dict[int, dict[int, Group]] = {}
        self._asked: dict[int, list[RolloutRequest]] = {}
        self._kills: dict[RolloutRequest, int] = {}
        self._failed: PipelineError | None = None
        self._over = False
        self.deaths = 0
        self._actors = [self._start() for _ in range(actors)]
        self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)
        self._thread.start()

    def publish(self, version: int, weights: bytes) -> None:
        import ray

        reference = ray.put(np.frombuffer(weights, np.uint8))  # one object; actors of a node map the same memory
        with self._lock:
            self._weights[version] = reference

    def ask(self, asks: Sequence[RolloutRequest]) -> None:
        with self._lock:
            self._queue.extend((ask, place) for place, ask in enumerate(asks))
            self._groups[asks[0].step], self._asked[asks[0].step] = {}, list(asks)
            self._lock.notify_all()

    def take(self, step: int) -> list[Group]:
        """Raises PipelineError: what a maker raised, or a group that took too many actors with it."""
        with self._lock:
            while len(self._groups[step]) < len(self._asked[step]):
                if self._failed is not None:
                    raise self._failed
                if not self._thread.is_alive():
                    raise PipelineError("the rollout pool stopped; run the same command again to go on")
                self._lock.wait(1.0)
            made, asks = self._groups.pop(step), self._asked.pop(step)
            groups = [made[place] for place in range(len(asks))]
            # Steps are taken in order, so what is older than this step's version is not asked for again.
            for old in [version for version in self._weights if version < asks[0].version]:
                del self._weights[old]
        return groups

    def close(self) -> None:
        import ray

        with self._lock:
            self._over = True
            self._lock.notify_all()
        self._thread.join()
        for actor in self._actors:
            ray.kill(actor.handle)

    def _start(self, fallen: int = 0) -> _Actor:
        import ray

        # Not in the placement group of a learner that Ray Train started, which has room for learners only.
        kind = ray.remote(_Maker).options(scheduling_strategy="DEFAULT", max_concurrency=1, **self._options)
        handle: Any = kind.remote(self._make)
        return _Actor(handle, up=handle.up.remote(), fallen=fallen)

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except PipelineError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 (it is raised where groups are taken)
            self._fail(PipelineError(f"the rollout pool: {type(error).__name__}: {error}"))

    def _fail(self, error: PipelineError) -> None:
        with self._lock:
            self._failed = error
            self._lock.notify_all()

    def _turn(self) -> bool:
        """Hand out, wait a little, take in; False when it is over."""
        import ray

        with self._lock:
            if self._over:
                return False
            self._hand_out()
            self._require_one()
            refs = [ref for actor in self._actors for ref, _, _ in actor.held]
            if not refs:
                self._lock.wait(_LOOK_S)
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0.02) if refs else ([], [])
        if refs and not ready:
            ready, _ = ray.wait(refs, num_returns=1, timeout=_LOOK_S)
        for ref in ready:
            # What a dead actor held is ready too, as an error; it was handed on when the first of it came up.
            owner = next((a for a in self._actors if any(held == ref for held, _, _ in a.held)), None)
            if owner is not None:
                self._take_in(owner, ref)
        for actor in list(self._actors):
            if actor.up is not None and ray.wait([actor.up], timeout=0)[0]:
                self._come_up(actor)
            elif actor.up is None and actor.held and time.monotonic() - actor.since > self._timeout:
                ray.kill(actor.handle)
                self._replace(actor, f"took longer than {self._timeout:g} s")
        return True

    def _come_up(self, actor: _Actor) -> None:
        import ray
        from ray.exceptions import RayActorError

        try:
            ray.get(actor.up)
        except RayActorError as error:
            if actor.fallen + 1 >= _KILLS:
                raise PipelineError(
                    f"{_KILLS} rollout actors in a row did not come up ({_why(error)}); "
                    "look at memory and at the logs of Ray"
                ) from error
            self._replace(actor, _why(error))
        else:
            actor.up, actor.fallen = None, 0

    def _require_one(self) -> None:
        """Raise PipelineError when groups have long been waiting for a first actor: Ray itself would wait for ever."""
        waited = min(time.monotonic() - actor.since for actor in self._actors)
        if self._queue and waited > _COMES_UP_S and all(actor.up is not None for actor in self._actors):
            raise PipelineError(
                f"no rollout actor came up in {_COMES_UP_S:g} s; Ray may have no room for one: look at `ray status`, "
                "and lower scale.max_workers or rollouts.actors"
            )

    def _hand_out(self) -> None:
        # Only to those that are up: some may wait for room in the cluster for as long as it has none.
        up = [actor for actor in self._actors if actor.up is None]
        while self._queue and up:
            actor = min(up, key=lambda actor: len(actor.held))
            if len(actor.held) >= _AT_ONCE:
                return
            ask, place = self._queue.popleft()
            if not actor.held:
                actor.since = time.monotonic()
            actor.held.append((actor.handle.make.remote(ask, self._weights[ask.version]), ask, place))

    def _take_in(self, actor: _Actor, ref: Any) -> None:
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        try:
            group = ray.get(ref)
        except RayActorError as error:
            self._replace(actor, _why(error))
            return
        except RayTaskError as error:
            if isinstance(error.cause, PipelineError):
                raise PipelineError(str(error.cause)) from error
            raise PipelineError(f"a rollout actor: {str(error).strip().splitlines()[-1]}") from error
        except Exception:  # noqa: BLE001 (an object lost with its node, say: whatever it is, the group can be made again)
            with self._lock:
                self._queue.appendleft(actor.drop(ref))
            return
        with self._lock:
            ask, place = actor.drop(ref)
            self._groups[ask.step][place] = group
            self._lock.notify_all()

    def _replace(self, dead: _Actor, why: str) -> None:
        """Another actor for a dead one, and what it held to the front of the queue, in order."""
        with self._lock:
            self.deaths += 1
            working = dead.held[0][1] if dead.held else None
            self._queue.extendleft((ask, place) for _, ask, place in reversed(dead.held))
            fallen = 0 if dead.up is None else dead.fallen + 1
            self._actors[self._actors.index(dead)] = self._start(fallen)
        if working is not None:
            self._kills[working] = self._kills.get(working, 0) + 1
            if self._kills[working] >= _KILLS:
                raise PipelineError(
                    f"sample {working.id} (step {working.step}): {_KILLS} rollout actors died over it ({why}); "
                    "look at memory and at the logs of Ray, or raise rollouts.timeout_s"
                )


class _Maker:
    """An actor: makes groups by the weights that come with each request."""

    def __init__(self, make: Make) -> None:
        self.maker = make()

    def up(self) -> None:
        """Answers when it has begun."""

    def make(self, ask: RolloutRequest, weights: np.ndarray) -> Group:
        self.maker.load(ask.version, weights)
        return self.maker.make(ask)


def _why(error: Exception) -> str:
    """What Ray says of a dead actor, in few words."""
    lines = str(error).strip().splitlines()
    if "creation task" in lines[0]:
        return lines[-1].strip()
    kind = re.search(r"exit type: (\w+)", str(error))
    return f"its process ended: {kind.group(1)}" if kind else lines[0]
