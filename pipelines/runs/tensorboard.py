"""Records of TensorBoard's event files, made by TensorBoard's own protocol buffers and record writer.

A record is bytes, so that it goes wherever a Sink goes; TensorBoard's file writers know local files only. Its modules
are imported when the first record is made: only rank 0 of a training run needs them.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any


def board_header() -> bytes:
    """The record that every event file begins with."""
    return _record(file_version="brain.Event:2")


def board_start(step: int) -> bytes:
    """A record of the start of an attempt: TensorBoard drops what earlier attempts wrote from this step on."""
    from tensorboard.compat.proto.event_pb2 import SessionLog

    return _record(step=step, session_log=SessionLog(status=SessionLog.START))


def board_scalars(step: int, values: Mapping[str, float]) -> bytes:
    """A record of the numbers of a step, by name. They become float32."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    return _record(step=step, summary=Summary(value=scalars))


def _record(**event: Any) -> bytes:
    """An Event of this moment as a record: its length, its protocol buffer, and the checksums of both."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    sink = io.BytesIO()
    RecordWriter(sink).write(Event(wall_time=time.time(), **event).SerializeToString())
    return sink.getvalue()
