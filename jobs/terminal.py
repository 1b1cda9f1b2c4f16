"""What is printed arrives on any terminal and in any log, also where its encoding lacks a letter of a path."""

from __future__ import annotations

import io
import sys


def escape_what_is_missing() -> None:
    """Print \\uXXXX for what stdout's encoding lacks; Python would raise, after the work is done, for want of a letter.

    Such an encoding comes from PYTHONIOENCODING or the locale. Names of files that are not UTF-8 are lacking in all.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # else somebody else's, in Python
            stream.reconfigure(errors="backslashreplace")


def write_exactly(text: str) -> None:
    """Write what a program will read, such as a script, to stdout: as UTF-8 where its encoding lacks a letter."""
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()
    else:
        sys.stdout.write(text)
