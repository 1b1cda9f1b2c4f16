"""Counting what a device would be asked to do, on a CPU: kernels, bytes, operations, and how often the host waits.

    with Counting(model.parameters(), frames) as counted:
        model(frames)
    counted.launches, counted.waits

Tensors given at the start are taken to be on the device, and so is all that is computed from them. What is made by name
(device=) counts as a launch, but may be the host's own, where the name is that of a tensor of the host: it is on the
device from when it meets something that is. The others are the host's, and what is done to them is not counted.

A wait is whatever brings a value of the device to the host: .cpu(), .item(), .tolist(), a truth value, an index of
booleans, a size that depends on values. So is a copy of the host's values to the device, by torch.tensor(..., device=)
or .to(device), unless told not to block.

A CUDA graph is one launch however much it does: `as_graphs` stands in for capturing and replaying.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from autogaze.model.cuda_graphs import Graphs

# They give room or another name for a tensor, and compute nothing.
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "detach_", "alias"}
_FREE |= {"lift_fresh", "_unsafe_view", "_reshape_alias", "resize_", "set_", "_local_scalar_dense", "is_nonzero"}
_TO_HOST = {"cpu", "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__"}
_SIZED_BY_VALUES = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount"}
_ONE_KERNEL = {"rms_norm"}  # on a GPU; on a CPU it is composed of others


class Counting(TorchDispatchMode):
    """Counts within its block. Not for threads.

    Attributes:
        launches: operations that compute something: about as many kernels.
        bytes: that these read and write, each operand once.
        flops: of products, convolutions and attention.
        waits: of the host for the device.
        calls: launches by operation. waited: waits by what waited. in_graphs: kernels that graphs ran, by operation.
    """

    open: Counting | None = None
    """The one whose block is running."""

    def __init__(self, *on_device: Tensor | Iterable[Tensor]) -> None:
        super().__init__()
        self.bytes = self.flops = 0
        self.calls: Counter[str] = Counter()
        self.waited: Counter[str] = Counter()
        self.in_graphs: Counter[str] = Counter()
        self._graph = False
        self._outer: list[Counting | None] = []
        self.on_device, self.made = _Tensors(), _Tensors()
        for given in on_device:
            self.on_device.add([given] if isinstance(given, Tensor) else given)
        self._waits = _Waits(self.waited, self.on_device, self.made)

    @property
    def launches(self) -> int:
        return self.calls.total()

    @property
    def waits(self) -> int:
        return self.waited.total()

    def __enter__(self) -> Counting:
        self._waits.__enter__()
        super().__enter__()
        self._outer.append(Counting.open)
        Counting.open = self
        return self

    def __exit__(self, *error: Any) -> None:
        Counting.open = self._outer.pop()
        super().__exit__(*error)
        self._waits.__exit__(*error)

    def replay(self, work: Callable[[], None]) -> None:
        """Do what a graph does. Raises RuntimeError if that waits for the device, which no graph can."""
        waits = self.waits
        self.calls["graph"] += 1
        self._graph = True
        try:
            work()
        finally:
            self._graph = False
        if self.waits > waits:
            raise RuntimeError(f"a graph waits for the device: {self.waited}")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        if packet not in flop_registry and packet.__name__ not in _ONE_KERNEL:
            with self, torch._C.DisableTorchFunction():  # what is composed of others is counted as these
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        given, made = _tensors((args, kwargs)), _tensors(result)
        if self.on_device.has_any(given):
            self.on_device.add(made)
        elif self.made.has_any(given) or (not given and self._waits.making):
            self.made.add(made)
        else:
            return result
        if not func.is_view and packet.__name__ not in _FREE:
            (self.in_graphs if self._graph else self.calls)[packet.__name__] += 1
            sizes = {id(tensor): tensor.numel() * tensor.element_size() for tensor in given + made}
            self.bytes += sum(sizes.values())
            if packet in flop_registry:
                self.flops += int(flop_registry[packet](*args, **kwargs, out_val=result))
        return result


@contextmanager
def as_graphs() -> Iterator[None]:
    """Within, what would be captured as a CUDA graph counts as one launch, as if it had been captured before."""

    def run(_graphs: Graphs, _key: Hashable, work: Callable[[], None]) -> None:
        if Counting.open is None:
            work()
        else:
            Counting.open.replay(work)

    with mock.patch.object(Graphs, "run", run):
        yield


class _Tensors:
    """A set of tensors, as objects, that keeps none of them alive."""

    def __init__(self) -> None:
        self._held: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def add(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self._held[tensor] = True

    def has_any(self, tensors: Iterable[Tensor]) -> bool:
        return any(tensor in self._held for tensor in tensors)


class _Waits(TorchFunctionMode):
    """Follows the device's tensors through Python's calls, and counts what brings their values to the host."""

    def __init__(self, waited: Counter[str], on_device: _Tensors, made: _Tensors) -> None:
        super().__init__()
        self.waited, self.on_device, self.made = waited, on_device, made
        self.making = False  # a tensor, on a device that is named

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        given = _tensors((args, kwargs))
        if not self.on_device.has_any(given):
            named = any(isinstance(each, torch.device) for each in (*args, *kwargs.values()))
            copied = named and name in ("to", "tensor", "as_tensor")
            if copied and not kwargs.get("non_blocking"):
                self.waited[name] += 1
            if copied and name == "to":
                moved = _another(func(*args, **kwargs))  # on the CPU it may be the host's own
                self.on_device.add([moved])
                return moved
            self.making = not given and kwargs.get("device") is not None
            try:
                result = func(*args, **kwargs)
            finally:
                self.making = False
            if self.made.has_any(given):
                self.made.add(_tensors(result))
            return result
        if name in _TO_HOST or (name == "to" and any(isinstance(arg, str) and arg == "cpu" for arg in args)):
            self.waited[name] += 1
            result = func(*args, **kwargs)
            return _another(result) if isinstance(result, Tensor) else result
        by_booleans = name in ("__getitem__", "__setitem__") and _boolean(args[1])
        repeats = name == "repeat_interleave" and kwargs.get("output_size") is None and len(given) > 1
        if name in _SIZED_BY_VALUES or by_booleans or repeats:
            self.waited[name] += 1
        result = func(*args, **kwargs)
        self.on_device.add(_tensors(result))
        if name == "__setitem__":
            self.on_device.add(_tensors(args[0]))
        return result


def _another(tensor: Tensor) -> Tensor:
    """The same values as a tensor of the host."""
    with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
        return tensor.view_as(tensor)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _boolean(index: Any) -> bool:
    return any(tensor.dtype == torch.bool for tensor in _tensors(index))
