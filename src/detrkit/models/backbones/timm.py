"""Backbones of the timm library (extra `timm`): images -> feature maps, through the same door as the ResNets.

Any model of timm that hands over feature maps will do; channels and strides are found by asking it. Unlike a ResNet's, its
features near a photo's padded edge depend on the padding, which it sees as the mean colour
(`ModelConfig.supports_padding_invariance`).
"""

from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.config.model import TIMM, Normalization
from detrkit.errors import ConfigError, did_you_mean
from detrkit.models.activation_checkpointing import run
from detrkit.models.backbones.resnet import convolve_scaled

_PROBE_SIZE = 64  # pixels a side
_FINEST_STRIDE = 4  # of the feature maps that are handed over, as with the ResNets


class TimmBackbone(nn.Module):
    """A timm model without its classifier.

    Attributes:
        channels: width of each feature map, finest first.
        strides: pixels per cell of each.
        first_centres: pixels from the photo's edge to the middle of what each map's first cell sees: half a pixel as with
            the ResNets, or half a cell where convolutions pad the end of a photo rather than its start, or cut it into
            patches. (Of `tf_efficientnet_lite0` with ImageNet weights, the gradients' middle lies at 4.4, 11.3 and 17.7
            pixels for strides of 8, 16 and 32.)
    """

    def __init__(
        self,
        name: str,
        normalization: Normalization = "frozen",
        dilation: bool = False,
        frozen_stages: int = 2,
        in_channels: int = 3,
    ) -> None:
        """Build the backbone with random weights. Arguments as for `ResNetBackbone`.

        Args:
            name: "timm:" and timm's name.
            normalization: "frozen" turns every batch norm into a fixed one.
            dilation: stride 16 instead of 32, where the model can.
            frozen_stages: parts that are not trained: all up to the second feature map for 2.
            in_channels: of the images.

        Raises:
            ConfigError: timm is not installed, or has no such model with feature maps.
        """
        super().__init__()
        self.activation_checkpointing = False
        self.body: Any = _build(name.removeprefix(TIMM), in_channels, 16 if dilation else 32)
        begins_at_edge = _begins_at_edge(self.body)
        _pad_alike(self.body)
        self.channels: tuple[int, ...] = tuple(self.body.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(self.body.feature_info.reduction())
        self.first_centres = tuple(0.5 if begins_at_edge else stride / 2 for stride in self.strides)
        if normalization == "frozen":
            import timm.layers

            self.body = cast(Any, timm.layers).freeze_batch_norm_2d(self.body)
            _fold_norms(self.body, in_channels)
        self._freeze(frozen_stages)

    def forward(
        self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"] | None = None
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """Compute the feature maps of strides 4 and more; `padding_mask` is not looked at."""
        return cast(list[Tensor], run(self.body, self.activation_checkpointing, images))

    def _freeze(self, frozen_stages: int) -> None:
        """Freeze everything up to the end of a feature map's module; 1 is what comes before the first of them."""
        modules = [entry["module"] for entry in self.body.feature_info.info]
        names = [name for name, _ in self.body.named_parameters()]
        if not frozen_stages:
            return
        last = modules[min(frozen_stages, len(modules)) - 1].replace(".", "_")
        ends = [index for index, name in enumerate(names) if name.replace(".", "_").startswith(f"{last}_")]
        for _, parameter in list(self.body.named_parameters())[: max(ends, default=-1) + 1]:
            parameter.requires_grad_(False)


def _begins_at_edge(body: nn.Module) -> bool:
    """Whether the first convolution that takes strides is centred on the photo's first pixel."""
    for module in body.modules():
        if isinstance(module, nn.Conv2d) and module.stride[0] > 1:
            side = module.kernel_size[0]
            return side % 2 == 1 and module.padding == (side // 2, side // 2)
    return False


def _pad_alike(body: nn.Module) -> None:
    """Let convolutions that pad as TensorFlow does put the same padding in front of photos of every size.

    TensorFlow's depends on whether a side is a multiple of the stride: cells lie elsewhere in other photos, and no graph
    for photos of any size can hold that. What a side lacks is added at its end instead; names and weights stay.
    """
    for name, module in list(body.named_modules()):
        if type(module).__name__ != "Conv2dSame":
            continue
        assert isinstance(module, nn.Conv2d)
        plain = nn.Conv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,  # type: ignore[arg-type]  # a pair
            module.stride,  # type: ignore[arg-type]
            0,
            module.dilation,  # type: ignore[arg-type]
            module.groups,
            module.bias is not None,
        )
        plain.weight, plain.bias = module.weight, module.bias
        spans = [step * (side - 1) + 1 for step, side in zip(module.dilation, module.kernel_size, strict=True)]
        before = [max(span - stride, 0) // 2 for span, stride in zip(spans, module.stride, strict=True)]
        after = [span - 1 - first for span, first in zip(spans, before, strict=True)]
        plain.register_forward_pre_hook(partial(_padded, (before[1], after[1], before[0], after[0])))
        body.set_submodule(name, plain)


def _padded(
    sides: tuple[int, int, int, int], _convolution: nn.Module, inputs: tuple[Float[Tensor, "B C h w"]]
) -> Float[Tensor, "B C _ _"]:
    return torch.constant_pad_nd(inputs[0], sides)  # functional.pad names its mode, which exported programs may not


def _fold_norms(body: nn.Module, in_channels: int) -> None:
    """Let frozen norms be multiplied into the filters before them, whenever those are used; names and weights stay.

    Which norm follows which convolution is seen by running a small picture.
    """
    made_by: dict[int, nn.Conv2d] = {}
    seen: list[Tensor] = []  # kept, so that no other tensor gets the same id
    pairs: dict[nn.Conv2d, list[nn.Module]] = {}

    def note(convolution: Any, _inputs: Any, output: Tensor) -> None:
        made_by[id(output)] = convolution
        seen.append(output)

    def follow(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        if id(inputs[0]) in made_by:
            pairs.setdefault(made_by[id(inputs[0])], []).append(norm)

    hooks = []
    for module in body.modules():
        if type(module) is nn.Conv2d and module.bias is None:
            hooks.append(module.register_forward_hook(note))
        elif type(module).__name__.startswith("FrozenBatchNorm"):
            hooks.append(module.register_forward_pre_hook(follow))
    with torch.no_grad():
        body(torch.zeros(1, in_channels, _PROBE_SIZE, _PROBE_SIZE))
    for hook in hooks:
        hook.remove()
    for convolution, norms in pairs.items():
        if len(norms) == 1:
            convolution.forward = partial(convolve_scaled, convolution, norms[0])  # type: ignore[method-assign]
            norms[0].forward = partial(_activate, norms[0])


def _activate(norm: Any, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    """What is left of a norm: the activation that timm has put into it, if any."""
    return norm.act(norm.drop(features)) if hasattr(norm, "act") else features


def _build(name: str, in_channels: int, stride: int) -> Any:
    try:
        import timm
    except ImportError:
        raise ConfigError(f"backbone {TIMM}{name}: needs the timm library; pip install 'detrkit[timm]'") from None
    if name.partition(".")[0] not in timm.list_models():
        raise ConfigError(f"backbone {TIMM}{name}: timm has no such model; {did_you_mean(name, timm.list_models())}")
    changes: dict[str, Any] = {} if stride == 32 else {"output_stride": stride}
    try:
        probe: Any = timm.create_model(name, features_only=True, **changes)
        strides = probe.feature_info.reduction()
        wanted = tuple(index for index, reduction in enumerate(strides) if reduction >= _FINEST_STRIDE)
        return timm.create_model(name, features_only=True, in_chans=in_channels, out_indices=wanted, **changes)
    except (RuntimeError, TypeError, NotImplementedError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise ConfigError(
            f"backbone {TIMM}{name}: hands over no feature maps as asked ({reason}); choose a convolutional one"
        ) from None
