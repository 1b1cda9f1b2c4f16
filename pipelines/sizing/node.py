"""Machines that make shards, clip by clip, in simulated time, by the rules of a shard actor.

An actor makes two shards at a time: the second begins to be decoded when nothing of the first is left to hand out. The
clips of a shard are handed out in pieces of one video, to decoders that all pieces of the actor share. What is handed
out and not yet packed is bounded. Pieces are taken in the plan's order: their frames are encoded by threads, gazed at
in batches of neighbouring clips, and packed. The tar is written to the store while the next shard is made. All of it
shares the cores of the machine, in turns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import simpy

_TURN_S = 0.1  # of a core, before others have theirs
_CHUNK = 16e6  # bytes of a transfer, before others have theirs
Steps: TypeAlias = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class PieceCost:
    """Clips of one video that are decoded together.

    Attributes:
        video: a number of the video.
        clips, frames: how many.
        decode: core seconds.
        fetched: bytes of the video, if it is remote.
    """

    video: int
    clips: int
    frames: int
    decode: float
    fetched: float


@dataclass(frozen=True)
class ClipCost:
    """What each clip costs beside decoding: core seconds, or of `search` the device's; and bytes of the dataset."""

    jpeg: float
    search: float
    pack: float
    stored: float


@dataclass(frozen=True)
class Node:
    """A machine and the actors on it.

    Attributes:
        cores: of the machine.
        actors: on it, and of each: `decoders`, `gazers` and `encoders` (of JPEGs).
        on_cores: whether gazers need cores, and not a device each.
        batch: clips that a gazer takes at once.
        window: frames that may be handed out and not yet packed, of an actor.
        at_once: shards that an actor makes at a time, and `in_flight` those that it is given.
        bytes_per_s: that it can receive, and send.
    """

    cores: int
    actors: int
    decoders: int
    gazers: int
    encoders: int
    on_cores: bool
    batch: int
    window: int
    at_once: int
    in_flight: int
    bytes_per_s: float


@dataclass
class Trace:
    """What happened, up to some time.

    Attributes:
        now: that time, seconds.
        clips: that were packed.
        commits: of each shard: when, which, and by which actor.
        began: when each shard began to be handed out.
        busy: seconds by part, added up over all that work on it: of cores `decode`, `encode`, `search` and `pack`; of
            lines `receive` and `send`; of workers, waiting for cores included, `decoders` and `gazers`.
        fetches: videos that a node fetched.
    """

    now: float = 0.0
    clips: int = 0
    commits: list[tuple[float, int, int]] = field(default_factory=list)
    began: dict[int, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    fetches: int = 0

    def copy(self) -> Trace:
        """What has happened so far."""
        return Trace(self.now, self.clips, [*self.commits], {**self.began}, {**self.busy}, self.fetches)

    def since(self, before: Trace) -> Trace:
        """What has happened since an earlier copy."""
        busy = {part: spent - before.busy.get(part, 0.0) for part, spent in self.busy.items()}
        return Trace(
            self.now - before.now,
            self.clips - before.clips,
            self.commits[len(before.commits) :],
            self.began,
            busy,
            self.fetches - before.fetches,
        )


def simulate(
    node: Node,
    nodes: int,
    shards: Iterable[tuple[PieceCost, ...]],
    clip: ClipCost,
    until: Callable[[Trace], bool] = lambda trace: False,
) -> Trace:
    """Let so many machines make shards, in order, until there are none left, or `until` says so after a commit."""
    env, trace = simpy.Environment(), Trace()
    queue = enumerate(shards)
    machines = [_Machine(env, node, trace) for _ in range(nodes)]
    over = env.event()

    def committed(actor: _Actor) -> None:
        if until(trace) and not over.triggered:
            over.succeed()
        actor.give(next(queue, None))

    places = [machine for _ in range(node.actors) for machine in machines]
    actors = [_Actor(machine, number, clip, committed) for number, machine in enumerate(places)]
    for _ in range(node.in_flight):
        for actor in actors:
            actor.give(next(queue, None))
    env.process(_ending(env, actors, over))
    env.run(over)
    return trace


def _ending(env: simpy.Environment, actors: list[_Actor], over: simpy.Event) -> Steps:
    """End the simulation when no actor has anything left to do."""
    yield env.all_of([actor.idle for actor in actors])
    if not over.triggered:
        over.succeed()


class _Machine:
    """Cores and lines of a node."""

    def __init__(self, env: simpy.Environment, node: Node, trace: Trace) -> None:
        self.env, self.node, self.trace = env, node, trace
        self.cores = simpy.Resource(env, node.cores)
        self.lines = {"receive": simpy.Resource(env, 1), "send": simpy.Resource(env, 1)}
        self.here: dict[int, simpy.Event] = {}  # videos that are fetched, or about to be

    def compute(self, part: str, seconds: float) -> Steps:
        """Use a core for so many seconds, in turns with others."""
        while seconds > 1e-12:
            with self.cores.request() as core:
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
                yield self.env.timeout(moved / self.node.bytes_per_s)
            size -= moved
            self.trace.busy[line] += moved / self.node.bytes_per_s

    def fetched(self, piece: PieceCost) -> simpy.Event:
        """When a video is on this machine; it is fetched once."""
        if piece.video not in self.here:
            self.trace.fetches += 1
            self.here[piece.video] = self.env.process(self.transfer("receive", piece.fetched))
        return self.here[piece.video]


class _Actor:
    """A shard actor."""

    def __init__(self, machine: _Machine, number: int, clip: ClipCost, committed: Callable[[_Actor], None]) -> None:
        env, node = machine.env, machine.node
        self.env, self.machine, self.number, self.clip, self.committed = env, machine, number, clip, committed
        self.inbox = simpy.Store(env)
        self.left = 0  # shards given and not committed
        self.idle: simpy.Event = env.event()
        self.decoders = simpy.Resource(env, node.decoders)
        self.gazers = simpy.Resource(env, node.gazers)
        self.encoders = simpy.Resource(env, node.encoders)
        self.window = simpy.Container(env, node.window, node.window)
        self.handing_out = simpy.Resource(env, 1)
        for _ in range(node.at_once):
            env.process(self._make_shards())

    def give(self, shard: tuple[int, tuple[PieceCost, ...]] | None) -> None:
        if shard is not None:
            self.left += 1
            self.inbox.put(shard)
        elif not self.left and not self.idle.triggered:
            self.idle.succeed()

    def _make_shards(self) -> Steps:
        machine, trace = self.machine, self.machine.trace
        while True:
            shard, pieces = yield self.inbox.get()
            decoded = [self.env.event() for _ in pieces]
            packed = self.env.process(self._pack(pieces, decoded))
            with self.handing_out.request() as turn:
                yield turn
                trace.began[shard] = self.env.now
                yield from self._hand_out(pieces, decoded)
            yield packed
            clips = sum(piece.clips for piece in pieces)
            yield from machine.transfer("send", clips * self.clip.stored)
            trace.now = self.env.now
            trace.commits.append((trace.now, shard, self.number))
            self.left -= 1
            self.committed(self)

    def _hand_out(self, pieces: tuple[PieceCost, ...], decoded: list[simpy.Event]) -> Steps:
        """Give pieces to the decoders, in order, as far as the window allows. The next video is fetched meanwhile."""
        for number, piece in enumerate(pieces):
            yield self.window.get(piece.frames)
            there = self.machine.fetched(piece)
            if number + 1 < len(pieces):
                self.machine.fetched(pieces[number + 1])
            self.env.process(self._decode(piece, there, decoded[number]))

    def _decode(self, piece: PieceCost, there: simpy.Event, decoded: simpy.Event) -> Steps:
        with self.decoders.request() as decoder:
            yield decoder
            yield there
            began = self.env.now
            yield from self.machine.compute("decode", piece.decode)
            self.machine.trace.busy["decoders"] += self.env.now - began
        decoded.succeed()

    def _pack(self, pieces: tuple[PieceCost, ...], decoded: list[simpy.Event]) -> Steps:
        """Take pieces in order: encode and gaze batch by batch, and pack the batches in order."""
        waiting, whole = 0, list[PieceCost]()
        last: simpy.Event = self.env.timeout(0)
        for piece, event in zip(pieces, decoded, strict=True):
            yield event
            left = piece.clips
            while left:
                taken = min(left, self.machine.node.batch - waiting)
                left, waiting = left - taken, waiting + taken
                if not left:
                    whole.append(piece)
                if waiting == self.machine.node.batch:
                    last = self.env.process(self._batch(waiting, last, whole))
                    waiting, whole = 0, []
        if waiting:
            last = self.env.process(self._batch(waiting, last, whole))
        yield last

    def _batch(self, clips: int, before: simpy.Event, whole: Iterable[PieceCost]) -> Steps:
        """Encode and gaze at so many clips, and pack them after those before. whole: pieces that end with them."""
        yield self.env.all_of([self.env.process(self._encode(clips)), self.env.process(self._gaze(clips))])
        yield before
        yield from self.machine.compute("pack", clips * self.clip.pack)
        self.machine.trace.clips += clips
        for piece in whole:
            yield self.window.put(piece.frames)

    def _encode(self, clips: int) -> Steps:
        with self.encoders.request() as thread:
            yield thread
            yield from self.machine.compute("encode", clips * self.clip.jpeg)

    def _gaze(self, clips: int) -> Steps:
        with self.gazers.request() as gazer:
            yield gazer
            began = self.env.now
            if self.machine.node.on_cores:
                yield from self.machine.compute("search", clips * self.clip.search)
            else:
                yield self.env.timeout(clips * self.clip.search)
            self.machine.trace.busy["gazers"] += self.env.now - began


def endless(shards: list[tuple[PieceCost, ...]]) -> Iterator[tuple[PieceCost, ...]]:
    """The shards again and again, each time of other videos."""
    turn, videos = 0, 1 + max((piece.video for shard in shards for piece in shard), default=0)
    while True:
        for shard in shards:
            yield tuple(
                PieceCost(piece.video + turn * videos, piece.clips, piece.frames, piece.decode, piece.fetched)
                for piece in shard
            )
        turn += 1
