"""Memory: no tensor of rows x rows, and a peak that grows with the tokens."""

import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autogaze.vision import load


class Largest(TorchDispatchMode):
    """The most numbers that any tensor made inside held."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize("mode", ["block_causal", "frame", "first_frame", "newest"])
def test_no_tensor_grows_faster_than_the_tokens(checkpoint, gazes, mode):
    one = load(checkpoint("dinov2"), scales=(16, 32, 64), attention=mode)
    largest = []
    for frames in (16, 64):
        clip = torch.zeros(1, frames, 64, 64, 3, dtype=torch.uint8)
        gaze = gazes([[40] * frames])
        with Largest() as seen:
            one.encode(clip, gaze)
        largest.append(seen.numbers)
    rows = 64 * 41
    assert largest[1] < rows * rows / 4 and largest[1] <= 4.1 * largest[0]


PEAK = """
import resource, sys, torch, transformers
from autogaze.vision.encoder import GazedEncoder
from autogaze.vision.families import FAMILIES

torch.set_num_threads(1)
frames = int(sys.argv[1])
config = transformers.SiglipVisionConfig(num_hidden_layers=1, image_size=224, patch_size=16, vision_use_head=False)
encoder = GazedEncoder(FAMILIES[0], transformers.SiglipVisionModel(config).eval().requires_grad_(False),
                  ((0.5,) * 3, (0.5,) * 3), scales=(64, 128, 256, 512), attention="frame")
assert encoder.vocabulary.size == 1360
from autogaze.gaze import Gaze
every = torch.arange(1360).repeat(frames)
gaze = Gaze(tokens=every, lengths=torch.full((1, frames), 1360), vocabulary=encoder.vocabulary)
out = encoder.encode(torch.zeros(1, frames, 256, 256, 3, dtype=torch.uint8), gaze)
assert out.tokens.shape == (frames * 1360, 768)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_the_peak_of_a_base_size_layer_grows_linearly_up_to_128_frames_of_1360_tokens():
    peaks = [
        int(subprocess.run([sys.executable, "-c", PEAK, str(n)], check=True, capture_output=True, text=True).stdout)
        for n in (1, 64, 128)
    ]
    own, half, whole = peaks[0], peaks[1] - peaks[0], peaks[2] - peaks[0]
    assert own > 0 and whole < 2.2 * half, peaks
    assert whole * 1024 < 8 * 128 * 1360 * 768 * 4, peaks  # a few tensors of all rows: no more than eight
