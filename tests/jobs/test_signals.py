"""A signal is answered when it comes, not when the step ends."""

from __future__ import annotations

import os
import signal

import pytest

from jobs.signals import stop_on_sigterm


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_answered_at_once_and_the_second_ends(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with stop_on_sigterm("stopping after this") as stopping:
        assert not stopping()
        os.kill(os.getpid(), number)
        assert stopping() and "stopping after this\n" in capfd.readouterr().err
        assert signal.getsignal(number) == before, "a second one is the usual"
    assert signal.getsignal(number) == before
