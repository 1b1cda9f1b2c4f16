"""Distilling an encoder: on few patches of a clip it learns the features that its network has of full frames.

See docs/training.md, section 'An encoder for few patches'. What is drawn for a clip (ratio, frames, random patches)
depends on (seed, epoch, sample) alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autogaze.draws import draw_frames, log_uniform, numbered_generator
from autogaze.gaze import Gaze
from autogaze.vision import GazedEncoder
from autogaze.vision import load as load_encoder
from autogaze.vision.agreement import agreement
from autogaze.vision.distillation import FullFeatures, distances
from autogaze.vision.embeddings import GazeEmbeddings
from pipelines.dataset.shards import Dataset, open_dataset
from pipelines.errors import PipelineError
from pipelines.loading.reading import Batch
from pipelines.networks.encoders import open_encoder, scales_of
from pipelines.networks.find import find_network, on_disk
from pipelines.train.encoder_config import DistanceWeights, EncoderTrainConfig
from pipelines.train.encoder_gaze import training_gaze
from pipelines.train.encoder_targets import StoredTargets
from pipelines.train.encoder_weights import choose_weights
from pipelines.train.task import RandomKey, Task, folder_files, unpacked

_COUNT = "count of "


class EncoderTask(Task):
    """An encoder, distilled from its own network on full frames (a Task, see pipelines/train/task.py).

    teacher: the network of encoder.checkpoint, as it is. student: what learns, at first the same, or that of init.
    """

    def __init__(self, config: EncoderTrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        datasets = [open_dataset(url) for url in config.datasets]
        self.teacher = open_encoder(config.encoder, str(device))
        self.student = self._student(int(datasets[0].config["clip"]["frames"]))
        self._begun_as = self.student.fingerprint
        self._require_fit(datasets)
        self.module: nn.Module = Distances(self.student, config.weights)
        choose_weights(self.student, config.learn, config.layers)
        self._freeze_unreached()
        self._stored = None
        if config.targets == "stored":
            self._stored = StoredTargets(self.teacher, datasets, pooled=bool(config.weights.pooled))

    def prepare(self, batch: Batch) -> dict[str, Any]:
        """Read the batch's stored targets, where these are learnt from."""
        if self._stored is not None:
            self._stored.take(batch)
        return {}

    def totals(self, gaze: Gaze) -> list[float]:
        """None: each clip's loss is a mean of its own."""
        return []

    def losses(
        self, model: nn.Module, frames: Tensor, gaze: Gaze, key: RandomKey, totals: list[float]
    ) -> dict[str, Tensor]:
        """Weighted distances of each clip. gaze: stored with the clips."""
        config, count = self.config, gaze.num_frames
        generators = [numbered_generator(key.seed, key.epoch, sample) for sample in key.samples]
        ratios = [log_uniform(generator, config.min_ratio, config.max_ratio) for generator in generators]
        candidates = [range(count) if self._stored is None else self._stored.frames_of(n) for n in key.samples]
        taken = min(config.frames or count, count if self._stored is None else self._stored.count)
        drawn = [draw_frames(generator, some, taken) for generator, some in zip(generators, candidates, strict=True)]
        shown = self._gaze(frames, gaze, ratios, generators)
        at = torch.tensor(drawn)
        if self._stored is None:
            full = FullFeatures.of(self.teacher, frames, at)
        else:
            full = self._stored.features(key.samples, at)
        losses: dict[str, Tensor] = model(frames, shown, full)
        return losses

    @torch.no_grad()
    def validate(self, frames: Tensor, gaze: Gaze) -> dict[str, float]:
        """Sums over held-out clips, at three ratios: cosines of the student, and of the teacher with the same gaze."""
        sums: dict[str, float] = {}
        full = self.teacher.sharing(attention="frame").encode(frames)
        # By the pixels, since a validation knows no numbers: the same clip is seen alike in each.
        digest = int.from_bytes(hashlib.sha256(frames.cpu().numpy().data).digest()[:8], "big")
        low, high = self.config.min_ratio, self.config.max_ratio
        for number, ratio in enumerate((low, (low * high) ** 0.5, high)):
            generators = [numbered_generator(digest, number, b) for b in range(gaze.clips)]
            shown = self._gaze(frames, gaze, [ratio] * gaze.clips, generators)
            for suffix, encoder in (("", self.student), ("_untrained", self.teacher)):
                found = agreement(full, encoder.encode(frames, shown))
                for name, value in (("own", found.tokens), ("dense", found.dense), ("pooled", found.pooled)):
                    known = value[~value.isnan()]  # a clip without a patch of the finest scale has no own ones
                    if len(known):
                        total, count = float(known.double().sum()), float(len(known))
                        for key, part in ((name + suffix, total), (_COUNT + name + suffix, count)):
                            sums[key] = sums.get(key, 0.0) + part
        return sums

    @staticmethod
    def summary(sums: dict[str, float]) -> dict[str, float]:
        """Means over clips and ratios."""
        return {name: value / sums[_COUNT + name] for name, value in sums.items() if not name.startswith(_COUNT)}

    def files(self) -> dict[str, bytes]:
        """The student as a folder `encoder`, which transformers and autogaze.vision.load read."""
        return folder_files(self.student, "encoder")

    def load(self, files: Mapping[str, bytes]) -> None:
        """Restore the student that `files` returned."""
        with unpacked(files, "encoder") as folder:
            self.student.load_state_dict(load_encoder(folder, self.student.vocabulary.scales).state_dict())

    def about(self) -> dict[str, Any]:
        """What must not change while a run lasts: the teacher, and what the student began as."""
        return {"teacher": self.teacher.fingerprint, "student": self._begun_as}

    def flops(self, gaze: Gaze) -> float | None:
        """None: there is no formula."""
        return None

    def _gaze(self, frames: Tensor, gaze: Gaze, ratios: list[float], generators: list[np.random.Generator]) -> Gaze:
        """What the student sees of some clips."""
        return training_gaze(
            self.config.gaze,
            frames,
            gaze,
            ratios,
            generators,
            vocabulary=self.student.vocabulary,
            whole_first=self.config.whole_first,
        )

    def _student(self, frames: int) -> GazedEncoder:
        """What learns: the network of init or of encoder.checkpoint, with embeddings if it is to have any."""
        config = self.config
        if config.init:
            place = find_network(config.init, "encoder", "init")
            try:
                with on_disk(place) as folder:
                    student = load_encoder(folder, scales_of(config.encoder), config.encoder.attention, self.device)
            except ValueError as error:
                raise PipelineError(f"init={place}: {error}") from error
        else:
            student = open_encoder(config.encoder, str(self.device))
        if config.embeddings and student.embeddings is None:
            student.embeddings = GazeEmbeddings(student.vocabulary.scales, frames, student.width).to(self.device)
        return student

    def _require_fit(self, datasets: list[Dataset]) -> None:
        """Raise PipelineError, in one line, for a teacher, a student and datasets that do not go together."""
        config, teacher, student = self.config, self.teacher, self.student
        if teacher.embeddings is not None:
            raise PipelineError(
                f"encoder.checkpoint={config.encoder.checkpoint}: has learnt embeddings, so it is no network of full "
                "frames; give the one that it was distilled from, and this one as init"
            )
        if (student.family.name, student.width) != (teacher.family.name, teacher.width):
            raise PipelineError(
                f"init={config.init}: is a {student.family.name}, {student.width} wide, and encoder.checkpoint= a "
                f"{teacher.family.name}, {teacher.width} wide; a student has its teacher's features, so give its own"
            )
        if config.gaze == "stored":
            for dataset in datasets:
                if dataset.vocabulary != student.vocabulary:
                    theirs = f"{'+'.join(map(str, dataset.vocabulary.scales))}/{dataset.vocabulary.patch_size}"
                    own = f"{'+'.join(map(str, student.vocabulary.scales))}/{student.vocabulary.patch_size}"
                    raise PipelineError(
                        f"gaze=stored: the gaze of {dataset.url} is of scales {theirs}, the encoder's are {own}, whose "
                        "ids mean other patches; learn on gaze=stalest, changed_most or random"
                    )

    def _freeze_unreached(self) -> None:
        """Take gradients from weights that no loss depends on, such as a mask token: several ranks must agree on them.

        Raises PipelineError if nothing is left to learn.
        """
        vocabulary = self.student.vocabulary
        side, everything = vocabulary.frame_size, torch.arange(vocabulary.size)
        frames = torch.arange(2 * side * side * 3, device=self.device).remainder(251).to(torch.uint8)
        frames = frames.view(1, 2, side, side, 3)
        gaze = Gaze(tokens=everything.repeat(2), lengths=torch.full((1, 2), len(everything)), vocabulary=vocabulary)
        full = FullFeatures.of(self.teacher, frames, torch.tensor([[1]]))
        loss = self.module(frames, gaze, full)["loss"].sum()
        weights = [weight for weight in self.student.parameters() if weight.requires_grad]
        reached = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad else [None] * len(weights)
        for weight, gradient in zip(weights, reached, strict=True):
            weight.requires_grad_(gradient is not None)
        if not any(gradient is not None for gradient in reached):
            raise PipelineError(f"learn={self.config.learn}: no weight of these counts for the features; choose others")


class Distances(nn.Module):
    """The student and its loss as one module, for DistributedDataParallel to wrap."""

    def __init__(self, student: GazedEncoder, weights: DistanceWeights) -> None:
        super().__init__()
        self.student, self.weights = student, vars(weights)

    def train(self, mode: bool = True) -> Distances:
        """Does nothing: dropout stays off, so that what is learnt is a function of weights and samples."""
        return super().train(False)

    def forward(self, frames: Tensor, gaze: Gaze, full: FullFeatures) -> dict[str, Tensor]:
        """The loss and its parts, unweighted, float32 [b] each, of clips uint8 [b, T, S, S, 3]."""
        if not self.weights["pooled"]:
            full = replace(full, pooled=None)
        found = distances(self.student.encode(frames, gaze), full)
        loss = torch.stack([self.weights[name] * value for name, value in found.items()]).sum(dim=0)
        return {"loss": loss, **found}
