"""What all tasks that train a reconstructor share: how it is saved, loaded and told, whatever its kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from autogaze.gaze import Gaze
from autogaze.reconstruction.learned import Learned
from pipelines.loading.reading import Batch
from pipelines.train.augment import augment_batch
from pipelines.train.config import ReconstructorTrainConfig
from pipelines.train.sizes import own_sizes
from pipelines.train.task import Task, folder_files, unpacked


class LearnedTask(Task):
    """A learned reconstructor, trained (a Task, see pipelines/train/task.py). Each clip's loss is a mean of its own.

    section: of the config, that has the sizes of this kind.
    """

    section: ClassVar[str]
    config: ReconstructorTrainConfig
    model: Learned

    def augmented(self, batch: Batch) -> Batch:
        """With clips mirrored, cropped or of other frames, as `augment` says; those that lose their gaze have none."""
        if not self.config.augment.changes:
            return batch
        return augment_batch(self.config.augment, batch, self.config.loader.seed, None)

    def totals(self, gaze: Gaze) -> list[float]:
        """None."""
        return []

    @staticmethod
    def summary(sums: dict[str, float]) -> dict[str, float]:
        """Means over the clips."""
        clips = max(sums.pop("clips"), 1.0)
        return {name: value / clips for name, value in sums.items()}

    def files(self) -> dict[str, bytes]:
        """The model as a folder `reconstructor`."""
        return folder_files(self.model, "reconstructor")

    def load(self, files: Mapping[str, bytes]) -> None:
        """Restore the model that `files` returned."""
        with unpacked(files, "reconstructor") as folder:
            saved = type(self.model).from_pretrained(folder, self.config.teachers.given())
        self.model.load_state_dict(saved.state_dict())

    def about(self) -> dict[str, Any]:
        """What must not change while a run lasts: sizes and losses."""
        return {"model": self.model.config.to_json(), "loss": self.model.frame_loss.fingerprint}

    def sizes(self) -> dict[str, Any]:
        """The model's own, where it began from a checkpoint."""
        given = getattr(self.config, self.section)
        return {self.section: own_sizes(given, self.model.config)} if self.config.init else {}

    def flops(self, gaze: Gaze) -> float | None:
        """None: there is no formula."""
        return None
