"""A CUDA device without a GPU: its tensors have a shape, a type and a device, but no values.

Tensors on the CPU are real. Whatever is read from the device (`cpu()`, `item()`, `tolist()`) is 1, so that code which
continues on the host runs as well. Every transfer between the two is recorded. An operation on tensors of both devices
fails, as it does on a GPU.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_any, tree_leaves, tree_map_only

import detrkit

CUDA = torch.device("cuda", 0)
_SOURCE = Path(detrkit.__path__[0])
_aten = torch.ops.aten


@dataclass(frozen=True)
class Transfer:
    """A moment at which device and host exchange values.

    Attributes:
        operation: of torch.
        place: file and line of detrkit.
        blocks: whether the host waits until the device has computed everything before.
    """

    operation: str
    place: str
    blocks: bool


@dataclass
class Transfers:
    """Attributes:
    to_host: copies from the device to the host, and operations whose result's shape the host has to know.
    to_device: copies from the host to the device.
    """

    to_host: list[Transfer] = field(default_factory=list)
    to_device: list[Transfer] = field(default_factory=list)

    def clear(self) -> None:
        self.to_host.clear()
        self.to_device.clear()


@contextmanager
def fake_cuda(truth: bool = False) -> Iterator[Transfers]:
    """Pretend that there is one GPU of compute capability 9.0.

    Args:
        truth: result of `bool()` of a tensor on it.
    """
    mode = _FakeCUDA(truth)
    with mode:
        torch.empty(0, device=CUDA)  # what torch caches about the device, before it is told that there is one
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # to copy a module
        for name, value in {
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.device_count": lambda: 1,
            "torch.cuda.current_device": lambda: 0,
            "torch.cuda.is_bf16_supported": lambda including_emulation=True: True,
            "torch.cuda.get_device_capability": lambda device=None: (9, 0),
            "torch.save": _save(torch.save),
            "torch.cuda.is_current_stream_capturing": lambda: False,  # asked by optimizers of torch 2.11
            "torch.cuda.get_rng_state": lambda device="cuda": torch.get_rng_state(),
            "torch.cuda.synchronize": lambda device=None: mode.record_to_host("synchronize", blocks=True),
            # `nn.Module.to` refuses to exchange parameters with weak references; fake tensors have some for bookkeeping
            "torch.utils.weakref": SimpleNamespace(getweakrefs=lambda tensor: []),
            "torch.Tensor.pin_memory": Tensor.clone,
        }.items():
            stack.enter_context(patch(name, value))
        stack.enter_context(mode)
        yield mode.transfers


class _FakeCUDA(FakeTensorMode):
    avoid_device_init = True  # also while torch.cuda says that there is a GPU

    def __init__(self, truth: bool) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.truth = truth
        self.transfers = Transfers()
        self._depth = 0

    def record_to_host(self, operation: object, *, blocks: bool) -> None:
        self.transfers.to_host.append(Transfer(str(operation), _place(), blocks))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._depth:  # torch's own decomposition of an operation
            return super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.prim.device.default:
            # asked by autograd, whose threads for CUDA devices need a GPU; those for "meta" run on the host
            return torch.device("meta")
        if func is _aten.split.Tensor and not args[0].numel():  # for which torch 2.11 has no shape
            func, args = _aten.split_with_sizes.default, (args[0], [args[0].shape[0]])
        kwargs = {**(kwargs or {})}
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type in ("cuda", "meta"):
            kwargs["device"] = CUDA
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if kwargs.get("device") != CUDA and not any(isinstance(one, FakeTensor) for one in tensors):
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # in inference mode, operations arrive before they are taken apart
                return func.decompose(*args, **kwargs)
        self._depth += 1
        try:
            return self._on_device(func, types, args, kwargs, tensors)
        finally:
            self._depth -= 1

    def _on_device(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
        if func is _aten._local_scalar_dense.default:
            self.record_to_host(func, blocks=True)
            if args[0].dtype == torch.bool:
                return self.truth
            return 1.0 if args[0].is_floating_point() else 1
        if func in _READS:
            self.record_to_host(func, blocks=True)
            with self:
                return _READS[func](*args, **kwargs)
        if func is _aten.copy_.default and not isinstance(args[0], FakeTensor):
            self.record_to_host(func, blocks=not (args[2:] and args[2]))
            return args[0].fill_(1)
        if func in (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default):
            args = args[0], [index for one in args[1] for index in self._indices(func, one)], *args[2:]
        elif any(not isinstance(one, FakeTensor) and one.ndim for one in tensors):
            self.transfers.to_device.append(Transfer(str(func), _place(), not kwargs.get("non_blocking")))
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if tree_any(lambda one: isinstance(one, Tensor) and one.device.type == "cpu", result):
            self.record_to_host(func, blocks=not kwargs.get("non_blocking"))
            return tree_map_only(Tensor, lambda one: torch.ones(one.shape, dtype=one.dtype), result)
        return result

    def _indices(self, func: Any, index: Tensor | None) -> list[Tensor | None]:
        """Replace masks, whose number of True values the host has to know, by the indices of all elements."""
        if index is None or (isinstance(index, FakeTensor) and index.dtype not in (torch.bool, torch.uint8)):
            return [index]
        if not isinstance(index, FakeTensor):
            self.transfers.to_device.append(Transfer(str(func), _place(), blocks=True))
            return [index]
        self.record_to_host(func, blocks=True)
        with self:
            return [torch.empty(index.numel(), dtype=torch.int64, device=CUDA) for _ in index.shape]


def _save(save: Callable[..., None]) -> Callable[..., None]:
    """Save tensors of the device as ones."""

    def save_on_host(what: object, *args: Any, **options: Any) -> None:
        save(tree_map_only(FakeTensor, lambda one: torch.ones(one.shape, dtype=one.dtype), what), *args, **options)

    return save_on_host


def _place() -> str:
    """Innermost line of detrkit on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_SOURCE):
            return f"{path.relative_to(_SOURCE).as_posix()}:{frame.f_lineno}"
        frame = frame.f_back
    return "backward pass"


def _empty(*shape: int, like: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


# operations for which the host waits, as their shape or their result depends on values; each takes every element
_READS: dict[Any, Callable[..., Any]] = {
    _aten.equal.default: lambda one, other: True,
    _aten.nonzero.default: lambda one: _empty(one.numel(), one.ndim, like=one),
    _aten.bincount.default: lambda one, weights=None, minlength=0: _empty(max(minlength, 1), like=one),
    _aten.unique_consecutive.default: lambda one, *_: (_empty(one.numel(), like=one, dtype=one.dtype),) * 3,
}
