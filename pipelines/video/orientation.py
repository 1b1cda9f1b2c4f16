"""How a picture is turned and mirrored for display, by the matrix that a container or a frame carries.

A matrix is nine 32-bit numbers a b u, c d v, x y w: the pixel at (p, q) is shown at (a p + c q + x, b p + d q + y)
(ISO/IEC 14496-12, 8.3.2). Only which axis goes where, and in which direction, is taken from it, as ffmpeg's autorotate
does for the eight upright positions; a matrix between two of them counts as the nearer one.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

_NUMBERS = 9


class Orientation(NamedTuple):
    """Mirror the picture left to right if `mirrored`, then turn it clockwise by `turns` quarters."""

    turns: int = 0
    mirrored: bool = False

    @classmethod
    def of_matrix(cls, matrix: bytes) -> Orientation:
        """From the side data of a frame: nine native int32. What is too short, or no matrix, is upright."""
        if len(matrix) < 4 * _NUMBERS:
            return cls()
        a, b, _, c, d, *_ = struct.unpack(f"={_NUMBERS}i", matrix[: 4 * _NUMBERS])
        if not (a or b or c or d):
            return cls()
        mirrored = a * d - b * c < 0
        if mirrored:
            a, b = -a, -b  # mirrored before it is turned: what is left is a rotation
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(0 if a + d > 0 else 2, mirrored)
        return cls(1 if b - c > 0 else 3, mirrored)

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """A view of a picture [height, width, ...] as it is displayed."""
        return np.rot90(picture[:, ::-1] if self.mirrored else picture, -self.turns)
