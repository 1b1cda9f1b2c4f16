"""The refiner's network: convolutions over a frame's blocks that predict the correction to the canvas.

A block is its pixels on the canvas, and what might stand there instead: beneath it the latest pixels of each scale, and
smooth surfaces through all that was painted, which also fill what never was (autogaze/reconstruction/refiner/fill.py).
With them come maps of how long ago each was painted, and which is on top. The network answers with two corrections: a
mix of these, and new pixels. Both begin at zero, so an untrained refiner is the canvas. A gate up to 1 scales them;
where the finest scale painted a block in this very frame the canvas is the frame, and nothing is corrected.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autogaze.precision import exact_convolutions
from autogaze.reconstruction.refiner.config import RefinerConfig
from autogaze.reconstruction.refiner.fill import SURFACES, surfaces
from autogaze.reconstruction.refiner.memory import NEVER, Memory

_DILATIONS = (1, 2, 4)
_LEAST = 0.1  # of the gate: one that is shut has no gradient and stays shut, as steps that are too large made it


class Residual(nn.Module):
    """A convolution and a projection, added to their input."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.look = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.project(F.gelu(self.look(x)))
        return out


class RefinerNetwork(nn.Module):
    """`forward` corrects the canvases of some memories."""

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        scales, pixels = len(config.scales), 3 * config.block**2
        self.sources = scales + SURFACES
        width, deep = config.width, config.deep_width
        self.read = nn.Conv2d((1 + self.sources) * pixels + 4 * scales + 2, width, 1)
        self.before = nn.Sequential(*(Residual(width) for _ in range(config.blocks)))
        self.down = nn.Conv2d(width, deep, 2, stride=2)
        self.deep = nn.Sequential(
            *(Residual(deep, _DILATIONS[number % len(_DILATIONS)]) for number in range(config.deep_blocks))
        )
        self.whole = nn.Linear(deep, deep)
        self.up = nn.Conv2d(deep, 4 * width, 1)
        self.after = nn.Sequential(*(Residual(width) for _ in range(config.blocks)))
        self.gate = nn.Conv2d(width, 1, 1)
        self.correct = nn.Conv2d(width, self.sources + pixels, 1)
        self._initialise()

    @property
    def wide(self) -> bool:
        """Whether whole batches are computed in few large steps, as GPUs need it, or in many small exact ones."""
        return self.correct.weight.device.type != "cpu"

    def forward(self, memory: Memory) -> Tensor:
        """Corrected canvases of memories, float [n, 3, S, S] as shares of 255, not clipped."""
        seen = _Seen.of(memory, self.config.block)
        x = self.before(self.read(seen.inputs))
        high, wide = x.shape[2:]
        y = self.down(F.pad(x, (0, wide % 2, 0, high % 2)))
        y = y + self.whole(y.mean(dim=(2, 3)))[:, :, None, None]
        y = F.pixel_shuffle(self.up(self.deep(y)), 2)[:, :, :high, :wide]
        x = self.after(x + y)
        mix, new = self.correct(x).split([self.sources, 3 * self.config.block**2], dim=1)
        gate = _LEAST + (1 - _LEAST) * torch.sigmoid(self.gate(x))
        correction = gate * seen.open * ((mix[:, :, None] * seen.instead).sum(dim=1) + new)
        return seen.canvas + F.pixel_shuffle(correction, self.config.block)

    @torch.no_grad()
    def pixels(self, memory: Memory) -> Tensor:
        """Rebuilt frames of memories: uint8 [n, S, S, 3].

        In batches of a fixed size, so that a frame's pixels do not depend on what else is rebuilt.
        """
        device, together = self.correct.weight.device, _TOGETHER if self.wide else 1
        rebuilt = []
        with torch.autocast(device.type, enabled=False), exact_convolutions():
            for begin in range(0, len(memory), together):
                # The last one is repeated.
                places = torch.arange(begin, begin + together, device=device).clamp(max=len(memory) - 1)
                part = memory[begin : begin + 1] if together == 1 else memory[places]
                frames = self(part)[: len(memory) - begin].float().mul(255).round_().clamp_(0, 255)
                rebuilt.append(frames.to(torch.uint8).movedim(1, 3))
        return torch.cat(rebuilt)

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                if name.endswith(("project", "whole")):
                    module.weight.data.mul_(0.1)  # each layer begins close to the identity
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.correct.weight)
        nn.init.ones_(self.gate.bias)  # type: ignore[arg-type]


_TOGETHER = 16


class _Seen(NamedTuple):
    """Memories as the network takes them.

    inputs: float [n, channels, G, G]. canvas: [n, 3, S, S]. instead: [n, sources, 3 * block * block, G, G], what might
    stand there, less the canvas: of each scale, 0 where it has nothing, and of the surfaces. open: [n, 1, G, G], 0
    where the canvas is the frame. Pixels are shares of 255.
    """

    inputs: Tensor
    canvas: Tensor
    instead: Tensor
    open: Tensor

    @classmethod
    def of(cls, memory: Memory, block: int) -> _Seen:
        since, newest, t = memory.since, memory.newest, memory.t[:, None, None]
        finest = since.shape[1] - 1
        canvas = memory.canvas().movedim(3, 1).float() / 255
        pixels = memory.pixels.movedim(4, 2).float() / 255
        known = (since != NEVER).float()
        top = F.pixel_unshuffle(canvas, block)[:, None]
        below = (F.pixel_unshuffle(pixels, block) - top) * known[:, :, None]
        filled = F.pixel_unshuffle(surfaces(canvas, newest != NEVER, block), block) - top
        instead = torch.cat((below, filled), dim=1)
        age = (t[:, None] - since).float()
        on_top = newest[:, None] == torch.arange(finest + 1, device=newest.device)[:, None, None]
        share = (memory.gazed.double() / newest.shape[1] ** 2).float()
        even = torch.stack((share, (memory.gazed > 0).float()), dim=1)[:, :, None, None]
        even = even.expand(-1, -1, *newest.shape[1:])
        maps = (
            known,
            known / (1 + age),
            known * torch.log1p(age) / 3,
            on_top.float(),
            even.expand(-1, -1, *newest.shape[1:]),
        )
        open_ = ~((newest == finest) & (since[:, finest] == t))
        # Differences are small: they become about as large as the other inputs.
        inputs = torch.cat((2 * top[:, 0] - 1, 4 * instead.flatten(1, 2), *maps), dim=1)
        return cls(inputs, canvas, instead, open_[:, None])
