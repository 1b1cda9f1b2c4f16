"""One large JSON object, read key by key: memory holds one value and one chunk of the file, never the whole.

Python's own decoder reads each key and value, so that numbers, texts, NaN and nesting mean what they mean to json.load;
what is here finds where they begin and end. docs/decisions.md says why it is not ijson.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from typing import IO, Any

CHUNK = 1 << 20  # bytes read at once
_DECODER = json.JSONDecoder()
# Where the end of the text cuts a word of JSON in two (`fals`, `-Infin`, `\\ud83d`), the decoder's error names a place
# this many characters before the end at most.
_LONGEST_CUT = 16


def read_items(
    file: IO[bytes], chunk: int = CHUNK, on_bytes: Callable[[bytes], object] = len
) -> Iterator[tuple[str, Any]]:
    """Keys and values of a file that holds one JSON object, in order; a key that comes twice is given twice.

    on_bytes: called with all bytes of the file, chunk by chunk.
    Raises ValueError, naming the last key that could be read, where the file is not such JSON.
    """
    text, key = _Text(file, chunk, on_bytes), ""
    try:
        text.expect("{")
        closed = text.peek() == "}" and text.expect("}") == "}"
        while not closed:
            name = text.value()
            if not isinstance(name, str):
                raise ValueError(f"a key is {json.dumps(name)[:40]}, not a text")
            text.expect(":")
            key = name
            yield key, text.value()
            closed = text.expect(",}") == "}"
        if text.peek():
            raise ValueError("there is more text after the object")
    except (ValueError, RecursionError) as error:  # RecursionError: lists in lists in lists
        raise ValueError(f"{error}{f' (at or after key {key})' if key else ''}") from error


class _Text:
    """The text of a file from `at` on, as far as it has been read."""

    def __init__(self, file: IO[bytes], chunk: int, on_bytes: Callable[[bytes], object]) -> None:
        self._file, self._chunk, self._on_bytes = file, chunk, on_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at = "", 0

    def _read_more(self) -> bool:
        """Drop what is behind, and read another chunk; False at the end of the file."""
        data = self._file.read(self._chunk)
        self._on_bytes(data)
        self._text, self._at = self._text[self._at :] + self._utf8.decode(data, final=not data), 0
        return bool(data)

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text) or not self._read_more():
                return self._text[self._at : self._at + 1]

    def expect(self, characters: str) -> str:
        """The next character, which must be one of these."""
        character = self.peek()
        if not character or character not in characters:
            there = json.dumps(character) if character else "the end"
            raise ValueError(f"expected {' or '.join(characters)}, found {there}")
        self._at += 1
        return character

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._text) - _LONGEST_CUT or error.msg.startswith("Unterminated string")
                if not cut or not self._read_more():  # else more text cannot make it JSON
                    raise
                continue
            if end < len(self._text) or not self._read_more():  # else a number could go on in the next chunk
                self._at = end
                return value
