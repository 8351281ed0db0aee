"""Convolutions and linear layers for inference on CPUs: weights packed once, and the activation in the same pass.

PyTorch converts the filters of a convolution to the memory layout of oneDNN in every call, copies the bias of a linear
layer into its output first, and writes and reads outputs once more for the activation. The operators that do all of it at
once are those that `torch.compile` emits for CPUs; they are no public API, so they are tried once, and not used where they
are missing or compute something else.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from detrkit.models.convolution import Clamp, ConvNorm
from detrkit.models.detr import DETR
from detrkit.models.encoders.fusion import RepVGGBlock
from detrkit.models.fuse import has_hooks
from detrkit.models.heads.fine_grained import QualityHead
from detrkit.models.layers import FeedForward

_Activation = tuple[str, tuple[float, ...], str]  # name in oneDNN, its limits, and its algorithm
_NO_ACTIVATION: _Activation = ("none", (), "")


class PackedConv2d(nn.Conv2d):
    """A convolution without gradients in float32 on a CPU, and the activation after it.

    Args:
        convolution: with symmetric zero padding; its weights are shared.
        activation: as `_activation_of` returns it.
    """

    def __init__(self, convolution: nn.Conv2d, activation: _Activation = _NO_ACTIVATION) -> None:
        assert isinstance(convolution.padding, tuple)
        _copy_attributes(convolution, self)
        sizes = (convolution.padding, convolution.stride, convolution.dilation)
        self._geometry: tuple[Any, ...] = (*map(list, sizes), convolution.groups)
        self._activation = activation
        self._packed: Tensor | None = None

    def forward(self, input: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        """Convolve and activate. The filters are packed for the size of the first input; others are as correct."""
        weight: Tensor | None = self.weight  # before `_packed`, as another thread may pack meanwhile
        packed = self._packed
        if packed is None:
            assert weight is not None
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            packed = reorder(weight.detach().contiguous().to_mkldnn(), *self._geometry, list(input.shape))
            self._packed = packed
            self._parameters["weight"] = None  # not to hold the filters twice
        name, limits, algorithm = self._activation
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            input, packed, self.bias, *self._geometry, name, list(limits), algorithm
        )
        return output


class PackedLinear(nn.Linear):
    """A linear layer without gradients in float32 on a CPU, and the activation after it.

    Args:
        linear: its weights are shared.
        activation: as `_activation_of` returns it.
    """

    def __init__(self, linear: nn.Linear, activation: _Activation = _NO_ACTIVATION) -> None:
        _copy_attributes(linear, self)
        self._activation = activation
        self._packed: Tensor | None = None

    def forward(self, input: Float[Tensor, "*B C"]) -> Float[Tensor, "*B D"]:
        """Project and activate. The weights are packed for as many rows as the first input has; others are as correct."""
        weight: Tensor | None = self.weight  # before `_packed`, as another thread may pack meanwhile
        packed = self._packed
        if packed is None:
            assert weight is not None
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), input.numel() // input.shape[-1])
            self._packed = packed
            self._parameters["weight"] = None  # not to hold the weights twice
        name, limits, algorithm = self._activation
        output: Tensor = torch.ops.mkldnn._linear_pointwise(input, packed, self.bias, name, list(limits), algorithm)
        return output


def _copy_attributes(module: nn.Module, packed: nn.Module) -> None:
    """Initialise a packed layer without drawing random weights."""
    nn.Module.__init__(packed)
    own = ("_parameters", "_buffers", "_modules")
    packed.__dict__.update({**module.__dict__, **{name: dict(vars(module)[name]) for name in own}})


def pack_layers(model: DETR) -> None:
    """Replace the convolutions and linear layers of a fused model on a CPU, in place.

    Its inputs must be float32, in inference mode.

    Args:
        model: returned by `fuse_for_inference`. Layers and activations with hooks are left as they are.
    """
    if not can_pack():
        return
    for module in list(model.modules()):
        if isinstance(module, RepVGGBlock) and module.branch1x1 is None:
            _pack(module.branch3x3, "convolution", (module, "activation"))
        elif isinstance(module, ConvNorm) and isinstance(module.norm, nn.Identity):
            _pack(module, "convolution", (module, "activation"))
        elif isinstance(module, FeedForward):
            _pack(module, "expand", (module, "activation"))
        elif type(module).forward in (nn.Sequential.forward, QualityHead.forward):
            for name, following in zip(module._modules, list(module._modules)[1:], strict=False):
                _pack(module, name, (module, following))
    for module in list(model.modules()):
        for name in list(module._modules):
            _pack(module, name, None)


def packed_weights(model: DETR) -> list[Tensor]:
    """Return the weights that `pack_layers` copies and `fuse_for_inference` does not: later changes need a new model."""
    return [module.weight for module in model.modules() if type(module) is nn.Linear]


def _pack(parent: nn.Module, name: str, following: tuple[nn.Module, str] | None) -> None:
    """Replace one layer.

    Args:
        parent: module that contains it.
        name: of the layer in it.
        following: parent and name of the module that is applied to the output next; None if it is unknown.
    """
    layer = parent._modules[name]
    packed_type = _packed_type(layer)
    if layer is None or packed_type is None:
        return
    activation = None if following is None else _activation_of(following[0].get_submodule(following[1]))
    if following is not None and activation is not None:
        following[0]._modules[following[1]] = nn.Identity().eval()
    parent._modules[name] = packed_type(layer, activation or _NO_ACTIVATION).eval()


def _packed_type(layer: nn.Module | None) -> Callable[[Any, _Activation], nn.Module] | None:
    """Return the class that packs a layer; None if there is none for it, or it has hooks."""
    if has_hooks(layer) or (isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.dtype != torch.float32):
        return None
    if type(layer) is nn.Linear:
        return PackedLinear
    is_plain = type(layer) is nn.Conv2d and isinstance(layer.padding, tuple) and layer.padding_mode == "zeros"
    return PackedConv2d if is_plain else None


def _activation_of(module: nn.Module) -> _Activation | None:
    """Return an activation as oneDNN calls it; None if it has none."""
    if has_hooks(module):
        return None
    if isinstance(module, nn.ReLU):
        return "relu", (), ""
    if isinstance(module, nn.SiLU):
        return "swish", (), ""
    if isinstance(module, nn.GELU):
        return "gelu", (), module.approximate
    if isinstance(module, Clamp):
        limits = (module.limit, float("inf")) if module.is_minimum else (-float("inf"), module.limit)
        return "hardtanh", limits, ""
    return None


@cache
def can_pack() -> bool:
    """Return whether this PyTorch has the operators, and they compute layers and activations as expected."""
    if not torch.backends.mkldnn.is_available():
        return False
    values = torch.linspace(-1, 1, 2 * 8 * 5 * 5)
    features = values.reshape(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    tokens = values.reshape(2, 5, 5, 8)
    activations = nn.ReLU(), nn.SiLU(), nn.GELU(), Clamp(-0.1, is_minimum=True), Clamp(0.1, is_minimum=False)
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            convolution, linear = nn.Conv2d(8, 16, 3, 2, 1).eval(), nn.Linear(8, 16).eval()
            convolved = functional.conv2d(features, convolution.weight, convolution.bias, 2, 1)
            projected = functional.linear(tokens, linear.weight, linear.bias)
            for activation in activations:
                packed = _activation_of(activation) or _NO_ACTIVATION
                for output, expected in (
                    (PackedConv2d(convolution, packed)(features), convolved),
                    (PackedLinear(linear, packed)(tokens), projected),
                ):
                    if not torch.allclose(output, activation(expected.clone()), atol=1e-4):  # some activate in place
                        return False
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True
