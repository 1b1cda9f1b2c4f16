"""Training on several ranks with Ray Train: one worker a device, restarted when one dies, resized when room changes.

Each worker runs `train` of pipelines/train/loop.py. The loop keeps its own checkpoints, so a restarted worker group
resumes from the run's folder.
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pipelines.errors import PipelineError
from pipelines.train.config import TrainConfig
from pipelines.train.link import RankLink, linked

if TYPE_CHECKING:
    from pipelines.train.task import MakeTask

_AGAIN = "run the same command again to go on from the last checkpoint"
_PATIENCE_S = 1800  # many times longer than a store's outage or the upload of a large checkpoint


def require_room(config: TrainConfig, cpus: int, gpus: int) -> None:
    """Raise PipelineError unless the ranks that would start, and all their rollout actors, fit at the same time.

    Otherwise Ray would wait for room for ever, and so would the learners for their actors.

    cpus, gpus: how many the cluster has.
    """
    scale, each = config.scale, config.rank_actors
    in_ray, on_gpu = scale.max_workers > 1, scale.device == "cuda"  # a single rank runs outside Ray
    fit = gpus if on_gpu else cpus // scale.threads
    ranks = max(scale.min_workers, min(scale.max_workers, fit))
    actors = ranks * each.count
    need_cpus = scale.threads * (ranks * (in_ray and not on_gpu) + actors * (not each.gpus))
    need_gpus = ranks * (in_ray and on_gpu)
    if 0 < each.gpus < 1:  # an actor's share is of one GPU
        need_gpus += math.ceil(actors / math.floor(1 / each.gpus))
    else:
        need_gpus += actors * int(each.gpus)
    if need_cpus > cpus or need_gpus > gpus:
        of_actors = f" with rollouts.actors={each.count} and rollouts.gpus={each.gpus:g}" if actors else ""
        raise PipelineError(
            f"{ranks} rank{'s' * (ranks > 1)} of scale.threads={scale.threads}{of_actors} need {need_cpus} CPUs and "
            f"{need_gpus} GPUs; the cluster has {cpus} CPUs and {gpus} GPUs: lower these or scale.max_workers "
            "(on one machine, ray.cpus= sets how many Ray counts)"
        )


def patience_s(config: TrainConfig) -> int:
    """Seconds that ranks wait for one that hangs. (Ray and closed connections reveal a dead one at once.)"""
    return _PATIENCE_S + math.ceil(config.longest_wait_s)


def train_on_ray(
    config: TrainConfig, make_task: MakeTask, stopping: Callable[[], bool], console: Console | None = None
) -> str:
    """Train on scale.min_workers to scale.max_workers ranks. Needs a running Ray. Returns what `train` returned.

    make_task: see `train`. stopping: asked about once a second; after a yes, all ranks stop at the same step, after a
    checkpoint. console: for the progress of rank 0 (None: none).
    Raises PipelineError: what a rank raised; or, when more ranks died than scale.max_failures, which.
    """
    from ray.exceptions import RayActorError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    scale = config.scale
    workers: int | tuple[int, int] = scale.max_workers
    if scale.min_workers < scale.max_workers:
        workers = (scale.min_workers, scale.max_workers)
    with tempfile.TemporaryDirectory() as scratch, linked(stopping, console):
        trainer = TorchTrainer(
            _worker,  # type: ignore[arg-type]  # may return a value, which the annotation does not know
            train_loop_config={"config": config, "make_task": make_task},
            torch_config=TorchConfig(
                backend="nccl" if scale.device == "cuda" else "gloo", timeout_s=patience_s(config)
            ),
            scaling_config=ScalingConfig(
                num_workers=workers,  # type: ignore[arg-type]  # a (min, max) pair is documented, not annotated
                use_gpu=scale.device == "cuda",
                resources_per_worker={"CPU": scale.threads} if scale.device == "cpu" else None,
                elastic_resize_monitor_interval_s=scale.resize_s,  # type: ignore[call-arg]  # nor is this one
            ),
            run_config=RunConfig(storage_path=scratch, failure_config=FailureConfig(max_failures=scale.max_failures)),
        )
        try:
            result = _fit(trainer)
        except RayActorError as error:  # the controller's death; a rank's comes as another error
            raise PipelineError(f"training stopped: the process of Ray Train's controller died; {_AGAIN}") from error
        except Exception as error:  # a rank's error is wrapped in classes that differ between versions of Ray
            raise PipelineError(_explain(error)) from error
    return str(result.return_value)


def _fit(trainer: Any) -> Any:
    """trainer.fit(), in a thread: in the main thread it would handle Ctrl-C itself, and abort without a checkpoint."""
    result: Future[Any] = Future()

    def fit() -> None:
        try:
            result.set_result(trainer.fit())
        except BaseException as error:  # noqa: BLE001 (result() raises it)
            result.set_exception(error)

    threading.Thread(target=fit, name="fit", daemon=True).start()
    return result.result()


def _worker(arguments: dict[str, Any]) -> str:
    import ray.train

    from pipelines.train.loop import train

    context, link = ray.train.get_context(), RankLink()
    rank, world = context.get_world_rank(), context.get_world_size()
    return train(
        arguments["config"],
        arguments["make_task"],
        rank=rank,
        world=world,
        console=link.console() if rank == 0 else None,
        stopping=link.stopping,
    )


def _explain(error: BaseException) -> str:
    """One line: which ranks failed, and why."""
    failures = getattr(error, "worker_failures", None) or {}
    causes = {rank: _root(failure) for rank, failure in failures.items()}
    for cause in causes.values():
        if isinstance(cause, PipelineError):
            return str(cause)
    dead = [rank for rank, cause in sorted(causes.items()) if hasattr(cause, "health_check_failure")]
    if dead:  # the other ranks' errors only say that they lost the connection
        named = ", ".join(f"rank {rank} died" for rank in dead)
        return f"training stopped: {named}; {_AGAIN}"
    if causes:
        named = "; ".join(f"rank {rank}: {_first_line(cause)}" for rank, cause in sorted(causes.items()))
        return f"training stopped, {named}; {_AGAIN}"
    return f"training stopped: {_first_line(_root(error))}"


def _root(error: BaseException) -> BaseException:
    """The error that was raised first, below Ray's wrappers."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None and inner is not error:
        error = inner
    return error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
