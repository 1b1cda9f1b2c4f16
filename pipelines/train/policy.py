"""Training the policy by next-token prediction on labelled clips (docs/method.md, section 'Next-token prediction')."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from autogaze import reconstruction
from autogaze.gaze import Gaze
from autogaze.model import AutoGaze, AutoGazeConfig, CheckpointError
from autogaze.objectives import loss_prediction_loss, next_token_loss, padded_losses
from pipelines.dataset.shards import open_dataset
from pipelines.errors import PipelineError
from pipelines.train.config import PolicyTrainConfig
from pipelines.train.task import RandomKey, Task, folder_files, unpacked


class PolicyTask(Task):
    """What the training loop asks of whatever is trained (pipelines/train/task.py), for the policy.

    threshold: at which validation gaze stops. Unless the config names one, that at which the labels' greedy search
        stopped, in the units of its reconstructor.
    """

    def __init__(self, config: PolicyTrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.threshold = config.threshold
        if self.threshold is None:
            self.threshold = open_dataset(config.datasets[0]).about["config"].get("threshold")
        self.policy = self._policy().to(device).train()
        self.module: nn.Module = PolicyLosses(self.policy, config.loss_prediction)
        try:
            self.reconstructor = reconstruction.load(config.reconstructor, teachers=self.teachers(), device=device)
        except ValueError as error:
            raise PipelineError(f"reconstructor={config.reconstructor}: {error}") from error

    def teachers(self) -> dict[str, str]:
        """Where the models of the reconstructor's feature losses are."""
        return {}

    def totals(self, gaze: Gaze) -> list[float]:
        """What is summed over the whole batch of a step before any part of it is computed: its slots in use."""
        if gaze.losses is None:
            raise PipelineError("the gaze of this dataset has no losses, which a policy learns to predict; label it")
        return [float(gaze.counts().sum())]

    def losses(
        self, model: nn.Module, frames: Tensor, gaze: Gaze, key: RandomKey, totals: list[float]
    ) -> dict[str, Tensor]:
        """Losses of a part of a batch, each [b], "loss" being what is minimised; totals are per sample here."""
        found: dict[str, Tensor] = model(frames, gaze, totals[0])
        return found

    @torch.no_grad()
    def validate(self, frames: Tensor, gaze: Gaze) -> dict[str, float]:
        """Sums over some held-out clips: of the losses on their labels, and of what a greedy gaze comes to."""
        slots = max(float(gaze.counts().sum()), 1.0) / gaze.clips
        found = {name: float(value.sum()) for name, value in self.module(frames, gaze, slots).items()}
        # Per slot, so that clips with much gaze count for more, as in training.
        weight = float(gaze.counts().sum())
        sums = {f"val_{name}": value / gaze.clips * weight for name, value in found.items()} | {"slots": weight}
        return sums | {"clips": float(gaze.clips)} | self.greedy_sums(frames)

    def greedy_sums(self, frames: Tensor) -> dict[str, float]:
        """Sums over clips of what a greedy gaze comes to."""
        greedy = self.policy.gaze(frames, max_ratio=self.config.max_ratio, loss_threshold=self.threshold)
        error = self.reconstructor.reconstruct(frames, greedy).error
        sums = {"ratio": float(greedy.ratio().sum())}
        sums |= {"error": float(error.mean(dim=1).sum()), "predicted_error": float(greedy.final().mean(dim=1).sum())}
        if self.threshold is not None:
            sums["met"] = float((error <= self.threshold).float().mean(dim=1).sum())
        return sums

    @staticmethod
    def summary(sums: dict[str, float]) -> dict[str, float]:
        """Means, of the sums of all ranks."""
        slots, clips = max(sums.pop("slots"), 1.0), max(sums.pop("clips"), 1.0)
        return {name: value / (slots if name.startswith("val_") else clips) for name, value in sums.items()}

    def files(self) -> dict[str, bytes]:
        """The checkpoint of the model: a folder `policy` in the reference's format."""
        return folder_files(self.policy, "policy")

    def load(self, files: Mapping[str, bytes]) -> None:
        """Go back to the model of `files`."""
        with unpacked(files, "policy") as folder:
            self.policy.load_state_dict(AutoGaze.from_pretrained(folder).state_dict())

    def about(self) -> dict[str, Any]:
        """What a run must not change half-way."""
        return {"model": self.policy.config.to_json(), "threshold": self.threshold}

    def flops(self, gaze: Gaze) -> float:
        """Floating-point operations of a forward and backward pass over these clips: see docs/training.md."""
        from autogaze.model.flops import flops_per_clip

        slots = float(gaze.counts().sum()) / (gaze.clips * gaze.num_frames)
        return 3 * gaze.clips * flops_per_clip(self.policy.config, slots * gaze.num_frames, gaze.num_frames)

    def _policy(self) -> AutoGaze:
        config = self.config
        if config.init:
            try:
                policy = AutoGaze.from_pretrained(config.init)
            except CheckpointError as error:
                raise PipelineError(f"init={config.init}: {error}") from error
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
        scores = self.policy.score(frames, gaze)
        valid = ~gaze.padded()["if_padded_gazing"].to(scores.log_probs.device)
        measured = padded_losses(gaze).to(valid.device)
        ntp = next_token_loss(scores.log_probs.float(), valid, slots)
        prediction = loss_prediction_loss(scores.loss_predictions.float(), measured, valid, slots=slots)
        return {"loss": ntp + self.weight * prediction, "ntp": ntp, "loss_prediction": prediction}
