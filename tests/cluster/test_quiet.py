"""cluster.quiet: after Ctrl-C, Ray's threads print nothing more over what a job says; everybody else does."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from cluster.quiet import quiet_when_told_to_leave


def say(text: str, thread: str) -> None:
    speaker = threading.Thread(target=print, args=(text,), name=thread)
    speaker.start()
    speaker.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ray_is_heard_until_the_job_is_told_to_leave(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    stdout, before = sys.stdout, signal.signal(number, leave)
    try:
        with pytest.raises(SystemExit) as left, quiet_when_told_to_leave():
            say("no room for an actor", "ray_listen_error_messages")
            try:
                os.kill(os.getpid(), number)
                signal.pause()
            finally:
                say("its actor was killed", "ray_listen_error_messages")
                say("what is committed stays", "MainThread")
        assert left.value.code == 128 + number and signal.getsignal(number) is leave and sys.stdout is stdout
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().out == "no room for an actor\nwhat is committed stays\n"


def test_a_thread_other_than_the_main_one_is_left_alone() -> None:
    """Signals are the main thread's."""
    done = threading.Event()

    def use() -> None:
        with quiet_when_told_to_leave():
            done.set()

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert done.is_set()
