"""What the training loop asks of whatever is trained: one interface, and how a model becomes files of a checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from autogaze.gaze import Gaze

if TYPE_CHECKING:
    from pipelines.loading.loader import ShardLoader
    from pipelines.loading.reading import Batch
    from pipelines.runs.events import Events


@dataclass(frozen=True)
class RandomKey:
    """All that anything drawn at random for a part of a batch depends on."""

    seed: int
    epoch: int
    samples: tuple[int, ...]


class Task(Protocol):
    """What is trained. `module` is what the optimizer and DistributedDataParallel see.

    begin, prepare, stepped, close: for what goes on around the steps; most tasks have nothing to do there.
    """

    module: nn.Module
    lag: int | None = None
    """Of a run whose samples are made by an older version of what is trained: how much older (for the ledger)."""

    def begin(self, loader: ShardLoader, step: int, steps: int) -> None:
        """Before the first step of an attempt, which begins at `step` of `steps`. loader: of its batches."""
        return None

    def prepare(self, batch: Batch) -> dict[str, Any]:
        """Before a batch is learned from; what the ledger is to record with it. May wait: it counts as data-wait."""
        return {}

    def stepped(self, step: int) -> dict[str, float]:
        """After a step was taken, `step` of them by now; numbers for the step's event."""
        return {}

    def note(self, events: Events, step: int) -> None:
        """Wherever a validation is due, and at the end: say what is worth saying."""
        return None

    def close(self) -> None:
        """At the end, however it came."""
        return None

    def totals(self, gaze: Gaze) -> list[float]:
        """Sums over a part of a batch that the loss needs of the whole batch first; they come back per sample."""

    def losses(
        self, model: nn.Module, frames: Tensor, gaze: Gaze, key: RandomKey, totals: list[float]
    ) -> dict[str, Tensor]:
        """Losses of a part of a batch by name, each [b]; "loss" is what is minimised. model: `module`, or its wrapper.

        frames: uint8 [b, T, S, S, 3] on the device. totals: of the whole batch, per sample.
        """

    def validate(self, frames: Tensor, gaze: Gaze) -> dict[str, float]:
        """Sums over some held-out clips, of which `summary` makes means."""

    def summary(self, sums: dict[str, float]) -> dict[str, float]:
        """Means by name, of the sums of all ranks."""

    def files(self) -> dict[str, bytes]:
        """The model as files of a checkpoint, by path."""

    def load(self, files: Mapping[str, bytes]) -> None:
        """Go back to the model of such files."""

    def about(self) -> dict[str, Any]:
        """What a run must not change half-way, for its config."""

    def flops(self, gaze: Gaze) -> float | None:
        """Floating-point operations of a forward and backward pass over these clips, where there is a formula."""


MakeTask = Callable[[Any, torch.device], Task]
"""What makes a task of its own config on a device: the class of the task."""


class Saves(Protocol):
    def save_pretrained(self, path: str) -> None: ...


def folder_files(model: Saves, name: str) -> dict[str, bytes]:
    """What `model.save_pretrained` writes, as {"<name>/<file>": bytes}."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        return {f"{name}/{path.name}": path.read_bytes() for path in sorted(Path(scratch).iterdir())}


@contextmanager
def unpacked(files: Mapping[str, bytes], name: str) -> Iterator[str]:
    """The files under `<name>/` in a folder of their own."""
    with tempfile.TemporaryDirectory() as scratch:
        for path, data in files.items():
            if path.startswith(f"{name}/"):
                Path(scratch, path.removeprefix(f"{name}/")).write_bytes(data)
        yield scratch
