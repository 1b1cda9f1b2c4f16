"""Features are read by plain webdataset, and by our loader, in the order of every other dataset."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader

from pipelines.dataset.features import open_features
from pipelines.errors import PipelineError
from pipelines.loading.config import LoaderConfig
from pipelines.loading.features import FeatureBatch, FeatureLoader
from pipelines.loading.loader import ShardLoader
from tests.pipelines.encode.conftest import Encoded


def loader(encoded: Encoded, **options: object) -> FeatureLoader:
    return FeatureLoader(LoaderConfig(data=[str(encoded.output)], global_batch=2, **options), epochs=2)


def test_plain_webdataset_reads_it(encoded: Encoded) -> None:
    dataset = open_features(str(encoded.output))
    rows = dataset.index().query("outcome == 'ok'").to_dict("records")
    tars = sorted(map(str, (encoded.output / "shards").glob("*.tar")))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode())
    assert [sample["__key__"] for sample in samples] == [row["clip"] for row in rows]
    for sample, row in zip(samples, rows, strict=True):
        features = dataset.read_features(row)
        assert sample["json"]["dtype"] == "float16" and sample["json"]["tokens"] == len(sample["id.npy"])
        for name, values in features.arrays.items():
            np.testing.assert_array_equal(sample[f"{name}.npy"], values)


def same(one: FeatureBatch, other: FeatureBatch) -> bool:
    pairs = [(one.layers[name], other.layers[name]) for name in one.layers]
    pairs += [(getattr(one, name), getattr(other, name)) for name in ("clip", "frame", "id", "scale", "lengths")]
    return one.keys == other.keys and all(torch.equal(a, b) for a, b in pairs)


def test_our_loader_gives_ragged_batches_in_the_order_of_the_gaze_dataset(encoded: Encoded) -> None:
    gaze = ShardLoader(LoaderConfig(data=[str(encoded.gaze)], global_batch=2), epochs=2)
    dataset = open_features(str(encoded.output))
    rows = {row["clip"]: row for row in dataset.index().to_dict("records")}
    batches = list(loader(encoded))
    assert len(batches) == 6
    for batch, frames in zip(batches, gaze, strict=True):
        assert batch.keys == frames.keys and batch.repeat.tolist() == frames.repeat.tolist()
        assert torch.equal(batch.lengths, frames.gaze.lengths) and torch.equal(batch.id, frames.gaze.tokens)
        assert len(batch.tokens) == int(batch.offsets[-1]) and batch.tokens.dtype == torch.float16
        for i, clip in enumerate(batch.keys):
            part = slice(int(batch.offsets[i]), int(batch.offsets[i + 1]))
            stored = dataset.read_features(rows[clip])
            assert (batch.clip[part] == i).all()
            np.testing.assert_array_equal(batch.tokens[part].numpy(), stored.layers["final"])
            np.testing.assert_array_equal(batch.layers["hidden_1"][part].numpy(), stored.layers["hidden_1"])
            np.testing.assert_array_equal(batch.pooled["frame"][i].numpy(), stored.pooled["frame"])


def test_threads_processes_and_ranks_change_nothing(encoded: Encoded) -> None:
    wanted = list(loader(encoded, workers=0))
    assert all(map(same, wanted, loader(encoded, workers=2)))
    processes = DataLoader(loader(encoded, workers=0), batch_size=None, num_workers=2)
    assert all(map(same, wanted, processes))
    config = LoaderConfig(data=[str(encoded.output)], global_batch=2, workers=0)
    ranks = [FeatureLoader(config, epochs=1, rank=rank, world=2) for rank in range(2)]
    for batch, *parts in zip(wanted, *ranks, strict=False):
        assert batch.keys == [key for part in parts for key in part.keys]


def test_a_sample_that_was_damaged_is_refused_by_name_or_replaced(encoded: Encoded, tmp_path: Path) -> None:
    output = Path(shutil.copytree(encoded.output, tmp_path / "features"))
    tar = output / "shards" / "000000.tar"
    torn = bytearray(tar.read_bytes())
    torn[700] ^= 1
    tar.write_bytes(torn)
    config = LoaderConfig(data=[str(output)], global_batch=5, workers=0)
    with pytest.raises(PipelineError, match="its bytes differ from the hash in the index"):
        list(FeatureLoader(config, epochs=1))
    config.bad_samples = "skip"
    [batch] = FeatureLoader(config, epochs=1)
    assert len(batch.skipped) == 1 and batch.repeat.sum() == 1 and len(batch.keys) == 5


def test_what_cannot_be_read_together_is_one_line(encoded: Encoded, tmp_path: Path) -> None:
    other = Path(shutil.copytree(encoded.output, tmp_path / "other"))
    about = json.loads((other / "dataset.json").read_text())
    about["encoder"]["fingerprint"] = "0"
    (other / "dataset.json").write_text(json.dumps(about))
    for data, told in (
        ([str(encoded.output), str(other)], "differ in encoder, layers or type"),
        ([str(encoded.gaze)], "is a dataset of gaze, not of features; make them with: autogaze encode data="),
    ):
        with pytest.raises(PipelineError, match=told):
            list(FeatureLoader(LoaderConfig(data=data, global_batch=2)))
    with pytest.raises(PipelineError, match="holds features of an encoder, and no gaze; give the gaze dataset"):
        ShardLoader(LoaderConfig(data=[str(encoded.output)]))
