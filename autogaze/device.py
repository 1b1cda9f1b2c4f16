"""Devices by name: one that is there, or one line that says which are."""

from __future__ import annotations

import torch


def usable_device(device: torch.device | str) -> torch.device:
    """A device that is there. Raises ValueError for one that is not."""
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r}: wanted cpu, cuda, cuda:<number> or mps") from error
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, False):
        raise ValueError(
            f"device {str(device)!r} is not on this machine, which has {[n for n, ok in available.items() if ok]}"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise ValueError(f"device {str(device)!r} is not on this machine, which has cuda:0 to cuda:{last}")
    return device
