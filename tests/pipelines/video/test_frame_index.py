"""pipelines.video.frame_index: which packet gives which frame, and where a read of it must begin."""

from __future__ import annotations

from pipelines.video.frame_index import NO_TIME, FrameIndex, Packets, by_times


def test_the_index_of_an_open_gop() -> None:
    """The example of frame_index's docstring: frames 4 and 5 follow keyframe 6 in the stream, and hang on 0."""
    packets = Packets.of([0, 3, 1, 2, 6, 4, 5], key=[True, False, False, False, True, False, False])
    order = by_times(packets)
    assert order is not None
    index = FrameIndex.build(packets, order)
    assert index.place.tolist() == [0, 2, 3, 1, 5, 6, 4]
    assert index.frame.tolist() == [0, 3, 1, 2, 6, 4, 5]
    assert [index.anchor(n) for n in range(7)] == [0, 0, 0, 0, 0, 0, 4]
    assert [index.settled(n) for n in range(7)] == [0, 3, 3, 3, 6, 6, 6]  # frame 1 refers to 3, which comes out later


def test_an_index_needs_time_stamps_that_tell_frames_apart() -> None:
    assert by_times(Packets.of([0, 0], key=[True, False])) is None
    assert by_times(Packets.of([0, NO_TIME], key=[True, False])) is None
    assert by_times(Packets.of([0, 0], key=[True, False]), decode_order=True) is not None


def test_a_clock_that_starts_anew_does_not_mix_the_recordings() -> None:
    order = by_times(Packets.of([0, 2, 1, 0, 2, 1], key=[True, False, False] * 2))
    assert order is not None and order.tolist() == [0, 2, 1, 3, 5, 4]
