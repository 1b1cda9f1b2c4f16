"""Canvas greedy written straight from its definition, to compare with: slow, plain numpy, one clip, no shared code.

A clip's canvas starts at grey 128. A patch paints the pixels of its region with the frame as resampled to its scale.
For every pick, every patch is painted on a copy of the canvas in turn and the whole frame is measured.
"""

import math

import numpy as np


def resampled(frame, scale):
    """uint8 [S, S, 3] averaged by area to scale x scale, halves rounded up, and back to S x S by nearest neighbour."""
    size = len(frame)
    common = math.gcd(size, scale)
    fine, coarse = scale // common, size // common
    # Each pixel cut into fine x fine equal pieces; coarse x coarse pieces make one pixel of the scale.
    pieces = frame.astype(np.int64).repeat(fine, axis=0).repeat(fine, axis=1)
    sums = pieces.reshape(scale, coarse, scale, coarse, 3).sum(axis=(1, 3))
    small = (2 * sums + coarse**2) // (2 * coarse**2)
    back = [y * scale // size for y in range(size)]
    return small[back][:, back].astype(np.uint8)


def region(size, scale, patch_size, row, col):
    """bool [S, S]: the pixels whose place in the scale lies in patch (row, col)."""
    patch_of = np.array([y * scale // size // patch_size for y in range(size)])
    return (patch_of == row)[:, None] & (patch_of == col)[None, :]


def patches(scales, patch_size):
    """(scale, row, col) of every patch in the order of their ids."""
    return [
        (scale, row, col)
        for scale in scales
        for row in range(scale // patch_size)
        for col in range(scale // patch_size)
    ]


def total_error(canvas, frame):
    """Sum of absolute differences over height, width and colour."""
    return int(np.abs(canvas.astype(np.int64) - frame.astype(np.int64)).sum())


def plain_greedy(frames, scales, patch_size, threshold=None, cap=None, lengths=None):
    """Greedy gaze of one clip uint8 [T, S, S, 3]. Returns (tokens, losses, initial): two lists of T lists, a list of T.

    Without `lengths`: until the float32 error is at or under `threshold`, or no patch lowers it, or `cap` tokens.
    With `lengths` [T]: exactly that many tokens.
    """
    size = frames.shape[1]
    worst = size * size * 3 * 255
    regions = [region(size, *patch[:1], patch_size, *patch[1:]) for patch in patches(scales, patch_size)]
    scale_of = [patch[0] for patch in patches(scales, patch_size)]
    canvas = np.full((size, size, 3), 128, np.uint8)
    tokens, losses, initial = [], [], []
    for t, frame in enumerate(frames):
        pictures = {scale: resampled(frame, scale) for scale in scales}
        error = total_error(canvas, frame)
        initial.append(np.float32(error / worst))
        tokens.append([])
        losses.append([])
        while True:
            if lengths is None:
                met = threshold is not None and np.float32(error / worst) <= np.float32(threshold)
                if met or (cap is not None and len(tokens[t]) == cap):
                    break
            elif len(tokens[t]) == lengths[t]:
                break
            best = None
            for token, where in enumerate(regions):
                if token in tokens[t]:
                    continue
                painted = canvas.copy()
                painted[where] = pictures[scale_of[token]][where]
                after = total_error(painted, frame)
                if best is None or after < best[0]:
                    best = (after, token, painted)
            if best is None or (lengths is None and best[0] >= error):
                break
            error, token, canvas = best
            tokens[t].append(token)
            losses[t].append(np.float32(error / worst))
    return tokens, losses, initial
