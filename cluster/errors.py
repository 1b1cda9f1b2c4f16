"""The one exception of this package; the command line shows it as a single line."""

from __future__ import annotations


class ClusterError(Exception):
    """A cluster that cannot be had. The message is one line and says what to do."""
