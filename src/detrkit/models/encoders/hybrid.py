"""Hybrid encoder of RT-DETR (arXiv:2304.08069, section 4.2), D-FINE and DEIMv2: feature maps -> fused feature maps.

Self-attention within the coarsest map (AIFI, "intra-scale"), then convolutions that fuse the maps from the coarsest to the
finest and back (CCFF, "cross-scale").
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from detrkit.config.model import FusionBlockName
from detrkit.models.convolution import ConvNorm
from detrkit.models.encoders.fusion import CSPRepLayer, PooledDownsample, RepNCSPELAN4, SCDown
from detrkit.models.encoders.transformer import EncoderLayer
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.layers import LayerConfig, checkpointed
from detrkit.models.positions import index_encoding


class IntraScaleAttention(nn.Module):
    """Encoder layers on the cells of one map (AIFI).

    The position encoding is that of the authors' code, which numbers the cells of a map of h rows as if they were ordered
    column by column, while they are ordered row by row: cell p gets the coordinates (p // h, p % h). On square maps, these
    are its row and column; on others, they are neither. If padding must not matter (`FeatureMaps.padding_invariant`), rows
    and columns are used: the same on square maps, and independent of the size of the padded map.

    Args:
        config: of the layers.
        num_layers: number of layers.
    """

    def __init__(self, config: LayerConfig, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(num_layers))
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            layer.feed_forward.expand.reset_parameters()  # as published: PyTorch's initialisation
            layer.feed_forward.contract.reset_parameters()

    def forward(self, features: FeatureMaps, level: int) -> Float[Tensor, "B D h w"]:
        """Compute one map from its cells' attention to each other.

        Args:
            features: all maps.
            level: index of the map.
        """
        only = features.only(level)
        height, width = only.sizes[0]
        tokens = only.tokens
        rows, columns = (height, width) if features.padding_invariant else (width, height)
        positions = index_encoding(rows, columns, tokens.shape[-1], tokens.device).to(tokens.dtype)
        for layer in self.layers:
            tokens = layer(tokens, positions.expand(tokens.shape), only)
        return only.with_tokens(tokens).map_of(0)


class HybridEncoder(nn.Module):
    """Attention within the coarsest maps, then fusion of all maps by convolutions.

    Args:
        config: of the attention layers; its width is that of all maps.
        num_layers: attention layers per map; 0 for none.
        num_levels: number of maps.
        attention_levels: number of maps with attention, counted from the coarsest.
        fusion_block: of RT-DETR, D-FINE or DEIMv2, see `ModelConfig`.
        fusion_depth: RepVGG blocks per CSP layer.
        fusion_expansion: inner width of the fusing blocks, relative to the width of the maps.
        out_channels: width of the output, projected by a convolution with norm; None for no projection.
        distillation_dim: outputs of the projection that RT-DETRv4 distils a teacher with, which is kept for conversion;
            None for no projection.

    Attributes:
        activation_checkpointing: recompute activations in the backward pass.
    """

    def __init__(
        self,
        config: LayerConfig,
        *,
        num_layers: int,
        num_levels: int,
        attention_levels: int = 1,
        fusion_block: FusionBlockName = "csp_rep",
        fusion_depth: int = 3,
        fusion_expansion: float = 1.0,
        out_channels: int | None = None,
        distillation_dim: int | None = None,
    ) -> None:
        super().__init__()
        width = config.width
        self.activation_checkpointing = False
        self.attention = nn.ModuleList(
            IntraScaleAttention(config, num_layers) for _ in range(attention_levels if num_layers else 0)
        )
        self.teacher_projection = None if distillation_dim is None else nn.Linear(width, distillation_dim)
        self.adds_maps = fusion_block in ("rep_ncsp_elan_sum", "lite")
        block, lateral, downsample = _fusion_parts(fusion_block, width, fusion_depth, fusion_expansion)
        steps = range(num_levels - 1)
        self.lateral = nn.ModuleList(lateral() for _ in steps)
        self.top_down = nn.ModuleList(block() for _ in steps)
        self.downsample = nn.ModuleList(downsample() for _ in steps)
        self.bottom_up = nn.ModuleList(block() for _ in steps)
        projections = [ConvNorm(width, out_channels) for _ in range(num_levels)] if out_channels is not None else []
        for projection in projections:
            nn.init.xavier_uniform_(projection.convolution.weight)
        self.output_projection = nn.ModuleList(projections)

    @property
    def layers(self) -> nn.ModuleList:
        """Attention layers of the coarsest map."""
        if not self.attention:
            return nn.ModuleList()
        last = self.attention[-1]
        assert isinstance(last, IntraScaleAttention)
        return last.layers

    def forward(self, features: FeatureMaps) -> FeatureMaps:
        """Compute the fused maps, of the sizes of the input."""
        levels = range(len(features.sizes))
        maps = [features.map_of(level) for level in levels]
        masks = [features.padding_mask_of(level) if features.padding_invariant else None for level in levels]
        for level, attention in zip(reversed(levels), reversed(self.attention), strict=False):
            maps[level] = self._checkpointed(attention, features, level)
        fused = self._bottom_up(self._top_down(maps, masks), masks)
        if self.output_projection:
            fused = [project(one) for project, one in zip(self.output_projection, fused, strict=True)]
        tokens = torch.cat([one.flatten(2).transpose(1, 2) for one in fused], dim=1)
        positions = torch.zeros_like(tokens[:1, :1, :1]).expand(tokens.shape)  # the decoder has references instead
        return replace(features, tokens=tokens, positions=positions)

    def _top_down(
        self, maps: list[Float[Tensor, "B D _ _"]], masks: list[Bool[Tensor, "B _ _"] | None]
    ) -> list[Float[Tensor, "B D _ _"]]:
        """Pass features from the coarsest map to the finest."""
        coarse, outputs = maps[-1], []
        for lateral, block, fine, mask in zip(self.lateral, self.top_down, maps[-2::-1], masks[-2::-1], strict=True):
            coarse = lateral(coarse)
            outputs.append(coarse)
            coarse = self._checkpointed(block, self._merged(_upsample(coarse, fine), fine), mask)
        return [coarse, *reversed(outputs)]

    def _bottom_up(
        self, maps: list[Float[Tensor, "B D _ _"]], masks: list[Bool[Tensor, "B _ _"] | None]
    ) -> list[Float[Tensor, "B D _ _"]]:
        """Pass features from the finest map to the coarsest."""
        outputs = [maps[0]]
        for step, (downsample, block) in enumerate(zip(self.downsample, self.bottom_up, strict=True)):
            halved = downsample(outputs[-1], masks[step])
            outputs.append(self._checkpointed(block, self._merged(halved, maps[step + 1]), masks[step + 1]))
        return outputs

    def _merged(self, other: Float[Tensor, "B D h w"], own: Float[Tensor, "B D h w"]) -> Float[Tensor, "B _ h w"]:
        """Add two maps of one size, or concatenate them."""
        return other + own if self.adds_maps else torch.cat([other, own], dim=1)

    def _checkpointed(self, block: nn.Module, *inputs: Any) -> Any:
        return checkpointed(block, self.activation_checkpointing, *inputs)


def _fusion_parts(
    name: FusionBlockName, width: int, depth: int, expansion: float
) -> tuple[Callable[[], nn.Module], Callable[[], nn.Module], Callable[[], nn.Module]]:
    """Return builders of a fusing block, of the projection before the upsampling, and of the downsampling."""
    if name == "csp_rep":
        return (
            lambda: CSPRepLayer(2 * width, width, depth, round(width * expansion)),
            lambda: ConvNorm(width, width, activation="silu"),
            lambda: ConvNorm(width, width, 3, 2, activation="silu"),
        )
    hidden_channels = round(expansion * width // 2)  # as published: 21 for D-FINE-N, where 0.34 * 128 / 2 is 21.76
    if name == "rep_ncsp_elan":
        return (
            lambda: RepNCSPELAN4(2 * width, width, depth, hidden_channels),
            lambda: ConvNorm(width, width),
            lambda: SCDown(width),
        )
    is_lite = name == "lite"
    return (
        lambda: RepNCSPELAN4(width, width, depth, hidden_channels, packed=True),
        nn.Identity if is_lite else lambda: ConvNorm(width, width),
        lambda: PooledDownsample(width) if is_lite else SCDown(width),
    )


def _upsample(coarse: Float[Tensor, "B D _ _"], fine: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
    """Repeat every cell twice in both directions; the last row and column once if the finer map has odd sides.

    Cell i of a side of n cells comes from cell floor(i ceil(n / 2) / n), which is floor(i / 2) for every i < n.
    """
    return functional.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
