"""Call a function on every node of a running Ray cluster, through one small actor on each.

The node runs its own copy of the code. A node that lacks it, or does not answer in time, gives a FailedNode and stops
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SECONDS = 45.0
"""How long a node may take for one call, the start of its worker included."""

PACKAGES = ("autogaze", "pipelines", "cluster", "jobs")


@dataclass(frozen=True)
class Node:
    """A node of the cluster, with what Ray counts there. object_store: bytes."""

    id: str
    name: str
    cpus: int
    gpus: int
    gpu_kind: str
    object_store: int


@dataclass(frozen=True)
class FailedNode:
    """Why a node gave no answer, in one line."""

    why: str


class _Probe:
    """The actor on a node: it calls a function."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class Probes:
    """One actor on each node. Made and ended by `probing`."""

    def __init__(self, nodes: list[Node]) -> None:
        import ray  # here, not above: see cluster.local
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.nodes = nodes
        probe = ray.remote(num_cpus=0)(_Probe)
        self.actors: dict[str, Any] = {
            node.name: probe.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)
            ).remote()
            for node in nodes
        }

    def call(self, function: Callable[..., Any], *arguments: Any, seconds: float = SECONDS) -> dict[str, Any]:
        """Result of `function(*arguments)` on every node, by the node's name; a FailedNode where it gave none."""
        return self.call_each(function, dict.fromkeys(self.actors, arguments), seconds)

    def call_each(
        self, function: Callable[..., Any], arguments: dict[str, tuple[Any, ...]], seconds: float = SECONDS
    ) -> dict[str, Any]:
        """The same with arguments by node; nodes without an entry are left out."""
        import ray

        answers = {node: self.actors[node].call.remote(function, *given) for node, given in arguments.items()}
        ready, _ = ray.wait(list(answers.values()), num_returns=max(1, len(answers)), timeout=seconds)
        results: dict[str, Any] = {}
        for node, answer in answers.items():
            if answer not in ready:
                results[node] = FailedNode(f"no answer in {seconds:.0f} s")
                continue
            try:
                results[node] = ray.get(answer)
            except Exception as error:  # noqa: BLE001 (whatever the node's code raised is the finding)
                results[node] = FailedNode(_reason(error))
        return results


@contextmanager
def probing(nodes: list[Node]) -> Iterator[Probes]:
    """Actors on these nodes for the length of the block."""
    import ray

    probes = Probes(nodes)
    try:
        yield probes
    finally:
        for actor in probes.actors.values():
            ray.kill(actor)


def alive_nodes() -> list[Node]:
    """The nodes of the Ray that this process is connected to, by name."""
    import ray

    listed = [node for node in ray.nodes() if node["Alive"]]
    hosts = [str(node["NodeManagerHostname"]) for node in listed]
    nodes = []
    for node, host in zip(listed, hosts, strict=True):
        resources = node["Resources"]
        kinds = [name.partition(":")[2] for name in resources if name.startswith("accelerator_type:")]
        nodes.append(
            Node(
                id=str(node["NodeID"]),
                name=host if hosts.count(host) == 1 else f"{host}/{node['NodeID'][:6]}",
                cpus=int(resources.get("CPU", 0)),
                gpus=int(resources.get("GPU", 0)),
                gpu_kind=kinds[0] if kinds else "",
                object_store=int(resources.get("object_store_memory", 0)),
            )
        )
    return sorted(nodes, key=lambda node: node.name)


def _reason(error: BaseException) -> str:
    """What a node's code raised, without Ray's wrappers, in one line."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[0] if cause is not error or not lines else lines[-1]
    own = type(cause).__module__.split(".")[0] in PACKAGES  # our own messages need no class name
    return text if own else f"{type(cause).__name__}: {text or 'no reason given'}"
