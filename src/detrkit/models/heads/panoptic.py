"""Mask head (paper, section 4.4 and figure 8): one mask per query, from attention maps and backbone features.

Masks are computed for selected queries only: those matched to objects in training, those kept in prediction. Mask logits
(P, H/4, W/4) are over the padded images, for P pairs of an image and a query.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.models.decoder_output import DecoderOutput
from detrkit.models.feature_maps import FeatureMaps
from detrkit.models.layers import checkpointed
from detrkit.ops.padding import infer_stride
from detrkit.structures import Predictions

NUM_GROUPS = 8  # of the group norms
MAX_PAIRS = 16  # masks computed at a time without gradients, to limit peak memory
# Attention maps are softmaxed over thousands of cells and heads together, so they are tiny compared to the features.
# With the default initialisation, all masks of an image stay alike for thousands of steps.
_ATTENTION_MAP_GAIN = 2000.0


@dataclass(frozen=True)
class MaskInputs:
    """Input of the mask head for a batch.

    Attributes:
        states: of the queries after the last decoder layer.
        memory: last backbone level of the encoder's output.
        projected: the same level before the encoder.
        padding_mask: of that level; None without padding.
        maps: finer feature maps of the backbone, coarsest first.
        image_size: (H, W) of the padded images.
    """

    states: Float[Tensor, "B Q D"]
    memory: Float[Tensor, "B D h w"]
    projected: Float[Tensor, "B D h w"]
    padding_mask: Bool[Tensor, "B h w"] | None
    maps: tuple[Float[Tensor, "B _ _ _"], ...]
    image_size: tuple[int, int]

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of the masks: those of the finest feature map."""
        return self.maps[-1].shape[-2], self.maps[-1].shape[-1]

    def select_image(self, index: int, size: tuple[int, int]) -> "MaskInputs":
        """Select one image of the batch, cropped to the cells that its (height, width) covers, without padding mask."""

        def crop(cells: Tensor) -> Tensor:
            # divided by the stride of the map and rounded up, as convolutions do
            height, width = (
                -(-length // infer_stride(padded, count))
                for length, padded, count in zip(size, self.image_size, cells.shape[-2:], strict=True)
            )
            return cells[index : index + 1, ..., :height, :width]

        return MaskInputs(
            self.states[index : index + 1],
            crop(self.memory),
            crop(self.projected),
            None,
            tuple(crop(one) for one in self.maps),
            size,
        )


@dataclass(frozen=True)
class PanopticMasks:
    """Masks computed on demand by a `PanopticHead` (a `structures.MaskSource`).

    They are computed in the gradient and autocast modes of the forward pass that made the inputs.

    Attributes:
        head: of the model.
        inputs: of a batch.
        padding_invariant: exclude the padding of images whose sizes are given.
        autocast_dtype: None without autocast.
        grad_enabled: whether gradients are recorded.
        inference_mode: whether the inputs are inference tensors.
    """

    head: "PanopticHead"
    inputs: MaskInputs
    padding_invariant: bool
    autocast_dtype: torch.dtype | None
    grad_enabled: bool
    inference_mode: bool

    @property
    def mask_size(self) -> tuple[int, int]:
        """Height and width of the masks."""
        return self.inputs.mask_size

    def masks_of(
        self, queries: Int64[Tensor, "P"], counts: Sequence[int], sizes: Sequence[tuple[int, int]] | None = None
    ) -> Float[Tensor, "P h w"]:
        """Compute the mask logits of some queries, see `structures.MaskSource`."""
        with self._modes():
            queries = queries.to(self.inputs.states.device)
            return cast(Tensor, self.head(self.inputs, queries, counts, sizes if self.padding_invariant else None))

    def all_masks(self) -> Float[Tensor, "B Q h w"]:
        """Compute the mask logits of all queries, as published."""
        with self._modes():
            return self.head.all_masks(self.inputs)

    def select_image(self, index: int, size: tuple[int, int] | None = None) -> "PanopticMasks":
        """Select one image of the batch, see `structures.MaskSource`."""
        inputs = self.inputs.select_image(index, size or self.inputs.image_size)
        if size is None and self.inputs.padding_mask is not None:
            inputs = replace(inputs, padding_mask=self.inputs.padding_mask[index : index + 1])
        return replace(self, inputs=inputs)

    def _modes(self) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.set_grad_enabled(self.grad_enabled))
        if self.inference_mode:
            stack.enter_context(torch.inference_mode())
        if self.autocast_dtype is not None:
            stack.enter_context(torch.autocast(self.inputs.states.device.type, self.autocast_dtype))
        return stack


class AttentionMaps(nn.Module):
    """Attention weights of every query and head over the cells; there are no values."""

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
        states: Float[Tensor, "B Q D"],
        memory: Float[Tensor, "B D h w"],
        padding_mask: Bool[Tensor, "B h w"] | None,
    ) -> Float[Tensor, "B Q M h w"]:
        """Compute the maps.

        The softmax is over heads and cells together (published code, segmentation.py), not over the cells of each head.
        """
        queries = self.query_projection(states).unflatten(-1, (self.num_heads, -1))
        keys = self.key_projection(memory.movedim(1, -1)).unflatten(-1, (self.num_heads, -1))
        scaled = (queries * queries.shape[-1] ** -0.5).transpose(1, 2)
        products = scaled @ keys.flatten(1, 2).permute(0, 2, 3, 1)
        logits = products.transpose(1, 2).unflatten(-1, memory.shape[-2:])
        if padding_mask is not None:
            logits = logits.masked_fill(padding_mask[:, None, None], float("-inf"))
        return logits.flatten(2).softmax(-1).view_as(logits)


class RefineStage(nn.Module):
    """Convolution, group norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.GroupNorm(NUM_GROUPS, out_channels)

    def forward(self, features: Float[Tensor, "P _ h w"]) -> Float[Tensor, "P _ h w"]:
        """Apply all three."""
        return self.normalize(self.convolution(features))

    def normalize(self, convolved: Float[Tensor, "P _ h w"]) -> Float[Tensor, "P _ h w"]:
        """Apply group norm and ReLU to the output of the convolution."""
        return F.relu(self.norm(convolved))


class PanopticHead(nn.Module):
    """Attention maps, refined from coarse to fine with the backbone's feature maps.

    Args:
        width: D.
        num_heads: number of attention maps per query M.
        channels: channels of the backbone's feature maps to merge, coarsest first: three of a ResNet.
        level: index of the encoder's feature map that belongs to the backbone's last.

    Attributes:
        activation_checkpointing: recompute activations in the backward pass.
    """

    def __init__(self, width: int, num_heads: int, channels: Sequence[int], level: int = 0) -> None:
        super().__init__()
        self.width = width
        self.level = level
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
        with torch.no_grad():
            cast(RefineStage, self.input_stages[0]).convolution.weight[:, width:] *= _ATTENTION_MAP_GAIN

    def attach(
        self,
        predictions: Predictions,
        decoded: DecoderOutput,
        maps: Sequence[Float[Tensor, "B _ _ _"]],
        features: FeatureMaps,
        memory: FeatureMaps,
        image_size: tuple[int, int],
    ) -> Predictions:
        """Keep the inputs of the head for the model's own queries, see `models.parts.MaskHead`."""
        device = decoded.states.device.type
        has_autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        masks = PanopticMasks(
            head=self,
            inputs=MaskInputs(
                states=decoded.states[-1][:, : predictions.boxes.shape[1]],
                memory=memory.map_of(self.level),
                projected=features.map_of(self.level),
                padding_mask=features.padding_mask_of(self.level),
                maps=tuple(maps[-2::-1]),
                image_size=image_size,
            ),
            padding_invariant=features.padding_invariant,
            autocast_dtype=torch.get_autocast_dtype(device) if has_autocast else None,
            grad_enabled=torch.is_grad_enabled(),
            inference_mode=torch.is_inference_mode_enabled(),
        )
        return replace(predictions, mask_source=masks)

    def forward(
        self,
        inputs: MaskInputs,
        queries: Int64[Tensor, "P"],
        counts: Sequence[int],
        sizes: Sequence[tuple[int, int]] | None = None,
    ) -> Float[Tensor, "P _ _"]:
        """Compute the masks of some queries; each is the same as if all were computed.

        Args:
            inputs: of a batch.
            queries: indices, image by image.
            counts: number of queries of each image.
            sizes: (height, width) of the images without padding: masks do not depend on it, if the model's features do not.
                None, as published, lets padding into the convolutions and the statistics of the norms.
        """
        if sizes is None or not any(counts) or all(tuple(size) == inputs.image_size for size in sizes):
            return self._compute(inputs, queries, counts)
        masks = []
        for index, (of_image, size) in enumerate(zip(queries.split(list(counts)), sizes, strict=True)):
            if len(of_image):
                mask = self._compute(inputs.select_image(index, size), of_image, [len(of_image)])
                missing = [whole - part for whole, part in zip(inputs.mask_size, mask.shape[1:], strict=True)]
                masks.append(F.pad(mask[:, None], (0, missing[1], 0, missing[0]), mode="replicate")[:, 0])
        return torch.cat(masks)

    def _compute(
        self, inputs: MaskInputs, queries: Int64[Tensor, "P"], counts: Sequence[int]
    ) -> Float[Tensor, "P _ _"]:
        images = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(queries.device, non_blocking=True)
        maps = self.attention_maps(inputs.states, inputs.memory, inputs.padding_mask)[images, queries]
        shared = self._shared(inputs)
        if torch.is_grad_enabled():
            return cast(Tensor, checkpointed(self._refine, self.activation_checkpointing, maps, images, *shared))
        chunks = zip(maps.split(MAX_PAIRS), images.split(MAX_PAIRS), strict=True)
        return torch.cat([self._refine(some, of_images, *shared) for some, of_images in chunks])

    def all_masks(self, inputs: MaskInputs) -> Float[Tensor, "B Q _ _"]:
        """Compute the masks of all queries, as published."""
        num_images, num_queries = inputs.states.shape[:2]
        maps = self.attention_maps(inputs.states, inputs.memory, inputs.padding_mask).flatten(0, 1)
        images = torch.arange(num_images, device=maps.device).repeat_interleave(num_queries)
        return self._refine(maps, images, *self._shared(inputs)).unflatten(0, (num_images, num_queries))

    def _shared(self, inputs: MaskInputs) -> list[Float[Tensor, "B _ _ _"]]:
        """Compute once per image what its queries share: the first convolution is linear, so it can be split."""
        first = cast(RefineStage, self.input_stages[0]).convolution
        features = F.conv2d(inputs.projected, first.weight[:, : self.width], first.bias, padding=1)
        return [features, *(adapter(one) for adapter, one in zip(self.adapters, inputs.maps, strict=True))]

    def _refine(
        self,
        attention_maps: Float[Tensor, "P M h w"],
        images: Int64[Tensor, "P"],
        image_features: Float[Tensor, "B _ h w"],
        *adapted: Float[Tensor, "B _ _ _"],
    ) -> Float[Tensor, "P _ _"]:
        first = cast(RefineStage, self.input_stages[0])
        convolved = F.conv2d(attention_maps, first.convolution.weight[:, self.width :], padding=1)
        features = self.input_stages[1](first.normalize(convolved + image_features[images]))
        for finer, stage in zip(adapted, self.stages, strict=True):
            enlarged = F.interpolate(features, size=finer.shape[-2:], mode="nearest")
            features = stage(finer[images] + enlarged)
        return cast(Tensor, self.output(features))[:, 0]
