"""Backbones of the timm library (extra `timm`).

Every timm model with `features_only` works; channels and strides are read from it. Unlike those of `ResNetBackbone`, its
features near an image's padded edge depend on the padding, which it sees as the mean color
(`ModelConfig.supports_padding_invariance`).
"""

from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.config.model import TIMM, Normalization
from detrkit.errors import ConfigError, arg, did_you_mean, install_hint
from detrkit.models.convolution import convolve_scaled
from detrkit.models.layers import checkpointed

_PROBE_SIZE = 64  # height and width in pixels
_MIN_STRIDE = 4  # of the feature maps, as of the ResNets


class TimmBackbone(nn.Module):
    """timm model without its classifier, with random weights.

    Args:
        name: "timm:" and timm's name.
        normalization: "frozen" replaces batch norms by frozen ones.
        dilation: stride 16 instead of 32, where the model supports it.
        frozen_stages: number of parts that are not trained, counted from the input: with 2, all up to the second feature
            map.
        in_channels: of the images.

    Attributes:
        channels: channels of each feature map, finest first.
        strides: pixels per cell of each.
        first_cell_centers: distance in pixels from the image's edge to the center of what the first cell of each map sees:
            half a pixel as of the ResNets, or half a cell if convolutions pad at the end only, or cut the image into
            patches. (For `tf_efficientnet_lite0` with ImageNet weights, the centers of the gradients are at 4.4, 11.3 and
            17.7 pixels for strides of 8, 16 and 32.)
        activation_checkpointing: recompute activations in the backward pass.
        padding_invariant: without effect.

    Raises:
        ConfigError: timm is not installed, or has no such model with feature maps.
    """

    def __init__(
        self,
        name: str,
        normalization: Normalization = "frozen",
        dilation: bool = False,
        frozen_stages: int = 2,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = False
        self.padding_invariant = False
        self.body: Any = _build(name.removeprefix(TIMM), in_channels, 16 if dilation else 32)
        starts_at_edge = _starts_at_edge(self.body)
        _replace_same_padding(self.body)
        self.channels: tuple[int, ...] = tuple(self.body.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(self.body.feature_info.reduction())
        self.first_cell_centers = tuple(0.5 if starts_at_edge else stride / 2 for stride in self.strides)
        if normalization == "frozen":
            import timm.layers

            self.body = cast(Any, timm.layers).freeze_batch_norm_2d(self.body)
            _fuse_frozen_norms(self.body, in_channels)
        self._freeze(frozen_stages)

    def forward(
        self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"] | None = None
    ) -> list[Float[Tensor, "B _ _ _"]]:
        """Compute the feature maps of strides 4 and more; `padding_mask` is ignored."""
        return cast(list[Tensor], checkpointed(self.body, self.activation_checkpointing, images))

    def _freeze(self, frozen_stages: int) -> None:
        """Freeze all parameters up to the last one of the module of a feature map."""
        modules = [entry["module"] for entry in self.body.feature_info.info]
        names = [name for name, _ in self.body.named_parameters()]
        if not frozen_stages:
            return
        last = modules[min(frozen_stages, len(modules)) - 1].replace(".", "_")
        ends = [index for index, name in enumerate(names) if name.replace(".", "_").startswith(f"{last}_")]
        for _, parameter in list(self.body.named_parameters())[: max(ends, default=-1) + 1]:
            parameter.requires_grad_(False)


def _starts_at_edge(body: nn.Module) -> bool:
    """Return whether the first strided convolution is centered at the first pixel."""
    for module in body.modules():
        if isinstance(module, nn.Conv2d) and module.stride[0] > 1:
            side = module.kernel_size[0]
            return side % 2 == 1 and module.padding == (side // 2, side // 2)
    return False


def _replace_same_padding(body: nn.Module) -> None:
    """Replace convolutions with TensorFlow's "same" padding by ones whose padding is the same for images of every size.

    TensorFlow's padding depends on whether a side is a multiple of the stride, so the position of the cells would depend on
    the size of the image, which an exported graph with dynamic sizes cannot express. What is missing is padded at the end.
    Names and weights do not change.
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
        plain.register_forward_pre_hook(partial(_pad_input, (before[1], after[1], before[0], after[0])))
        body.set_submodule(name, plain)


def _pad_input(
    sides: tuple[int, int, int, int], _convolution: nn.Module, inputs: tuple[Float[Tensor, "B C h w"]]
) -> Float[Tensor, "B C _ _"]:
    return torch.constant_pad_nd(inputs[0], sides)  # functional.pad has a string argument, which torch.export rejects


def _fuse_frozen_norms(body: nn.Module, in_channels: int) -> None:
    """Scale filters by the frozen norm that follows, at every call; names and weights do not change.

    The norm that follows a convolution is found by running a small image.
    """
    producer_of: dict[int, nn.Conv2d] = {}
    outputs: list[Tensor] = []  # kept alive, so that no other tensor gets the same id
    pairs: dict[nn.Conv2d, list[nn.Module]] = {}

    def record_output(convolution: Any, _inputs: Any, output: Tensor) -> None:
        producer_of[id(output)] = convolution
        outputs.append(output)

    def record_norm(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        if id(inputs[0]) in producer_of:
            pairs.setdefault(producer_of[id(inputs[0])], []).append(norm)

    hooks = []
    for module in body.modules():
        if type(module) is nn.Conv2d and module.bias is None:
            hooks.append(module.register_forward_hook(record_output))
        elif type(module).__name__.startswith("FrozenBatchNorm"):
            hooks.append(module.register_forward_pre_hook(record_norm))
    with torch.no_grad():
        body(torch.zeros(1, in_channels, _PROBE_SIZE, _PROBE_SIZE))
    for hook in hooks:
        hook.remove()
    for convolution, norms in pairs.items():
        if len(norms) == 1:
            convolution.forward = partial(convolve_scaled, convolution, norms[0])  # type: ignore[method-assign]
            norms[0].forward = partial(_apply_activation, norms[0])


def _apply_activation(norm: Any, features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
    """Apply the activation that timm has put into the norm, if any."""
    return norm.act(norm.drop(features)) if hasattr(norm, "act") else features


def _build(name: str, in_channels: int, stride: int) -> Any:
    try:
        import timm
    except ImportError:
        raise ConfigError(
            f"{arg('backbone', TIMM + name)} needs the package timm; {install_hint('detrkit[timm]')}"
        ) from None
    if name.partition(".")[0] not in timm.list_models():
        hint = did_you_mean(name, timm.list_models(), "timm.list_models()")
        raise ConfigError(f"{arg('backbone', TIMM + name)} is not a model of timm; {hint}")
    changes: dict[str, Any] = {} if stride == 32 else {"output_stride": stride}
    try:
        probe: Any = timm.create_model(name, features_only=True, **changes)
        strides = probe.feature_info.reduction()
        out_indices = tuple(index for index, reduction in enumerate(strides) if reduction >= _MIN_STRIDE)
        return timm.create_model(name, features_only=True, in_chans=in_channels, out_indices=out_indices, **changes)
    except (RuntimeError, TypeError, NotImplementedError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise ConfigError(
            f"{arg('backbone', TIMM + name)} does not provide the feature maps ({reason}). Choose a convolutional model."
        ) from None
