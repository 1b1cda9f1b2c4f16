"""Who had an earlier piece of a video has the next one, if it is idle."""

from __future__ import annotations

from pipelines.preprocess.idle import IdleDecoders
from pipelines.preprocess.videos import ShardVideo

ROW = {"object": "x", "offset": 0, "bytes": 1, "fingerprint": ""}


def test_the_decoder_that_has_the_video_open_goes_on() -> None:
    idle, film, other = IdleDecoders(["a", "b", "c"]), ShardVideo(ROW, None, 9), ShardVideo(ROW, None, 9)
    assert [idle.take(film, 0), idle.take(film, 1)] == ["a", "b"]
    idle.give("a", film, 0)
    idle.give("b", film, 1)
    assert idle.take(film, 2) == "b", "it is nearest"
    assert idle.take(film, 3) == "a"
    idle.give("a", film, 3)
    assert idle.take(other, 0) == "c", "one that has waited longest"
    assert idle.take(film, 2) == "a", "what is behind it is of no use"
