"""Micro-batches by tokens: samples of like lengths together, so that little of what is computed is padding."""

from __future__ import annotations

from collections.abc import Sequence


def parts_by_tokens(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Cut samples into parts that come to at most `tokens` tokens each, padded to the longest of their part.

    Samples of like lengths lie together, the longest first. A sample that is longer by itself is a part of its own.
    Returns places in `lengths`, each once.
    """
    parts: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        if parts and lengths[parts[-1][0]] * (len(parts[-1]) + 1) <= tokens:
            parts[-1].append(place)
        else:
            parts.append([place])
    return parts
