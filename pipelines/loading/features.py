"""Stream one rank's token features: the order, checks and position of the loader of frames, ragged batches.

    loader = FeatureLoader(LoaderConfig(data=["/data/features"], global_batch=64))
    for batch in loader:
        batch.tokens, batch.offsets            # [M, D]: those of clip i are offsets[i] to offsets[i + 1]
        batch.frame, batch.id, batch.scale     # [M]: which patch of which frame each is of

Where a rank has many cores, torch's DataLoader(loader, batch_size=None, num_workers=N) gives it processes, each of
which makes every N-th batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.dataset.features import FINAL, STORED_TYPES, ClipFeatures, FeatureDataset, open_features
from pipelines.dataset.members import split_members
from pipelines.errors import PipelineError
from pipelines.loading.loader import OrderedLoader
from pipelines.loading.reading import Decoded, Reading, Sample, Skipped
from pipelines.loading.samples import Samples, samples_of
from pipelines.storage.cache import LocalCache

_ALIKE = ("layers", "pooled", "store")  # of the config: what datasets that are read together agree in


@dataclass
class FeatureBatch:
    """One rank's part of a global batch: b clips of T frames, M tokens in all. Nothing is padded.

    Attributes:
        step, epoch, ids, keys, repeat, skipped: as in pipelines.loading.reading.Batch.
        layers: by name, [M, D] in the type that is stored: float16 or bfloat16.
        clip: int64 [M], the place of each token's clip in the batch.
        frame, id, scale: int64 [M]: see ClipFeatures.
        lengths: int64 [b, T], tokens of each frame.
        pooled: by name: "clip" [b, D], "frame" [b, T, D].
    """

    step: int
    epoch: int
    ids: np.ndarray
    keys: list[str]
    layers: dict[str, Tensor]
    clip: Tensor
    frame: Tensor
    id: Tensor
    scale: Tensor
    lengths: Tensor
    pooled: dict[str, Tensor]
    repeat: np.ndarray
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def tokens(self) -> Tensor:
        """The first of the stored layers. Raises KeyError where only pooled features are stored."""
        return self.layers[next(iter(self.layers), FINAL)]

    @property
    def offsets(self) -> Tensor:
        """Where the tokens of each clip begin, and of the last end: int64 [b + 1]."""
        ends = self.lengths.sum(dim=1).cumsum(0)
        return torch.cat((ends.new_zeros(1), ends))


class FeatureLoader(OrderedLoader[FeatureBatch]):
    """The loader of feature datasets. All of them must be of one encoder, with the same layers."""

    def open(self, url: str, cache: LocalCache | None, version: int | None) -> Samples:
        return samples_of(open_features(url), cache, version)

    def reading(self) -> Reading[Any, FeatureBatch]:
        if self.config.targets:
            raise PipelineError("targets=true: feature datasets keep none")
        opened = [dataset.dataset for dataset in self.datasets]
        kinds = [(one.about["encoder"], *(one.config[name] for name in _ALIKE)) for one in opened]
        for other, kind in zip(opened, kinds, strict=True):
            if kind != kinds[0]:
                raise PipelineError(
                    f"{opened[0].url} and {other.url} differ in encoder, layers or type; give datasets that agree"
                )
        return _FeatureReading(self.config, self.datasets, self._first_ids)


class _FeatureReading(Reading[ClipFeatures, FeatureBatch]):
    def outputs(self, count: int) -> list[None]:
        return [None] * count

    def decoded(self, sample: Sample, data: memoryview, out: None) -> ClipFeatures:
        dataset, row = sample.source.dataset, sample.row
        assert isinstance(dataset, FeatureDataset)
        return dataset.features_of(row | {"frames": sample.source.frames}, split_members(data, row["clip"]))

    def batch(self, whole: Decoded[ClipFeatures]) -> FeatureBatch:
        clips, frames = whole.results, whole.samples[0].source.frames
        counts = [len(clip.id) for clip in clips]
        first = clips[0]
        return FeatureBatch(
            step=whole.step.step,
            epoch=whole.step.epoch,
            ids=whole.ids,
            keys=whole.keys,
            layers={name: _joined([clip.layers[name] for clip in clips]) for name in first.layers},
            clip=torch.repeat_interleave(torch.arange(len(clips)), torch.tensor(counts)),
            frame=_joined([clip.frame for clip in clips]).long(),
            id=_joined([clip.id for clip in clips]).long(),
            scale=_joined([clip.scale for clip in clips]).long(),
            lengths=torch.from_numpy(np.stack([np.bincount(clip.frame, minlength=frames) for clip in clips])),
            pooled={name: _joined([clip.pooled[name][None] for clip in clips]) for name in first.pooled},
            repeat=whole.repeat,
            skipped=whole.skipped,
        )


def _joined(parts: list[np.ndarray]) -> Tensor:
    """Arrays one after another, as a tensor; bits of bfloat16 become what they are."""
    values = np.concatenate(parts)
    if values.dtype == STORED_TYPES["bfloat16"]:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)
