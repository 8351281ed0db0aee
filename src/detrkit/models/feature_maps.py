"""Feature maps of several strides (Deformable DETR, arXiv:2010.04159, section 4.1 and appendix A.2).

Input: the backbone's feature maps. Output: a `Scene`, in which the cells of all maps stand one after the other. A model
that looks at one map has a scene of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.ops.padding import padding_mask_at

_GROUPS = 32  # of the norms, as published


@dataclass(frozen=True)
class PaddingMasks:
    """The padding of a batch, at any feature map.

    Attributes:
        mask: True on padding; None when there is none.
        strides: pixels per cell of each map; None rounds to the nearest pixel, as published.
        is_exact: whether padding is kept out of what the photo gives.
    """

    mask: Bool[Tensor, "B H W"] | None
    strides: tuple[int, ...] | None = None
    is_exact: bool = False

    def at(self, level: int, features: Float[Tensor, "B _ h w"]) -> Bool[Tensor, "B h w"]:
        """The mask of a feature map."""
        size = (features.shape[-2], features.shape[-1])
        if self.mask is None:
            return torch.zeros(features.shape[0], *size, dtype=torch.bool, device=features.device)
        return padding_mask_at(self.mask, size, stride=self.strides[level] if self.strides else None)

    def kept_out_of(self, level: int, features: Float[Tensor, "B C h w"]) -> Bool[Tensor, "B h w"] | None:
        """The mask of a feature map that padding is to be kept out of; None where nothing is to be done."""
        return self.at(level, features) if self.mask is not None and self.is_exact else None


@dataclass(frozen=True)
class FeatureMaps:
    """What the transformer sees of a batch: the cells of all feature maps, finest map first, row by row.

    Attributes:
        tokens: what the cells hold; after the encoder, the memory.
        positions: where they are.
        padding_mask: True on cells that are padding; None when there are none.
        sizes: (height, width) of each map, padding included.
        photo_cells: how many of each map's columns and rows are photo, fractions included if cells are to be found where
            their pixels are; None for all of them.
        photo_shares: the same, as shares of the map.
        first_cells: where the middle of each map's first cell lies, in cells from the photo's edge; None for 0.5, as where
            cells share the photo evenly.
        is_exact: whether padding is kept out of what the photo gives.
        located: tokens with positions, once the decoder has put them together.
    """

    tokens: Float[Tensor, "B S D"]
    positions: Float[Tensor, "B S D"]
    padding_mask: Bool[Tensor, "B S"] | None
    sizes: tuple[tuple[int, int], ...]
    photo_cells: Float[Tensor, "B L 2"] | None = None
    photo_shares: Float[Tensor, "B L 2"] | None = None
    first_cells: tuple[float, ...] | None = None
    is_exact: bool = False
    located: Float[Tensor, "B S D"] | None = None

    def holding(self, memory: Float[Tensor, "B S D"]) -> "FeatureMaps":
        """The same cells, holding something else."""
        return replace(self, tokens=memory)

    def map_of(self, level: int) -> Float[Tensor, "B D h w"]:
        """What the cells of one map hold, laid out."""
        start = sum(height * width for height, width in self.sizes[:level])
        height, width = self.sizes[level]
        return self.tokens[:, start : start + height * width].transpose(1, 2).unflatten(2, (height, width))

    def in_maps(self, places: Float[Tensor, "B N C"]) -> Float[Tensor, "B N L C"]:
        """Places relative to the photo -> relative to each map, whose end lies in the padding.

        Args:
            places: (x, y) or (cx, cy, w, h) in 0 .. 1.
        """
        if self.photo_shares is None:
            return places[:, :, None].expand(-1, -1, len(self.sizes), -1)
        on_maps = places[:, :, None] * self.photo_shares.repeat(1, 1, places.shape[-1] // 2)[:, None]
        if self.first_cells is None or self.photo_cells is None:
            return on_maps
        # a map's first cell has its middle at 0.5 of its width, wherever in the photo that lies
        width_of_cell = (self.photo_shares / self.photo_cells).unbind(1)
        shifts = [width * (0.5 - first) for width, first in zip(width_of_cell, self.first_cells, strict=True)]
        return torch.cat([on_maps[..., :2] + torch.stack(shifts, dim=1)[:, None], on_maps[..., 2:]], dim=-1)

    def cell_centres(self, *, even: bool = False) -> list[Float[Tensor, "B _ 2"]]:
        """The middle of every cell of each map, (x, y) in 0 .. 1 of the photo; more than 1 in its padding.

        Args:
            even: as if the first cell began at the photo's edge, wherever its pixels are.
        """
        centres = []
        for level, (height, width) in enumerate(self.sizes):
            first = 0.5 if even or self.first_cells is None else self.first_cells[level]
            columns = torch.arange(width, device=self.tokens.device).expand(height, -1) + first
            rows = torch.arange(height, device=self.tokens.device)[:, None].expand(-1, width) + first
            cells = torch.stack([columns, rows], dim=-1).flatten(0, 1).expand(self.tokens.shape[0], -1, -1)
            if self.photo_cells is None:
                centres.append(torch.stack([cells[..., 0] / width, cells[..., 1] / height], dim=-1))
            else:
                centres.append(cells / self.photo_cells[:, level, None])
        return centres


def to_feature_maps(
    maps: Sequence[Float[Tensor, "B D _ _"]],
    masks: Sequence[Bool[Tensor, "B _ _"]],
    positions: Sequence[Float[Tensor, "B _ _ D"]],
    padding: PaddingMasks,
    photo_cells: Float[Tensor, "B L 2"] | None = None,
    first_cells: tuple[float, ...] | None = None,
) -> FeatureMaps:
    """Put the cells of all maps one after the other.

    Args:
        maps: of D channels.
        masks: of the maps.
        positions: of their cells.
        padding: of the batch.
        photo_cells: of `exact_photo_cells`; None counts the cells of the masks, as published.
        first_cells: as in `Scene`.
    """
    tokens = torch.cat([one.flatten(2).transpose(1, 2) for one in maps], dim=1)
    if photo_cells is None and padding.mask is not None:
        photo_cells = torch.stack([_read_image_size(mask) for mask in masks], dim=1)
    sizes = tuple((one.shape[-2], one.shape[-1]) for one in maps)
    return FeatureMaps(
        tokens=tokens,
        positions=torch.cat([one.flatten(1, 2) for one in positions], dim=1).to(tokens.dtype),
        padding_mask=None if padding.mask is None else torch.cat([mask.flatten(1) for mask in masks], dim=1),
        sizes=sizes,
        photo_cells=photo_cells,
        photo_shares=None if photo_cells is None else _shares(photo_cells, sizes),
        first_cells=first_cells,
        is_exact=padding.is_exact,
    )


def unpadded_cells(
    images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"] | None, strides: Sequence[int]
) -> Float[Tensor, "B L 2"]:
    """How many columns and rows of each map the photos' pixels fill."""
    if padding_mask is None:
        sides = [
            images.new_full((len(images),), side, dtype=torch.float32) for side in (images.shape[3], images.shape[2])
        ]
        size = torch.stack(sides, dim=-1)
    else:
        size = _read_image_size(padding_mask)
    return torch.stack([size / stride for stride in strides], dim=1)


def _read_image_size(mask: Bool[Tensor, "B h w"]) -> Float[Tensor, "B 2"]:
    """Columns and rows that are photo, read off the first row and column."""
    rows, columns = (~mask[:, :, 0]).sum(1), (~mask[:, 0, :]).sum(1)
    return torch.stack([columns, rows], dim=-1).float()


def _shares(cells: Float[Tensor, "B L 2"], sizes: Sequence[tuple[int, int]]) -> Float[Tensor, "B L 2"]:
    of_maps = zip(cells.unbind(1), sizes, strict=True)
    return torch.stack([torch.stack([of[:, 0] / width, of[:, 1] / height], -1) for of, (height, width) in of_maps], 1)


class LastMapProjection(nn.Conv2d):
    """DETR's input projection: a 1 x 1 convolution of the backbone's last feature map to D channels."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__(channels[-1], width, kernel_size=1)

    def forward(  # type: ignore[override]  # all maps go in, as into a pyramid
        self, levels: Sequence[Float[Tensor, "B _ _ _"]], padding: PaddingMasks
    ) -> list[Float[Tensor, "B D h w"]]:
        """Project the last map."""
        return [super().forward(levels[-1])]


class MapProjection(nn.Module):
    """A convolution to D channels and a group norm, for one map of a pyramid."""

    def __init__(self, channels: int, width: int, *, halves: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            channels, width, 3 if halves else 1, stride=2 if halves else 1, padding=int(halves)
        )
        self.norm = nn.GroupNorm(_GROUPS, width)
        nn.init.xavier_uniform_(self.convolution.weight)
        nn.init.zeros_(self.convolution.bias)  # type: ignore[arg-type]  # it has one


class PyramidProjection(nn.Module):
    """Deformable DETR's input projection: one per map; maps that the backbone lacks are made from the one before."""

    def __init__(self, channels: Sequence[int], width: int, num_feature_levels: int) -> None:
        """Build the projections.

        Args:
            channels: of the backbone's maps that are used, finest first.
            width: D.
            num_feature_levels: maps to make; those beyond the backbone's have half the size of the one before.
        """
        super().__init__()
        made = [channels[-1], *[width] * (num_feature_levels - len(channels) - 1)][: num_feature_levels - len(channels)]
        self.levels = nn.ModuleList(
            [
                *(MapProjection(count, width, halves=False) for count in channels),
                *(MapProjection(count, width, halves=True) for count in made),
            ]
        )
        self.num_used = len(channels)

    def forward(
        self, levels: Sequence[Float[Tensor, "B _ _ _"]], padding: PaddingMasks
    ) -> list[Float[Tensor, "B D _ _"]]:
        """Project the backbone's last maps, and make the coarser ones.

        Args:
            levels: of the backbone, finest first.
            padding: where it is kept out, norms count the photo's cells alone.
        """
        used = list(levels[-self.num_used :])
        maps: list[Tensor] = []
        for number, projection in enumerate(self.levels):
            if number < self.num_used:
                source = used[number]
            else:
                source = used[-1] if number == self.num_used else maps[-1]
                source = _without(source, padding.kept_out_of(number - 1, source))
            assert isinstance(projection, MapProjection)
            projected = projection.convolution(source)
            maps.append(_normalised(projected, projection.norm, padding.kept_out_of(number, projected)))
        return maps


def _without(features: Float[Tensor, "B C h w"], mask: Bool[Tensor, "B h w"] | None) -> Float[Tensor, "B C h w"]:
    return features if mask is None else features.masked_fill(mask[:, None], 0.0)


def _normalised(
    features: Float[Tensor, "B D h w"], norm: nn.GroupNorm, mask: Bool[Tensor, "B h w"] | None
) -> Float[Tensor, "B D h w"]:
    """Group norm, whose statistics are of the photo alone where a mask is given."""
    if mask is None:
        return norm(features)
    groups = features.float().unflatten(1, (norm.num_groups, -1))
    is_photo = (~mask)[:, None, None].to(groups.dtype)
    count = is_photo.sum((2, 3, 4), keepdim=True) * groups.shape[2]
    mean = (groups * is_photo).sum((2, 3, 4), keepdim=True) / count
    variance = ((groups - mean).square() * is_photo).sum((2, 3, 4), keepdim=True) / count
    standard = ((groups - mean) * (variance + norm.eps).rsqrt()).reshape(features.shape)
    return (standard * norm.weight[:, None, None] + norm.bias[:, None, None]).to(features.dtype)
