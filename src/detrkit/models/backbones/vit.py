"""Plain vision transformers with windowed attention: of LW-DETR (arXiv:2406.03459) and of RF-DETR (arXiv:2511.09554).

Most blocks attend within windows, some globally. Tokens are partitioned once and stay ordered window by window: attention
does not depend on the order of tokens, so a global block only views all windows of an image as one sequence.

LW-DETR's ViT was pretrained by CAE v2: no class token, no bias of the keys, features without a final norm. RF-DETR's is
DINOv2: a class token, which every window has a copy of, and a norm of the features.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from detrkit.config.model import ViTName
from detrkit.config.model_validation import check_image_size
from detrkit.models.attention.multi_head import MultiHeadAttention
from detrkit.models.interpolation import resize_table
from detrkit.models.layers import FeedForward, LayerConfig, checkpointed

_EPS = 1e-6  # of layer norms
_STD = 0.02  # of initial weights and embeddings
_MLP_RATIO = 4


@dataclass(frozen=True)
class ViTVariant:
    """Sizes of a ViT.

    Attributes:
        width: channels.
        num_heads: of attention.
        is_dinov2: whether it is RF-DETR's; else LW-DETR's.
    """

    width: int
    num_heads: int
    is_dinov2: bool

    @property
    def initial_scale(self) -> float:
        """Initial factor of the residual branches (LayerScale)."""
        return 1.0 if self.is_dinov2 else 0.1


VARIANTS: dict[ViTName, ViTVariant] = {
    "vit-tiny": ViTVariant(192, 12, is_dinov2=False),
    "vit-small": ViTVariant(384, 12, is_dinov2=False),
    "vit-base": ViTVariant(768, 12, is_dinov2=False),
    "dinov2-small": ViTVariant(384, 6, is_dinov2=True),
    "dinov2-base": ViTVariant(768, 12, is_dinov2=True),
}


@dataclass(frozen=True)
class ViTLayout:
    """Blocks, patches and windows of a ViT; fields as in `ModelConfig`."""

    backbone_layers: int
    patch_size: int
    num_windows: int
    global_layers: tuple[int, ...]
    out_layers: tuple[int, ...]
    position_grid: int
    num_register_tokens: int = 0
    drop_path: float = 0.0


class ViTBlock(nn.Module):
    """Pre-norm transformer block with LayerScale and stochastic depth.

    Args:
        variant: its sizes.
        drop_path: probability that a residual branch is left out for an image in training.
    """

    def __init__(self, variant: ViTVariant, drop_path: float = 0.0) -> None:
        super().__init__()
        width, num_heads = variant.width, variant.num_heads
        config = LayerConfig(width, num_heads, _MLP_RATIO * width, dropout=0.0, pre_norm=True, activation="gelu")
        self.attention_norm = nn.LayerNorm(width, eps=_EPS)
        self.attention = MultiHeadAttention(width, num_heads, 0.0, key_bias=variant.is_dinov2)
        self.attention_scale = nn.Parameter(torch.full((width,), variant.initial_scale))
        self.feed_forward_norm = nn.LayerNorm(width, eps=_EPS)
        self.feed_forward = FeedForward(config)
        self.feed_forward_scale = nn.Parameter(torch.full((width,), variant.initial_scale))
        self.drop_path = drop_path

    def forward(self, tokens: Float[Tensor, "N S D"], num_together: int, num_windows: int) -> Float[Tensor, "N S D"]:
        """Compute the next state of the tokens.

        Args:
            tokens: of all windows of all images.
            num_together: windows that attend to each other: 1, or all of an image.
            num_windows: windows of an image.
        """
        inputs = self.attention_norm(tokens).view(-1, num_together * tokens.shape[1], tokens.shape[2])
        attended = self.attention(inputs, inputs, inputs).view_as(tokens)
        tokens = torch.addcmul(tokens, self._dropped(attended, num_windows), self.attention_scale)
        output = self.feed_forward(self.feed_forward_norm(tokens))
        return torch.addcmul(tokens, self._dropped(output, num_windows), self.feed_forward_scale)

    def _dropped(self, branch: Float[Tensor, "N S D"], num_windows: int) -> Float[Tensor, "N S D"]:
        """Leave out the branch for some images, and scale it by 1 / (1 - p) for the others."""
        if not self.training or self.drop_path == 0:
            return branch
        kept = torch.rand(len(branch) // num_windows, device=branch.device) >= self.drop_path
        factors = (kept / (1 - self.drop_path)).to(branch.dtype).repeat_interleave(num_windows)
        return branch * factors[:, None, None]


class ViTBackbone(nn.Module):
    """Plain ViT with windowed attention.

    Args:
        name: of the variant.
        layout: of its blocks, patches and windows.
        frozen_stages: stages that are not trained: 1 is the embeddings, each further one a block.
        in_channels: of the images.

    Attributes:
        channels: channels of each feature map, in the order of the blocks.
        strides: pixels per cell of each: the patch size.
        first_cell_centers: distance in pixels from the image's edge to the center of the first cell of each map.
        activation_checkpointing: recompute activations in the backward pass.
        padding_invariant: without effect.
    """

    def __init__(self, name: ViTName, layout: ViTLayout, frozen_stages: int = 0, in_channels: int = 3) -> None:
        super().__init__()
        variant, patch = VARIANTS[name], layout.patch_size
        width, grid = variant.width, layout.position_grid
        self.layout = layout
        self.is_dinov2 = variant.is_dinov2
        self.activation_checkpointing = False
        self.padding_invariant = False
        self.patch_embedding = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.empty(grid, grid, width))
        # first a position of the class token; LW-DETR's is unused
        self.class_position = nn.Parameter(torch.empty(width))
        tokens = 1 + layout.num_register_tokens if variant.is_dinov2 else 0
        self.tokens = nn.Parameter(torch.empty(tokens, width)) if tokens else None
        # of DINOv2's pretraining: unused
        self.mask_token = nn.Parameter(torch.zeros(width)) if variant.is_dinov2 else None
        self.blocks = nn.ModuleList(ViTBlock(variant) for _ in range(layout.backbone_layers))
        self.norm: nn.Module = nn.LayerNorm(width, eps=_EPS) if variant.is_dinov2 else nn.Identity()
        self.set_drop_path(layout.drop_path)
        count = len(layout.out_layers)
        self.channels = (width,) * count
        self.strides = (patch,) * count
        self.first_cell_centers = (patch / 2,) * count
        self.reset_parameters()
        self._freeze(frozen_stages)

    def reset_parameters(self) -> None:
        """Draw embeddings and the weights of linear layers from a normal distribution, as published."""
        for parameter in (self.positions, self.class_position, self.tokens):
            if parameter is not None:
                nn.init.normal_(parameter, std=_STD)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def set_drop_path(self, rate: float) -> None:
        """Set the stochastic depth of the blocks: linearly from 0 at the first to `rate` at the last one."""
        last = max(len(self.blocks) - 1, 1)
        for index, block in enumerate(self.blocks):
            assert isinstance(block, ViTBlock)
            block.drop_path = rate * index / last

    @property
    def unused(self) -> list[nn.Parameter | nn.Module]:
        """Parameters of published files that compute nothing, and so get no gradient."""
        return [
            *(one for one in (self.mask_token, None if self.is_dinov2 else self.class_position) if one is not None),
            *self.blocks[max(self.layout.out_layers) :],
        ]

    def forward(
        self, images: Float[Tensor, "B C H W"], padding_mask: Bool[Tensor, "B H W"] | None = None
    ) -> list[Float[Tensor, "B _ h w"]]:
        """Compute the feature maps after the blocks of `out_layers`; `padding_mask` is ignored.

        Raises:
            ConfigError: a side of the images is not a multiple of the patches times the windows.
        """
        if not torch.compiler.is_compiling():
            check_image_size((images.shape[-2], images.shape[-1]), self.layout.patch_size * self.layout.num_windows)
        tokens, grid = self._embed(images)
        num_windows = self.layout.num_windows**2
        features: list[Tensor] = []
        for index, block in enumerate(self.blocks[: max(self.layout.out_layers)]):
            num_together = num_windows if index in self.layout.global_layers else 1
            tokens = checkpointed(block, self.activation_checkpointing, tokens, num_together, num_windows)
            if index + 1 in self.layout.out_layers:
                features.append(self._to_map(tokens, grid))
        return features

    def _embed(self, images: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "N S D"], tuple[int, int]]:
        """Return the tokens of all windows, and the number of rows and columns of patches."""
        patches = self.patch_embedding(images)
        height, width = patches.shape[-2:]
        positions = resize_table(self.positions, (height, width), antialias=self.is_dinov2)
        tokens = self._to_windows(patches.permute(0, 2, 3, 1)) + self._to_windows(positions[None]).to(
            patches.dtype
        ).repeat(patches.shape[0], 1, 1)
        if self.tokens is not None:
            first = self.tokens[:1] + self.class_position
            prefix = torch.cat([first, self.tokens[1:]]).to(tokens.dtype)
            tokens = torch.cat([prefix.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return tokens, (height, width)

    def _to_windows(self, maps: Float[Tensor, "B h w D"]) -> Float[Tensor, "N S D"]:
        """Partition maps into windows, row by row, and flatten each."""
        count = self.layout.num_windows
        height, width = maps.shape[1] // count, maps.shape[2] // count
        windows = maps.unflatten(2, (count, width)).unflatten(1, (count, height)).transpose(2, 3)
        return windows.reshape(-1, height * width, maps.shape[-1])

    def _to_map(self, tokens: Float[Tensor, "N S D"], grid: tuple[int, int]) -> Float[Tensor, "B D h w"]:
        """Undo `_to_windows` without the tokens that are no patches; channels are last in memory."""
        patches = self.norm(tokens if self.tokens is None else tokens[:, len(self.tokens) :])
        count = self.layout.num_windows
        height, width = grid[0] // count, grid[1] // count
        windows = patches.view(-1, count, count, height, width, tokens.shape[-1]).transpose(2, 3)
        return windows.reshape(-1, *grid, tokens.shape[-1]).permute(0, 3, 1, 2)

    def _freeze(self, frozen_stages: int) -> None:
        if frozen_stages:
            embeddings = (*self.patch_embedding.parameters(), self.positions, self.class_position, self.tokens)
            for parameter in embeddings:
                if parameter is not None:
                    parameter.requires_grad_(False)
        for block in self.blocks[: max(frozen_stages - 1, 0)]:
            block.requires_grad_(False)
