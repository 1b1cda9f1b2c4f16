"""Features of full frames that preprocess stored (targets.frames), as what an encoder learns towards.

Preprocess stores what the teachers of a reconstructor's loss see: the last hidden states of DINOv2 with registers and
of SigLIP 2, before the final norm, in float16. They serve here when one of these teachers is the encoder's own
checkpoint, which is measured: a frame of every rank's first batch is computed again, and must be what is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from autogaze.reconstruction.losses import LAYERS
from autogaze.reconstruction.targets import Targets
from autogaze.vision import GazedEncoder
from autogaze.vision.agreement import cosine
from autogaze.vision.distillation import FullFeatures
from autogaze.vision.pooling import attention_pool
from pipelines.dataset.shards import Dataset
from pipelines.errors import PipelineError
from pipelines.loading.reading import Batch

_NAMES = {"dinov2_with_registers": "dinov2_reg", "siglip": "siglip2", "siglip_vision_model": "siglip2"}
_ALIKE = 0.999  # float16 and another order of sums cost less; other weights or pixels cost more
_OR_ELSE = "or leave targets=stored out"


class StoredTargets:
    """The stored features of the clips of a batch. `take` a batch, then ask for the features of its samples.

    count: frames that every clip has features of.
    Raises PipelineError: a dataset stores none, or none that the teacher could have made.
    """

    def __init__(self, teacher: GazedEncoder, datasets: Sequence[Dataset], pooled: bool) -> None:
        """pooled: whether pooled features are wanted too."""
        kind = str(teacher.model.config.model_type)
        name = _NAMES.get(kind)
        if name is None:
            raise PipelineError(
                f"targets=stored: encoder.checkpoint= is a {teacher.family.name}, and preprocess stores features of "
                f"DINOv2 with registers and of SigLIP 2 alone; {_OR_ELSE}"
            )
        if pooled and teacher.prefix_count:
            raise PipelineError(
                f"targets=stored: no features of class tokens are stored, which {teacher.family.name} pools by; "
                f"set weights.pooled=0, {_OR_ELSE}"
            )
        for dataset in datasets:
            stored = (dataset.about.get("models") or {}).get("targets", {}).get("teachers", [])
            if name not in stored:
                has = f"of {', '.join(stored)}" if stored else "of none"
                raise PipelineError(
                    f"targets=stored: {dataset.url} stores features {has}, wanted {name}'s; make it with "
                    f"targets.frames= and teachers.{name}=, {_OR_ELSE}"
                )
        self.count = min(int(dataset.config["targets"]["frames"]) for dataset in datasets)
        self._teacher, self._name, self._pooled = teacher, name, pooled
        self._of: Mapping[int, Targets] = {}
        self._measured = False

    def take(self, batch: Batch) -> None:
        """Read the targets of a batch. Raises PipelineError: they are unreadable, or of another network."""
        found = {}
        for sample, clip, data in zip(batch.ids.tolist(), batch.keys, batch.targets or [], strict=True):
            try:
                found[sample] = Targets.from_npz(data)
            except ValueError as error:
                raise PipelineError(f"{clip}: its targets are unreadable: {error}") from error
        self._of = found
        if not self._measured:
            self._measure(batch)
            self._measured = True

    def frames_of(self, sample: int) -> list[int]:
        """The frames that a sample of the batch has features of, rising."""
        at: list[int] = self._of[sample].at.tolist()
        return at

    def features(self, samples: Sequence[int], at: Tensor) -> FullFeatures:
        """Of samples of the batch. at: int64 [B, F], some of `frames_of` each."""
        places = torch.stack([self._places(sample, row) for sample, row in zip(samples, at.tolist(), strict=True)])
        pooled = None
        if self._pooled:
            rows = places.flatten(0, 1)
            groups = torch.arange(len(rows), device=rows.device).repeat_interleave(rows.shape[1])
            head = self._teacher.family.pooling_head(self._teacher.model)
            with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
                pooled = attention_pool(head, rows.flatten(0, 1), groups, len(rows)).view(*at.shape, -1)
        return FullFeatures(at, places, pooled)

    def _places(self, sample: int, at: Sequence[int]) -> Tensor:
        """Features of some frames of a sample after the final norm: float32 [F, g * g, D]."""
        targets, teacher = self._of[sample], self._teacher
        stored = targets.for_frames(at)[list(targets.features).index(self._name)]
        width, places = teacher.width, teacher.vocabulary.counts[-1]
        if stored.shape[1:] != (places, LAYERS * width):
            raise PipelineError(
                f"targets=stored: the features of {self._name} are {stored.shape[1]} a frame of {stored.shape[2]} "
                f"numbers, wanted {places} of {LAYERS} x {width}: they are of another network, or encoder.scales= has "
                f"another finest scale than it saw; {_OR_ELSE}"
            )
        norm = teacher.family.final_norm(teacher.model)
        with torch.no_grad(), torch.autocast(teacher.device.type, enabled=False):
            last = stored[..., -width:].to(teacher.device, torch.float32)
            return last if norm is None else norm(last)

    def _measure(self, batch: Batch) -> None:
        """Compute a frame of the batch's first clip again. Raises PipelineError unless it is what is stored."""
        sample = int(batch.ids[0])
        at = torch.tensor([self.frames_of(sample)[:1]])
        computed = FullFeatures.of(self._teacher, batch.frames[:1].to(self._teacher.device), at)
        alike = float(cosine(self.features([sample], at).places, computed.places).mean())
        if not alike > _ALIKE:
            raise PipelineError(
                f"targets=stored: the stored features of {self._name} are not those of encoder.checkpoint= (cosine "
                f"{alike:.3f} on {batch.keys[0]}): give the checkpoint that they were made with, {_OR_ELSE}"
            )
