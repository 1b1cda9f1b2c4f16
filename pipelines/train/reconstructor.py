"""Pre-training the reconstructor: show it a random part of a clip's patches, have it rebuild some frames.

See docs/method.md, section 'Training the reconstructor'.

The authors released no code for this. What is shown is a random multi-scale mask, its ratio drawn log-uniformly and
spread over frames as the paper's labels are, or the clip's stored gaze. All that is drawn depends on (seed, epoch,
sample) alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autogaze.gaze import Gaze
from autogaze.reconstruction.losses import FrameLoss
from autogaze.reconstruction.videomae.config import VideoMAEConfig
from autogaze.reconstruction.videomae.reconstructor import VideoMAE
from pipelines.errors import PipelineError
from pipelines.train.config import ReconstructorTrainConfig
from pipelines.train.task import RandomKey, Task, folder_files, unpacked


class ReconstructorTask(Task):
    """What the training loop asks of whatever is trained (pipelines/train/task.py), for the reconstructor."""

    def __init__(self, config: ReconstructorTrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.model = self._model().train()
        self.module: nn.Module = ReconstructorLosses(self.model)

    def totals(self, gaze: Gaze) -> list[float]:
        return []

    def losses(
        self, model: nn.Module, frames: Tensor, gaze: Gaze, key: RandomKey, totals: list[float]
    ) -> dict[str, Tensor]:
        shown, at = [], []
        for b, sample in enumerate(key.samples):
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([key.seed, key.epoch, sample])))
            stored = random.random() < self.config.stored_gaze and int(gaze.lengths[b].sum()) > 0
            shown.append(gaze[b] if stored else self._random_gaze(gaze.num_frames, random))
            at.append(sorted(random.permutation(gaze.num_frames)[: self.config.frames].tolist()))
        found: dict[str, Tensor] = model(frames, shown, at)
        return found

    @torch.no_grad()
    def validate(self, frames: Tensor, gaze: Gaze) -> dict[str, float]:
        """Sums over held-out clips: the error of frames rebuilt from the stored gaze, and of the canvas beside it."""
        from autogaze.reconstruction import load

        mine = self.model.reconstruct(frames, gaze)
        canvas = load("canvas").reconstruct(frames, gaze)
        target = frames.cpu().float()
        sums = {"clips": float(gaze.clips), "error": float(mine.error.mean(dim=1).sum())}
        for name, pixels in (("pixel_error", mine.pixels), ("canvas_pixel_error", canvas.pixels)):
            sums[name] = float((pixels.cpu().float() - target).abs().flatten(1).mean(dim=1).sum()) / 255
        return sums

    @staticmethod
    def summary(sums: dict[str, float]) -> dict[str, float]:
        clips = max(sums.pop("clips"), 1.0)
        return {name: value / clips for name, value in sums.items()}

    def files(self) -> dict[str, bytes]:
        return folder_files(self.model, "reconstructor")

    def load(self, files: Mapping[str, bytes]) -> None:
        with unpacked(files, "reconstructor") as folder:
            self.model.load_state_dict(VideoMAE.from_pretrained(folder, self.config.teachers.given()).state_dict())

    def about(self) -> dict[str, Any]:
        return {"model": self.model.config.to_json(), "loss": self.model.frame_loss.fingerprint}

    def flops(self, gaze: Gaze) -> float | None:
        return None

    def _random_gaze(self, frames: int, random: np.random.Generator) -> Gaze:
        vocabulary, config = self.model.vocabulary, self.config
        ratio = math.exp(random.uniform(math.log(config.min_ratio), math.log(config.max_ratio)))
        shares = random.dirichlet([10.0] + [3.0] * (frames - 1))
        counts = np.clip(shares * ratio * frames * vocabulary.size, 0, vocabulary.size).astype(int)
        counts[0] = max(counts[0], 1)
        return Gaze.from_lists([[random.permutation(vocabulary.size)[:count].tolist() for count in counts]])

    def _model(self) -> VideoMAE:
        config, teachers = self.config, self.config.teachers.given()
        try:
            if config.init:
                return VideoMAE.from_pretrained(config.init, teachers, device=self.device)
            sizes = config.model
            names = ["l1", *teachers]
            weights = ["1", *("0.3" for _ in teachers)]
            shape = VideoMAEConfig(
                hidden_size=sizes.hidden_size,
                num_layers=sizes.num_layers,
                num_heads=sizes.num_heads,
                intermediate_size=4 * sizes.hidden_size,
                decoder_hidden_size=sizes.decoder_hidden_size,
                decoder_num_layers=sizes.decoder_num_layers,
                decoder_num_heads=sizes.decoder_num_heads,
                decoder_intermediate_size=4 * sizes.decoder_hidden_size,
                loss_type="+".join(names),
                loss_weights="+".join(weights),
            )
            loss = FrameLoss.from_config(shape.loss_type, shape.loss_weights, teachers, device=self.device)
        except ValueError as error:
            raise PipelineError(str(error)) from error
        torch.manual_seed(config.loader.seed)
        return VideoMAE(shape, loss).to(self.device)


class ReconstructorLosses(nn.Module):
    """The reconstructor and its loss as one module, for DistributedDataParallel to wrap."""

    def __init__(self, model: VideoMAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor, shown: list[Gaze], at: list[list[int]]) -> dict[str, Tensor]:
        video = self.model.normalised(frames)
        losses = []
        for b, (gaze, numbers) in enumerate(zip(shown, at, strict=True)):
            rebuilt = self.model(video[b : b + 1], gaze, numbers)[0]
            losses.append(self.model.frame_loss(rebuilt.float(), video[b, numbers].float()).mean())
        return {"loss": torch.stack(losses)}
