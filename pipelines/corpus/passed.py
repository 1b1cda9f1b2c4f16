"""What a scan passes over, counted by reason, so that nothing is left out in silence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from pipelines.corpus.suffixes import is_archive, suffix_of

ARCHIVE = "compressed, which cannot be read in place: unpack, or make it a plain .tar"
REPEATED = "listed more than once"
_OTHER = "other files: "  # then the suffix
_SUFFIXES = 8  # shown by name


class PassedOver:
    """How many things a scan did not open, by reason, and one of them as an example where it is known."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    @property
    def total(self) -> int:
        return self.counts.total()

    def add(self, why: str, example: str = "") -> None:
        """Count one thing."""
        self.counts[why] += 1
        if example:
            self.examples.setdefault(why, example)

    def add_file(self, name: str, example: str) -> None:
        """Count a file that is neither a video nor a tar by its name."""
        if is_archive(name):
            self.add(ARCHIVE, example)
        else:
            self.add(_OTHER + suffix_of(name))

    def merge(self, other: PassedOver) -> None:
        """Count all that `other` counts."""
        self.counts += other.counts
        self.examples = other.examples | self.examples

    def to_text(self) -> str | None:
        """The counts as a manifest keeps them: JSON by reason; None where nothing was passed over."""
        return json.dumps(self.counts, sort_keys=True) if self.counts else None

    def add_texts(self, texts: Iterable[object]) -> None:
        """Count what rows of a manifest say (`to_text`); anything else in that column says nothing."""
        for text in texts:
            if isinstance(text, str):
                self.counts.update(json.loads(text))

    def lines(self) -> list[str]:
        """The counts in words, one line for each reason, the most frequent first; files by suffix share a line."""
        other = {why.removeprefix(_OTHER): n for why, n in self.counts.items() if why.startswith(_OTHER)}
        told = [(n, why) for why, n in self.counts.items() if not why.startswith(_OTHER)]
        if other:
            most = sorted(other.items(), key=lambda item: (-item[1], item[0]))
            shown = ", ".join(f"{n:,} {suffix or 'without a suffix'}" for suffix, n in most[:_SUFFIXES])
            told.append((sum(other.values()), "other files: " + shown + (", ..." if len(most) > _SUFFIXES else "")))
        return [
            f"{n:,} {why}" + (f" (such as {self.examples[why]})" if why in self.examples else "")
            for n, why in sorted(told, key=lambda pair: (-pair[0], pair[1]))
        ]
