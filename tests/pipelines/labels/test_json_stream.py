"""A large JSON object is read as json.load reads it, whatever its pieces, and in bounded memory."""

from __future__ import annotations

import io
import json
import math
import tracemalloc
from collections.abc import Iterator

import pytest

from pipelines.labels.json_stream import read_items

HARD = {
    "a/b/c.mp4": {"gazing_pos": [[0, 264], []], "task_losses": [[0.25, 1e-7], []], "units": None, "ok": True},
    "ünï/cödé \ud800.mp4": [12, {"a": "}", "b": '\\" ,:{[', "c": -0.0}],
    "n": 1234567890123456789012345678901234567890,
    "": "",
}


def items(text: str | bytes, chunk: int = 1 << 20) -> list[tuple[str, object]]:
    data = text if isinstance(text, bytes) else text.encode()
    return list(read_items(io.BytesIO(data), chunk))


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
def test_every_way_to_cut_a_file_gives_what_json_gives(chunk: int, indent: int | None) -> None:
    for ascii_only in (True, False):
        text = json.dumps(HARD if ascii_only else {"ünï/日本": HARD["n"]}, indent=indent, ensure_ascii=ascii_only)
        assert dict(items(text, chunk)) == json.loads(text)


def test_nan_and_infinity_are_read_as_pythons_json_writes_them() -> None:
    [(_, [nan, up, down])] = items(json.dumps({"a": [math.nan, math.inf, -math.inf]}), 1)  # type: ignore[misc]
    assert math.isnan(nan) and (up, down) == (math.inf, -math.inf)


def test_a_key_that_comes_twice_is_given_twice() -> None:
    assert items('{"a": 1, "a": 2}') == [("a", 1), ("a", 2)] and items(" {} ") == []


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "expected {, found the end"),
        ("[1]", "expected {"),
        ('{"a": 1', "expected , or }, found the end (at or after key a)"),
        ('{"a": [1,', "(at or after key a)"),
        ('{"a" 1}', "expected :"),
        ('{"a": 1,}', "Expecting value"),
        ('{3: 1}', "a key is 3, not a text"),
        ('{"a": 1} {}', "more text after the object"),
        ('{"a": tru}', "Expecting value"),
        ('{"a": "\x01"}', "Invalid control character"),
        (b'{"a": "\xff"}', "utf-8"),
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "recursion"),
    ],
)  # fmt: skip
def test_what_is_no_object_is_one_line(text: str | bytes, message: str) -> None:
    for chunk in (1000, 1 << 20):
        with pytest.raises(ValueError) as error:
            items(text, chunk)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_damage_is_named_before_the_rest_of_the_file_is_read() -> None:
    read: list[int] = []
    file = io.BytesIO(b'{"a": [1, 2, oops, ' + b"3, " * 100_000 + b"4]}")
    with pytest.raises(ValueError):
        list(read_items(file, 1000, lambda data: read.append(len(data))))
    assert read == [1000]


def test_memory_does_not_grow_with_the_file() -> None:
    class Long(io.RawIOBase):
        """An object of `entries` values of 1 kB, made as it is read."""

        def __init__(self, entries: int) -> None:
            self.parts = self._parts(entries)

        def _parts(self, entries: int) -> Iterator[bytes]:
            for number in range(entries):
                yield b'%s"%d": "%s"' % (b"," if number else b"{", number, b"x" * 1000)
            yield b"}"

        def read(self, size: int = -1) -> bytes:
            return b"".join(part for _, part in zip(range(size // 1000), self.parts, strict=False))

    peaks = []
    for entries in (200, 4_000):
        tracemalloc.start()
        assert sum(1 for _ in read_items(Long(entries), 64_000)) == entries  # type: ignore[arg-type]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
