"""Build a model from a config: the only place where its settings choose the parts.

To add a part, write its module, add its name to the setting's `Literal` in `config.model`, and a line to a table below.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from detrkit.config.model import PROJECTOR_SCALES, TIMM, ModelConfig, Normalization, ViTName
from detrkit.errors import ConfigError, arg
from detrkit.models.backbones.hgnet import HGNetBackbone
from detrkit.models.backbones.resnet import ResNetBackbone
from detrkit.models.backbones.resnet_vd import ResNetVdBackbone
from detrkit.models.backbones.timm import TimmBackbone
from detrkit.models.backbones.vit import ViTBackbone, ViTLayout
from detrkit.models.decoders.conditional import ConditionalDecoderLayer
from detrkit.models.decoders.deformable import DeformableDecoderLayer
from detrkit.models.decoders.fine_grained import FineGrainedDecoder, FineGrainedDecoderLayer
from detrkit.models.decoders.fixed_reference import FixedReferenceDecoder
from detrkit.models.decoders.transformer import DecoderLayer, TransformerDecoder
from detrkit.models.detr import DETR
from detrkit.models.encoders.deformable import DeformableEncoderLayer
from detrkit.models.encoders.hybrid import HybridEncoder
from detrkit.models.encoders.transformer import EncoderLayer, TransformerEncoder
from detrkit.models.heads.detection import BoxHead, ClassHead, DetectionHeads
from detrkit.models.heads.dot_product import DotProductMaskHead
from detrkit.models.heads.fine_grained import DistanceBins, FineGrainedHeads, QualityHead
from detrkit.models.heads.panoptic import PanopticHead
from detrkit.models.heads.relative_boxes import RelativeBoxHeads
from detrkit.models.layers import ActivationName, LayerConfig, mlp
from detrkit.models.neck import (
    MultiScaleProjection,
    Neck,
    NormalizedProjection,
    PooledProjection,
    SingleScaleProjection,
)
from detrkit.models.parts import Backbone, Decoder, DETRComponents, Encoder, QuerySource
from detrkit.models.positions import LearnedPositions, NoPositions, SinePositions
from detrkit.models.projector import ChannelLayerNorm, MultiScaleProjector
from detrkit.models.queries.mixed import MixedQueries
from detrkit.models.queries.position_encoding import BoxPositionEncoding, QueryPositionEncoding
from detrkit.models.queries.sources import AnchorQueries, LearnedQueries, PointQueries
from detrkit.models.queries.two_stage import SelectedQueries, TwoStageQueries

# initial logits of width and height of boxes around points, as published for Deformable DETR: 0.12 of the image
_INITIAL_SIZE_LOGIT = -2.0
_MAX_QUERY_POSITION = 10.0  # of D-FINE's query positions, as published
Positions = SinePositions | LearnedPositions | NoPositions


def model_from_config(config: ModelConfig) -> DETR:
    """Build a model with random weights.

    Raises:
        ConfigError: the backbone does not fit the other settings.
    """
    return DETR(build_components(config), config)


def model_without_memory(config: ModelConfig) -> DETR:
    """Build a model on the device "meta": shapes, but no weights.

    Raises:
        ConfigError: the backbone does not fit the other settings.
    """
    with torch.device("meta"), _NoRandomWeights():
        return model_from_config(config)


class _NoRandomWeights(TorchFunctionMode):
    """Skips drawing weights: on the device "meta", it does nothing but import torch's compiler, which takes seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Return the tensor that would be filled."""
        kwargs = kwargs or {}
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_, nn.init.normal_, nn.init.uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def build_components(config: ModelConfig) -> DETRComponents:
    """Build the parts of a model; raises as `model_from_config`."""
    # the order of construction decides the random weights that a seed gives
    backbone = _backbone(config)
    positions = _positions(config)
    encoder = ENCODERS[config.encoder](config)
    decoder = DECODERS[config.decoder](config)
    heads = _heads(config)
    mask_head = _mask_head(config, backbone) if config.mask_head else None
    neck = _neck(config, backbone, positions)
    return DETRComponents(backbone, neck, encoder, build_query_source(config), decoder, heads, mask_head)


def build_query_source(config: ModelConfig) -> QuerySource:
    """Build the source of the object queries."""
    return QUERY_SOURCES[config.queries](config)


def _backbone(config: ModelConfig) -> Backbone:
    kind = next(prefix for prefix in BACKBONES if re.fullmatch(prefix, config.backbone))
    backbone = BACKBONES[kind](config)
    num_levels = config.num_backbone_levels
    if config.is_vit:
        return backbone  # the projector computes all levels from its maps
    if len(backbone.channels) < num_levels:
        raise ConfigError(
            f"{arg('num_feature_levels', config.num_feature_levels)} needs {num_levels} feature maps, but "
            f"{arg('backbone', config.backbone)} has {len(backbone.channels)}. Choose fewer levels or another backbone."
        )
    expected = config.strides[:num_levels]
    if config.align_cells and backbone.strides[-num_levels:] != expected:
        raise ConfigError(
            f"{arg('align_cells', True)} needs feature maps of strides {_join(expected)}, but those of "
            f"{arg('backbone', config.backbone)} are {_join(backbone.strides)}. Set {arg('align_cells', False)}, or choose "
            "another backbone."
        )
    return backbone


def _join(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _positions(config: ModelConfig) -> Positions | None:
    if config.is_hybrid or config.is_vit:
        return None  # they have their own
    width = config.hidden_dim
    positions: Positions
    if config.position_embedding == "learned":
        positions = LearnedPositions(width, config.max_position_embeddings)
    elif config.position_embedding == "none":
        positions = NoPositions(width)
    else:
        num_levels = config.num_feature_levels if config.is_multi_scale else 0
        positions = SinePositions(width, config.position_temperature, num_levels)
    if not config.encoder_layers and config.has_deformable_decoder:
        # unused: only an encoder would read them, and DDP needs every trainable parameter to contribute to the loss
        positions.requires_grad_(False)
    return positions


def _neck(config: ModelConfig, backbone: Backbone, positions: Positions | None) -> Neck:
    num_levels = config.num_backbone_levels
    projection: SingleScaleProjection | MultiScaleProjection | NormalizedProjection | MultiScaleProjector
    channels = backbone.channels[-num_levels:]
    if config.is_vit:
        norm_layer = nn.BatchNorm2d if config.projector_norm == "batch" else ChannelLayerNorm
        scales = PROJECTOR_SCALES[config.num_feature_levels]
        projection = MultiScaleProjector(backbone.channels, config.hidden_dim, scales, norm_layer)
    elif config.fusion_block == "lite":
        projection = PooledProjection(channels[-1], config.encoder_width)
    elif config.is_hybrid:
        projection = NormalizedProjection(channels, config.encoder_width)
    elif config.is_multi_scale:
        projection = MultiScaleProjection(channels, config.hidden_dim, config.num_feature_levels)
    else:
        projection = SingleScaleProjection(backbone.channels, config.hidden_dim)
    if config.align_cells:
        centers = backbone.first_cell_centers[-num_levels:]
        # convolutions of the added maps pad alike on both sides: their first cell is that of the previous map
        centers = (*centers, *[centers[-1]] * (config.num_feature_levels - num_levels))
    else:  # evenly over the image, as published
        centers = tuple(stride / 2 for stride in config.strides)
    return Neck(
        projection,
        positions,
        strides=config.strides,
        first_cell_centers=centers,
        align_cells=config.align_cells,
        strides_match=config.is_vit or backbone.strides[-num_levels:] == config.strides[:num_levels],
    )


def _layer_config(config: ModelConfig) -> LayerConfig:
    return LayerConfig(
        width=config.hidden_dim,
        num_heads=config.num_heads,
        dim_feedforward=config.dim_feedforward,
        dropout=config.dropout,
        pre_norm=config.pre_norm,
        activation=config.activation,
        num_feature_levels=config.num_feature_levels,
        num_points=config.sampling_points,
        sampling=config.sampling,
        norm=config.decoder_norm,
        feed_forward=config.decoder_feed_forward,
        cross_attention_heads=config.cross_attention_heads,
    )


def _transformer_encoder(config: ModelConfig, layer: Callable[[LayerConfig], EncoderLayer]) -> TransformerEncoder:
    width = config.hidden_dim
    position_scale = mlp(width, width, width) if config.scaled_positions else None
    if position_scale is not None and not config.encoder_layers:
        position_scale.requires_grad_(False)  # unused
    return TransformerEncoder(
        [layer(_layer_config(config)) for _ in range(config.encoder_layers)],
        nn.LayerNorm(width) if config.pre_norm else nn.Identity(),  # post-norm layers end with a norm of their own
        config.encoder_positions,
        position_scale,
    )


def _hybrid_encoder(config: ModelConfig) -> HybridEncoder:
    width = config.encoder_width
    attention = replace(
        _layer_config(config),
        width=width,
        dim_feedforward=config.encoder_dim_feedforward or config.dim_feedforward,
        activation="gelu",
        norm="layer",
        feed_forward="mlp",
    )
    return HybridEncoder(
        attention,
        num_layers=config.encoder_layers,
        num_levels=config.num_feature_levels,
        attention_levels=config.attention_levels,
        fusion_block=config.fusion_block,
        fusion_depth=config.fusion_depth,
        fusion_expansion=config.fusion_expansion,
        out_channels=config.hidden_dim if config.has_memory_projection else None,
        distillation_dim=config.distillation_dim,
    )


def _transformer_decoder(
    config: ModelConfig,
    layer: Callable[[LayerConfig, int], DecoderLayer],
    *,
    has_norm: bool = True,
    build: type[TransformerDecoder] = TransformerDecoder,
) -> TransformerDecoder:
    return build(
        [layer(_layer_config(config), index) for index in range(config.decoder_layers)],
        nn.LayerNorm(config.hidden_dim) if has_norm else nn.Identity(),
        _query_positions(config),
        memory_injection=config.decoder_positions,
        query_injection=config.query_positions,
        with_box_refine=config.with_box_refine,
        look_forward_twice=config.decoder == "conditional" or config.queries == "selected",
        eval_layers=config.eval_decoder_layers,
    )


def _deformable_decoder(config: ModelConfig) -> TransformerDecoder:
    is_mixed = config.queries == "mixed"
    return _transformer_decoder(
        config,
        lambda layer, _: DeformableDecoderLayer(layer),
        # as published, Deformable DETR's heads read the layers' outputs, which end with a norm of their own
        has_norm=config.pre_norm or is_mixed,
        build=FixedReferenceDecoder if is_mixed else TransformerDecoder,
    )


def _query_positions(config: ModelConfig) -> QueryPositionEncoding | BoxPositionEncoding:
    if config.queries == "selected":
        max_value = _MAX_QUERY_POSITION if config.decoder == "fine_grained" else None
        return BoxPositionEncoding(
            config.hidden_dim,
            config.query_position_layers,
            _head_activation(config),
            max_value,
            per_layer=config.layerwise_query_positions,
        )
    is_conditional = config.decoder == "conditional"
    positions = QueryPositionEncoding(
        config.hidden_dim, has_anchors=config.queries in ("anchors", "mixed"), is_conditional=is_conditional
    )
    if positions.content_scale is not None and config.decoder_layers == 1:
        positions.content_scale.requires_grad_(False)  # unused: it scales the positions of further layers
    return positions


def _head_activation(config: ModelConfig) -> ActivationName:
    return "silu" if config.activation == "silu" else "relu"


def _heads(config: ModelConfig) -> DetectionHeads:
    count = config.decoder_layers if config.layerwise_heads else 1
    width, activation = config.hidden_dim, _head_activation(config)
    class_heads = [ClassHead(width, config.num_classes, config.class_scores) for _ in range(count)]
    if config.decoder == "fine_grained":
        num_outputs = 4 * (config.reg_max + 1)
        num_box_heads = 1 if config.shared_box_head else count
        return FineGrainedHeads(
            class_heads,
            [BoxHead(width, num_outputs, zero_init=True, activation=activation) for _ in range(num_box_heads)],
            [QualityHead(activation) for _ in range(count)],
            BoxHead(width, zero_init=True, activation=activation),
            DistanceBins(config.reg_max, config.reg_scale),
            config.detections_per_image,
        )
    has_references = config.queries != "learned"
    box_heads = [BoxHead(width, zero_init=has_references, activation=activation) for _ in range(count)]
    if config.queries == "points" and config.decoder == "deformable":
        with torch.no_grad():
            box_heads[0].last.bias[2:] = _INITIAL_SIZE_LOGIT
    build = RelativeBoxHeads if config.queries == "mixed" else DetectionHeads
    return build(class_heads, box_heads, config.class_scores, config.detections_per_image)


def _mask_head(config: ModelConfig, backbone: Backbone) -> PanopticHead | DotProductMaskHead:
    if config.queries == "mixed":
        return DotProductMaskHead(config.hidden_dim, config.decoder_layers)
    level = config.num_backbone_levels - 1
    return PanopticHead(config.hidden_dim, config.num_heads, backbone.channels[-2::-1], level)


def _two_stage(config: ModelConfig) -> TwoStageQueries:
    content_from_memory = config.two_stage_content == "memory"
    return TwoStageQueries(
        config.num_queries, config.hidden_dim, config.num_classes, content_from_memory=content_from_memory
    )


def _selected(config: ModelConfig) -> SelectedQueries:
    return SelectedQueries(
        config.num_queries,
        config.hidden_dim,
        config.num_classes,
        _head_activation(config),
        projected=config.selection_projection,
    )


def _mixed(config: ModelConfig) -> MixedQueries:
    return MixedQueries(config.num_queries, config.hidden_dim, config.num_classes, config.group_detr)


def _points(config: ModelConfig) -> PointQueries:
    return PointQueries(config.num_queries, config.hidden_dim, with_content=config.decoder == "deformable")


def _residual_backbone(
    build: Callable[[str, Normalization, bool, int, int], Backbone], config: ModelConfig
) -> Backbone:
    return build(
        config.backbone,
        config.backbone_normalization,
        config.dilation,
        config.frozen_backbone_stages,
        config.in_channels,
    )


def _hgnet(config: ModelConfig) -> HGNetBackbone:
    return HGNetBackbone(
        config.backbone,
        config.backbone_normalization,
        config.frozen_backbone_stages,
        config.in_channels,
        affine=config.has_learnable_affine_block,
    )


def _vit(config: ModelConfig) -> ViTBackbone:
    layout = ViTLayout(**{field.name: getattr(config, field.name) for field in fields(ViTLayout)})
    return ViTBackbone(cast(ViTName, config.backbone), layout, config.frozen_backbone_stages, config.in_channels)


# by patterns of their names
BACKBONES: Mapping[str, Callable[[ModelConfig], Backbone]] = {
    f"{TIMM}.*": partial(_residual_backbone, TimmBackbone),
    "hgnetv2-.*": _hgnet,
    "resnet.*-vd": partial(_residual_backbone, ResNetVdBackbone),
    "resnet.*": partial(_residual_backbone, ResNetBackbone),
    "(vit|dinov2)-.*": _vit,
}
ENCODERS: Mapping[str, Callable[[ModelConfig], Encoder]] = {
    "dense": lambda config: _transformer_encoder(config, EncoderLayer),
    "deformable": lambda config: _transformer_encoder(config, DeformableEncoderLayer),
    "hybrid": _hybrid_encoder,
}
DECODERS: Mapping[str, Callable[[ModelConfig], Decoder]] = {
    "dense": lambda config: _transformer_decoder(config, lambda layer, _: DecoderLayer(layer)),
    "conditional": lambda config: _transformer_decoder(
        config, lambda layer, index: ConditionalDecoderLayer(layer, is_first=index == 0)
    ),
    "deformable": _deformable_decoder,
    "fine_grained": lambda config: _transformer_decoder(
        config,
        lambda layer, _: FineGrainedDecoderLayer(layer, gated=config.cross_attention_gate),
        has_norm=False,
        build=FineGrainedDecoder,
    ),
}
QUERY_SOURCES: Mapping[str, Callable[[ModelConfig], QuerySource]] = {
    "learned": lambda config: LearnedQueries(config.num_queries, config.hidden_dim),
    "points": _points,
    "anchors": lambda config: AnchorQueries(config.num_queries, config.hidden_dim),
    "two_stage": _two_stage,
    "selected": _selected,
    "mixed": _mixed,
}
