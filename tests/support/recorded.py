"""A CUDA graph on a CPU: what was done is recorded once, and replayed on the same memory without Python.

A real capture would fail, or quietly freeze something, where the work asks the device for a value, makes a shape of
what the device holds, or reads the host's memory. So recording raises there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

WAITS = {"_local_scalar_dense", "is_nonzero", "equal"}
SIZED_BY_VALUES = {"nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive", "bincount"}
OF_THE_HOST = {"lift_fresh", "scalar_tensor", "from_file"}


class Recorded(TorchDispatchMode):
    """Work on fixed memory, recorded while it is done for the first time.

    fixed: tensors that were there before: the only memory of others it may use.
    """

    def __init__(self, work: Callable[[], None], fixed: Iterator[Tensor]) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.memory = {tensor.untyped_storage().data_ptr() for tensor in fixed}
        with self, _Waits():
            work()

    def replay(self) -> None:
        for func, args, kwargs, made in self.calls:
            for held, new in zip(made, tensors(func(*args, **kwargs)), strict=True):
                if held.data_ptr() != new.data_ptr():  # neither a view nor changed in place
                    held.copy_(new)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        composed = func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
        if composed and func.overloadpacket not in flop_registry:
            with self:  # what is composed of others is recorded as these, so that nothing hides in it
                return func.decompose(*args, **kwargs)
        refuse(func, args)
        for tensor in tensors((args, kwargs)):
            assert tensor.untyped_storage().data_ptr() in self.memory, f"{func} reads memory that is not the graph's"
        result = func(*args, **kwargs)
        made = tensors(result)
        self.memory |= {tensor.untyped_storage().data_ptr() for tensor in made}
        self.calls.append((func, args, kwargs, made))
        return result


class _Waits(TorchFunctionMode):
    """Refuses what reads a tensor's values without any operation."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        assert name not in ("tolist", "numpy", "cpu", "__array__"), f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


def refuse(func: Any, args: tuple[Any, ...]) -> None:
    """Raise AssertionError for what no CUDA graph can hold."""
    name = func.overloadpacket.__name__
    assert name not in WAITS, f"{func} waits for the device"
    assert name not in SIZED_BY_VALUES, f"{func} has a shape that depends on values"
    assert name not in OF_THE_HOST, f"{func} reads the host's memory"
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        indices = [index for index in args[1] if index is not None]
        assert all(index.dtype not in (torch.bool, torch.uint8) for index in indices), f"{func} by booleans"
    if name == "repeat_interleave":
        raise AssertionError(f"{func} has a shape that depends on values")


def tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def memory_of(owner: object, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All tensors that an object of ours holds."""
    seen = set() if seen is None else seen
    if id(owner) in seen:
        return
    seen.add(id(owner))
    if isinstance(owner, Tensor):
        yield owner
    elif isinstance(owner, nn.Module):
        yield from owner.parameters()
        yield from owner.buffers()
    elif type(owner).__module__.startswith("autogaze."):
        for part in vars(owner).values() if hasattr(owner, "__dict__") else ():
            yield from memory_of(part, seen)


def owner_of(work: Callable[[], None]) -> object:
    """What the work is a method of: the lambda it comes in holds that method, or its object."""
    for cell in getattr(work, "__closure__", None) or ():
        held = getattr(cell.cell_contents, "__self__", cell.cell_contents)
        if type(held).__module__.startswith("autogaze."):
            return held
    raise AssertionError(f"{work} is no method of anything")


def capture(_graphs: object, work: Callable[[], None]) -> Recorded:
    """In place of `Graphs._capture`."""
    return Recorded(work, memory_of(owner_of(work)))
