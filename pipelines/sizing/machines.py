"""Machines that make shards, piece by piece, in simulated time, by the rules of a shard actor.

An actor makes two shards at a time: the second begins to be decoded when nothing of the first is left to hand out. What
is handed out are pieces: some clips of one video. An actor's decoders take them as they are free, and the frames of
pieces that are handed out and not yet taken are bounded. The thread of a shard takes its pieces in the plan's order,
lets gazers have batches of neighbouring clips, and writes the batches, in order. The tar is sent when it is whole. All
of it shares the cores of the machine, in turns.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import simpy

_TURN_S = 0.1  # of a core, before others have theirs
_BESIDE_S = 0.5  # between two times that what runs beside the actors has a core
_CHUNK = 16e6  # bytes of a transfer, before others have theirs
Steps: TypeAlias = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class PieceCost:
    """Clips of one video that are decoded together.

    Attributes:
        video: a number of the video.
        clips: how many, and `held`: bytes of their frames.
        decode: core seconds.
        fetched: bytes of the video, if it is remote.
    """

    video: int
    clips: int
    held: int
    decode: float
    fetched: float


ShardCost: TypeAlias = tuple[PieceCost, ...]


@dataclass(frozen=True)
class ClipCost:
    """What a clip costs beside decoding: core seconds, or of `search` the device's.

    Attributes:
        jpeg, search, write: to encode its frames, to gaze at it, to pack it into the tar.
        shard: what a shard takes beside its clips.
        stored: bytes of the dataset.
        start: core seconds of a decoder before its first piece.
    """

    jpeg: float
    search: float
    write: float
    shard: float
    stored: float
    start: float = 0.0


@dataclass(frozen=True)
class Machine:
    """A machine, and the actors that a job has there.

    Attributes:
        cores: of the machine.
        actors: on it, and of each: `decoders` and `gazers`.
        on_cores: whether gazers need cores, and not a device each.
        batch: clips that a gazer takes at once.
        window: bytes of frames that an actor has handed out and not taken.
        at_once: shards that an actor makes at a time, and `in_flight` those that it is given.
        bytes_per_s: that the machine can receive, and send.
        beside: core seconds a second that are spent beside the actors.
    """

    cores: int
    actors: int
    decoders: int
    gazers: int
    on_cores: bool
    batch: int
    window: int
    at_once: int
    in_flight: int
    bytes_per_s: float
    beside: float = 0.0


@dataclass
class Trace:
    """What happened, up to some time.

    Attributes:
        now: that time, seconds.
        clips: that were written.
        commits: of each shard: when, which, and by which actor.
        busy: seconds by part, added up over all that work on it: of cores `decode`, `encode`, `search`, `write` and
            `Ray`, which is what is spent beside the actors; of lines `receive` and `send`; of workers, waiting for
            cores included, `decoders` and `gazers`.
        fetches: videos that a machine fetched.
    """

    now: float = 0.0
    clips: int = 0
    commits: list[tuple[float, int, int]] = field(default_factory=list)
    busy: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    fetches: int = 0

    def copy(self) -> Trace:
        """What has happened so far."""
        return replace(self, commits=[*self.commits], busy={**self.busy})

    def since(self, before: Trace) -> Trace:
        """What has happened since an earlier copy."""
        return Trace(
            self.now - before.now,
            self.clips - before.clips,
            self.commits[len(before.commits) :],
            {part: spent - before.busy.get(part, 0.0) for part, spent in self.busy.items()},
            self.fetches - before.fetches,
        )


def simulate(
    machine: Machine,
    machines: int,
    shards: Iterable[ShardCost],
    clip: ClipCost,
    until: Callable[[Trace], bool] = lambda trace: False,
    actors: int = 0,
) -> Trace:
    """Let machines make shards, in order, until there are none left, or `until` says so after a commit.

    actors: on all of them together, where that is not so many times `machine.actors`.
    """
    env, trace = simpy.Environment(), Trace()
    queue, over = enumerate(shards), env.event()
    hosts = [_Host(env, machine, trace) for _ in range(machines)]

    def committed(actor: _Actor) -> None:
        if until(trace) and not over.triggered:
            over.succeed()
        actor.give(next(queue, None))

    workers = [
        _Actor(hosts[number % machines], number, clip, committed)
        for number in range(actors or machines * machine.actors)
    ]
    for _ in range(machine.in_flight):
        for worker in workers:
            worker.give(next(queue, None))
    env.process(_ending(env, workers, over))
    env.run(over)
    return trace


def _ending(env: simpy.Environment, workers: list[_Actor], over: simpy.Event) -> Steps:
    """End the simulation when no actor has anything left to do."""
    yield env.all_of([worker.idle for worker in workers])
    if not over.triggered:
        over.succeed()


def endless(shards: list[ShardCost]) -> Iterator[ShardCost]:
    """The shards again and again, each time of other videos."""
    turn, videos = 0, 1 + max((piece.video for shard in shards for piece in shard), default=0)
    while True:
        for shard in shards:
            yield tuple(replace(piece, video=piece.video + turn * videos) for piece in shard)
        turn += 1


class _Host:
    """Cores and lines of a machine."""

    def __init__(self, env: simpy.Environment, machine: Machine, trace: Trace) -> None:
        self.env, self.machine, self.trace = env, machine, trace
        self.cores = simpy.PriorityResource(env, machine.cores)
        self.lines = {"receive": simpy.Resource(env, 1), "send": simpy.Resource(env, 1)}
        self.here: dict[int, simpy.Event] = {}  # videos that are fetched, or about to be
        if machine.beside:
            env.process(self._work_beside())

    def _work_beside(self) -> Steps:
        while True:
            yield self.env.timeout(_BESIDE_S)
            self.env.process(self.compute("Ray", _BESIDE_S * self.machine.beside))

    def compute(self, part: str, seconds: float) -> Steps:
        """Use a core for so many seconds, in turns with others.

        Decoders use cores all the time, and the other threads now and then: an operating system lets those that have
        waited go first.
        """
        while seconds > 1e-12:
            with self.cores.request(priority=part == "decode") as core:
                yield core
                spent = min(seconds, _TURN_S)
                yield self.env.timeout(spent)
            seconds -= spent
            self.trace.busy[part] += spent

    def transfer(self, line: str, size: float) -> Steps:
        """Move bytes over a line that all transfers share."""
        while size > 0:
            with self.lines[line].request() as turn:
                yield turn
                moved = min(size, _CHUNK)
                yield self.env.timeout(moved / self.machine.bytes_per_s)
            size -= moved
            self.trace.busy[line] += moved / self.machine.bytes_per_s

    def fetched(self, piece: PieceCost) -> simpy.Event:
        """When a video is on this machine; it is fetched once."""
        if piece.video not in self.here:
            self.trace.fetches += piece.fetched > 0
            self.here[piece.video] = self.env.process(self.transfer("receive", piece.fetched))
        return self.here[piece.video]


class _Room:
    """What pipelines.preprocess.window.Room does, in simulated time."""

    def __init__(self, env: simpy.Environment, size: int) -> None:
        self.env, self.size, self.used, self.changed = env, size, 0, env.event()

    def take(self, count: int, wait: bool, held: int) -> Generator[simpy.Event, Any, bool]:
        while self.used and self.used + count > self.size:
            if not wait or (held and self.used == held):
                return False
            yield self.changed
        self.used += count
        return True

    def give(self, count: int) -> None:
        self.used -= count
        changed, self.changed = self.changed, self.env.event()
        changed.succeed()


class _Actor:
    """A shard actor: pipelines.preprocess.stage, and what it uses of decoding, gaze_threads and streams there."""

    def __init__(self, host: _Host, number: int, clip: ClipCost, committed: Callable[[_Actor], None]) -> None:
        env, machine = host.env, host.machine
        self.env, self.host, self.trace, self.number = env, host, host.trace, number
        self.clip, self.batch, self.ahead, self.committed = clip, machine.batch, machine.gazers, committed
        self.inbox = simpy.Store(env)
        self.cold = machine.decoders  # that have not started: those that wait longest are taken first
        self.left = 0  # shards given and not committed
        self.idle: simpy.Event = env.event()
        self.decoders, self.encoders, self.gazers = (
            simpy.Resource(env, count) for count in (machine.decoders, machine.decoders, machine.gazers)
        )
        self.room, self.turn = _Room(env, machine.window), simpy.Resource(env, 1)
        for _ in range(machine.at_once):
            env.process(self._make_shards())

    def give(self, shard: tuple[int, ShardCost] | None) -> None:
        if shard is not None:
            self.left += 1
            self.inbox.put(shard)
        elif not self.left and not self.idle.triggered:
            self.idle.succeed()

    def _make_shards(self) -> Steps:
        while True:
            shard, pieces = yield self.inbox.get()
            yield from self._make(pieces)
            yield from self.host.transfer("send", sum(piece.clips for piece in pieces) * self.clip.stored)
            self.trace.now = self.env.now
            self.trace.commits.append((self.env.now, shard, self.number))
            self.left -= 1
            self.committed(self)

    def _make(self, pieces: ShardCost) -> Steps:
        """What the thread of a shard does: hand out pieces while there is room, take them in order, gaze, write."""
        left, taken = deque(pieces), deque[tuple[PieceCost, simpy.Event]]()
        gazed = deque[tuple[int, simpy.Event]]()
        group, held, turn = 0, 0, self.turn.request()
        yield turn
        while left or taken:
            while left and (yield from self.room.take(left[0].held, len(taken) < self.decoders.capacity, held)):
                held += left[0].held
                taken.append((left[0], self.env.process(self._decode(left.popleft()))))
            if not left:
                self.turn.release(turn)  # more than once does nothing
            piece, decoded = taken[0]
            yield decoded
            clips = piece.clips
            while clips:
                more = min(clips, self.batch - group)
                clips, group = clips - more, group + more
                if group == self.batch:
                    gazed.append((group, self.env.process(self._gaze(group))))
                    group = 0
                    while len(gazed) > self.ahead:
                        yield from self._write(*gazed.popleft())
            taken.popleft()
            held -= piece.held
            self.room.give(piece.held)
        self.turn.release(turn)
        if group:
            gazed.append((group, self.env.process(self._gaze(group))))
        while gazed:
            yield from self._write(*gazed.popleft())
        yield from self.host.compute("write", self.clip.shard)

    def _decode(self, piece: PieceCost) -> Steps:
        """Decode a piece, in a thread that has a decoder; encode it in another, while the decoder has the next one."""
        there = self.host.fetched(piece)
        with self.decoders.request() as decoder:
            yield decoder
            yield there
            began = self.env.now
            if self.cold:
                self.cold -= 1
                yield from self.host.compute("decode", self.clip.start)
            yield from self.host.compute("decode", piece.decode)
            self.trace.busy["decoders"] += self.env.now - began
        if self.clip.jpeg:
            with self.encoders.request() as thread:
                yield thread
                yield from self.host.compute("encode", piece.clips * self.clip.jpeg)

    def _gaze(self, clips: int) -> Steps:
        with self.gazers.request() as gazer:
            yield gazer
            began = self.env.now
            if self.host.machine.on_cores:
                yield from self.host.compute("search", clips * self.clip.search)
            else:
                yield self.env.timeout(clips * self.clip.search)
            self.trace.busy["gazers"] += self.env.now - began

    def _write(self, clips: int, gazed: simpy.Event) -> Steps:
        yield gazed
        yield from self.host.compute("write", clips * self.clip.write)
        self.trace.clips += clips
