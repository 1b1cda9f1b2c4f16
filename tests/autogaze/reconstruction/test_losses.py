"""Feature losses against plain formulas, on tiny random teachers that transformers itself wrote."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autogaze.images import MEAN, STD, preprocess
from autogaze.reconstruction.losses import FrameLoss, Teacher, TeacherError

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2}
VISION = SIZES | {"intermediate_size": 32, "image_size": 32, "patch_size": 16}
DINO = SIZES | {"image_size": 56, "patch_size": 14, "num_register_tokens": 3}
LAYERS = ("Dinov2WithRegistersLayer", "SiglipEncoderLayer")


def perturbed(model):
    """Biases and scales that are not 0 and 1, so that leaving one out shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Teachers as the hub has them: DINOv2 with its processor's config, SigLIP as a whole model with a text half."""
    torch.manual_seed(20260)
    root = tmp_path_factory.mktemp("teachers")
    found = {name: root / name for name in ("dinov2_reg", "siglip2")}
    dino = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**DINO))
    perturbed(dino).save_pretrained(found["dinov2_reg"])
    edit(
        found["dinov2_reg"] / "preprocessor_config.json", crop_size={"height": 28, "width": 28}, rescale_factor=1 / 255
    )
    text = SIZES | {"intermediate_size": 32, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    siglip = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=VISION))
    perturbed(siglip).save_pretrained(found["siglip2"])
    return found


@pytest.fixture
def frames() -> torch.Tensor:
    """Pixels uint8 [3, 32, 32, 3]."""
    return torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def loss(folders) -> FrameLoss:
    return FrameLoss.from_config("l1+dinov2_reg+siglip2", "1+0.3+0.25", folders)


def edit(path: Path, **changes) -> None:
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | changes))


def moved(folders, name, tmp_path) -> Path:
    """A copy of a teacher's folder, to be damaged."""
    return Path(shutil.copytree(folders[name], tmp_path / name))


def refusal(call, *args) -> str:
    with pytest.raises(TeacherError) as refused:
        call(*args)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def plain_features(name: str, folder: Path, pixels: torch.Tensor, mean, std) -> torch.Tensor:
    """Features of pixels in [0, 1], float [N, 3, S, S]: what each of the last 4 layers gives, as hooks see it."""
    vision = {"dinov2_reg": transformers.Dinov2WithRegistersModel, "siglip2": transformers.SiglipVisionModel}
    model = vision[name].from_pretrained(folder).eval()
    seen: list[torch.Tensor] = []
    for module in model.modules():
        if type(module).__name__ in LAYERS:
            module.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
    mean, std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        model((pixels - mean) / std)
    first = 1 + DINO["num_register_tokens"] if name == "dinov2_reg" else 0
    return torch.cat(seen[1:], dim=2)[:, first:]


# -- features ----------------------------------------------------------------------------------------------------------


def test_siglip2_features_are_the_last_four_layers_at_all_tokens(folders, frames):
    found = Teacher.from_pretrained("siglip2", folders["siglip2"]).features(preprocess(frames, 32))
    pixels = frames.permute(0, 3, 1, 2) / 255
    wanted = plain_features("siglip2", folders["siglip2"], pixels, (0.5,) * 3, (0.5,) * 3)
    assert found.shape == (3, 4, 64)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_dinov2_features_are_of_patch_tokens_at_the_processors_size(folders, frames):
    frames = frames[:, :28, :28]
    found = Teacher.from_pretrained("dinov2_reg", folders["dinov2_reg"]).features(preprocess(frames, 28))
    wanted = plain_features("dinov2_reg", folders["dinov2_reg"], frames.permute(0, 3, 1, 2) / 255, MEAN, STD)
    assert found.shape == (3, 4, 64)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_predictions_out_of_range_are_not_clipped(folders, frames):
    pixels = 3 * frames.permute(0, 3, 1, 2) / 255 - 1  # -1..2
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    found = Teacher.from_pretrained("siglip2", folders["siglip2"]).features((2 * pixels - 1 - mean) / std)
    wanted = plain_features("siglip2", folders["siglip2"], pixels, (0.5,) * 3, (0.5,) * 3)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_frames_of_another_size_are_resized(folders, frames):
    teacher = Teacher.from_pretrained("siglip2", folders["siglip2"])
    images = preprocess(frames, 32)
    larger = torch.nn.functional.interpolate(images, size=(64, 64), mode="nearest")
    wanted = teacher.features(torch.nn.functional.interpolate(larger, size=(32, 32), mode="bicubic"))
    assert torch.equal(teacher.features(larger), wanted)


def test_normalisation_is_that_of_the_folder_where_it_has_one(folders, frames, tmp_path):
    folder = moved(folders, "siglip2", tmp_path)
    edit(folder / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    found = Teacher.from_pretrained("siglip2", folder).features(preprocess(frames, 32))
    wanted = plain_features("siglip2", folder, frames.permute(0, 3, 1, 2) / 255, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_the_vision_half_alone_is_the_same_teacher(folders, frames, tmp_path):
    transformers.SiglipVisionModel.from_pretrained(folders["siglip2"]).save_pretrained(tmp_path)
    whole, half = (Teacher.from_pretrained("siglip2", folder) for folder in (folders["siglip2"], tmp_path))
    assert torch.equal(whole.features(preprocess(frames, 32)), half.features(preprocess(frames, 32)))
    assert whole.fingerprint == half.fingerprint


# -- the sum -----------------------------------------------------------------------------------------------------------


def test_without_teachers_the_error_is_l1_alone(frames):
    original = preprocess(frames, 32)
    predicted = original + torch.tensor([0.0, 0.5, -2.0]).view(3, 1, 1, 1)
    torch.testing.assert_close(FrameLoss()(predicted, original), torch.tensor([0.0, 0.5, 2.0]), atol=1e-6, rtol=1e-6)
    assert FrameLoss().targets(original) == []


def test_the_error_of_a_frame_is_the_weighted_sum(loss, folders, frames):
    original = preprocess(frames, 32)
    predicted = original.roll(5, dims=3) * 0.7
    wanted = (predicted - original).abs().mean(dim=(1, 2, 3))
    for name, weight in (("dinov2_reg", 0.3), ("siglip2", 0.25)):
        teacher = Teacher.from_pretrained(name, folders[name])
        difference = teacher.features(predicted) - teacher.features(original)
        wanted = wanted + weight * difference.square().mean(dim=(1, 2))
    error = loss(predicted, original)
    assert error.shape == (3,) and error.dtype == torch.float32
    torch.testing.assert_close(error, wanted)
    # A frame's error is its own, and targets computed before are the same as those computed now.
    torch.testing.assert_close(loss(predicted[1:2], original[1:2], loss.targets(original[1:2])), wanted[1:2])
    assert torch.equal(loss(predicted, original, loss.targets(original)), error)
    assert torch.equal(loss(original, original), torch.zeros(3))
    assert loss(predicted[:0], original[:0]).shape == (0,)


def test_gradients_reach_the_prediction_through_frozen_teachers(loss, frames):
    original = preprocess(frames, 32).requires_grad_()
    predicted = (original.detach() * 0.9).requires_grad_()
    loss.l1 = 0.0  # what is left comes through the teachers
    loss(predicted, original).sum().backward()
    direction = torch.randn(predicted.shape, generator=torch.Generator().manual_seed(3))
    step = 1e-2
    with torch.no_grad():
        change = loss(predicted + step * direction, original) - loss(predicted - step * direction, original)
    slope = (predicted.grad * direction).sum(dim=(1, 2, 3))
    torch.testing.assert_close(slope, change / (2 * step), rtol=0.02, atol=1e-3)
    assert slope.abs().min() > 0.01
    assert original.grad is None and all(parameter.grad is None for parameter in loss.parameters())


def test_no_graph_is_kept_for_the_targets(loss, frames):
    original = preprocess(frames, 32).requires_grad_()
    targets = loss.targets(original)
    assert len(targets) == 2 and not any(target.requires_grad for target in targets)
    live = [(original * 1.0).mean() * target for target in targets]  # targets that a caller left on a graph
    for given in (None, targets, live):
        seen: set[object] = set()
        error = loss((original.detach() * 0.9).requires_grad_(), original, given)
        leaves = leaves_of(error.grad_fn, seen)
        assert len(leaves) == 1 and leaves[0] is not original


def leaves_of(node, seen) -> list[torch.Tensor]:
    if node is None or node in seen:
        return []
    seen.add(node)
    own = [node.variable] if hasattr(node, "variable") else []
    return own + [leaf for parent, _ in node.next_functions for leaf in leaves_of(parent, seen)]


def test_teachers_stay_frozen_and_in_eval_mode_whatever_the_parent_does(loss):
    parent = torch.nn.Sequential(torch.nn.Linear(2, 2), loss).train()
    assert parent[0].training
    assert not any(module.training for teacher in loss.teachers for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_bfloat16_teachers_and_frames_give_float32_errors_nearby(loss, folders, frames):
    original = preprocess(frames, 32)
    predicted = original.roll(5, dims=3)
    half = FrameLoss.from_config("l1+dinov2_reg+siglip2", "1+0.3+0.25", folders, dtype=torch.bfloat16)
    assert half.targets(original)[0].dtype == torch.bfloat16
    error = half(predicted.bfloat16(), original, half.targets(original))
    assert error.dtype == torch.float32
    torch.testing.assert_close(error, loss(predicted, original), rtol=0.05, atol=0.05)


def test_autocast_does_not_change_the_precision_that_stored_targets_have(loss, frames):
    original = preprocess(frames, 32)
    predicted = original.roll(5, dims=3)
    error, targets = loss(predicted, original), loss.targets(original)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(predicted, original), error)
        assert all(map(torch.equal, loss.targets(original), targets))


@pytest.mark.parametrize(
    ("predicted", "original", "targets", "message"),
    [
        (torch.zeros(1, 3, 32, 31), torch.zeros(1, 3, 32, 31), None, r"\[1, 3, 32, 31\]: wanted floats \[N, 3, S, S\]"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1, 3, 32, 32), None, "uint8"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(1, 3, 32, 32), None, r"are \[2, 3, 32, 32\], the originals \[1, 3"),
        (torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32), [torch.zeros(1, 4, 64)], "1 targets for 2 teachers"),
        (
            torch.zeros(2, 3, 32, 32),
            torch.zeros(2, 3, 32, 32),
            [torch.zeros(1, 4, 64)] * 2,
            r"\[1, 4, 64\], its featur",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused_not_broadcast(loss, predicted, original, targets, message):
    with pytest.raises(ValueError, match=message):
        loss(predicted, original, targets)


# -- fingerprints ------------------------------------------------------------------------------------------------------


def test_fingerprints_change_with_weights_preprocessing_precision_and_order(folders, tmp_path):
    siglip, dino = folders["siglip2"], folders["dinov2_reg"]
    other, heads, pixels = (moved(folders, "siglip2", tmp_path / kind) for kind in ("weights", "heads", "pixels"))
    weights = load_file(other / "model.safetensors")
    weights["vision_model.post_layernorm.bias"][0] += 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((heads / "config.json").read_text())
    edit(heads / "config.json", vision_config=config["vision_config"] | {"num_attention_heads": 4})
    edit(pixels / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.4])
    prints = [Teacher.from_pretrained("siglip2", folder).fingerprint for folder in (siglip, other, heads, pixels)]
    prints.append(Teacher.from_pretrained("siglip2", siglip, dtype=torch.bfloat16).fingerprint)
    assert len(set(prints)) == 5
    again = Teacher.from_pretrained("siglip2", shutil.copytree(siglip, tmp_path / "again"), weight=0.9)
    assert again.fingerprint == prints[0] == copy.deepcopy(again).fingerprint

    teachers = [Teacher.from_pretrained("siglip2", siglip), Teacher.from_pretrained("dinov2_reg", dino)]
    sums = [FrameLoss(), FrameLoss(0.5), FrameLoss(1.0, teachers), FrameLoss(1.0, teachers[::-1])]
    assert len({one.fingerprint for one in sums}) == 4
    heavier = FrameLoss(1.0, [again, teachers[1]])
    assert heavier.fingerprint != sums[2].fingerprint
    assert heavier.targets_fingerprint == sums[2].targets_fingerprint  # the features are the same
    assert sums[2].targets_fingerprint != sums[3].targets_fingerprint


# -- the reference's config, and refusals ------------------------------------------------------------------------------


def test_the_references_config_gives_terms_and_weights(folders):
    alone = FrameLoss.from_config("l1", "1", {})
    assert (alone.l1, alone.names) == (1.0, [])
    swapped = FrameLoss.from_config("siglip2+l1", "0.3+2", {"siglip2": folders["siglip2"]})
    assert (swapped.l1, swapped.names, swapped.teachers[0].weight) == (2.0, ["siglip2"], 0.3)
    assert FrameLoss.from_config("siglip2", "1", {"siglip2": folders["siglip2"]}).l1 == 0.0


def test_a_config_that_makes_no_sense_is_refused(folders):
    for terms, numbers, message in [
        ("l1+siglip2", "1", "as many terms"),
        ("l1+l1", "1+1", "twice"),
        ("l1+siglip2", "1+x", "'x' is no weight for siglip2"),
        ("l1", "-1", "'-1' is no weight for l1"),
        ("l1", "nan", "'nan' is no weight"),
        ("l1+lpips", "1+1", "unknown loss 'lpips': the losses are l1, dinov2_reg, dinov2, siglip2"),
    ]:
        with pytest.raises(ValueError, match=message):
            FrameLoss.from_config(terms, numbers, folders)
    teacher = Teacher.from_pretrained("siglip2", folders["siglip2"])
    with pytest.raises(ValueError, match="once"):
        FrameLoss(1.0, [teacher, teacher])


def test_a_teacher_that_is_not_given_is_named_with_what_to_give(folders):
    message = refusal(FrameLoss.from_config, "l1+dinov2_reg+siglip2", "1+0.3+0.3", {"siglip2": "/nowhere"})
    assert "its teacher dinov2_reg is not given" in message
    assert "teachers.dinov2_reg=facebook/dinov2-with-registers-base" in message
    message = refusal(FrameLoss.from_config, "l1", "1", folders)
    assert "has no teacher dinov2_reg" in message


def test_what_is_no_such_teacher_is_refused(folders, tmp_path):
    load = Teacher.from_pretrained
    assert "there is no folder" in refusal(load, "siglip2", tmp_path / "nowhere")
    assert "type 'siglip', wanted dinov2_with_registers" in refusal(load, "dinov2_reg", folders["siglip2"])
    assert "unknown loss 'clip'" in refusal(load, "clip", folders["siglip2"])
    (tmp_path / "empty").mkdir()
    assert "config.json cannot be read" in refusal(load, "siglip2", tmp_path / "empty")

    lacking = moved(folders, "siglip2", tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if "layers.3.mlp" not in name},
        lacking / "model.safetensors",
        metadata={"format": "pt"},
    )
    assert "lacks 4 of the model's weights" in refusal(load, "siglip2", lacking)
    next(tensor for name, tensor in weights.items() if name.startswith("vision_model"))[0] = torch.nan
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    assert "NaN" in refusal(load, "siglip2", lacking)
    (lacking / "model.safetensors").write_bytes((folders["siglip2"] / "model.safetensors").read_bytes()[:5000])
    assert "cannot be loaded" in refusal(load, "siglip2", lacking)
    (lacking / "model.safetensors").unlink()
    torch.save(weights, lacking / "pytorch_model.bin")  # could run code: not read
    assert "cannot be loaded" in refusal(load, "siglip2", lacking)

    odd = moved(folders, "siglip2", tmp_path / "odd")
    edit(odd / "preprocessor_config.json", rescale_factor=1 / 127.5)
    assert "rescale_factor" in refusal(load, "siglip2", odd)
    edit(odd / "preprocessor_config.json", rescale_factor=1 / 255, image_std=[0.5, 0.5, 0])
    assert "image_std [0.5, 0.5, 0.0]" in refusal(load, "siglip2", odd)
    edit(odd / "preprocessor_config.json", image_std=None)
    assert "does not fit" in refusal(load, "siglip2", odd)
    (odd / "preprocessor_config.json").unlink()
    config = json.loads((odd / "config.json").read_text())
    edit(odd / "config.json", vision_config=config["vision_config"] | {"num_hidden_layers": 3})
    assert "has 3 layers, wanted 4" in refusal(load, "siglip2", odd)


def test_without_transformers_the_error_says_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    message = refusal(Teacher.from_pretrained, "siglip2", folders["siglip2"])
    assert "pip install -e '.[teachers]' in the checkout" in message


@pytest.mark.slow
def test_loading_is_silent_and_transformers_is_not_imported_before(folders):
    given = {name: str(folder) for name, folder in folders.items()}
    script = (
        "import sys\n"
        "from autogaze.reconstruction.losses import FrameLoss\n"
        "FrameLoss()\n"
        "assert 'transformers' not in sys.modules\n"
        f"FrameLoss.from_config('l1+dinov2_reg+siglip2', '1+1+1', {given})\n"
        "import transformers\n"
        "log = transformers.utils.logging\n"
        "assert log.get_verbosity() == log.WARNING and log.is_progress_bar_enabled()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
