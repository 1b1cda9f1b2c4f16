"""What preprocess and scan do with Ray Data, as plain loops in this process: the oracle of the real thing, and quick.

A run on Ray spends some 17 CPU seconds on starting processes. Tests of Ray itself (worker counts, kills, nodes) compare
their bytes with what this makes; all other tests use it instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.local import ClusterSize, RayConfig

Row = dict[str, Any]


class PlainDataset:
    """The few methods of ray.data.Dataset that the jobs call; rows pass one by one, in order."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = rows

    def map(self, actor: Callable[..., Callable[[Row], Row]], fn_constructor_args: tuple[Any, ...], **_: Any) -> Any:
        def rows() -> Iterator[Row]:
            work = actor(*fn_constructor_args)
            # Ray ends an actor, and with it the decoders' children.
            with closing(work) if hasattr(work, "close") else nullcontext():
                yield from map(work, self._rows)

        return PlainDataset(rows())

    def flat_map(self, function: Callable[[Row], list[Row]], **_: Any) -> Any:
        return PlainDataset(row for item in self._rows for row in function(item))

    def iter_rows(self) -> Iterator[Row]:
        return iter(self._rows)


@contextmanager
def plain_ray_data() -> Iterator[None]:
    """Within the block, jobs in this process use plain loops for Ray Data, and need no Ray."""
    import ray
    import ray.data

    from jobs import making, scan

    @contextmanager
    def no_ray(config: RayConfig) -> Iterator[ClusterSize]:
        yield ClusterSize(nodes=1, cpus=4, gpus=0)

    @contextmanager
    def this_node(nodes: object) -> Iterator[object]:
        yield SimpleNamespace(call=lambda function, *arguments: function(*arguments))

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray.data, "from_items", lambda items, **_: PlainDataset(items))
        patch.setattr(ray, "is_initialized", lambda: False)
        patch.setattr(making, "running", no_ray)
        patch.setattr(making, "alive_nodes", list)
        patch.setattr(making, "probing", this_node)
        patch.setattr(scan, "running", no_ray)
        yield
    torch.set_num_threads(threads)  # the gaze stage sets those of its process
