"""Devices by name: one that is there, or one line that says which are. And the way of tensors to them."""

from __future__ import annotations

from collections.abc import Sequence

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


_constants: dict[tuple[str, torch.device], torch.Tensor] = {}


def constant(values: Sequence[object], device: torch.device) -> torch.Tensor:
    """Numbers, in lists in lists, as a tensor that is copied to a device once and must not be changed.

    torch.tensor(..., device=) would wait each time until a GPU has done all that it was asked before.
    """
    key = (repr(values), device)
    if key not in _constants:
        with torch.inference_mode(False):  # else it could not be used where gradients are computed
            made = sent(torch.tensor(values), device)
        if type(made) is not torch.Tensor:  # one without values, by torch's fake mode
            return made
        _constants[key] = made
    return _constants[key]


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device. From the host it goes to a GPU out of pinned memory, so that nothing waits for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
