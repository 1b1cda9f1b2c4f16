"""Checkpoints: found, read, refused in one line, written as the reference reads them."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from autogaze.hub import CheckpointError, resolve
from autogaze.model.checkpoint import fingerprint, read_config, read_weights, write
from tests.support import places

GOLDEN = places.GOLDEN / "autogaze_small_k10"
HEAD = "gazing_model.gaze_decoder.task_loss_prediction_head.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the reference's checkpoint, to be damaged."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "model.safetensors")


@pytest.fixture(scope="module")
def shapes(weights) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in weights.items()}


def refusal(call, *args) -> str:
    with pytest.raises(CheckpointError) as refused:
        call(*args)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# -- writing -----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_written_is_the_references_own_files(tmp_path, shapes, weights):
    config = read_config(GOLDEN)
    write(tmp_path / "new" / "checkpoint", config, read_weights(GOLDEN, shapes))
    folder = tmp_path / "new" / "checkpoint"
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert (folder / "preprocessor_config.json").read_bytes() == (GOLDEN / "preprocessor_config.json").read_bytes()
    written = json.loads((folder / "config.json").read_text())
    assert written == json.loads((GOLDEN / "config.json").read_text()) | {"positions": "reference"}
    read = read_weights(folder, shapes)
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name].view(torch.int32), weights[name].view(torch.int32)) for name in weights)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # transformers refuses to load without it
    assert read_config(folder) == config


def test_a_checkpoint_is_overwritten_file_by_file_and_a_failed_write_leaves_the_old_one(folder, weights, monkeypatch):
    config = replace(read_config(folder), positions="consistent")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="no space"):
            write(folder, config, weights)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before

    write(folder, config, weights)
    assert read_config(folder) == config
    assert {file.name for file in folder.iterdir()} == set(before)


def test_weights_that_are_views_of_one_tensor_are_written(tmp_path):
    whole = torch.randn(6, 4)
    write(tmp_path, read_config(GOLDEN), {"a": whole[:2], "b": whole[2:].T})
    read = load_file(tmp_path / "model.safetensors")
    assert torch.equal(read["a"], whole[:2]) and torch.equal(read["b"], whole[2:].T)


def test_weights_that_could_not_be_read_back_are_not_written(tmp_path, weights):
    assert "torch.float64" in refusal(write, tmp_path / "x", read_config(GOLDEN), {HEAD: weights[HEAD].double()})
    assert "NaN" in refusal(write, tmp_path / "x", read_config(GOLDEN), {HEAD: weights[HEAD] * float("nan")})
    assert not (tmp_path / "x").exists()


# -- reading -----------------------------------------------------------------------------------------------------------


def test_extra_files_are_left_alone_and_the_preprocessor_may_be_absent(folder, shapes):
    for name in ("LICENSE.md", "README.md", "pytorch_model.bin", ".gitattributes"):
        (folder / name).write_text("not read")
    (folder / "preprocessor_config.json").unlink()
    assert read_config(folder) == read_config(GOLDEN)
    assert read_weights(folder, shapes).keys() == shapes.keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_widened(folder, shapes, weights, dtype):
    halved = {name: tensor.to(dtype) for name, tensor in weights.items()}
    save_file(halved, folder / "model.safetensors")
    read = read_weights(folder, shapes)
    assert all(read[name].dtype == torch.float32 for name in read)
    assert all(torch.equal(read[name], halved[name].float()) for name in read)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_refused(folder, shapes, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert str(path) in (text := refusal(read_weights, folder, shapes)) and "truncated or corrupt" in text


def test_weights_that_are_not_there_say_why(folder, shapes):
    path = folder / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1196880\n")
    assert "git lfs pull" in refusal(read_weights, folder, shapes)
    path.unlink()
    assert "holds no model.safetensors" in refusal(read_weights, folder, shapes)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    assert "pytorch_model.bin could run code: convert it to safetensors" in refusal(read_weights, folder, shapes)


def test_weights_of_another_network_are_refused_by_name(folder, shapes, weights):
    path = folder / "model.safetensors"
    assert "gate.weight; up.weight" in refusal(
        read_weights, folder, shapes | dict.fromkeys(("gate.weight", "up.weight"), torch.Size([1]))
    )
    assert "and 28 more" in refusal(read_weights, folder, {})
    assert f"{HEAD} [10, 48], wanted [4, 48]" in refusal(read_weights, folder, shapes | {HEAD: torch.Size([4, 48])})

    for value in (float("nan"), float("-inf")):
        broken = weights[HEAD].clone()
        broken[3, 3] = value
        save_file(weights | {HEAD: broken}, path)
        assert f"{HEAD} holds NaN or infinity" in refusal(read_weights, folder, shapes)
    save_file(weights | {HEAD: weights[HEAD].int()}, path)
    assert f"{HEAD} is torch.int32, wanted float32" in refusal(read_weights, folder, shapes)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(folder, text):
    (folder / "config.json").write_text(text, encoding="latin-1")
    assert str(folder / "config.json") in refusal(read_config, folder)


def test_a_config_that_does_not_fit_is_refused_by_file_and_key(folder):
    edit(folder / "config.json", num_vision_tokens_each_frame=196)
    text = refusal(read_config, folder)
    assert str(folder / "config.json") in text and "num_vision_tokens_each_frame: found 196, wanted 265" in text
    (folder / "config.json").unlink()
    assert "holds no config.json" in refusal(read_config, folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_mean", [0.5, 0.5, 0.5]),
        ("image_std", [0.229, 0.224]),
        ("rescale_factor", 1 / 255),
        ("offset", False),
        ("resample", 3),
        ("size", {"height": 224, "width": 224}),
        ("do_center_crop", True),
        ("do_normalize", None),
    ],
)
def test_other_preprocessing_is_refused_by_its_key(folder, key, value):
    edit(folder / "preprocessor_config.json", **{key: value})
    assert f"{key}: found {json.dumps(value)}, wanted" in refusal(read_config, folder)


# -- finding -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Path:
    """The hub without a network, and its cache in a folder of its own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_folder_is_found_as_path_or_text(folder, monkeypatch):
    assert resolve(folder) == resolve(str(folder)) == folder
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve("~/checkpoint") == folder


def test_what_is_neither_folder_nor_hub_id_is_refused(folder, monkeypatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    for missing in (folder / "none", "none", "./runs/policy", "/runs/policy", "a/b/c", "s3://bucket/policy"):
        assert "there is no folder" in refusal(resolve, missing)
    assert "is a file" in refusal(resolve, folder / "model.safetensors")


def test_a_hub_id_without_network_says_what_to_do(offline):
    text = refusal(resolve, "nvidia/AutoGaze")
    assert "there is no folder nvidia/AutoGaze here" in text
    assert "hf download nvidia/AutoGaze --local-dir FOLDER" in text


def test_a_hub_id_in_the_cache_needs_no_network(offline):
    repository = offline / "models--nvidia--AutoGaze"
    snapshot = shutil.copytree(GOLDEN, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    assert resolve("nvidia/AutoGaze").samefile(snapshot)
    assert read_config(resolve("nvidia/AutoGaze")) == read_config(GOLDEN)


# -- fingerprint -------------------------------------------------------------------------------------------------------


def test_the_fingerprint_changes_with_whatever_changes_results_and_with_nothing_else(tmp_path, weights):
    config = read_config(GOLDEN)
    base = fingerprint(config, weights)
    assert len(base) == 64 and int(base, 16) >= 0

    write(tmp_path, replace(config, raw={}), weights)
    assert fingerprint(read_config(tmp_path), load_file(tmp_path / "model.safetensors")) == base
    assert fingerprint(config, dict(reversed(weights.items()))) == base
    strided = {name: tensor.T.contiguous().T if tensor.dim() == 2 else tensor for name, tensor in weights.items()}
    assert fingerprint(config, strided) == base

    nudged = weights[HEAD].clone()
    nudged.view(torch.int32)[0, 0] ^= 1
    renamed = {name.replace("layers.0", "layers.9"): tensor for name, tensor in weights.items()}
    reshaped = weights | {HEAD: weights[HEAD].reshape(48, 10)}
    others = [weights | {HEAD: nudged}, renamed, reshaped, weights | {HEAD: weights[HEAD].bfloat16()}]
    configs = [replace(config, positions="consistent"), replace(config, rope_theta=1e4), replace(config, max_ratio=0.1)]
    found = {fingerprint(config, other) for other in others} | {fingerprint(other, weights) for other in configs}
    assert len(found | {base}) == 1 + len(others) + len(configs)
