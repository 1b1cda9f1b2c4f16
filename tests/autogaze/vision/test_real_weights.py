"""A real network: DINOv2-small, which benchmarks/dinov2_small.py makes, on real footage."""

import numpy as np
import pytest
import torch

from autogaze.vision import load
from autogaze.vision.agreement import agreement
from autogaze.vision.choose import changed_most
from tests.support.places import ROOT

SCALES = (56, 112, 224)


@pytest.fixture(scope="module")
def dinov2_small():
    folder = ROOT / "build" / "dinov2-small"
    if not folder.is_dir():
        pytest.skip("no build/dinov2-small: pip install onnx && python benchmarks/dinov2_small.py build/dinov2-small")
    return folder


@pytest.fixture(scope="module")
def clip(shipped_videos) -> np.ndarray:
    """16 frames of carphone, 4 apart: uint8 [1, 16, 224, 224, 3]."""
    import av
    from PIL import Image

    frames = []
    with av.open(str(shipped_videos["carphone_pristine"])) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % 4 == 0 and len(frames) < 16:
                image = Image.fromarray(frame.to_ndarray(format="rgb24")).resize((224, 224), Image.Resampling.BILINEAR)
                frames.append(np.asarray(image))
    return np.stack(frames)[None]


@pytest.mark.slow
def test_whole_frames_give_what_transformers_gives(dinov2_small, clip):
    import transformers

    encoder = load(dinov2_small, scales=(224,), attention="frame")
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in encoder.normalisation)
    pixels = (torch.from_numpy(clip[0, :2]).movedim(-1, 1) / 255 - mean) / std
    with torch.no_grad():
        wanted = transformers.Dinov2Model.from_pretrained(dinov2_small).eval()(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(encoder.encode(clip[:, :2]).tokens.view_as(wanted), wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_a_gazed_patch_that_sees_what_still_shows_is_nearest_to_its_full_feature(dinov2_small, clip):
    """Frame 0 in full, then 13 of 256 patches a frame: 11 % of all."""
    encoder = load(dinov2_small, scales=SCALES)
    full = encoder.sharing(attention="frame").encode(clip)
    lengths = np.full((1, 16), 13)
    lengths[:, 0] = 256
    gaze = changed_most(clip, lengths, vocabulary=encoder.vocabulary)
    found = {
        mode: agreement(full, encoder.sharing(attention=mode).encode(clip, gaze))
        for mode in ("frame", "block_causal", "newest")
    }
    assert found["newest"].tokens > found["block_causal"].tokens > found["frame"].tokens
    assert found["newest"].tokens > 0.9 and found["newest"].dense > 0.94
