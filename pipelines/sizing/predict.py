"""How long a job takes on a cluster, what is slowest, and how many nodes keep a deadline.

A small job is simulated clip by clip, on all nodes. Of a large one, one node is simulated until it is steady; what a
shard takes there is then what it takes everywhere, and the shards are simulated one by one, as the cluster's nodes are
given them. If there are too many of these as well, the first ones are, and the rest goes on at their rate.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from pipelines.preprocess.config import PreprocessConfig
from pipelines.sizing.cluster import schedule_shards
from pipelines.sizing.machines import Machine, Trace, endless, simulate
from pipelines.sizing.rates import Rates
from pipelines.sizing.rules import Cluster, clip_cost, machine_of, shard_cost
from pipelines.sizing.workload import Workload

_WHOLE_CLIPS = 30_000  # a job of no more clips is simulated whole
_STEADY = 3  # shards that each actor commits while a node is watched, after its first
_SHARDS = 5_000  # simulated one by one
_CORES = ("decode", "encode", "search", "write", "Ray")  # what cores are busy with
_SATURATED = 0.9


@dataclass(frozen=True)
class Prediction:
    """What a job takes.

    Attributes:
        nodes: of the cluster. actors: that work, and of each `decoders` and `gazers`, on `device`.
        seconds: from the first clip to the last commit.
        clips_per_s, hours_per_hour: clips a second and hours of video an hour, over all of it.
        busy: share of the time, while there is work for all, by resource. inside: of the cores, by part.
        slowest: what the others wait for.
        waiting: share of their time in which actors have no shard left, since others have not ended.
        fetched: times that a remote video is fetched on average, beside once by the scan; 0 where none is remote.
        simulated: what was, in words.
    """

    nodes: int
    actors: int
    decoders: int
    gazers: int
    device: str
    seconds: float
    clips_per_s: float
    hours_per_hour: float
    busy: dict[str, float]
    inside: dict[str, float]
    slowest: str
    waiting: float
    fetched: float
    simulated: str


@dataclass(frozen=True)
class _Run:
    """What a simulation of either kind found. trace: of `machines` nodes with `actors` together."""

    seconds: float
    trace: Trace
    machines: int
    actors: int
    waiting: float
    fetched: float
    said: str


class Predictor:
    """Predicts one job on clusters of several sizes.

    Args:
        workload: the job.
        rates: what its parts cost.
        config: its settings.
    """

    def __init__(self, workload: Workload, rates: Rates, config: PreprocessConfig) -> None:
        self._workload, self._rates, self._config = workload, rates, config
        self._clip = clip_cost(rates, config.frames)
        self._shards = [shard_cost(shard, rates) for run in workload.sample for shard in run]
        self._watched: dict[Machine, tuple[Trace, Trace]] = {}

    def predict(self, cluster: Cluster) -> Prediction:
        """Raises PipelineError where the cluster is too small for the workers that are asked for."""
        machine, actors = machine_of(cluster, self._config, self._rates.batch, self._workload.shards)
        small = self._workload.whole and self._workload.clips <= _WHOLE_CLIPS
        run = (self._whole if small else self._in_parts)(cluster, machine, actors)
        busy, inside = _busy(run, machine)
        return Prediction(
            nodes=cluster.nodes,
            actors=actors,
            decoders=machine.decoders,
            gazers=machine.gazers,
            device=self._rates.device,
            seconds=run.seconds,
            clips_per_s=self._workload.clips / run.seconds,
            hours_per_hour=self._workload.seconds / run.seconds,
            busy=busy,
            inside=inside,
            slowest=_slowest(busy, inside),
            waiting=run.waiting,
            fetched=run.fetched,
            simulated=run.said,
        )

    def nodes_for(self, cluster: Cluster, seconds: float, most: int) -> int | None:
        """The fewest nodes that take at most so long; None where `most` do not."""

        def enough(nodes: int) -> bool:
            return self.predict(replace(cluster, nodes=nodes)).seconds <= seconds

        # As many times one node as the work is; from there by doubling steps to where the answer changes.
        least = self.predict(replace(cluster, nodes=1)).seconds / seconds
        if least > 1.1 * most:  # not even if no node waited for another
            return None
        low, high = 0, min(most, max(1, math.floor(least)))  # low: not enough nodes, or none
        step = 1
        while not enough(high):
            if high >= most:
                return None
            low, high, step = high, min(high + step, most), 2 * step
        while high - low > 1:
            middle = max(high - step, (low + high) // 2) if not low else (low + high) // 2
            if enough(middle):
                high, step = middle, 2 * step
            else:
                low = middle
        return high

    def _whole(self, cluster: Cluster, machine: Machine, actors: int) -> _Run:
        trace = simulate(machine, cluster.nodes, self._shards, self._clip, actors=actors)
        ended: dict[int, float] = {actor: time for time, _, actor in trace.commits}
        waiting = 1 - sum(ended.values()) / (actors * trace.now)
        remote = {piece.video for shard in self._shards for piece in shard if piece.fetched}
        fetched = trace.fetches / len(remote) if remote else 0.0
        said = f"all {self._workload.clips:,} clips, one by one"
        return _Run(trace.now, trace, cluster.nodes, actors, waiting, fetched, said)

    def _in_parts(self, cluster: Cluster, machine: Machine, actors: int) -> _Run:
        first, steady = self._watch(machine)
        rate = steady.clips / steady.now
        clips = sum(piece.clips for shard in self._shards for piece in shard)
        rest = self._clip.jpeg + self._clip.search + self._clip.write
        work = np.array([sum(piece.decode + piece.clips * rest for piece in shard) for shard in self._shards])
        # What a shard takes of an actor's time, by its share of the work.
        seconds = (work * (clips / rate * machine.actors / work.sum())).tolist()
        shards = self._workload.shards
        count = min(shards, max(_SHARDS, 4 * actors))
        schedule = schedule_shards(
            lambda shard: seconds[shard % len(seconds)], count, cluster.nodes, actors, machine.in_flight
        )
        total = schedule.seconds + max(0.0, first.now - max(seconds))  # and what it takes to fill the windows
        said = f"a node clip by clip, {first.now + steady.now:,.0f} s of it, and {count:,} shards on all nodes"
        if count < shards:
            total += (shards - count) * sum(seconds) / len(seconds) / actors
            said += f"; the other {shards - count:,} at their rate"
        waiting = 1 - float(schedule.last_of_workers().sum()) / (actors * schedule.seconds)
        waiting *= schedule.seconds / total
        return _Run(total, steady, 1, machine.actors, waiting, self._fetched(schedule.node), said)

    def _watch(self, machine: Machine) -> tuple[Trace, Trace]:
        """What happens on one node until each of its actors has committed a shard or so, and then for a while."""
        if machine not in self._watched:
            marks: list[Trace] = []

            def steady(trace: Trace) -> bool:
                if len(trace.commits) == machine.actors:
                    marks.append(trace.copy())
                return len(trace.commits) >= (1 + _STEADY) * machine.actors

            trace = simulate(machine, 1, endless(self._shards), self._clip, steady)
            self._watched[machine] = marks[0], trace.since(marks[0])
        return self._watched[machine]

    def _fetched(self, node: np.ndarray) -> float:
        """Times that a remote video is fetched. node: that made each shard, of the first ones."""
        pairs, videos = set[tuple[int, int, int]](), set[tuple[int, int]]()
        for number, where in enumerate(node.tolist()):
            turn, shard = divmod(number, len(self._shards))
            for piece in self._shards[shard]:
                if piece.fetched:
                    videos.add((turn, piece.video))
                    pairs.add((turn, piece.video, where))
        return len(pairs) / len(videos) if videos else 0.0


def _busy(run: _Run, machine: Machine) -> tuple[dict[str, float], dict[str, float]]:
    """Share of the time that each resource is busy, and that the cores are with each part."""
    spent, seconds = run.trace.busy, run.trace.now * run.machines
    inside = {part: spent[part] / (seconds * machine.cores) for part in _CORES if spent.get(part)}
    workers = {
        name: spent.get(name, 0.0) / (run.trace.now * run.actors * count)
        for name, count in (("decoders", machine.decoders), ("gazers", machine.gazers))
    }
    busy = {"cores": sum(inside.values()), "GPUs": workers["gazers"]}
    if machine.on_cores:
        del busy["GPUs"]
    busy |= {line: spent.get(line, 0.0) / seconds for line in ("receive", "send")}
    return busy | (workers if machine.on_cores else {"decoders": workers["decoders"]}), inside


def _slowest(busy: dict[str, float], inside: dict[str, float]) -> str:
    """What the others wait for: a resource that is busy all the time, else the workers that are busiest."""
    full = [name for name in ("GPUs", "receive", "send", "cores") if busy.get(name, 0.0) >= _SATURATED]
    name = max(full or busy, key=lambda name: busy[name])
    return f"cores, mostly {Counter(inside).most_common(1)[0][0]}" if name == "cores" else name
