"""An exponential moving average of the weights that are trained, beside them in the run and in its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from pipelines.runs.best import AVERAGED
from pipelines.train.task import Task


class WeightAverage:
    """average = decay * average + (1 - decay) * weights after each step, in float32; at first the weights themselves.

    All ranks hold the same weights, so all have the same average.
    """

    def __init__(self, task: Task, decay: float) -> None:
        self.task, self.decay = task, decay
        self._weights = [parameter for parameter in task.module.parameters() if parameter.requires_grad]
        self._average = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of one more step."""
        for average, weight in zip(self._average, self._weights, strict=True):
            average.lerp_(weight.detach(), 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the context the task's network has the averaged weights."""
        kept = [weight.detach().clone() for weight in self._weights]
        self._set(self._average)
        try:
            yield
        finally:
            self._set(kept)

    def files(self) -> dict[str, bytes]:
        """The averaged network as files of a checkpoint: a folder in the format of the network's own."""
        with self.in_place():
            files = self.task.files()
        return {_of_average(name): data for name, data in files.items() if _folder(name) in _networks(files)}

    def load(self, files: Mapping[str, bytes]) -> None:
        """Restore the task's network and the average from the files of a checkpoint."""
        averaged = dict(files)
        for name in files:
            if _of_average(name) in files:
                averaged[name] = files[_of_average(name)]
        self.task.load(averaged)
        self._average = [weight.detach().clone() for weight in self._weights]
        self.task.load(files)

    @torch.no_grad()
    def _set(self, values: list[torch.Tensor]) -> None:
        for weight, value in zip(self._weights, values, strict=True):
            weight.copy_(value)


def _folder(name: str) -> str:
    return name.partition("/")[0]


def _networks(files: Mapping[str, bytes]) -> set[str]:
    """The folders that hold a network: not older versions of it, which RL keeps."""
    return {_folder(name) for name in files if name.endswith("/config.json")}


def _of_average(name: str) -> str:
    folder, slash, rest = name.partition("/")
    return f"{folder}{AVERAGED}{slash}{rest}"
