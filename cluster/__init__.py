"""Where jobs run: a Ray we start on this machine, or one that is already there."""


class ClusterError(Exception):
    """A cluster that cannot be had. The message is one line and says what to do."""
