"""The mask head (paper, section 4.4, figure 8): one mask per query, from attention maps and backbone features.

Input: `MaskInputs`, which the model hands over, and which queries of which photos to draw: those matched to objects while
training, those kept when predicting. Output: mask logits (P, H/4, W/4) over the padded image, P pairs of photo and query.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.models.activation_checkpointing import run
from detrkit.structures import MaskInputs

GROUPS = 8  # of the group norms
_START_OF_MAPS = 2000.0  # times the usual first weights: the maps share out 1 among thousands of cells and heads
MAX_PAIRS = 16  # drawn at a time where no gradient is kept: what is in use at once stays small


class AttentionMaps(nn.Module):
    """How strongly each query attends to each cell, per head, with values left out."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_projection = nn.Linear(width, width)
        self.key_projection = nn.Linear(width, width)
        for projection in (self.query_projection, self.key_projection):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        decoded: Float[Tensor, "B Q D"],
        memory: Float[Tensor, "B D h w"],
        padding_mask: Bool[Tensor, "B h w"] | None,
    ) -> Float[Tensor, "B Q M h w"]:
        """Compute the maps.

        The softmax runs over heads and cells together (published code, segmentation.py), not over the cells of each
        head: what a head says is weighed against the others.
        """
        queries = self.query_projection(decoded).unflatten(-1, (self.num_heads, -1))
        keys = self.key_projection(memory.movedim(1, -1)).unflatten(-1, (self.num_heads, -1))
        scaled = (queries * queries.shape[-1] ** -0.5).transpose(1, 2)
        of_heads = scaled @ keys.flatten(1, 2).permute(0, 2, 3, 1)
        logits = of_heads.transpose(1, 2).unflatten(-1, memory.shape[-2:])
        if padding_mask is not None:
            logits = logits.masked_fill(padding_mask[:, None, None], float("-inf"))
        return logits.flatten(2).softmax(-1).view_as(logits)


class RefineStage(nn.Module):
    """Convolution, group norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.GroupNorm(GROUPS, out_channels)

    def forward(self, features: Float[Tensor, "P _ h w"]) -> Float[Tensor, "P _ h w"]:
        """Refine a map."""
        return self.finish(self.convolution(features))

    def finish(self, convolved: Float[Tensor, "P _ h w"]) -> Float[Tensor, "P _ h w"]:
        """Normalise what the convolution gave, and cut it at zero."""
        return F.relu(self.norm(convolved))


class PanopticHead(nn.Module):
    """Attention maps, refined from coarse to fine with a feature pyramid."""

    def __init__(self, width: int, num_heads: int, channels: Sequence[int]) -> None:
        """Build the head.

        Args:
            width: D.
            num_heads: M, the number of attention maps per query.
            channels: widths of the backbone's feature maps to merge, coarsest first: three of an ordinary ResNet.
        """
        super().__init__()
        self.width = width
        self.activation_checkpointing = False
        self.attention_maps = AttentionMaps(width, num_heads)
        widths = [width // 2 ** (index + 1) for index in range(len(channels) + 1)]
        self.input_stages = nn.ModuleList(
            [RefineStage(width + num_heads, width + num_heads), RefineStage(width + num_heads, widths[0])]
        )
        self.adapters = nn.ModuleList(nn.Conv2d(c, w, 1) for c, w in zip(channels, widths[:-1], strict=True))
        self.stages = nn.ModuleList(RefineStage(before, after) for before, after in pairwise(widths))
        self.output = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # every convolution here has a bias
        # beside the features, maps would say next to nothing, and all masks of a photo stay alike for thousands of steps
        with torch.no_grad():
            cast(RefineStage, self.input_stages[0]).convolution.weight[:, width:] *= _START_OF_MAPS

    def forward(
        self,
        inputs: MaskInputs,
        queries: Int64[Tensor, "P"],
        counts: Sequence[int],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Float[Tensor, "P _ _"]:
        """Draw the masks of some queries; each is what it would be if all had been drawn.

        Args:
            inputs: of a batch.
            queries: number of each, those of the first photo first.
            counts: how many of them belong to each photo.
            sizes: (height, width) of the images without padding; then masks do not depend on it, if the model's features
                do not. None, as published, lets padding into the convolutions and into the norms' statistics.
        """
        if sizes is None or not any(counts):
            return self._draw(inputs, queries, counts)
        drawn = []
        for image, (some, size) in enumerate(zip(queries.split(list(counts)), sizes, strict=True)):
            if len(some):
                alone = inputs.of_photo(image, size)
                mask = self._draw(alone, some, [len(some)])
                missing = [whole - part for whole, part in zip(inputs.mask_size, mask.shape[1:], strict=True)]
                drawn.append(F.pad(mask[:, None], (0, missing[1], 0, missing[0]), mode="replicate")[:, 0])
        return torch.cat(drawn)

    def _draw(self, inputs: MaskInputs, queries: Int64[Tensor, "P"], counts: Sequence[int]) -> Float[Tensor, "P _ _"]:
        images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(queries.device, non_blocking=True)
        maps = self.attention_maps(inputs.decoded, inputs.memory, inputs.padding_mask)[images, queries]
        shared = self._shared(inputs)
        if torch.is_grad_enabled():
            return cast(Tensor, run(self._refine, self.activation_checkpointing, maps, images, *shared))
        parts = zip(maps.split(MAX_PAIRS), images.split(MAX_PAIRS), strict=True)
        return torch.cat([self._refine(some, of_images, *shared) for some, of_images in parts])

    def draw_all(self, inputs: MaskInputs) -> Float[Tensor, "B Q _ _"]:
        """Draw the mask of every query, as published."""
        num_images, num_queries = inputs.decoded.shape[:2]
        maps = self.attention_maps(inputs.decoded, inputs.memory, inputs.padding_mask).flatten(0, 1)
        images = torch.arange(num_images, device=maps.device).repeat_interleave(num_queries)
        return self._refine(maps, images, *self._shared(inputs)).unflatten(0, (num_images, num_queries))

    def _shared(self, inputs: MaskInputs) -> list[Float[Tensor, "B _ _ _"]]:
        """Compute once per photo what all of its queries share: the first convolution is linear, so it can be parted."""
        first = cast(RefineStage, self.input_stages[0]).convolution
        of_photo = F.conv2d(inputs.projected, first.weight[:, : self.width], first.bias, padding=1)
        return [of_photo, *(adapter(level) for adapter, level in zip(self.adapters, inputs.levels, strict=True))]

    def _refine(
        self,
        maps: Float[Tensor, "P M h w"],
        images: Int64[Tensor, "P"],
        of_photo: Float[Tensor, "B _ h w"],
        *finer: Float[Tensor, "B _ _ _"],
    ) -> Float[Tensor, "P _ _"]:
        first = cast(RefineStage, self.input_stages[0])
        of_query = F.conv2d(maps, first.convolution.weight[:, self.width :], padding=1)
        features = self.input_stages[1](first.finish(of_query + of_photo[images]))
        for level, stage in zip(finer, self.stages, strict=True):
            enlarged = F.interpolate(features, size=level.shape[-2:], mode="nearest")
            features = stage(level[images] + enlarged)
        return cast(Tensor, self.output(features))[:, 0]
