"""SIGTERM while Ray starts."""

from __future__ import annotations

import signal
from typing import Any

import pytest
import ray

from cluster import local


@pytest.mark.parametrize(("by_ray", "status"), [(signal.SIGTERM, 128 + signal.SIGTERM), (3, 3)])
def test_sigterm_while_ray_starts_ends_as_at_any_other_time(
    monkeypatch: pytest.MonkeyPatch, by_ray: int, status: int
) -> None:
    def init(**_: Any) -> None:
        raise SystemExit(by_ray)  # as the handler does that Ray has for SIGTERM until it is connected

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(SystemExit) as left:
        local.start_ray()
    assert left.value.code == status
