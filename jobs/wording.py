"""Counts, sizes and comparisons as the jobs say them, so that all of them say the same."""

from __future__ import annotations

from collections.abc import Sequence

from autogaze.patches import VOCABULARY, PatchVocabulary
from pipelines.dataset.versions import Version


def plural(count: int, one: str, many: str = "") -> str:
    """The count with the word for it: '1 patch', '1,200 patches'. many: one + 's' unless given."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def measured(amount: float, one: str) -> str:
    """An amount that need not be whole, to four digits, with the word for it: '1 hour', '0.5 hours', '2,083 hours'."""
    text = f"{amount:,.4g}"
    return f"{text} {one if text == '1' else one + 's'}"


def byte_size(count: int) -> str:
    """A number of bytes in decimal units: '412 bytes', '8.1 kB', '1.24 GB'."""
    if count < 1000:
        return plural(count, "byte")
    units = ("kB", "MB", "GB", "TB", "PB")
    power = next((p for p in range(1, len(units)) if count < 999.5 * 1000**p), len(units))
    return f"{count / 1000**power:.3g} {units[power - 1]}"


def times(ratio: float) -> str:
    """How many times fewer: '6.4x', '119x'."""
    return f"{ratio:,.1f}x" if ratio < 99.95 else f"{ratio:,.0f}x"


def fewer(tokens: int, patches: int, vocabulary: PatchVocabulary = VOCABULARY) -> str:
    """How many times fewer `tokens` are than what they were chosen from, and than what a plain ViT reads.

    patches: those of all frames and scales; a ViT of the same patch size reads the finest scale's part of them.
    """
    if not tokens:
        return "nothing was gazed"
    of_vit = patches * vit_tokens(vocabulary) / vocabulary.size
    return (
        f"{times(patches / tokens)} fewer than these, {times(of_vit / tokens)} fewer than a ViT's "
        f"{vit_tokens(vocabulary)} tokens a frame"
    )


def vit_tokens(vocabulary: PatchVocabulary = VOCABULARY) -> int:
    """Tokens that a ViT with this patch and frame size reads of a frame: the patches of the finest scale."""
    return vocabulary.counts[-1]


def versions(there: Sequence[Version]) -> str:
    """Those of a dataset that has grown: 'Version 2: 9 shards. Before: 1 (4 shards).'; '' of one that has not."""
    if len(there) < 2:
        return ""
    before = ", ".join(f"{version.number} ({plural(version.shards, 'shard')})" for version in there[:-1])
    return f"Version {there[-1].number}: {plural(there[-1].shards, 'shard')}. Before: {before}."
