"""Convolutions for inference on CPUs: filters packed once, and the activation in the same pass.

PyTorch converts the filters of a convolution to the memory layout of oneDNN in every call, and writes and reads its output
once more for the activation. The operators that do both at once are those that `torch.compile` emits for CPUs; they are no
public API, so they are tried once, and not used where they are missing or compute something else.
"""

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

_Activation = tuple[str, tuple[float, ...]]  # name in oneDNN, and its limits
_NO_ACTIVATION: _Activation = ("none", ())


class PackedConv2d(nn.Conv2d):
    """A convolution without gradients in float32 on a CPU, and the activation after it.

    Args:
        convolution: with symmetric zero padding; its weights are shared.
        activation: as `_activation_of` returns it.
    """

    def __init__(self, convolution: nn.Conv2d, activation: _Activation = _NO_ACTIVATION) -> None:
        assert isinstance(convolution.padding, tuple)
        nn.Module.__init__(self)  # that of Conv2d would draw random weights
        own = ("_parameters", "_buffers", "_modules")
        self.__dict__.update({**convolution.__dict__, **{name: dict(vars(convolution)[name]) for name in own}})
        sizes = (convolution.padding, convolution.stride, convolution.dilation)
        self._geometry: tuple[Any, ...] = (*map(list, sizes), convolution.groups)
        self._activation, limits = activation
        self._limits = list(limits)
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
        output: Tensor = torch.ops.mkldnn._convolution_pointwise(
            input, packed, self.bias, *self._geometry, self._activation, self._limits, ""
        )
        return output


def pack_convolutions(model: DETR) -> None:
    """Replace the convolutions of a fused model on a CPU, in place. Its inputs must be float32, in inference mode.

    Args:
        model: returned by `fuse_for_inference`. Convolutions and activations with hooks are left as they are.
    """
    if not can_pack():
        return
    for module in list(model.modules()):
        if isinstance(module, RepVGGBlock) and module.branch1x1 is None:
            _pack(module.branch3x3, "convolution", module)
        elif isinstance(module, ConvNorm) and isinstance(module.norm, nn.Identity):
            _pack(module, "convolution", module)
    for module in list(model.modules()):
        for name in list(module._modules):
            _pack(module, name, None)


def _pack(parent: nn.Module, name: str, activated: nn.Module | None) -> None:
    """Replace one convolution.

    Args:
        parent: module that contains it.
        name: of the convolution in it.
        activated: module whose attribute `activation` is applied to the output next; None for none.
    """
    convolution = parent._modules[name]
    if type(convolution) is not nn.Conv2d or not isinstance(convolution.padding, tuple) or has_hooks(convolution):
        return
    if convolution.padding_mode != "zeros" or convolution.weight.dtype != torch.float32:
        return
    activation = None if activated is None else _activation_of(activated.get_submodule("activation"))
    if activated is not None and activation is not None:
        activated._modules["activation"] = nn.Identity().eval()
    parent._modules[name] = PackedConv2d(convolution, activation or _NO_ACTIVATION).eval()


def _activation_of(module: nn.Module) -> _Activation | None:
    """Return an activation as oneDNN calls it; None if it has none."""
    if has_hooks(module):
        return None
    if isinstance(module, nn.ReLU):
        return "relu", ()
    if isinstance(module, nn.SiLU):
        return "swish", ()
    if isinstance(module, Clamp):
        return "hardtanh", (module.limit, float("inf")) if module.is_minimum else (-float("inf"), module.limit)
    return None


@cache
def can_pack() -> bool:
    """Return whether this PyTorch has the operators, and they compute convolutions and activations as expected."""
    if not torch.backends.mkldnn.is_available():
        return False
    values = torch.linspace(-1, 1, 2 * 8 * 5 * 5)
    features = values.reshape(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            convolution = nn.Conv2d(8, 16, 3, 2, 1).eval()
            for activation in (nn.ReLU(), nn.SiLU(), Clamp(-0.1, is_minimum=True), Clamp(0.1, is_minimum=False)):
                output = PackedConv2d(convolution, _activation_of(activation) or _NO_ACTIVATION)(features)
                expected = activation(functional.conv2d(features, convolution.weight, convolution.bias, 2, 1))
                if not torch.allclose(output, expected, atol=1e-4):
                    return False
    except (AttributeError, RuntimeError, TypeError):
        return False
    return True
