"""What the driver shows of rank 0."""

from __future__ import annotations

from types import SimpleNamespace

from pipelines.runs.progress import ProgressDisplay
from pipelines.train.link import RankLink, _StopAndLines


def test_the_lines_of_a_rank_come_out_whole_and_once() -> None:
    there = _StopAndLines()
    link = RankLink.__new__(RankLink)
    link._actor = SimpleNamespace(say=SimpleNamespace(remote=there.say))
    display = ProgressDisplay(link.console(), every=0.0)
    display.step(3, 10, 0, {"loss": 1.25, "samples_per_s": 2.0, "wait": 0.5}, 60.0)
    display.print("validation  step 3  val_loss 1.5 [bold]" + "x" * 300)
    first, second = there.take_lines()
    assert first == "step 3/10  epoch 0  loss 1.25  2.0 clips/s  data wait 50.0%  0:07:00 left"
    assert second.endswith("[bold]" + "x" * 300)
    assert there.take_lines() == []
    assert not there.is_set()
    there.set()
    assert there.is_set()
