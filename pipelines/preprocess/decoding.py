"""The clips of a shard as a stream, in the plan's order: decoded by several children at once, some of them ahead.

What a child is given is a piece: neighbouring clips of one video, no more than some 60 MB of frames. So the children
share a shard of one long video as they share one of many, and memory depends on their number alone, however large a
shard is. JPEGs are encoded here, in threads beside the children, so that a GPU never waits for an encoder.

Nothing here imports torch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np

from pipelines.corpus.clips import PlannedClip, decoded_clips
from pipelines.corpus.plan import clip_bytes
from pipelines.corpus.plan_reader import DatasetPlan
from pipelines.dataset.frames import encode_frames
from pipelines.errors import PipelineError
from pipelines.preprocess.idle import IdleDecoders
from pipelines.preprocess.rows import DecodedClip, Effort, Failure
from pipelines.preprocess.videos import ShardVideo, video_cache
from pipelines.preprocess.window import Room
from pipelines.video.base import DecodeConfig, VideoError
from pipelines.video.isolated import IsolatedDecoder, index_folder

PIECE_BYTES = 24 * clip_bytes(16)
"""Decoded frames of a piece. Longer ones would hold more memory; with shorter ones, more frames before a piece are
decoded only to get to it: up to a group of pictures for each.
"""
# Pieces in memory beside one for each decoder: what is being gazed at, and what waits to be. Without the second, every
# video that is quicker to decode than the one before is to gaze at leaves a decoder without work.
_MORE = 2
_LOST = "decoder_"  # what the reasons of IsolatedDecoder begin with, where a child was lost twice

Row = Mapping[str, Any]
_Done = tuple[list[DecodedClip], Effort]


@dataclass(frozen=True)
class Decoding:
    """How an actor decodes.

    Attributes:
        config: of each decoder.
        storage: how frames are stored: see pipelines.dataset.frames.
        quality: of the JPEGs.
        cache_mb: disk for remote videos that several shards need; 0 = none are kept.
        decoders: children that decode at the same time.
    """

    config: DecodeConfig
    storage: str = "none"
    quality: int = 90
    cache_mb: int = 0
    decoders: int = 1

    @property
    def memory(self) -> int:
        """Bytes of decoded frames that an actor holds at most, but for a single piece that is larger."""
        return (self.decoders + _MORE) * PIECE_BYTES


@dataclass(frozen=True)
class _Piece:
    """Neighbouring rows of the plan of one video, its `number`-th piece. video: None if the scan could not read it."""

    rows: Sequence[Row]
    video: ShardVideo | None
    number: int = 0

    @property
    def bytes(self) -> int:
        return 0 if self.video is None else sum(clip_bytes(int(row["frames"])) for row in self.rows)


class ClipDecoders(AbstractContextManager["ClipDecoders"]):
    """Decodes the shards of a plan. Close it, or use it as a context manager: it has child processes.

    Several threads may each take the clips of a shard. The next shard is begun when all pieces of the one before are
    handed out, so that the children always have work, and shards still end one after the other.
    """

    def __init__(self, plan: DatasetPlan, decoding: Decoding) -> None:
        self.plan, self.decoding = plan, decoding
        self._cache = video_cache(decoding.cache_mb) if decoding.cache_mb else None
        config, count = replace(decoding.config, index_dir=index_folder()), decoding.decoders
        self.decoders = [IsolatedDecoder(config) for _ in range(count)]
        self._idle = IdleDecoders(self.decoders)
        self._fetching, self._working, self._encoding = (
            ThreadPoolExecutor(threads, f"autogaze-{what}")
            for what, threads in (("fetch", count + _MORE), ("decode", count), ("encode", count))
        )
        self._room, self._turn = Room(decoding.memory), Lock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the children. What they are at is finished first."""
        for pool in (self._fetching, self._working, self._encoding):
            pool.shutdown(cancel_futures=True)
        for decoder in self.decoders:
            decoder.close()

    def clips(self, shard: int, effort: Effort) -> Iterator[DecodedClip]:
        """Every clip of a shard, decoded or failed, in order of position.

        effort: what it takes is counted there as the clips are taken. Raises PipelineError, StoreError.
        """
        pieces, taken = deque(self._pieces(shard)), deque[tuple[_Piece, Future[Future[_Done]]]]()
        held = 0
        with ExitStack() as turn:
            turn.enter_context(self._turn)
            effort.began = time.time()
            effort.seconds["decode"] += 0.0  # named also where no video can be decoded
            try:
                while pieces or taken:
                    # While the shard before holds room, each decoder is to have a piece as soon as that is given back.
                    while pieces and self._room.take(pieces[0].bytes, len(taken) < len(self.decoders), held):
                        held += pieces[0].bytes
                        taken.append((pieces[0], self._begin(pieces.popleft())))
                    if not pieces:
                        turn.close()
                    piece, future = taken[0]
                    clips, spent = future.result().result()
                    effort.add(spent)
                    yield from self._followed(piece, clips)
                    del clips, future
                    taken.popleft()
                    held -= piece.bytes
                    self._room.give(piece.bytes)
            finally:
                for piece, future in taken:
                    if future.cancel():
                        _let_go(piece)
                    future.add_done_callback(partial(self._give, piece.bytes))
                for piece in pieces:
                    _let_go(piece)

    def _give(self, count: int, future: Future[Any]) -> None:
        self._room.give(count)

    def _pieces(self, shard: int) -> Iterator[_Piece]:
        rows = self.plan.clips_of(shard)
        shared = self.plan.straddling(shard) if self._cache else set()
        for _, group in groupby(rows.to_dict("records"), key=lambda row: (row["object"], row["offset"])):
            of_video = list(group)
            if isinstance(of_video[0]["reason"], str):  # null reads as NaN
                yield _Piece(of_video, None)
                continue
            parts = in_pieces(of_video)
            video = ShardVideo(of_video[0], self._cache if of_video[0]["video"] in shared else None, len(parts))
            yield from (_Piece(part, video, number) for number, part in enumerate(parts))

    def _begin(self, piece: _Piece) -> Future[Future[_Done]]:
        if piece.video is not None:
            piece.video.begin(self._fetching)
        return self._working.submit(self._decode, piece)

    def _decode(self, piece: _Piece) -> Future[_Done]:
        """Decode a piece; its clips come with their JPEGs from another thread, while the child has the next piece."""
        effort = Effort()
        clips = self._decoded(piece, effort)
        return self._encoding.submit(self._encoded, clips, effort)

    def _decoded(self, piece: _Piece, effort: Effort) -> list[DecodedClip]:
        video = piece.video
        if video is None:
            return [DecodedClip(row, None, Failure(str(row["reason"]), str(row["detail"]))) for row in piece.rows]
        if video.lost is not None and video.lost < piece.number:
            video.done()
            return []
        decoder = self._idle.take(video, piece.number)
        restarts, fallbacks = decoder.restarts, decoder.fallbacks.copy()
        try:
            with effort.seconds.time("decode"):
                with effort.seconds.time("fetch"):
                    source = video.source()
                found = dict(decoded_clips(decoder, source, [PlannedClip.of_row(row) for row in piece.rows]))
        except VideoError as error:
            video.bad()
            found = dict.fromkeys(range(len(piece.rows)), error)
        except ImportError as error:  # the decoder is not installed on this node, or its GPU is not there
            raise PipelineError(str(error)) from error
        finally:
            effort.restarts, effort.fallbacks = decoder.restarts - restarts, decoder.fallbacks - fallbacks
            self._idle.give(decoder, video, piece.number)
            video.done()
        clips = [_clip(row, found[place]) for place, row in enumerate(piece.rows)]
        if any(_is_lost(clip) for clip in clips):
            video.lost = piece.number if video.lost is None else min(video.lost, piece.number)
        return clips

    def _encoded(self, clips: list[DecodedClip], effort: Effort) -> _Done:
        if self.decoding.storage != "jpeg":
            return clips, effort
        with effort.seconds.time("encode"):
            for clip in clips:
                if clip.frames is not None:
                    clip.jpegs.extend(data for _, data in encode_frames(clip.frames, "jpeg", self.decoding.quality))
        return clips, effort

    @staticmethod
    def _followed(piece: _Piece, clips: list[DecodedClip]) -> Iterator[DecodedClip]:
        """The clips of a piece. Where a video has cost a child for good, its clips from there on fail with it, whoever
        decoded them and how far: what becomes of a clip does not depend on how the shard was cut into pieces.
        """
        video = piece.video
        for place, row in enumerate(piece.rows):
            if video is not None and video.failure is not None:
                yield DecodedClip(row, None, video.failure)
                continue
            clip = clips[place]
            if video is not None and _is_lost(clip):
                video.failure = clip.failure
            yield clip


def in_pieces(rows: Sequence[Row]) -> list[list[Row]]:
    """The clips of a video in pieces. Tiles of the same frames stay together."""
    parts: list[list[Row]] = []
    held = PIECE_BYTES
    for _, tiles in groupby(rows, key=lambda row: int(row["start"])):
        chunk = list(tiles)
        size = sum(clip_bytes(int(row["frames"])) for row in chunk)
        if held + size > PIECE_BYTES:
            parts, held = [*parts, []], 0
        parts[-1] += chunk
        held += size
    return parts


def _clip(row: Row, decoded: np.ndarray | VideoError) -> DecodedClip:
    if isinstance(decoded, VideoError):
        return DecodedClip(row, None, Failure(decoded.reason, decoded.detail))
    return DecodedClip(row, decoded)


def _is_lost(clip: DecodedClip) -> bool:
    return clip.failure is not None and clip.failure.reason.startswith(_LOST)


def _let_go(piece: _Piece) -> None:
    if piece.video is not None:
        piece.video.done()
