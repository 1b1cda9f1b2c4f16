"""How we use Ray Data: quietly, and with our workers' errors arriving as what they were."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from pipelines.errors import PipelineError


def configure_ray_data() -> None:
    """No progress bars, listings and tracebacks of Ray Data's: jobs show their own."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # otherwise only its text crosses, inside another exception
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def pipeline_errors(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows of a dataset; a PipelineError of a worker is raised here as one, any other error as Ray gives it."""
    try:
        yield from rows
    except Exception as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, PipelineError):
            raise PipelineError(str(cause).splitlines()[0]) from error  # Ray adds lines of its own
        raise


def node_sizes() -> list[tuple[float, float]]:
    """CPUs and GPUs of each node of the cluster that this process is connected to; of none, one without bounds."""
    import ray

    if not ray.is_initialized():
        return [(float("inf"), float("inf"))]
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(float(each.get("CPU", 0)), float(each.get("GPU", 0))) for each in alive]
