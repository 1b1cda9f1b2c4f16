"""Reconstruction on a GPU: canvas bit for bit, the learned reconstructor, its search and its losses to rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autogaze import greedy
from autogaze.images import preprocess
from autogaze.objectives import loss_prediction_loss, next_token_loss
from autogaze.reconstruction import load
from autogaze.reconstruction.losses import FrameLoss, Teacher
from autogaze.reconstruction.videomae.reconstructor import VideoMAE


@pytest.fixture
def reconstructor(golden):
    """The reference's tiny checkpoint: reconstructor(device, dtype)."""
    from pathlib import Path

    folder = Path(__file__).parent.parent / "golden" / "videomae_tiny"
    return lambda device="cpu", dtype=torch.float32: VideoMAE.from_pretrained(folder, device=device, dtype=dtype)


@pytest.fixture(scope="module")
def footage() -> torch.Tensor:
    """A disc that moves over a texture, a clip of noise, and a still one: uint8 [3, 4, 224, 224, 3]."""
    random, (t, y, x) = np.random.default_rng(1), np.ogrid[:4, :224, :224]
    texture = 90 + 60 * np.sin(x / 3) * np.cos(y / 5) + 0 * t
    moving = np.where((y - 112) ** 2 + (x - 40 * t - 40) ** 2 < 900, 220, texture)
    still = np.broadcast_to(texture[:1], texture.shape)
    parts = [np.repeat(part[..., None], 3, axis=-1) for part in (moving, still)]
    noise = random.integers(0, 256, parts[0].shape)
    return torch.from_numpy(np.stack([parts[0], noise, parts[1]]).astype(np.uint8))


@pytest.mark.parametrize("how", [{"threshold": 0.05}, {"threshold": 0.02, "max_ratio": 0.3}, {"lengths": 9}])
def test_canvas_greedy_equals_the_cpus_bit_for_bit(device, footage, how):
    if "lengths" in how:
        how = {"lengths": torch.full((3, 4), how["lengths"])}
    on_cpu, found = (greedy.label(footage.to(where), load("canvas"), **how) for where in ("cpu", device))
    for name in ("tokens", "lengths", "losses", "initial"):
        assert torch.equal(getattr(found, name), getattr(on_cpu, name)), name


def test_canvas_pixels_and_errors_equal_the_cpus_bit_for_bit(device, footage):
    canvas = load("canvas")
    gaze = greedy.label(footage, canvas, threshold=0.05)
    on_cpu, found = (canvas.reconstruct(footage.to(where), gaze) for where in ("cpu", device))
    assert torch.equal(found.pixels.cpu(), on_cpu.pixels) and torch.equal(found.error.cpu(), on_cpu.error)


@pytest.mark.parametrize("allowed", ["tf32", "ieee"])
def test_canvas_is_exact_whatever_precision_the_process_allows(device, footage, allowed):
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = allowed
    try:
        found = greedy.label(footage.to(device), load("canvas"), threshold=0.05)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert torch.equal(found.tokens, greedy.label(footage, load("canvas"), threshold=0.05).tokens)


@pytest.mark.parametrize("call", ["frames13", "frames_all", "frames20"])
def test_errors_of_the_learned_reconstructor_equal_the_references(reconstructor, device, video, given, golden, call):
    reference = golden(f"videomae__{call}")
    at = reference["frame_idx_to_reconstruct"].tolist()
    rebuilt = reconstructor(device).reconstruct(video.to(device), given("videomae__gazing_info"), at)
    torch.testing.assert_close(rebuilt.error, reference["loss_each_frame"], atol=1e-4, rtol=0)


def test_groups_at_several_clips_have_the_errors_that_the_cpu_finds_row_by_row(reconstructor, device, video, given):
    gaze, at, of = given("videomae__gazing_info"), [[1, 3], [0, 2]], [1, 0]
    found, wanted = (reconstructor(where).group_errors(video.to(where), gaze, of, at) for where in (device, "cpu"))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_its_gradients_equal_the_references(reconstructor, device, video, given, golden):
    model, images, at = reconstructor(device), preprocess(video, device=device), [1, 3]
    rebuilt = model(images, given("videomae__gazing_info"), at)
    losses = model.frame_loss(rebuilt.flatten(0, 1), images[:, at].flatten(0, 1)).view(2, 2)
    losses.mean(dim=1).mean().backward()
    wanted = golden("videomae__grads_frames13")
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            difference = (parameter.grad.cpu() - wanted[name]).norm()
            # Biases of keys change no attention: what they have for a gradient is rounding, here 1e-10 and there 1e-9.
            assert difference <= 2e-3 * wanted[name].norm() + 1e-7, f"{name}: {difference / wanted[name].norm()}"


def test_frames_are_prepared_as_on_the_cpu_bit_for_bit(device, footage):
    assert torch.equal(preprocess(footage, device=device).cpu(), preprocess(footage))


def test_its_search_takes_the_cpus_tokens(reconstructor, device, video):
    lengths = torch.tensor([[3, 2]])
    on_cpu, found = (
        greedy.label(video[:1, :2].to(where), reconstructor(where), lengths=lengths) for where in ("cpu", device)
    )
    assert torch.equal(found.tokens, on_cpu.tokens)
    torch.testing.assert_close(found.losses, on_cpu.losses, atol=1e-4, rtol=0)


def test_bfloat16_errors_stay_within_a_hundredth_of_float32s(reconstructor, device, video, given):
    gaze = given("videomae__gazing_info")
    exact, half = (
        reconstructor(device, dtype).reconstruct(video.to(device), gaze).error
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert ((half - exact).abs() / exact).max() < 0.01


def test_losses_on_fixed_tensors_equal_the_references(device, golden):
    fixed = {name: tensor.to(device) for name, tensor in golden("losses_fixed").items()}
    valid = ~fixed["if_padded_gazing"]
    found = next_token_loss(fixed["log_action_probs"], valid)
    torch.testing.assert_close(found, fixed["ntp_loss"], rtol=1e-5, atol=1e-6)
    mask = fixed["task_losses_mask"].bool()
    found = loss_prediction_loss(fixed["task_loss_prediction"], fixed["task_losses"], valid, mask)
    torch.testing.assert_close(found, fixed["ntp_task_loss_prediction_loss"], rtol=1e-5, atol=1e-6)


def test_feature_losses_and_their_gradients_equal_the_cpus(device):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2}
    dino = transformers.Dinov2WithRegistersConfig(**sizes, image_size=56, patch_size=14, num_register_tokens=3)
    siglip = transformers.SiglipVisionConfig(**sizes, intermediate_size=64, image_size=32, patch_size=16)
    teachers = [
        Teacher("dinov2_reg", transformers.Dinov2WithRegistersModel(dino), (0.5,) * 3, (0.5,) * 3, 56),
        Teacher("siglip2", transformers.SiglipVisionModel(siglip), (0.5,) * 3, (0.5,) * 3, 32),
    ]
    loss, (predicted, original) = FrameLoss(1.0, teachers), torch.randn(2, 3, 3, 64, 64)
    found = []
    for where in (torch.device("cpu"), device):
        leaf = predicted.to(where).detach().requires_grad_()
        errors = loss.to(where)(leaf, original.to(where))
        errors.sum().backward()
        found.append((errors.detach().cpu(), leaf.grad.cpu()))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-3, atol=1e-5)
    assert (found[1][1] - found[0][1]).norm() <= 5e-3 * found[0][1].norm()
