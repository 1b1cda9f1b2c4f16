"""docs/python_api.md: every block runs, in order, on a small dataset and a small policy."""

from __future__ import annotations

import re
from pathlib import Path

from autogaze.model import AutoGaze
from tests.support import places, training

PAGE = places.ROOT / "docs" / "python_api.md"


def test_every_block_of_the_page_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 8
    data = training.write_dataset(tmp_path / "data", clips=4)
    names = {"DATA": data, "CHECKPOINT": str(places.GOLDEN / "autogaze_small_k4")}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    assert isinstance(names["policy"], AutoGaze)
    assert names["batch"].frames.shape[2:] == (224, 224, 3)  # type: ignore[attr-defined]
    assert names["rebuilt"].error.shape == names["found"].lengths.shape  # type: ignore[attr-defined]
