"""Training the policy by next-token prediction on labelled clips (docs/method.md, section 'Next-token prediction')."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from autogaze import verified
from autogaze.device import sent
from autogaze.gaze import Gaze
from autogaze.model import AutoGaze, AutoGazeConfig
from autogaze.model.decoder import Layer
from autogaze.objectives import loss_prediction_loss, next_token_loss, padded_losses
from pipelines.dataset.shards import open_dataset
from pipelines.dataset.units import are_predicted, require_one_units, units_fit
from pipelines.errors import PipelineError
from pipelines.loading.reading import Batch
from pipelines.networks.open import open_policy, open_reconstructor
from pipelines.train.augment import augment_batch, labels_for
from pipelines.train.config import PolicyTrainConfig
from pipelines.train.packing import parts_by_tokens
from pipelines.train.sizes import own_sizes, require_own_sizes
from pipelines.train.step import micro_batches, part_of
from pipelines.train.task import COMPILES, RandomKey, Task, folder_files, unpacked


class PolicyTask(Task):
    """The policy, trained by next-token prediction (a Task, see pipelines/train/task.py).

    threshold: the predicted loss at which validation gaze stops: the config's, else that at which the labels' greedy
        search stopped, in the units of its reconstructor.
    units: of the labels' errors. comparable: whether what the reconstructor measures may be held against the threshold.
    """

    def __init__(self, config: PolicyTrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        abouts = [open_dataset(place).about for place in config.datasets]
        self.units = require_one_units(config.datasets, abouts)
        self.threshold = config.threshold
        if self.threshold is None:
            self.threshold = abouts[0]["config"].get("threshold")
        self.policy = self._policy().to(device).train()
        self.same_graph = not config.micro_tokens
        if config.compile:
            for layer in self.policy.gazing_model.gaze_decoder.model.layers:
                assert isinstance(layer, Layer)
                layer.mlp.compile(dynamic=True)
        self.of_labels = PolicyLosses(self.policy, config.loss_prediction)
        self.module: nn.Module = self.of_labels
        self.reconstructor = open_reconstructor(
            config.reconstructor,
            "reconstructor",
            teachers=config.teachers.given(),
            device=device,
            dtype=getattr(torch, config.reconstructor_dtype),
        )
        self.labels = labels_for(config.augment, config.datasets, self.policy.vocabulary)
        self.comparable = units_fit(self.units, self.reconstructor.units)
        if config.verify and (self.threshold is None or not self.comparable):
            raise PipelineError(
                f"verify=true: validation needs a threshold in {self.reconstructor.units}, and the labels have "
                f"{self.threshold} in {self.units}; give the reconstructor= that made them, or leave it out"
            )

    def notes(self) -> list[str]:
        """What its labels do not teach, and what validation cannot say of them."""
        notes = [COMPILES] if self.config.compile else []
        if are_predicted(self.units):
            notes.append(
                "the errors of these labels are a policy's predictions, not measured: the loss prediction learns to "
                "repeat them; measure them: autogaze import-labels ... measure=, or preprocess with verify=true"
            )
        if self.config.val_clips and self.threshold is not None and not self.comparable:
            notes.append(
                f"validation measures an error ({self.reconstructor.units}) in other units than the labels' threshold "
                f"({self.units}): it reports the error, and not how often the threshold is met"
            )
        return notes

    def augmented(self, batch: Batch) -> Batch:
        """With clips mirrored, cropped or of other frames, and their labels true, as `augment` says."""
        if not self.config.augment.changes:
            return batch
        return augment_batch(self.config.augment, batch, self.config.loader.seed, self.labels)

    def ahead(self, batch: Batch) -> None:
        """Where the labels' tokens lie among those of the frames, for each part that is learned from at once."""
        if self.config.augment.changes:
            return  # they are other labels then
        for rows in self.parts(batch) or micro_batches(len(batch.ids), self.config.micro_batch):
            self.policy.lay_out_tokens(part_of(batch.gaze, rows))

    def totals(self, gaze: Gaze) -> list[float]:
        """The number of slots in use, over which the losses are averaged."""
        if gaze.losses is None:
            raise PipelineError(
                "the gaze of this dataset has no losses, which a policy learns to predict; measure them: "
                "autogaze import-labels LABELS data=DATASET output=NEW measure=canvas"
            )
        return [float(gaze.counts().sum())]

    def parts(self, batch: Batch) -> list[list[int]] | None:
        """Clips of like lengths, up to `micro_tokens` tokens at a time, those of frames included."""
        if not self.config.micro_tokens:
            return None
        vision = batch.gaze.num_frames * self.policy.config.num_vision_tokens
        return parts_by_tokens((batch.gaze.counts() + vision).tolist(), self.config.micro_tokens)

    def losses(
        self, model: nn.Module, frames: Tensor, gaze: Gaze, key: RandomKey, totals: list[float]
    ) -> dict[str, Tensor]:
        """See PolicyLosses."""
        losses: dict[str, Tensor] = model(frames, gaze, totals[0])
        return losses

    @torch.no_grad()
    def validate(self, frames: Tensor, gaze: Gaze) -> dict[str, float]:
        """Sums over some held-out clips: of the losses on their labels, and of the measures of a greedy gaze."""
        slots = max(float(gaze.counts().sum()), 1.0) / gaze.clips
        losses = {name: float(value.sum()) for name, value in self.of_labels(frames, gaze, slots).items()}
        # Per slot, so that clips with much gaze count for more, as in training.
        weight = float(gaze.counts().sum())
        sums = {f"val_{name}": value / gaze.clips * weight for name, value in losses.items()} | {"slots": weight}
        return sums | {"clips": float(gaze.clips)} | self.greedy_sums(frames)

    def greedy_sums(self, frames: Tensor) -> dict[str, float]:
        """Sums over clips of the ratio and errors of a greedy gaze, and of how often it meets the threshold."""
        greedy = self.policy.gaze(frames, max_ratio=self.config.max_ratio, loss_threshold=self.threshold)
        error = self.reconstructor.reconstruct(frames, greedy).error
        wrong = (greedy.final() - error).abs().mean(dim=1)
        sums = {"ratio": float(greedy.ratio().sum()), "prediction_off": float(wrong.sum())}
        sums |= {"error": float(error.mean(dim=1).sum()), "predicted_error": float(greedy.final().mean(dim=1).sum())}
        if self.threshold is not None and self.comparable:
            sums["met"] = float((error <= self.threshold).float().mean(dim=1).sum())
        return sums | (self._verified_sums(frames) if self.config.verify else {})

    def _verified_sums(self, frames: Tensor) -> dict[str, float]:
        """Sums over clips of what it takes to keep the threshold: the ratio of a verified gaze, the share of its tokens
        that greedy search had to choose, and how often it was met.
        """
        assert self.threshold is not None
        gaze = verified.gaze(
            frames, self.policy, self.reconstructor, threshold=self.threshold, max_ratio=self.config.max_ratio
        )
        assert gaze.origins is not None
        searched = gaze.origins[..., verified.GREEDY].sum(dim=1) / gaze.counts().clamp(min=1)
        sums = {"ratio": gaze.ratio(), "searched": searched, "met": gaze.met(self.threshold).float().mean(dim=1)}
        return {f"verified_{name}": float(value.sum()) for name, value in sums.items()}

    @staticmethod
    def summary(sums: dict[str, float]) -> dict[str, float]:
        """Means: of losses over slots, of measures over clips."""
        slots, clips = max(sums.pop("slots"), 1.0), max(sums.pop("clips"), 1.0)
        return {name: value / (slots if name.startswith("val_") else clips) for name, value in sums.items()}

    def files(self) -> dict[str, bytes]:
        """The policy as a folder `policy` in the reference's format."""
        return folder_files(self.policy, "policy")

    def load(self, files: Mapping[str, bytes]) -> None:
        """Restore the policy that `files` returned."""
        with unpacked(files, "policy") as folder:
            self.policy.load_state_dict(AutoGaze.from_pretrained(folder).state_dict())

    def about(self) -> dict[str, Any]:
        """What must not change while a run lasts: sizes and threshold."""
        return {"model": self.policy.config.to_json(), "threshold": self.threshold}

    def sizes(self) -> dict[str, Any]:
        """The policy's own, where it began from a checkpoint."""
        return {"policy": own_sizes(self.config.policy, self.policy.config)} if self.config.init else {}

    def flops(self, gaze: Gaze) -> float:
        """Floating-point operations of a forward and backward pass over these clips (docs/training.md)."""
        from autogaze.model.flops import flops_per_clip

        slots = float(gaze.counts().sum()) / (gaze.clips * gaze.num_frames)
        return 3 * gaze.clips * flops_per_clip(self.policy.config, slots * gaze.num_frames, gaze.num_frames)

    def _policy(self) -> AutoGaze:
        config = self.config
        if config.init:
            policy = open_policy(config.init, "init")
            require_own_sizes(config.init, "policy", config.policy, policy.config)
            policy.config = replace(policy.config, positions="consistent")
            return policy
        sizes = config.policy
        torch.manual_seed(config.loader.seed)
        return AutoGaze(
            AutoGazeConfig(
                hidden_size=sizes.hidden_size,
                num_layers=sizes.num_layers,
                num_heads=sizes.num_heads,
                head_dim=sizes.hidden_size // sizes.num_heads,
                intermediate_size=sizes.intermediate_size,
                block_size=sizes.block_size,
                positions="consistent",
                max_ratio=config.max_ratio,
                loss_threshold=self.threshold,
            )
        )


class PolicyLosses(nn.Module):
    """The policy and its loss as one module, for DistributedDataParallel to wrap."""

    def __init__(self, policy: AutoGaze, loss_prediction: float) -> None:
        super().__init__()
        self.policy, self.weight = policy, loss_prediction

    def forward(self, frames: Tensor, gaze: Gaze, slots: float) -> dict[str, Tensor]:
        """Losses by name, float [b] each. frames: uint8 [b, T, S, S, 3]; slots: mean slots in use of a sample."""
        scores = self.policy.score(frames, gaze)
        valid = ~sent(gaze.padded()["if_padded_gazing"], scores.log_probs.device)
        measured = sent(padded_losses(gaze), valid.device)
        ntp = next_token_loss(scores.log_probs.float(), valid, slots)
        prediction = loss_prediction_loss(scores.loss_predictions.float(), measured, valid, slots=slots)
        return {"loss": ntp + self.weight * prediction, "ntp": ntp, "loss_prediction": prediction}
