"""docs/troubleshooting.md quotes messages that exist, docs/operations.md the series that are exported."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from pipelines.preprocess.series import ENCODE_SERIES, PREPROCESS_SERIES
from pipelines.runs.series import TRAIN_SERIES
from tests.support import places

ROOT = places.ROOT
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text().split("## No message")[0]
QUOTES = [
    quote
    for line in TROUBLES.splitlines()
    if line.startswith("| `")
    for quote in re.findall(r"`([^`]+)`", line.split(" | ")[0])
]
HOLE = "\0"


@cache
def texts() -> list[str]:
    """Every text in the source, what is filled in replaced by HOLE."""
    found = []
    for package in ("autogaze", "pipelines", "cluster", "jobs"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_message_is_one_that_the_code_has(quote: str) -> None:
    fixed = [part for part in quote.split("...") if part.strip(" :=,;()")]
    assert fixed, "nothing of this message is fixed"
    pattern = re.compile(".*".join(map(re.escape, fixed)), re.DOTALL)
    assert any(pattern.search(text) for text in texts()), quote


def test_every_series_has_its_line() -> None:
    guide = (ROOT / "docs" / "operations.md").read_text()
    named = set(re.findall(r"\bautogaze_(?:preprocess|encode|train)_\w+", guide))
    assert named == {series.name for series in (*PREPROCESS_SERIES, *ENCODE_SERIES, *TRAIN_SERIES)}
