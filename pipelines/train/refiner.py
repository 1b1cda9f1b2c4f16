"""Training the refiner: it sees part of a clip's patches, and corrects the canvas of some of its frames.

See docs/method.md, section 'Training the reconstructor'. What is minimised is the error over that of the canvas, so
that frames of which much is seen count as much as those of which little is: there the canvas errs little, and a refiner
that learnt the plain error would spoil it. What is drawn depends on (seed, epoch, sample) alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from autogaze.draws import draw_frames, frame_shares, log_uniform, numbered_generator, patch_orders
from autogaze.gaze import Gaze
from autogaze.images import of_shares
from autogaze.patches import PatchVocabulary
from autogaze.reconstruction.losses import FrameLoss, reweighted
from autogaze.reconstruction.refiner.config import RefinerConfig
from autogaze.reconstruction.refiner.reconstructor import Refiner
from pipelines.errors import PipelineError
from pipelines.networks.open import open_reconstructor
from pipelines.train.config import ReconstructorTrainConfig
from pipelines.train.learned import LearnedTask
from pipelines.train.sizes import require_own_sizes
from pipelines.train.task import RandomKey

VALIDATED = (0.01, 0.03, 0.1, 0.3)
"""Shares of random patches that a validation shows."""
_FLOOR = 0.01  # added to the canvas' error where it divides: of frames that it has right there is nothing to learn


class RefinerTask(LearnedTask):
    """The refiner, trained."""

    section = "refiner"
    same_graph = True
    model: Refiner

    def __init__(self, config: ReconstructorTrainConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.model = _model(config, device).train()
        self.model.frame_loss.to(getattr(torch, config.teachers_dtype))
        self.module: nn.Module = RefinerLosses(self.model)

    def losses(
        self, model: nn.Module, frames: Tensor, gaze: Gaze, key: RandomKey, totals: list[float]
    ) -> dict[str, Tensor]:
        """Of each clip: the loss, and the errors of refiner and canvas that it is made of. gaze: stored with the clips.

        Clips that show random patches are mirrored and run backwards, each half of the time.
        """
        config, vocabulary = self.config, self.model.vocabulary
        clips, shown, at = [], [], []
        for b, sample in enumerate(key.samples):
            generator = numbered_generator(key.seed, key.epoch, sample)
            clip = frames[b]
            if generator.random() < config.stored_gaze and int(gaze.lengths[b].sum()) > 0:
                shown.append(begun(gaze[b], generator))
            else:
                ratio = log_uniform(generator, config.min_ratio, config.max_ratio)
                shown.append(random_gaze(generator, gaze.num_frames, ratio, vocabulary))
                mirrored, backwards = generator.random(2) < 0.5
                clip = clip.flip(2) if mirrored else clip
                clip = clip.flip(0) if backwards else clip
            clips.append(clip)
            at.append(draw_frames(generator, range(gaze.num_frames), config.frames))
        losses: dict[str, Tensor] = model(torch.stack(clips), shown, at)
        return losses

    @torch.no_grad()
    def validate(self, frames: Tensor, gaze: Gaze) -> dict[str, float]:
        """Sums over held-out clips: errors with the stored gaze and with random patches, and of the canvas beside."""
        model, length = self.model, gaze.num_frames
        rebuilt, canvas = model.reconstruct(frames, gaze), model.canvas.reconstruct(frames, gaze)
        sums = {"clips": float(gaze.clips), "error": float(rebuilt.error.mean(dim=1).sum())}
        sums["pixel_error"] = _pixel_error(rebuilt.pixels, frames)
        sums["canvas_pixel_error"] = _pixel_error(canvas.pixels, frames)
        at = sorted({round((part + 1) * length / 4) - 1 for part in range(4) if round((part + 1) * length / 4)})
        for number, ratio in enumerate(VALIDATED):
            random = numbered_generator(number)
            one = random_gaze(random, length, ratio, model.vocabulary)
            shown = Gaze.cat([one] * gaze.clips)
            for name, reconstructor in (("random", model), ("canvas_random", model.canvas)):
                pixels = reconstructor.reconstruct(frames, shown, at).pixels
                sums[f"{name}_{ratio:g}"] = _pixel_error(pixels, frames[:, at])
        return sums


class RefinerLosses(nn.Module):
    """The refiner and its loss as one module, for DistributedDataParallel to wrap."""

    def __init__(self, model: Refiner) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor, shown: list[Gaze], at: list[list[int]]) -> dict[str, Tensor]:
        """Of clips uint8 [b, T, S, S, 3] that show a gaze each and rebuild the frames `at`: float [b] by name.

        As many frames of each. On a GPU all clips are one pass; on a CPU they are computed one by one.
        """
        together = len(frames) if self.model.wide else 1
        found = []
        for first in range(0, len(frames), together):
            part = slice(first, first + together)
            found.append(self._of_clips(frames[part], shown[part], at[part]))
        return {name: torch.cat([each[name] for each in found]) for name in found[0]}

    def _of_clips(self, clips: Tensor, shown: list[Gaze], at: list[list[int]]) -> dict[str, Tensor]:
        rows, model = range(len(clips)), self.model
        gaze = Gaze.cat([replace(one, losses=None, initial=None, origins=None) for one in shown])
        memory = model.memories(clips, gaze, rows, at)
        frames = clips[np.repeat(rows, len(at[0])), np.concatenate(at)]
        original, targets = frames.movedim(3, 1).float() / 255, model.targets(frames)
        error = self._errors(model(memory).float(), original, targets)
        with torch.no_grad():
            canvas_error = self._errors(memory.canvas().movedim(3, 1).float() / 255, original, targets)
        losses = {"loss": error / (canvas_error + _FLOOR), "error": error, "canvas_error": canvas_error}
        return {name: value.unflatten(0, (len(clips), -1)).mean(dim=1) for name, value in losses.items()}

    def _errors(self, predicted: Tensor, original: Tensor, targets: list[Tensor]) -> Tensor:
        """Errors [F] of frames float [F, 3, S, S] as shares of 255."""
        loss = self.model.frame_loss
        errors: Tensor = loss.l1 * (predicted - original).abs().flatten(1).mean(dim=1)
        if loss.names:
            errors = errors + loss.of_features(of_shares(predicted), targets)
        return errors


def begun(gaze: Gaze, generator: np.random.Generator) -> Gaze:
    """A gaze of one clip of which, half of the time, each frame shows only its first patches, any number of them."""
    if generator.random() < 0.5:
        return gaze
    shares = generator.random(gaze.num_frames)
    frames = [tokens[: int(share * (len(tokens) + 1))] for tokens, share in zip(gaze.frames(0), shares, strict=True)]
    return Gaze.from_lists([frames], vocabulary=gaze.vocabulary)


def random_gaze(generator: np.random.Generator, frames: int, ratio: float, vocabulary: PatchVocabulary) -> Gaze:
    """One clip's gaze at random patches in random order, a mean share `ratio` of them; at least one in frame 0.

    Frames share them evenly half of the time, else by the Dirichlet weights of the paper's labels.
    """
    even = np.full(frames, 1 / frames)
    shares = even if generator.random() < 0.5 else frame_shares(generator, frames)
    lengths = shares * ratio * frames * vocabulary.size + generator.random(frames)
    lengths = np.clip(lengths, [1] + [0] * (frames - 1), vocabulary.size).astype(np.int64)
    orders = patch_orders(generator, frames, vocabulary.size)
    return Gaze.from_lists(
        [[order[:length].tolist() for order, length in zip(orders, lengths, strict=True)]], vocabulary=vocabulary
    )


def _model(config: ReconstructorTrainConfig, device: torch.device) -> Refiner:
    teachers, weights = config.teachers.given(), config.weights.given()
    if config.init:
        model = open_reconstructor(config.init, "init", teachers=teachers, weights=weights, device=device)
        if not isinstance(model, Refiner):
            raise PipelineError(f"init={config.init}: is no refiner; leave kind=refiner out, or give another")
        require_own_sizes(config.init, "refiner", config.refiner, model.config)
        return model.requires_grad_()
    try:
        shape = reweighted(RefinerConfig(**vars(config.refiner)), teachers, weights)
        loss = FrameLoss.from_config(shape.loss_type, shape.loss_weights, teachers, device=device)
    except ValueError as error:
        raise PipelineError(str(error)) from error
    torch.manual_seed(config.loader.seed)
    return Refiner(shape, loss).to(device)


def _pixel_error(pixels: Tensor, frames: Tensor) -> float:
    """Mean absolute difference of RGB as a share of 255, of each clip; summed over the clips."""
    return float((pixels.cpu().float() - frames.cpu().float()).abs().flatten(1).mean(dim=1).sum()) / 255
