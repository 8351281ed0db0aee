"""Copies of a model for inference that share its weights, so that the model itself may be trained meanwhile.

Whether a module is in training mode, and its hooks, are attributes of the module: setting them on a model that is trained,
or that several threads use, changes what the others compute. A copy of the module tree has its own.
"""

import copy
from collections import OrderedDict
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_PLAIN_PACKAGES = {"detrkit", "torch", "torchvision"}  # whose modules refer to others as submodules only


def inference_copy(model: ModuleT) -> ModuleT:
    """Return a copy of a model in eval mode that shares its parameters and buffers.

    The copy follows in-place changes of the weights, as by an optimizer. Its hooks are those of the model at the time of
    the copy; hooks that are added to the copy are not added to the model.

    Args:
        model: not changed.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in _tensors(model)}
    copied: list[nn.Module] = []
    _copy_tree(model, memo, copied)
    for module in copied:
        module.__dict__["training"] = False
    return cast(ModuleT, memo[id(model)])


def snapshot(module: ModuleT) -> ModuleT:
    """Return a copy in eval mode with weights of its own, which need no gradients, and without hooks."""
    shared = inference_copy(module)
    for part in shared.modules():
        part._forward_hooks.clear()
        part._forward_hooks_with_kwargs.clear()
    return copy.deepcopy(shared).requires_grad_(False)


def _copy_tree(module: nn.Module, memo: dict[int, Any], copied: list[nn.Module]) -> nn.Module:
    """Copy a module and its submodules, each once, into `memo` (by the id of the original) and `copied`."""
    if id(module) in memo:
        return cast(nn.Module, memo[id(module)])
    if type(module).__module__.partition(".")[0] not in _PLAIN_PACKAGES or isinstance(module, torch.jit.ScriptModule):
        other = copy.deepcopy(module, memo)
        copied.extend(other.modules())
        return other
    clone = module.__new__(type(module))
    memo[id(module)] = clone
    copied.append(clone)
    for name, value in module.__dict__.items():
        clone.__dict__[name] = value.copy() if isinstance(value, dict | OrderedDict | set) else value
    children = clone.__dict__["_modules"]
    for name, child in children.items():
        children[name] = None if child is None else _copy_tree(child, memo, copied)
    return clone


def _tensors(model: nn.Module) -> list[Tensor]:
    """Return all tensors of a model: parameters, buffers, and plain attributes."""
    return [
        value
        for module in model.modules()
        for values in (module._parameters, module._buffers, vars(module))
        for value in values.values()
        if isinstance(value, Tensor)
    ]
