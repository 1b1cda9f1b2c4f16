"""The interface between the training loop and what it trains, and how a model becomes files of a checkpoint."""

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

COMPILES = "compile=true: the first passes wait for the compiler, minutes on a CPU; nothing is wrong"
"""What a task that compiles says of it."""


@dataclass(frozen=True)
class RandomKey:
    """What everything drawn at random for some samples of a batch depends on: run seed, epoch, sample numbers."""

    seed: int
    epoch: int
    samples: tuple[int, ...]


class Task(Protocol):
    """What is trained.

    A task must give totals, losses, validate, summary, files, load, about and flops. begin, prepare, stepped, note and
    close are for work around the steps, notes and remark for what the user should be told, sizes for networks that
    begin from a checkpoint; most tasks have none.
    """

    module: nn.Module
    """What the optimizer and DistributedDataParallel see."""
    lag: int | None = None
    """In RL: by how many versions the policy that sampled a step's groups is older than the one that learns (None:
    no RL). The ledger records it."""

    same_graph: bool = False
    """Whether every pass takes all weights in the same way, so that ranks need not look which ones it took."""

    def notes(self) -> list[str]:
        """Sentences to tell at the beginning of an attempt: what the data or the settings do not do."""
        return []

    def remark(self, row: Mapping[str, float]) -> str | None:
        """A sentence to tell after a step, or None. row: the step's numbers, the same on all ranks."""
        return None

    def begin(self, loader: ShardLoader, step: int, steps: int, stopping: Callable[[], bool]) -> None:
        """Called before the first step of an attempt.

        step: done so far, of `steps`. loader: gives its batches. stopping: to be asked wherever `prepare` waits long.
        """
        return None

    def augmented(self, batch: Batch) -> Batch:
        """A rank's part of a batch as it is learned from, before `totals`: as it was read, or other clips of it."""
        return batch

    def ahead(self, batch: Batch) -> None:
        """Called in another thread while a GPU learns from the batch before, as soon as this one was read.

        What is kept for `losses` is to be found by the batch's own `gaze` (see `part_of` in pipelines/train/step.py).
        """
        return None

    def prepare(self, batch: Batch) -> dict[str, Any]:
        """Called before a batch is learned from. Time spent here counts as waiting for data.

        Returns further arguments of Ledger.add for this batch. In RL it raises StopRequested when it is to stop.
        """
        return {}

    def stepped(self, step: int) -> dict[str, float]:
        """Called after the optimizer step that makes `step` of them. Returns numbers for the step's event."""
        return {}

    def note(self, events: Events, step: int) -> None:
        """Called after each validation: may log events of its own."""
        return None

    def close(self) -> None:
        """Called at the end of an attempt, also after an error."""
        return None

    def parts(self, batch: Batch) -> list[list[int]] | None:
        """Which rows of a rank's part of a batch are learned from at once, each once; called after `prepare`.

        Ranks may have different numbers of parts. None: `micro_batch` rows at a time, which is the same on all ranks.
        """
        return None

    def totals(self, gaze: Gaze) -> list[float]:
        """Sums over a rank's part of a batch that the losses need over the whole batch. `losses` gets their means."""

    def losses(
        self, model: nn.Module, frames: Tensor, gaze: Gaze, key: RandomKey, totals: list[float]
    ) -> dict[str, Tensor]:
        """Losses of some samples by name, float [b] each; "loss" is minimised.

        model: `module`, or DistributedDataParallel around it. frames: uint8 [b, T, S, S, 3] on the device.
        totals: what `totals` returned, summed over the batch and divided by its number of samples.
        """

    def validate(self, frames: Tensor, gaze: Gaze) -> dict[str, float]:
        """Sums over some held-out clips, from which `summary` makes means. frames: uint8 [b, T, S, S, 3]."""

    def summary(self, sums: dict[str, float]) -> dict[str, float]:
        """Means by name. sums: of what `validate` returned, over clips and ranks."""

    def files(self) -> dict[str, bytes]:
        """The model as files of a checkpoint, by path."""

    def load(self, files: Mapping[str, bytes]) -> None:
        """Restore the model that `files` returned."""

    def about(self) -> dict[str, Any]:
        """What must not change while a run lasts, for its config.yaml. JSON."""

    def sizes(self) -> dict[str, Any]:
        """Of a network that began from a checkpoint, the part of the config that says its sizes, as they are."""
        return {}

    def flops(self, gaze: Gaze) -> float | None:
        """Floating-point operations of a forward and backward pass over these clips; None without a formula."""


MakeTask = Callable[[Any, torch.device], Task]
"""Makes a task from its config, on a device: the class of the task."""


class Saveable(Protocol):
    """A model that writes itself to a folder, as Hugging Face models do."""

    def save_pretrained(self, path: str) -> None: ...


def folder_files(model: Saveable, name: str) -> dict[str, bytes]:
    """The files that `model.save_pretrained` writes, as {"<name>/<file>": bytes}."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        return {f"{name}/{path.name}": path.read_bytes() for path in sorted(Path(scratch).iterdir())}


@contextmanager
def unpacked(files: Mapping[str, bytes], name: str) -> Iterator[str]:
    """A temporary folder that holds the files under `<name>/`."""
    with tempfile.TemporaryDirectory() as scratch:
        for path, data in files.items():
            if path.startswith(f"{name}/"):
                Path(scratch, path.removeprefix(f"{name}/")).write_bytes(data)
        yield scratch
