"""Configuration of a model: everything that determines its architecture. Importing this module does not import torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

ResNetName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet-tiny"]
ResNetVdName = Literal["resnet18-vd", "resnet34-vd", "resnet50-vd", "resnet101-vd"]
HGNetName = Literal[
    "hgnetv2-atto",
    "hgnetv2-femto",
    "hgnetv2-pico",
    "hgnetv2-b0",
    "hgnetv2-b1",
    "hgnetv2-b2",
    "hgnetv2-b3",
    "hgnetv2-b4",
    "hgnetv2-b5",
    "hgnetv2-b6",
]
ViTName = Literal["vit-tiny", "vit-small", "vit-base", "dinov2-small", "dinov2-base"]
BackboneName = ResNetName | ResNetVdName | HGNetName | ViTName
TIMM = "timm:"  # prefix of the names of timm's backbones
Normalization = Literal["frozen", "batch"]
PositionInjection = Literal["attention", "input", "none"]  # where position encodings are added (paper, table 3)
EncoderName = Literal["dense", "deformable", "hybrid"]
FusionBlockName = Literal["csp_rep", "rep_ncsp_elan", "rep_ncsp_elan_sum", "lite"]
QueryName = Literal["learned", "points", "anchors", "two_stage", "selected", "mixed"]
DecoderName = Literal["dense", "conditional", "deformable", "fine_grained"]
SamplingName = Literal["bilinear", "discrete"]
_THREE_STAGES = ("resnet-tiny", "hgnetv2-atto", "hgnetv2-femto", "hgnetv2-pico")
_PUBLISHED_SIDES = {"hgnetv2-atto": 320, "hgnetv2-femto": 416}
_AFFINE_HGNETS = ("atto", "femto", "pico", "b0", "b1", "b2", "b3")  # as published
_MAX_BACKBONE_LEVELS = 3  # feature maps taken from the backbone; coarser ones are computed from the last
# of the feature maps that are computed from those of a ViT, by their number: cells per cell of the ViT, finest first
PROJECTOR_SCALES: dict[int, tuple[float, ...]] = {1: (1.0,), 2: (2.0, 0.5), 3: (2.0, 1.0, 0.5)}
_Layers = tuple[Annotated[int, Field(ge=0, le=100)], ...]


class ModelConfig(BaseModel):
    """Architecture of a model. The defaults are the published DETR with ResNet-50.

    Raises:
        ConfigError: fields contradict each other, see `config.model_validation.check_model`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_classes: int = Field(
        91, ge=1, le=100_000, description='classes, without "no object" (91: raw category ids of COCO)'
    )
    num_queries: int = Field(100, ge=1, le=100_000, description="object queries: maximum of objects per image")
    backbone: BackboneName | Annotated[str, StringConstraints(pattern=r"^timm:[\w.-]+$", max_length=100)] = Field(
        "resnet50",
        description="ResNet, ResNet-vd, HGNetV2, ViT (LW-DETR: vit-..., RF-DETR: dinov2-...), or timm:NAME for a model of "
        "the timm library",
    )
    in_channels: int = Field(3, ge=1, le=1000, description="image channels: 3 for RGB, 1 for grey")
    backbone_normalization: Normalization = Field(
        "frozen", description="batch norm: 'frozen' for pretrained weights, 'batch' for training from scratch"
    )
    frozen_backbone_stages: int = Field(
        2, ge=0, le=5, description="stages of the backbone that are never trained: 1 is the stem, 2 adds layer1"
    )
    learnable_affine_block: bool | None = Field(
        None,
        description="HGNetV2: learned scale and bias after every activation; omitted: in Atto to B3, as published",
    )
    dilation: bool = Field(
        False, description="dilate the last stage instead of striding (DC5): stride 16 instead of 32; tiny: 8"
    )
    backbone_layers: int = Field(12, ge=1, le=100, description="ViT: blocks (LW-DETR: 6 or 10)")
    patch_size: int = Field(16, ge=2, le=64, description="ViT: side of the patches in pixels, the stride of its maps")
    num_windows: int = Field(
        1,
        ge=1,
        le=16,
        description="ViT: windows per side in blocks without global attention; sides of images are multiples of "
        "patch_size x num_windows",
    )
    global_layers: _Layers = Field(
        (),
        description="ViT: blocks, counted from 0, in which all windows attend to each other; the others attend within",
    )
    out_layers: _Layers = Field(
        (12,), min_length=1, description="ViT: features are taken after that many blocks, and concatenated"
    )
    position_grid: int = Field(
        14, ge=1, le=512, description="ViT: rows and columns of its learned positions, interpolated for other sizes"
    )
    num_register_tokens: int = Field(0, ge=0, le=64, description="DINOv2: learned tokens besides the class token")
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="ViT: stochastic depth of the last block in training, linearly from 0 at the first"
    )
    projector_norm: Literal["batch", "layer"] = Field(
        "batch", description="ViT: norm of the convolutions that compute feature maps from it (LW-DETR, RF-DETR)"
    )
    position_embedding: Literal["sine", "learned", "none"] = Field("sine", description="position encoding of the cells")
    encoder_positions: PositionInjection = Field(
        "attention", description="where the encoder adds positions: at every attention, once to its input, or nowhere"
    )
    decoder_positions: PositionInjection = Field(
        "attention", description="where the decoder adds positions to the memory: as encoder_positions"
    )
    query_positions: Literal["attention", "input"] = Field(
        "attention", description="where learned queries are added: at every attention, or once to the decoder's input"
    )
    max_position_embeddings: int = Field(
        50, ge=1, le=10_000, description="rows and columns of learned positions: maximum size of the feature map"
    )
    hidden_dim: int = Field(256, ge=4, le=16_384, description="width of the transformer")
    num_heads: int = Field(8, ge=1, description="attention heads")
    cross_attention_heads: int | None = Field(
        None, ge=1, description="heads of deformable cross-attention (LW-DETR, RF-DETR); omitted: num_heads"
    )
    encoder_layers: int = Field(6, ge=0, le=100, description="encoder layers")
    decoder_layers: int = Field(6, ge=1, le=100, description="decoder layers")
    dim_feedforward: int = Field(2048, ge=1, le=100_000, description="hidden width of the feed-forward networks")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout of the transformer")
    pre_norm: bool = Field(False, description="layer norm before each sublayer instead of after it")
    activation: Literal["relu", "prelu", "silu"] = Field(
        "relu",
        description="activation of the feed-forward networks; silu (DEIM, DEIMv2, RT-DETRv4) is also that of the heads",
    )
    position_temperature: float = Field(
        10_000.0, gt=1, description="ratio of the longest to the shortest wavelength of sine positions (DAB-DETR: 20)"
    )
    scaled_positions: bool = Field(
        False, description="each encoder layer scales positions by a function of the features (DAB-DETR)"
    )
    encoder: EncoderName = Field(
        "dense",
        description="self-attention over all cells, or over sampling points (Deformable DETR); hybrid: over the cells of "
        "the coarsest map, then convolutions that fuse the maps (RT-DETR, D-FINE)",
    )
    encoder_dim: int | None = Field(None, ge=4, le=16_384, description="hybrid encoder: its width; omitted: hidden_dim")
    encoder_dim_feedforward: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="hybrid encoder: hidden width of its feed-forward networks; omitted: dim_feedforward",
    )
    attention_levels: int = Field(
        1, ge=1, le=3, description="hybrid encoder: feature maps with self-attention, counted from the coarsest"
    )
    fusion_block: FusionBlockName = Field(
        "csp_rep",
        description="hybrid encoder: blocks that fuse two maps, of RT-DETR (CSPRepLayer) or D-FINE (RepNCSPELAN4, SCDown); "
        "rep_ncsp_elan_sum: of the sum of two maps (DEIMv2-N); lite: likewise, of the backbone's last map and one that is "
        "pooled from it (DEIMv2-Atto to -Pico)",
    )
    fusion_depth: int = Field(3, ge=1, le=100, description="hybrid encoder: RepVGG blocks per CSP layer")
    fusion_expansion: float = Field(
        1.0, gt=0, le=8, description="hybrid encoder: inner width of the fusing blocks, relative to encoder_dim"
    )
    memory_projection: bool = Field(
        False,
        description="hybrid encoder: project its maps once more for the decoder (RT-DETR); always if encoder_dim is not "
        "hidden_dim",
    )
    distillation_dim: int | None = Field(
        None,
        ge=1,
        le=16_384,
        description="hybrid encoder: outputs of the projection that RT-DETRv4 distils a teacher with; kept for conversion, "
        "not trained",
    )
    decoder: DecoderName = Field(
        "dense",
        description="cross-attention of the decoder: as in DETR, with separate content and positions (Conditional DETR), "
        "or over sampling points (Deformable DETR, RT-DETR); fine_grained: also over sampling points, with edges of boxes "
        "refined as distributions (D-FINE, DEIMv2)",
    )
    eval_decoder_layers: int | None = Field(
        None,
        ge=1,
        le=100,
        description="decoder layers that are run for predictions, as the first 3 of 6 in RT-DETR-R50-M; omitted: all",
    )
    num_feature_levels: int = Field(
        1, ge=1, le=8, description="feature maps of the transformer, each half the size of the previous one"
    )
    num_points: int = Field(
        4, ge=1, le=64, description="sampling points of deformable attention per head and feature map"
    )
    points_per_level: tuple[Annotated[int, Field(ge=1, le=64)], ...] | None = Field(
        None,
        description="sampling points on each feature map, finest first (D-FINE: 3 6 3); omitted: num_points on each",
    )
    sampling: SamplingName = Field(
        "bilinear",
        description="values at sampling points: interpolated between cells, or of the nearest cell (RT-DETRv2's discrete "
        "sampling, for hardware without interpolation; offsets are not trained with it)",
    )
    align_cells: bool = Field(
        False,
        description="cells of deformable attention and proposals are where their pixels are; false places them evenly over "
        "the image, as published: off by half a cell, and up to a cell if sides are no multiples of the stride",
    )
    queries: QueryName = Field(
        "learned",
        description="object queries: learned embeddings (DETR), embeddings with reference points (Conditional, Deformable "
        "DETR), learned anchor boxes (DAB-DETR), or the encoder's best boxes (two-stage Deformable DETR); selected: the "
        "encoder's best boxes, with the memory of their cells as content (RT-DETR, D-FINE); mixed: with learned content, "
        "and boxes relative to them in all layers (LW-DETR, RF-DETR)",
    )
    group_detr: int = Field(
        1,
        ge=1,
        le=100,
        description="groups of mixed queries in training, each matched with all objects; the first is used for predictions",
    )
    two_stage_content: Literal["box", "memory"] = Field(
        "box",
        description="content of two-stage queries: sine encoding of the box, as published, or also the memory of its cell "
        "and a learned embedding of its rank, which distinguishes queries of one object",
    )
    query_position_layers: int = Field(
        2, ge=2, le=3, description="layers that encode the boxes of selected queries as positions (DEIM's RT-DETRv2: 3)"
    )
    with_box_refine: bool = Field(False, description="each decoder layer refines the boxes of the previous one")
    layerwise_heads: bool = Field(False, description="separate class and box heads for every decoder layer")
    class_scores: Literal["softmax", "sigmoid"] = Field(
        "softmax", description='scores over all classes and "no object", or of every class independently'
    )
    reg_max: int = Field(
        32,
        ge=6,
        le=256,
        multiple_of=2,
        description="intervals of the distances of edges, with the fine_grained decoder",
    )
    reg_scale: float = Field(
        4.0,
        gt=0,
        le=100,
        description="unit of the distances of edges is the size of the box divided by it, with the fine_grained decoder",
    )
    decoder_norm: Literal["layer", "rms"] = Field(
        "layer", description="norms of the fine_grained decoder: layer norm (D-FINE) or RMS norm (DEIMv2)"
    )
    decoder_feed_forward: Literal["mlp", "swiglu"] = Field(
        "mlp",
        description="feed-forward networks of the fine_grained decoder: two layers (D-FINE), or gated (DEIMv2): half of "
        "dim_feedforward are gates",
    )
    cross_attention_gate: bool = Field(
        True,
        description="fine_grained decoder: gate instead of the residual connection of cross-attention; none in DEIMv2-Atto "
        "to -Pico",
    )
    shared_box_head: bool = Field(
        False, description="fine_grained decoder: one box head for all layers (DEIMv2-Atto to -Pico)"
    )
    layerwise_query_positions: bool = Field(
        True,
        description="fine_grained decoder: positions of the queries follow the boxes of every layer (D-FINE); false keeps "
        "those of the selected boxes (DEIMv2)",
    )
    selection_projection: bool = Field(
        True, description="selected queries: project and normalise the memory first (RT-DETR, D-FINE); DEIMv2 does not"
    )
    max_detections: int = Field(
        100, ge=1, le=100_000, description="detections per image with sigmoid scores: best pairs of query and class"
    )
    mask_head: bool = Field(
        False,
        description="predict a mask for every query: from its attention to the memory (DETR); of mixed queries, as a "
        "product with the features of cells (RF-DETR)",
    )

    @property
    def has_published_backbone(self) -> bool:
        """True if the backbone is one of the published code's and Hugging Face's."""
        if self.is_vit:
            return True
        if self.is_hybrid:
            return self.backbone.endswith("-vd") or self.backbone.startswith("hgnetv2-")
        return self.backbone in ("resnet18", "resnet34", "resnet50", "resnet101")

    @property
    def supports_padding_invariance(self) -> bool:
        """True if padding can be excluded from the backbone, so that an image's features do not depend on its batch."""
        return not self.backbone.startswith(TIMM) and not self.is_vit

    @property
    def is_vit(self) -> bool:
        """True if the backbone is a ViT, from whose maps of one stride a projector computes those of the transformer."""
        return self.backbone.startswith(("vit-", "dinov2-"))

    @property
    def size_divisor(self) -> int:
        """Sides of images must be multiples of it, in pixels."""
        return self.patch_size * self.num_windows if self.is_vit else 1

    @property
    def published_side(self) -> int | None:
        """Side in pixels of the square images that published weights of the architecture expect; None if not square."""
        if self.is_vit:
            if self.backbone.startswith("vit-"):
                return 640
            divisor = self.size_divisor  # DINOv2's own grid of positions need not fit the windows
            return -(-self.position_grid * self.patch_size // divisor) * divisor
        return _PUBLISHED_SIDES.get(self.backbone, 640) if self.is_hybrid else None

    @property
    def published_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the images that published speeds and FLOPs are for."""
        side = self.published_side
        return (800, 1066) if side is None else (side, side)

    @property
    def has_published_positions(self) -> bool:
        """True if positions are added where the published code and Hugging Face's add them."""
        return self.position_embedding != "none" and self.position_injections == {"attention"}

    @property
    def position_injections(self) -> set[PositionInjection]:
        """Values of `encoder_positions`, `decoder_positions` and `query_positions`."""
        return {self.encoder_positions, self.decoder_positions, self.query_positions}

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each feature map of the transformer, finest first."""
        if self.is_vit:
            return tuple(int(self.patch_size / scale) for scale in PROJECTOR_SCALES[self.num_feature_levels])
        stages = [4, 8, 16] if self.backbone in _THREE_STAGES else [4, 8, 16, 32]
        if self.dilation:
            stages[-1] = stages[-2]
        strides = stages[-self.num_backbone_levels :]
        while len(strides) < self.num_feature_levels:
            strides.append(2 * strides[-1])
        return tuple(strides)

    @property
    def stride(self) -> int:
        """Pixels per cell of the finest feature map of the transformer."""
        return self.strides[0]

    @property
    def num_backbone_levels(self) -> int:
        """Number of feature maps that are taken from the backbone; of a ViT, of those that are computed from them."""
        return 1 if self.fusion_block == "lite" else min(self.num_feature_levels, _MAX_BACKBONE_LEVELS)

    @property
    def has_panoptic_head(self) -> bool:
        """True if masks are computed from attention maps and the backbone's feature maps, as in DETR."""
        return self.mask_head and self.queries != "mixed"

    @property
    def is_deformable(self) -> bool:
        """True if the encoder or the decoder has deformable attention."""
        return self.encoder == "deformable" or self.has_deformable_decoder

    @property
    def has_deformable_decoder(self) -> bool:
        """True if the decoder has deformable attention."""
        return self.decoder in ("deformable", "fine_grained")

    @property
    def has_encoder_queries(self) -> bool:
        """True if queries start from boxes that the encoder predicts, so that they differ between images."""
        return self.queries in ("two_stage", "selected", "mixed")

    @property
    def sampling_points(self) -> tuple[int, ...]:
        """Sampling points of deformable attention per head on each feature map."""
        return self.points_per_level or (self.num_points,) * self.num_feature_levels

    @property
    def is_multi_scale(self) -> bool:
        """True if feature maps are projected, normalised and identified by level embeddings, as in Deformable DETR."""
        return (self.is_deformable or self.num_feature_levels > 1) and not self.is_hybrid and not self.is_vit

    @property
    def is_hybrid(self) -> bool:
        """True if the encoder is the hybrid one, which has its own width and position encoding."""
        return self.encoder == "hybrid"

    @property
    def encoder_width(self) -> int:
        """Width of the encoder."""
        return self.encoder_dim or self.hidden_dim

    @property
    def has_memory_projection(self) -> bool:
        """True if the hybrid encoder projects its maps once more, to `hidden_dim`."""
        return self.is_hybrid and (self.memory_projection or self.encoder_width != self.hidden_dim)

    @property
    def has_learnable_affine_block(self) -> bool:
        """True if the backbone is an HGNetV2 with a learned scale and bias after every activation."""
        if self.learnable_affine_block is None:
            return self.backbone.removeprefix("hgnetv2-") in _AFFINE_HGNETS
        return self.learnable_affine_block

    @property
    def detections_per_image(self) -> int:
        """Number of detections that postprocessing returns per image."""
        if self.class_scores == "softmax":
            return self.num_queries
        return min(self.max_detections, self.num_queries * self.num_classes)

    @model_validator(mode="after")
    def _check(self) -> "ModelConfig":
        from detrkit.config.model_validation import check_model  # which imports this module

        check_model(self)
        return self
