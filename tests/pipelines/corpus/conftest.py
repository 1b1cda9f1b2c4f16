"""Scans without Ray: objects are probed in this process, by one decoder's child."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.corpus import scan as scans
from pipelines.corpus.manifest import MANIFEST_SCHEMA
from pipelines.storage.location import Entry
from pipelines.video.base import DecodeConfig
from pipelines.video.isolated import IsolatedDecoder


@pytest.fixture(scope="module")
def decoder() -> Iterator[IsolatedDecoder]:
    with IsolatedDecoder(DecodeConfig()) as decoder:
        yield decoder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, decoder: IsolatedDecoder) -> list[str]:
    """Scans run here; the URLs of the objects that they opened, in order."""
    urls: list[str] = []

    def probe_all(entries: list[Entry], timeout_s: float) -> Iterator[tuple[int, pa.Table]]:
        with IsolatedDecoder(DecodeConfig(timeout_s=timeout_s)) as hurried:
            for entry in entries:
                urls.append(entry.url)
                usual = timeout_s == DecodeConfig.timeout_s
                yield 1, pa.Table.from_pylist(scans.probe_object(entry, decoder if usual else hurried), MANIFEST_SCHEMA)

    monkeypatch.setattr(scans, "_probe_all", probe_all)
    return urls


@pytest.fixture(scope="session")
def video(store_of_videos: Path) -> bytes:
    """A video of 20 frames."""
    return (store_of_videos / "clip0.mp4").read_bytes()


@pytest.fixture
def make_tar() -> Callable[..., Path]:
    """Write a tar: names with bytes, or with a link's type and target."""

    def make(path: Path, members: dict[str, bytes | tuple[bytes, str]], **options: Any) -> Path:
        with tarfile.open(path, "w", **options) as archive:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                if isinstance(data, tuple):
                    info.type, info.linkname = data
                    archive.addfile(info)
                else:
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        return path

    return make
