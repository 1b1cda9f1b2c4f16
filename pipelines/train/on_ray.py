"""Training on several ranks: Ray Train places one worker on each device, starts them again when one dies, and resizes.

The loop itself is pipelines.train.loop; this module only puts it to work. The loop keeps its own checkpoints: a worker
group that is started again finds its place in the run's folder.
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipelines.errors import PipelineError
from pipelines.train.config import TrainConfig

if TYPE_CHECKING:
    from pipelines.train.task import MakeTask

_STOP = "autogaze-stop"
_AGAIN = "run the same command again to go on from the last checkpoint"
_PATIENCE_S = 1800  # an outage of a store and the upload of a large checkpoint fit in it many times


def require_room(config: TrainConfig, cpus: int, gpus: int) -> None:
    """Raise PipelineError unless the ranks that would be started, and all their rollout actors, fit at once.

    Ray would wait for what does not fit, and the learners for their actors, without end.

    cpus, gpus: that the cluster has.
    """
    scale, each = config.scale, config.rank_actors
    counted, on_gpu = scale.max_workers > 1, scale.device == "cuda"  # one rank alone runs outside of Ray
    fit = gpus if on_gpu else cpus // scale.threads
    ranks = max(scale.min_workers, min(scale.max_workers, fit))
    actors = ranks * each.count
    need_cpus = scale.threads * (ranks * (counted and not on_gpu) + actors * (not each.gpus))
    need_gpus = ranks * (counted and on_gpu)
    if 0 < each.gpus < 1:  # no actor lies on parts of two
        need_gpus += math.ceil(actors / math.floor(1 / each.gpus))
    else:
        need_gpus += actors * int(each.gpus)
    if need_cpus > cpus or need_gpus > gpus:
        told = f" with rollouts.actors={each.count} and rollouts.gpus={each.gpus:g}" if actors else ""
        raise PipelineError(
            f"{ranks} rank{'s' * (ranks > 1)} of scale.threads={scale.threads}{told} need {need_cpus} CPUs and "
            f"{need_gpus} GPUs; the cluster has {cpus} CPUs and {gpus} GPUs: lower these or scale.max_workers "
            "(on one machine, ray.cpus= sets how many Ray counts)"
        )


def patience_s(config: TrainConfig) -> int:
    """Seconds that ranks wait for one that does not answer. Only one that hangs lasts so long: a dead one is noticed at
    once, by its connections and by Ray."""
    return _PATIENCE_S + math.ceil(config.longest_wait_s)


def train_on_ray(config: TrainConfig, make_task: MakeTask, stopping: Callable[[], bool]) -> str:
    """Train on between scale.min_workers and scale.max_workers ranks; what `train` returned. Needs a running Ray.

    make_task: as of `train`.

    stopping: asked about once a second; after a yes, all ranks stop at the same step, after a checkpoint.
    Raises PipelineError: more ranks died than scale.max_failures, and which; or what a rank raised.
    """
    from ray.exceptions import RayActorError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    scale = config.scale
    workers: int | tuple[int, int] = scale.max_workers
    if scale.min_workers < scale.max_workers:
        workers = (scale.min_workers, scale.max_workers)
    with tempfile.TemporaryDirectory() as scratch, _asking(stopping):
        trainer = TorchTrainer(
            _worker,  # type: ignore[arg-type]  # what it returns is in the result, which is not annotated
            train_loop_config={"config": config, "make_task": make_task},
            torch_config=TorchConfig(
                backend="nccl" if scale.device == "cuda" else "gloo", timeout_s=patience_s(config)
            ),
            scaling_config=ScalingConfig(
                num_workers=workers,  # type: ignore[arg-type]  # elastic pairs are documented, not annotated
                use_gpu=scale.device == "cuda",
                resources_per_worker={"CPU": scale.threads} if scale.device == "cpu" else None,
                elastic_resize_monitor_interval_s=scale.resize_s,  # type: ignore[call-arg]  # nor is this one
            ),
            run_config=RunConfig(storage_path=scratch, failure_config=FailureConfig(max_failures=scale.max_failures)),
        )
        try:
            result = _fit(trainer)
        except RayActorError as error:  # a rank's own death is told otherwise
            raise PipelineError(f"training stopped: the process of Ray Train's controller died; {_AGAIN}") from error
        except Exception as error:  # what a rank raised comes wrapped, in classes that differ between versions
            raise PipelineError(_told(error)) from error
    return str(result.return_value)


def _fit(trainer: Any) -> Any:
    """What trainer.fit() gives. In a thread: in the main one it takes Ctrl-C over, and aborts without a checkpoint."""
    found: Future[Any] = Future()

    def fit() -> None:
        try:
            found.set_result(trainer.fit())
        except BaseException as error:  # noqa: BLE001 (it comes out of result())
            found.set_exception(error)

    threading.Thread(target=fit, name="fit", daemon=True).start()
    return found.result()


def _worker(told: dict[str, Any]) -> str:
    import ray
    import ray.train
    from ray.exceptions import RayActorError

    from pipelines.train.loop import train

    context = ray.train.get_context()
    stop = ray.get_actor(_STOP)
    asked: list[Any] = []

    def stopping() -> bool:
        # One question is under way at any time, and a step never waits for its answer.
        if not asked:
            asked.append(stop.asked.remote())
        ready, _ = ray.wait(asked, timeout=0)
        if not ready:
            return False
        try:
            return bool(ray.get(asked.pop()))
        except RayActorError:  # it is being started again; the next question may reach it
            return False

    rank, world = context.get_world_rank(), context.get_world_size()
    return train(told["config"], told["make_task"], rank=rank, world=world, stopping=stopping)


class _Stop:
    """An actor that all ranks ask whether to stop."""

    def __init__(self) -> None:
        self.told = False

    def tell(self) -> None:
        self.told = True

    def asked(self) -> bool:
        return self.told


@contextmanager
def _asking(stopping: Callable[[], bool]) -> Iterator[None]:
    """For the length of the block there is a _Stop, and it is told what `stopping` says."""
    import ray

    # It may be killed, or its node: another is started in its place.
    stop: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Stop).options(name=_STOP).remote()
    over = threading.Event()

    def pass_on() -> None:
        while not over.wait(1.0):
            if stopping():
                stop.tell.remote()  # each second: one that was started again has not heard

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        ray.kill(stop)


def _told(error: BaseException) -> str:
    """One line: which ranks failed, and of what."""
    failures = getattr(error, "worker_failures", None) or {}
    causes = {rank: _root(failure) for rank, failure in failures.items()}
    for cause in causes.values():
        if isinstance(cause, PipelineError):
            return str(cause)
    dead = [rank for rank, cause in sorted(causes.items()) if hasattr(cause, "health_check_failure")]
    if dead:  # what the others say is only that they lost it
        named = ", ".join(f"rank {rank} died" for rank in dead)
        return f"training stopped: {named}; {_AGAIN}"
    if causes:
        named = "; ".join(f"rank {rank}: {_first_line(cause)}" for rank, cause in sorted(causes.items()))
        return f"training stopped, {named}; {_AGAIN}"
    return f"training stopped: {_first_line(_root(error))}"


def _root(error: BaseException) -> BaseException:
    """What was raised first, below the wrappers of Ray."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None and inner is not error:
        error = inner
    return error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
