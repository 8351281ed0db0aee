"""Neck: backbone feature maps -> feature maps of width D with position encodings and padding masks.

DETR projects the last map (paper, section 3.2); Deformable DETR projects several and adds coarser ones
(arXiv:2010.04159, section 4.1 and appendix A.2), as do the smallest variants of DEIMv2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.models.convolution import ConvNorm
from detrkit.models.encoders.fusion import PooledDownsample
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.positions import PositionEncoding
from detrkit.ops.padding import resize_padding_mask, zero_padding

_NUM_GROUPS = 32  # of the group norms, as published


@dataclass(frozen=True)
class LevelPadding:
    """Padding masks of the feature maps of a batch.

    Attributes:
        mask: padding mask of the images, True for padding; None without padding.
        strides: stride of each map, by which the mask is subsampled; None rescales the mask to the size of the map with
            nearest-neighbour rounding, as published.
        excluded: whether padding must be excluded from convolutions and normalisation statistics.
    """

    mask: Bool[Tensor, "B H W"] | None
    strides: tuple[int, ...] | None = None
    excluded: bool = False

    def mask_of(self, level: int, features: Float[Tensor, "B _ h w"]) -> Bool[Tensor, "B h w"]:
        """Compute the padding mask of a feature map."""
        size = (features.shape[-2], features.shape[-1])
        if self.mask is None:
            return torch.zeros(features.shape[0], *size, dtype=torch.bool, device=features.device)
        return resize_padding_mask(self.mask, size, stride=self.strides[level] if self.strides else None)

    def excluded_mask_of(self, level: int, features: Float[Tensor, "B _ h w"]) -> Bool[Tensor, "B h w"] | None:
        """Compute the padding mask of a feature map if padding must be excluded; else None."""
        return self.mask_of(level, features) if self.mask is not None and self.excluded else None


class SingleScaleProjection(nn.Conv2d):
    """1 x 1 convolution of the backbone's last feature map to D channels (DETR)."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__(channels[-1], width, kernel_size=1)

    def forward(  # type: ignore[override]  # same arguments as MultiScaleProjection
        self, maps: Sequence[Float[Tensor, "B _ _ _"]], padding: LevelPadding
    ) -> list[Float[Tensor, "B D h w"]]:
        """Project the last map."""
        return [super().forward(maps[-1])]


class LevelProjection(nn.Module):
    """Convolution to D channels and group norm of one feature map."""

    def __init__(self, channels: int, width: int, *, downsample: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            channels, width, 3 if downsample else 1, stride=2 if downsample else 1, padding=int(downsample)
        )
        self.norm = nn.GroupNorm(_NUM_GROUPS, width)
        nn.init.xavier_uniform_(self.convolution.weight)
        nn.init.zeros_(self.convolution.bias)  # type: ignore[arg-type]  # it has one


class MultiScaleProjection(nn.Module):
    """One projection per feature map; maps coarser than the backbone's are computed from the next finer one.

    Args:
        channels: channels of the backbone's maps to use, finest first.
        width: D.
        num_feature_levels: number of output maps; those beyond the backbone's halve the size of the previous one.
    """

    def __init__(self, channels: Sequence[int], width: int, num_feature_levels: int) -> None:
        super().__init__()
        num_added = num_feature_levels - len(channels)
        added = [channels[-1], *[width] * (num_added - 1)][:num_added]
        self.levels = nn.ModuleList(
            [
                *(LevelProjection(count, width, downsample=False) for count in channels),
                *(LevelProjection(count, width, downsample=True) for count in added),
            ]
        )
        self.num_backbone_levels = len(channels)

    def forward(
        self, maps: Sequence[Float[Tensor, "B _ _ _"]], padding: LevelPadding
    ) -> list[Float[Tensor, "B D _ _"]]:
        """Project the last maps of the backbone and compute the coarser ones."""
        used = list(maps[-self.num_backbone_levels :])
        outputs: list[Tensor] = []
        for level, projection in enumerate(self.levels):
            if level < self.num_backbone_levels:
                source = used[level]
            else:
                source = used[-1] if level == self.num_backbone_levels else outputs[-1]
                source = zero_padding(source, padding.excluded_mask_of(level - 1, source))
            assert isinstance(projection, LevelProjection)
            projected = projection.convolution(source)
            outputs.append(masked_group_norm(projected, projection.norm, padding.excluded_mask_of(level, projected)))
        return outputs


class NormalizedProjection(nn.Module):
    """One 1 x 1 convolution with batch norm per feature map (RT-DETR, D-FINE).

    Args:
        channels: channels of the backbone's maps to use, finest first.
        width: D.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(ConvNorm(count, width) for count in channels)

    def forward(
        self, maps: Sequence[Float[Tensor, "B _ _ _"]], padding: LevelPadding
    ) -> list[Float[Tensor, "B D _ _"]]:
        """Project the last maps of the backbone."""
        used = maps[-len(self.levels) :]
        return [project(one) for project, one in zip(self.levels, used, strict=True)]


class PooledProjection(NormalizedProjection):
    """Projection of the backbone's last map, and a map of half the size with global context (DEIMv2's smallest variants).

    The mean over all cells is added to every cell of the coarser map, which is then projected once more.

    Args:
        channels: of the backbone's last map.
        width: D.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__([channels], width)
        self.downsample = PooledDownsample(width)
        self.context = ConvNorm(width, width, activation="silu")

    def forward(
        self, maps: Sequence[Float[Tensor, "B _ _ _"]], padding: LevelPadding
    ) -> list[Float[Tensor, "B D _ _"]]:
        """Project the last map of the backbone and compute the coarser one."""
        (fine,) = super().forward(maps, padding)
        coarse = self.downsample(fine, padding.excluded_mask_of(0, fine))
        mean = masked_mean(coarse, padding.excluded_mask_of(1, coarse))
        return [fine, self.context(coarse + mean)]


class Neck(nn.Module):
    """Project the backbone's feature maps to width D and attach position encodings and padding masks.

    Args:
        projection: of the maps to width D.
        positions: position encoding of the cells; None for zeros, as of encoders with their own.
        strides: stride of each output map.
        first_cell_centers: distance in pixels from the image's edge to the center of the first cell of each output map.
        align_cells: place cells where their pixels are, see `ModelConfig`.
        strides_match: whether the backbone's strides are those of the config; else masks are rescaled.

    Attributes:
        padding_invariant: exclude padding from normalisation statistics, and subsample masks by stride instead of
            rescaling them, so that the features of an image do not depend on how far it was padded.
    """

    def __init__(
        self,
        projection: Callable[[Sequence[Float[Tensor, "B _ _ _"]], LevelPadding], list[Float[Tensor, "B D _ _"]]],
        positions: PositionEncoding | None,
        *,
        strides: tuple[int, ...],
        first_cell_centers: tuple[float, ...],
        align_cells: bool = False,
        strides_match: bool = True,
    ) -> None:
        super().__init__()
        self.projection = projection
        self.positions = positions
        self.strides = strides
        self.first_cell_centers = first_cell_centers
        self.align_cells = align_cells
        self.strides_match = strides_match
        self.padding_invariant = False

    def forward(
        self,
        maps: Sequence[Float[Tensor, "B _ _ _"]],
        image_size: tuple[int, int],
        padding_mask: Bool[Tensor, "B H W"] | None = None,
    ) -> FeatureMaps:
        """Compute the input of the encoder.

        Args:
            maps: of the backbone, finest first.
            image_size: (H, W) of the padded images.
            padding_mask: True for padding; None without padding.
        """
        by_stride = self.strides_match and (self.padding_invariant or self.align_cells)
        padding = LevelPadding(padding_mask, self.strides if by_stride else None, self.padding_invariant)
        projected = self.projection(maps, padding)
        masks = [padding.mask_of(level, one) for level, one in enumerate(projected)]
        sizes = tuple((one.shape[-2], one.shape[-1]) for one in projected)
        tokens = torch.cat([one.flatten(2).transpose(1, 2) for one in projected], dim=1)

        image_cells = first_cells = None
        if self.align_cells:
            image_cells = unpadded_cells(tokens, image_size, padding_mask, self.strides)
            first_cells = tuple(
                center / stride for center, stride in zip(self.first_cell_centers, self.strides, strict=True)
            )
        positions = self._encode_positions(tokens, masks, padding_mask is not None, image_cells, first_cells)
        if image_cells is None and padding_mask is not None:
            image_cells = torch.stack([_unpadded_size(mask) for mask in masks], dim=1)
        return FeatureMaps(
            tokens=tokens,
            positions=positions,
            padding_mask=None if padding_mask is None else torch.cat([mask.flatten(1) for mask in masks], dim=1),
            sizes=sizes,
            image_cells=image_cells,
            image_extents=None if image_cells is None else _relative_extents(image_cells, sizes),
            first_cells=first_cells,
            padding_invariant=self.padding_invariant,
        )

    def _encode_positions(
        self,
        tokens: Float[Tensor, "B S D"],
        masks: Sequence[Bool[Tensor, "B _ _"]],
        is_padded: bool,
        image_cells: Float[Tensor, "B L 2"] | None,
        first_cells: tuple[float, ...] | None,
    ) -> Float[Tensor, "B S D"]:
        """Encode the positions of the cells of all maps."""
        if self.positions is None:
            return torch.zeros_like(tokens[:1, :1, :1]).expand(tokens.shape)
        positions = [
            self.positions(
                mask,
                is_padded=is_padded,
                level=level,
                image_cells=None if image_cells is None else image_cells[:, level],
                first_cell=None if first_cells is None else first_cells[level],
            )
            for level, mask in enumerate(masks)
        ]
        return torch.cat([one.flatten(1, 2) for one in positions], dim=1).to(tokens.dtype)


def unpadded_cells(
    tokens: Float[Tensor, "B S D"],
    image_size: tuple[int, int],
    padding_mask: Bool[Tensor, "B H W"] | None,
    strides: Sequence[int],
) -> Float[Tensor, "B L 2"]:
    """Compute how many columns and rows of each map the pixels of the images cover, as fractional numbers."""
    if padding_mask is None:
        height, width = image_size
        sides = [tokens.new_full((len(tokens),), side, dtype=torch.float32) for side in (width, height)]
        size = torch.stack(sides, dim=-1)
    else:
        size = _unpadded_size(padding_mask)
    return torch.stack([size / stride for stride in strides], dim=1)


def _unpadded_size(mask: Bool[Tensor, "B h w"]) -> Float[Tensor, "B 2"]:
    """Count columns and rows without padding, in the first row and column."""
    rows, columns = (~mask[:, :, 0]).sum(1), (~mask[:, 0, :]).sum(1)
    return torch.stack([columns, rows], dim=-1).float()


def _relative_extents(cells: Float[Tensor, "B L 2"], sizes: Sequence[tuple[int, int]]) -> Float[Tensor, "B L 2"]:
    levels = zip(cells.unbind(1), sizes, strict=True)
    return torch.stack(
        [torch.stack([one[:, 0] / width, one[:, 1] / height], -1) for one, (height, width) in levels], dim=1
    )


def masked_mean(features: Float[Tensor, "B D h w"], mask: Bool[Tensor, "B h w"] | None) -> Float[Tensor, "B D 1 1"]:
    """Compute the mean over the cells outside of the padding; None uses all cells."""
    if mask is None:
        return features.mean((2, 3), keepdim=True)
    is_image = (~mask)[:, None].to(features.dtype)
    return (features * is_image).sum((2, 3), keepdim=True) / is_image.sum((2, 3), keepdim=True)


def masked_group_norm(
    features: Float[Tensor, "B D h w"], norm: nn.GroupNorm, mask: Bool[Tensor, "B h w"] | None
) -> Float[Tensor, "B D h w"]:
    """Apply group norm with the statistics of the cells outside of the padding; None uses all cells."""
    if mask is None:
        return norm(features)
    groups = features.float().unflatten(1, (norm.num_groups, -1))
    is_image = (~mask)[:, None, None].to(groups.dtype)
    count = is_image.sum((2, 3, 4), keepdim=True) * groups.shape[2]
    mean = (groups * is_image).sum((2, 3, 4), keepdim=True) / count
    variance = ((groups - mean).square() * is_image).sum((2, 3, 4), keepdim=True) / count
    standardized = ((groups - mean) * (variance + norm.eps).rsqrt()).reshape(features.shape)
    return (standardized * norm.weight[:, None, None] + norm.bias[:, None, None]).to(features.dtype)
