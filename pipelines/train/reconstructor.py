"""Pre-training the reconstructor: it sees part of a clip's patches and rebuilds some of its frames.

See docs/method.md, section 'Training the reconstructor'. The authors released no code for this.

Each clip shows its stored gaze, or random patches of all scales, as many as a log-uniform ratio says, shared out among
frames as in the paper's labels. What is drawn depends on (seed, epoch, sample) alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from autogaze.baselines import first_patches
from autogaze.draws import draw_frames, frame_shares, log_uniform, numbered_generator, patch_orders
from autogaze.gaze import Gaze
from autogaze.reconstruction.canvas import Canvas
from autogaze.reconstruction.losses import FrameLoss, reweighted
from autogaze.reconstruction.refiner.reconstructor import Refiner
from autogaze.reconstruction.videomae.config import VideoMAEConfig
from autogaze.reconstruction.videomae.packed import Packed
from autogaze.reconstruction.videomae.reconstructor import VideoMAE
from pipelines.dataset.shards import open_dataset
from pipelines.errors import PipelineError
from pipelines.loading.reading import Batch
from pipelines.networks.open import open_reconstructor
from pipelines.train.config import ReconstructorTrainConfig
from pipelines.train.learned import LearnedTask
from pipelines.train.packing import parts_by_tokens
from pipelines.train.sizes import require_own_sizes
from pipelines.train.task import COMPILES, RandomKey


class ReconstructorTask(LearnedTask):
    """The VideoMAE, pre-trained."""

    section = "model"
    model: VideoMAE

    def __init__(self, config: ReconstructorTrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.model = self._model().train()
        self.model.recompute = config.recompute
        self.model.frame_loss.to(getattr(torch, config.teachers_dtype))
        self.same_graph = not config.micro_tokens
        if config.compile:
            self.model.compile_layers()
        self.module: nn.Module = ReconstructorLosses(self.model)

    def notes(self) -> list[str]:
        """That stored targets are not read, and that it compiles."""
        notes = [COMPILES] if self.config.compile else []
        configs = {place: open_dataset(place).config for place in self.config.datasets}
        stored = [place for place, config in configs.items() if config.get("targets", {}).get("frames")]
        if not stored or not self.config.teachers.given():
            return notes
        return [
            *notes,
            f"the targets that {', '.join(stored)} keeps are not read: the frames to rebuild are drawn anew each "
            "epoch, and teachers look at each of them, at its original too",
        ]

    def losses(
        self, model: nn.Module, frames: Tensor, gaze: Gaze, key: RandomKey, totals: list[float]
    ) -> dict[str, Tensor]:
        """The reconstruction loss of each clip. gaze: stored with the clips."""
        losses: dict[str, Tensor] = model(frames, *self._drawn(gaze, key))
        return losses

    def parts(self, batch: Batch) -> list[list[int]] | None:
        """Clips of like lengths, up to `micro_tokens` tokens of the decoder at a time."""
        if not self.config.micro_tokens:
            return None
        key = RandomKey(self.config.loader.seed, batch.epoch, tuple(batch.ids.tolist()))
        size, lengths = self.model.vocabulary.size, []
        for shown, at in zip(*self._drawn(batch.gaze, key), strict=True):
            lengths.append(int(shown.lengths.sum() - shown.lengths[0, at].sum()) + len(at) * size)
        return parts_by_tokens(lengths, self.config.micro_tokens)

    def _drawn(self, gaze: Gaze, key: RandomKey) -> tuple[list[Gaze], list[list[int]]]:
        """What each clip shows, and the frames it rebuilds. gaze: stored with the clips."""
        shown, at = [], []
        for b, sample in enumerate(key.samples):
            generator = numbered_generator(key.seed, key.epoch, sample)
            stored = generator.random() < self.config.stored_gaze and int(gaze.lengths[b].sum()) > 0
            shown.append(gaze[b] if stored else self._random_gaze(gaze.num_frames, generator))
            at.append(draw_frames(generator, range(gaze.num_frames), self.config.frames))
        return shown, at

    @torch.no_grad()
    def validate(self, frames: Tensor, gaze: Gaze) -> dict[str, float]:
        """Sums over held-out clips: errors of frames rebuilt from the stored gaze, and of the canvas beside them."""
        rebuilt = self.model.reconstruct(frames, gaze)
        canvas = Canvas().reconstruct(frames, gaze)
        target = frames.cpu().float()
        sums = {"clips": float(gaze.clips), "error": float(rebuilt.error.mean(dim=1).sum())}
        for name, pixels in (("pixel_error", rebuilt.pixels), ("canvas_pixel_error", canvas.pixels)):
            sums[name] = float((pixels.cpu().float() - target).abs().flatten(1).mean(dim=1).sum()) / 255
        return sums

    def _random_gaze(self, frames: int, generator: np.random.Generator) -> Gaze:
        """One clip's gaze at random patches, at least one of them in frame 0."""
        vocabulary = self.model.vocabulary
        ratio = log_uniform(generator, self.config.min_ratio, self.config.max_ratio)
        tokens = frame_shares(generator, frames) * ratio * frames * vocabulary.size
        lengths = np.clip(tokens, [1] + [0] * (frames - 1), vocabulary.size).astype(np.int64)
        orders = patch_orders(generator, frames, vocabulary.size)
        return first_patches(torch.from_numpy(orders)[None], lengths[None], vocabulary)

    def _model(self) -> VideoMAE:
        config, teachers = self.config, self.config.teachers.given()
        if config.init:
            return self._begun_from(config.init, teachers)
        try:
            sizes = config.model
            shape = VideoMAEConfig(
                hidden_size=sizes.hidden_size,
                num_layers=sizes.num_layers,
                num_heads=sizes.num_heads,
                intermediate_size=4 * sizes.hidden_size,
                decoder_hidden_size=sizes.decoder_hidden_size,
                decoder_num_layers=sizes.decoder_num_layers,
                decoder_num_heads=sizes.decoder_num_heads,
                decoder_intermediate_size=4 * sizes.decoder_hidden_size,
            )
            shape = reweighted(shape, teachers, config.weights.given())
            loss = FrameLoss.from_config(shape.loss_type, shape.loss_weights, teachers, device=self.device)
        except ValueError as error:
            raise PipelineError(str(error)) from error
        torch.manual_seed(config.loader.seed)
        return VideoMAE(shape, loss).to(self.device)

    def _begun_from(self, place: str, teachers: dict[str, str]) -> VideoMAE:
        model = open_reconstructor(
            place, "init", teachers=teachers, weights=self.config.weights.given(), device=self.device, to_train=True
        )
        if isinstance(model, Refiner):
            raise PipelineError(f"init={place}: is a refiner; add kind=refiner")
        if not isinstance(model, VideoMAE):
            raise PipelineError(f"init={place}: is not learned; give a run or a folder of a learned reconstructor")
        require_own_sizes(place, "model", self.config.model, model.config)
        return model


class ReconstructorLosses(nn.Module):
    """The reconstructor and its loss as one module, for DistributedDataParallel to wrap."""

    def __init__(self, model: VideoMAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor, shown: list[Gaze], at: list[list[int]]) -> dict[str, Tensor]:
        """Loss [b] of clips uint8 [b, T, S, S, 3] that show a gaze each and rebuild the frames `at`, as many of each.

        On a GPU all clips are one pass; on a CPU they are computed one by one.
        """
        model, video = self.model, self.model.normalised(frames)
        if model.wide:
            rows = range(len(video))
            rebuilt = model.rebuild(video, Packed.of(shown, rows, at, model.vocabulary, video.device))
            original = video[np.repeat(rows, len(at[0])), np.concatenate(at)]
            errors = model.frame_loss(rebuilt.float(), original.float())
            return {"loss": errors.unflatten(0, (len(video), -1)).mean(dim=1)}
        losses = []
        for b, (gaze, numbers) in enumerate(zip(shown, at, strict=True)):
            rebuilt = model(video[b : b + 1], gaze, numbers)[0]
            losses.append(model.frame_loss(rebuilt.float(), video[b, numbers].float()).mean())
        return {"loss": torch.stack(losses)}
