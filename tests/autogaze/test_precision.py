"""float32 is float32, also on a GPU, where PyTorch by default lets convolutions round to TF32."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autogaze.model import AutoGaze, AutoGazeConfig
from autogaze.precision import exact_convolutions, exact_products
from autogaze.reconstruction.losses import Teacher

CONVOLUTIONS = torch.backends.cudnn.conv
PRODUCTS = torch.backends.cuda.matmul


@pytest.fixture(params=["tf32", "none", "ieee"])
def allowed(request):
    """What the process allows, as a caller may have set it."""
    before = CONVOLUTIONS.fp32_precision, PRODUCTS.fp32_precision
    CONVOLUTIONS.fp32_precision = PRODUCTS.fp32_precision = request.param
    yield request.param
    CONVOLUTIONS.fp32_precision, PRODUCTS.fp32_precision = before


@pytest.fixture
def clips_of_noise() -> torch.Tensor:
    return torch.randint(0, 256, (1, 2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def watched(network: nn.Module) -> list[str]:
    """The precision that convolutions of the network are run in, from now on."""
    seen: list[str] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.register_forward_hook(lambda *_: seen.append(CONVOLUTIONS.fp32_precision))
    return seen


def test_the_policys_convolutions_are_exact_and_the_callers_setting_stands(allowed, clips_of_noise):
    policy = AutoGaze(AutoGazeConfig(num_layers=1))
    seen = watched(policy)
    policy.encode(clips_of_noise)
    assert seen == ["ieee"] and CONVOLUTIONS.fp32_precision == allowed


def test_the_teachers_convolutions_are_exact_and_the_callers_setting_stands(allowed):
    transformers = pytest.importorskip("transformers")
    config = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=1, image_size=32, patch_size=16
    )
    teacher = Teacher("siglip2", transformers.SiglipVisionModel(config), (0.5,) * 3, (0.5,) * 3, 32)
    seen = watched(teacher)
    teacher.features(torch.zeros(1, 3, 32, 32))
    assert seen == ["ieee"] and CONVOLUTIONS.fp32_precision == allowed


@pytest.mark.parametrize("exact", [exact_convolutions, lambda: exact_products(torch.device("cpu"))])
def test_the_callers_setting_stands_after_an_error(allowed, exact):
    with pytest.raises(RuntimeError, match="inside"), exact():
        raise RuntimeError("inside")
    assert (CONVOLUTIONS.fp32_precision, PRODUCTS.fp32_precision) == (allowed, allowed)


def test_the_older_setting_stands_too():
    assert torch.backends.cudnn.allow_tf32
    for value in (False, True):
        torch.backends.cudnn.allow_tf32 = value
        with exact_convolutions():
            assert CONVOLUTIONS.fp32_precision == "ieee"
        assert torch.backends.cudnn.allow_tf32 is value


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_convolution_is_that_of_float32():
    random = torch.Generator().manual_seed(0)
    frames, kernel = (torch.randn(shape, generator=random) for shape in ((2, 96, 5, 14, 14), (96, 96, 3, 3, 3)))
    wanted = F.conv3d(frames.double(), kernel.double())
    with exact_convolutions():
        found = F.conv3d(frames.cuda(), kernel.cuda()).cpu()
    assert (found - wanted).norm() < 1e-5 * wanted.norm()
