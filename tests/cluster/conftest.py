"""A Slurm for the tests of its back end; they skip, and say why, where none can be started."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import slurm_host


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Path]:
    """Slurm on this host, two nodes of two CPUs, one with a toy GPU; its configuration, which is in $SLURM_CONF."""
    if why := slurm_host.why_not():
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        with slurm_host.running(folder) as conf, pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(conf))
            yield conf
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def node_tmp() -> Iterator[Path]:
    """Where jobs of a test make their private folders: short, as Ray's sockets want it."""
    folder = Path(tempfile.mkdtemp(prefix="nt-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
