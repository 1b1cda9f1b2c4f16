"""RL with rollout actors: slow ones, dead ones, however many, the run ends with the bits of one that had none."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import ray

from pipelines.errors import PipelineError
from pipelines.rl import actors as rollout_actors
from pipelines.rl.actors import ActorRollouts
from pipelines.rl.groups import RolloutRequest
from pipelines.runs.events import read_events
from pipelines.runs.ledger import attempts
from pipelines.train.on_ray import train_on_ray
from tests.support import runs, training
from tests.support.training import end_of, require_clean, rl_config, run_ranks, train
from tests.support.waiting import wait_until

SLOW = pytest.mark.slow
LONG = ["epochs=4", "every.checkpoint=5"]


def actors_alive() -> list[int]:
    """Processes of rollout actors below this one."""
    return [pid for pid, line in runs.descendants(os.getpid()).items() if "_Maker" in line]


@contextmanager
def trouble(seed: int, kills: int) -> Iterator[list[int]]:
    """Actors are halted for a while, again and again, and some are killed; the processes that were."""
    over, chance, killed = threading.Event(), random.Random(seed), []

    def make() -> None:
        while not over.wait(chance.uniform(0.05, 0.3)):
            alive = actors_alive()
            if not alive:
                continue
            pid = chance.choice(alive)
            try:
                if len(killed) < kills and chance.random() < 0.4:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                else:
                    os.kill(pid, signal.SIGSTOP)
                    over.wait(chance.uniform(0.05, 0.4))
                    os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                continue

    thread = threading.Thread(target=make)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()
        for pid in actors_alive():
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("lag", "actors", "kills", "more"),
    [
        pytest.param(0, 2, 1, LONG, marks=SLOW),
        pytest.param(1, 1, 2, LONG, marks=SLOW),
        pytest.param(3, 2, 1, ["epochs=2", "rollouts.groups=3"], marks=SLOW),
        pytest.param(3, 3, 2, LONG, marks=SLOW),
    ],
)
def test_slow_and_dying_actors_change_nothing(
    ray_session: str, gazes: str, tmp_path: Path, lag: int, actors: int, kills: int, more: list[str]
) -> None:
    words = [*more, f"rollouts.lag={lag}"]
    assert train(rl_config(gazes, tmp_path / "alone", *words)) == "done"
    with trouble(lag, kills) as killed:
        assert train(rl_config(gazes, tmp_path / "run", *words, f"rollouts.actors={actors}")) == "done"
    assert len(killed) == kills
    assert end_of(tmp_path / "run") == end_of(tmp_path / "alone")
    require_clean(tmp_path / "run")
    assert wait_until(lambda: not actors_alive()), "actors end with the run"
    events = read_events(str(tmp_path / "run"))
    assert events["idle_rollout"].dropna().between(0, 1).all()


@SLOW
def test_learners_of_two_ranks_have_actors_of_their_own(ray_session: str, gazes: str, tmp_path: Path) -> None:
    words = [*LONG, "rollouts.lag=1", "scale.min_workers=2", "scale.max_workers=2"]
    assert run_ranks(rl_config(gazes, tmp_path / "alone", *words), 2, tmp_path) == ["done", "done"]
    config = rl_config(gazes, tmp_path / "run", *words, "rollouts.actors=1", "scale.max_failures=2")

    def a_learner_dies() -> None:
        events = tmp_path / "run" / "events.jsonl"
        wait_until(lambda: events.exists() and b'"step": 8,' in events.read_bytes())
        workers = [pid for pid, line in runs.descendants(os.getpid()).items() if "RayTrainWorker" in line]
        runs.kill(workers[-1])

    thread = threading.Thread(target=a_learner_dies)
    thread.start()
    try:
        assert train_on_ray(config, training.task_of(config), lambda: False) == "done"
    finally:
        thread.join()
    found = attempts(str(tmp_path / "run"))
    assert [attempt.world for attempt in found] == [2, 2] and found[1].start >= 5
    assert end_of(tmp_path / "run") == end_of(tmp_path / "alone")
    require_clean(tmp_path / "run")


# -- the pool by itself ------------------------------------------------------------------------------------------------


class Odd:
    """Makes no groups: raises, dies or hangs, as the sample's number says."""

    def load(self, version: int, weights: object) -> None:
        pass

    def read(self, requests: Sequence[RolloutRequest]) -> None:
        if any(request.id == 1 for request in requests):
            raise PipelineError("clip 1: cannot be read")

    def make_all(self, requests: Sequence[RolloutRequest], clips: None, waited: float) -> list[str]:
        numbers = {request.id for request in requests}
        if 2 in numbers:
            os._exit(1)
        if 3 in numbers:
            threading.Event().wait()
        if 4 in numbers:
            raise ValueError("something else")
        return [f"group {request.id}" for request in requests]


# Ray's workers cannot import a test: what is of it travels as it is.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two deaths are too many in place of three: each costs the start of a process that imports torch."""
    monkeypatch.setattr(rollout_actors, "_KILLS", 2)


def pool(timeout: float = 60, actors: int = 1) -> ActorRollouts:
    made = ActorRollouts(Odd, actors, 0.5, 0, timeout)  # type: ignore[arg-type]
    made.publish(0, b"weights")
    return made


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (1, "clip 1: cannot be read"),
        pytest.param(2, "sample 2 .step 7.: 2 rollout actors died over it .its process ended", marks=SLOW),
        pytest.param(3, "sample 3 .step 7.: 2 rollout actors died over it .took longer than 1.5 s", marks=SLOW),
        pytest.param(4, "a rollout actor: ValueError: something else", marks=SLOW),
    ],
)
def test_what_no_actor_can_make_is_named_in_one_line(
    ray_session: str, few_tries: None, number: int, message: str
) -> None:
    rollouts = pool(timeout=1.5 if number == 3 else 60)
    try:
        rollouts.request([RolloutRequest(7, 0, 10, 0), RolloutRequest(7, 0, number, 0), RolloutRequest(7, 0, 11, 0)])
        with pytest.raises(PipelineError, match=message) as error:
            rollouts.take(7)
        assert "\n" not in str(error.value)
    finally:
        rollouts.close()


@pytest.mark.slow
def test_an_actor_that_cannot_begin_says_why(ray_session: str, few_tries: None) -> None:
    def make() -> Odd:
        raise ValueError("no such reconstructor")

    rollouts = ActorRollouts(make, 1, 0.5, 0, 60)  # type: ignore[arg-type]
    try:
        rollouts.publish(0, b"weights")
        rollouts.request([RolloutRequest(0, 0, 10, 0)])
        with pytest.raises(PipelineError, match=r"2 rollout actors in a row failed to start .*no such reconstructor"):
            rollouts.take(0)
    finally:
        rollouts.close()


def test_groups_come_in_order_from_the_actors_that_there_is_room_for(ray_session: str) -> None:
    """Ray has room for two of three, one of which dies; requests are of two groups, the last of a step of one."""
    half = ray.cluster_resources()["CPU"] // 2
    with closing(ActorRollouts(Odd, 3, half, 0, 60, groups=2)) as few:  # type: ignore[arg-type]
        few.publish(0, b"weights")
        for step in (0, 1):
            few.request([RolloutRequest(step, 0, 10 * step + place, 0) for place in range(5, 12)])
        assert few.take(0) == [f"group {number}" for number in range(5, 12)]
        os.kill(actors_alive()[0], signal.SIGKILL)
        few.request([RolloutRequest(2, 0, 20 + place, 0) for place in range(5, 12)])
        assert few.take(1) == [f"group {number}" for number in range(15, 22)]
        assert few.take(2) == [f"group {number}" for number in range(25, 32)]


def test_a_pool_that_ray_has_no_room_for_says_so(ray_session: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_actors, "_COMES_UP_S", 1.5)
    more = ray.cluster_resources()["CPU"] + 1
    with closing(ActorRollouts(Odd, 2, more, 0, 60)) as none:  # type: ignore[arg-type]
        none.publish(0, b"weights")
        none.request([RolloutRequest(0, 0, 5, 0)])
        with pytest.raises(PipelineError, match=r"^no rollout actor started in 1.5 s; .*lower scale.max_workers"):
            none.take(0)
