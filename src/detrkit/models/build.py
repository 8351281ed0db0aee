"""A config -> the parts of a model: the one place where its words choose among them."""

from collections.abc import Sequence

import torch
from torch import nn

from detrkit.config.model import TIMM, ModelConfig
from detrkit.errors import ConfigError
from detrkit.models.attention.conditional import ConditionalDecoderLayer
from detrkit.models.attention.deformable import DeformableDecoderLayer, DeformableEncoderLayer
from detrkit.models.backbones.resnet import ResNetBackbone
from detrkit.models.backbones.timm import TimmBackbone
from detrkit.models.detr import DETRComponents
from detrkit.models.feature_maps import LastMapProjection, PyramidProjection
from detrkit.models.heads.detection import BoxHead, ClassHead, Heads
from detrkit.models.heads.panoptic import PanopticHead
from detrkit.models.positions import LearnedPositions, NoPositions, SinePositions
from detrkit.models.queries.sources import AnchorQueries, LearnedQueries, PointQueries, QueryPositionEncoding, mlp
from detrkit.models.queries.two_stage import TwoStageQueries
from detrkit.models.transformer import Decoder, DecoderLayer, Encoder, EncoderLayer, LayerShape

_FIRST_SIDES = -2.0  # logits of widths and heights around a point, as published for Deformable DETR: 0.12 of the photo


def assemble(config: ModelConfig) -> DETRComponents:
    """Build the parts, with random weights.

    Raises:
        ConfigError: the backbone is not what the rest asks for.
    """
    backbone = _backbone(config)
    shape = LayerShape(
        width=config.hidden_dim,
        num_heads=config.num_heads,
        dim_feedforward=config.dim_feedforward,
        dropout=config.dropout,
        pre_norm=config.pre_norm,
        activation=config.activation,
        num_feature_levels=config.num_feature_levels,
        num_points=config.num_points,
    )
    return DETRComponents(
        backbone=backbone,
        positions=_positions(config),
        encoder=_encoder(config, shape),
        decoder=_decoder(config, shape),
        heads=_heads(config),
        mask_head=PanopticHead(shape.width, shape.num_heads, backbone.channels[-2::-1]) if config.mask_head else None,
        input_projection=_input_projection(config, backbone.channels),
        query_source=build_query_source(config),
    )


def _backbone(config: ModelConfig) -> ResNetBackbone | TimmBackbone:
    build = TimmBackbone if config.backbone.startswith(TIMM) else ResNetBackbone
    backbone = build(
        config.backbone,  # type: ignore[arg-type]  # each gets a name of its own kind
        config.backbone_normalization,
        config.dilation,
        config.frozen_backbone_stages,
        config.in_channels,
    )
    if len(backbone.channels) < config.num_backbone_levels:
        raise ConfigError(
            f"backbone {config.backbone}: hands over {len(backbone.channels)} feature maps, "
            f"num_feature_levels={config.num_feature_levels} "
            f"takes {config.num_backbone_levels}; choose fewer levels or another backbone"
        )
    expected = config.strides[: config.num_backbone_levels]
    if config.align_cells and backbone.strides[-len(expected) :] != expected:
        raise ConfigError(
            f"backbone {config.backbone}: found maps with a cell every {_listed(backbone.strides)} pixels, align_cells "
            f"expected {_listed(expected)} of the last; set align_cells=false or choose another backbone"
        )
    return backbone


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _positions(config: ModelConfig) -> SinePositions | LearnedPositions | NoPositions:
    encoding = _position_encoding(config)
    if not config.encoder_layers and config.decoder == "deformable":
        # only an encoder would read them; in several processes, a weight that learns must have a part in the losses
        encoding.requires_grad_(False)
    return encoding


def _position_encoding(config: ModelConfig) -> SinePositions | LearnedPositions | NoPositions:
    if config.position_embedding == "learned":
        return LearnedPositions(config.hidden_dim, config.max_position_embeddings)
    if config.position_embedding == "none":
        return NoPositions(config.hidden_dim)
    levels = config.num_feature_levels if config.has_pyramid else 0
    return SinePositions(config.hidden_dim, config.position_temperature, levels)


def _encoder(config: ModelConfig, shape: LayerShape) -> Encoder:
    layer = DeformableEncoderLayer if config.encoder == "deformable" else EncoderLayer
    width = config.hidden_dim
    position_scale = mlp(width, width, width) if config.scaled_positions else None
    if position_scale is not None and not config.encoder_layers:
        position_scale.requires_grad_(False)  # as in _positions
    return Encoder(
        [layer(shape) for _ in range(config.encoder_layers)],
        shape,
        config.encoder_positions,
        position_scale,
    )


def _decoder(config: ModelConfig, shape: LayerShape) -> Decoder:
    is_conditional = config.decoder == "conditional"
    layers: list[DecoderLayer] = []
    for number in range(config.decoder_layers):
        if is_conditional:
            layers.append(ConditionalDecoderLayer(shape, is_first=number == 0))
        else:
            layers.append((DeformableDecoderLayer if config.decoder == "deformable" else DecoderLayer)(shape))
    # Deformable DETR's decoder, as published, reads the layers themselves, which end with a norm
    has_norm = config.decoder != "deformable" or config.pre_norm
    guide = QueryPositionEncoding(
        config.hidden_dim, has_anchors=config.queries == "anchors", is_conditional=is_conditional
    )
    if guide.content_scale is not None and config.decoder_layers == 1:
        guide.content_scale.requires_grad_(False)  # it scales what further layers ask by; and as in _positions
    return Decoder(
        layers,
        nn.LayerNorm(config.hidden_dim) if has_norm else nn.Identity(),
        guide,
        positions_at=config.decoder_positions,
        queries_at=config.query_positions,
        refines=config.with_box_refine,
        learns_through_references=is_conditional,
    )


def _heads(config: ModelConfig) -> Heads:
    count = config.decoder_layers if config.layerwise_heads else 1
    has_references = config.queries != "learned"
    class_heads = [ClassHead(config.hidden_dim, config.num_classes, config.class_scores) for _ in range(count)]
    box_heads = [BoxHead(config.hidden_dim, starts_at_zero=has_references) for _ in range(count)]
    if config.queries == "points" and config.decoder == "deformable":
        with torch.no_grad():
            box_heads[0].last.bias[2:] = _FIRST_SIDES
    return Heads(class_heads, box_heads)


def _input_projection(config: ModelConfig, channels: tuple[int, ...]) -> LastMapProjection | PyramidProjection:
    if not config.has_pyramid:
        return LastMapProjection(channels, config.hidden_dim)
    return PyramidProjection(channels[-config.num_backbone_levels :], config.hidden_dim, config.num_feature_levels)


def build_query_source(config: ModelConfig) -> LearnedQueries | PointQueries | AnchorQueries | TwoStageQueries:
    """Build what object queries start from."""
    if config.queries == "points":
        with_content = config.decoder == "deformable"
        return PointQueries(config.num_queries, config.hidden_dim, with_content=with_content)
    if config.queries == "anchors":
        return AnchorQueries(config.num_queries, config.hidden_dim)
    if config.queries == "two_stage":
        from_cells = config.two_stage_content == "memory"
        return TwoStageQueries(config.num_queries, config.hidden_dim, config.num_classes, from_cells=from_cells)
    return LearnedQueries(config.num_queries, config.hidden_dim)
