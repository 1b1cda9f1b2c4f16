"""Attention whose shapes are new in every call leaves cuDNN out, which would plan for each of them; only there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from autogaze import greedy
from autogaze.attention import of_new_shapes
from autogaze.gaze import Gaze
from autogaze.model import AutoGaze
from autogaze.reconstruction.losses import Teacher
from autogaze.reconstruction.videomae.reconstructor import VideoMAE

GOLDEN = Path(__file__).parent.parent / "golden"
GAZE = Gaze.from_lists([[[3, 70], [200]]])


class Watch(TorchFunctionMode):
    """Whether cuDNN was allowed at each attention that was computed."""

    def __init__(self) -> None:
        self.allowed: list[bool] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (F.scaled_dot_product_attention, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu):
            self.allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return func(*args, **(kwargs or {}))


def reconstruct(clips: torch.Tensor) -> None:
    VideoMAE.from_pretrained(GOLDEN / "videomae_tiny").reconstruct(clips, GAZE)


def search(clips: torch.Tensor) -> None:
    model = VideoMAE.from_pretrained(GOLDEN / "videomae_tiny")
    greedy.label(clips, model, lengths=torch.ones(1, 2, dtype=torch.int64), exact=False, candidates=2)


def score(clips: torch.Tensor) -> None:
    AutoGaze.from_pretrained(GOLDEN / "autogaze_small_k10").score(clips, GAZE)


def teacher(clips: torch.Tensor) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes, image_size=32, patch_size=16))
    Teacher("siglip2", model, (0.5,) * 3, (0.5,) * 3, 32).features(torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize("call", [reconstruct, search, score, teacher])
def test_attention_of_new_shapes_leaves_cudnn_out(call):
    clips = torch.randint(0, 256, (1, 2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with Watch() as watch:
        call(clips)
    assert watch.allowed and not any(watch.allowed)
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_what_the_process_allowed_before_comes_back_after_an_error():
    for before in (False, True):
        torch.backends.cuda.enable_cudnn_sdp(before)
        with pytest.raises(RuntimeError), of_new_shapes():
            raise RuntimeError
        assert torch.backends.cuda.cudnn_sdp_enabled() is before
