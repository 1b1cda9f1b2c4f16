"""Run a module of ours, or of Ray, in a Python of its own: the installed one, whatever folder that Python starts in.

`python -m` looks into the working folder first. A folder there called cluster, jobs or pipelines, which a submit folder
may well hold, would be taken for ours. (python -P does not look there, from Python 3.11 on; 3.10 is supported too.)
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

HOME = str(Path(__file__).resolve().parents[1])
"""The folder that holds our packages."""


def words(module: str, python: str = "") -> list[str]:
    """The words before its arguments that run a module. python: '' = this one, which also finds packages as we do."""
    path = "[p for p in sys.path if p]" + ("" if python else f" + [{HOME!r}]")
    run = f"runpy.run_module({module!r}, None, '__main__', True)"
    return [python or sys.executable, "-c", f"import runpy, sys; sys.path = {path}; {run}"]


class CodePaths(list[str]):
    """Folders that Ray's workers import from before all others: of those that Ray adds, only the one of our packages.

    Ray adds the driver's working folder (ray._private.worker.connect), with the same effect as `python -m`.
    """

    def extend(self, paths: Iterable[str]) -> None:
        super().extend(self._ours(paths))

    @staticmethod
    def _ours(paths: Iterable[str]) -> Iterator[str]:
        return (path for path in paths if str(Path(path).resolve()) == HOME)
