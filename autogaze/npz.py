"""Deterministic .npz files: the same arrays always give the same bytes, which np.savez does not promise. No pickle."""

import io
import lzma
import threading
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

# One header at a time: numpy reads it with Python's parser, which in Python 3.11 fails at random where several threads
# parse (SystemError: AST constructor recursion depth mismatch).
PARSING = threading.Lock()

# What zipfile and numpy raise for damaged bytes: a flipped bit may ask for a password (RuntimeError), for an unknown or
# a wrong compression, or change the expression in an array's header.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    AttributeError,
    TypeError,
    NotImplementedError,
    RuntimeError,
)


def write(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of an .npz with these members, in their order, uncompressed. Raises ValueError for object arrays."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system = 3  # else it names the operating system that wrote it
            content = io.BytesIO()
            np.lib.format.write_array(content, array, version=(1, 0), allow_pickle=False)
            archive.writestr(member, content.getvalue())
    return file.getvalue()


def read(source: bytes | str | Path | BinaryIO) -> dict[str, np.ndarray]:
    """The members of an .npz, in their order, from its bytes, a path or an open file.

    Raises ValueError if it is no such file, is cut off, or holds pickled objects.
    """
    if not isinstance(source, bytes):
        source = Path(source).read_bytes() if isinstance(source, str | Path) else source.read()
    try:
        with PARSING, np.load(io.BytesIO(source), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except _DAMAGED as error:
        raise ValueError(f"not an .npz file: {error}") from error
