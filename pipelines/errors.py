"""The one exception the command line shows as a single line: what is wrong, and what to do about it."""

from __future__ import annotations


class PipelineError(Exception):
    """A failure a user can act on. The message is one line, names the thing, and says what to do.

    Anything else that escapes is a bug of ours and keeps its traceback.
    """
