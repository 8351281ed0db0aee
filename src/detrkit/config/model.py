"""Everything that decides a model's shape, as one typed value. Light: reading it does not wait for torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

BackboneName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet-tiny"]
TIMM = "timm:"  # before the name of a backbone of the timm library
Normalization = Literal["frozen", "batch"]
PositionInjection = Literal["attention", "input", "none"]  # where positions are added (paper, table 3)
QueryKind = Literal["learned", "points", "anchors", "two_stage"]
DecoderName = Literal["dense", "conditional", "deformable"]
_MAX_BACKBONE_LEVELS = 3  # feature maps that a pyramid takes from the backbone; coarser ones are made from the last


class ModelConfig(BaseModel):
    """Everything that decides a model's shape. The defaults are the published DETR with ResNet-50."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_classes: int = Field(
        91, ge=1, le=100_000, description="classes, without no-object (91: COCO's raw category ids)"
    )
    num_queries: int = Field(100, ge=1, le=100_000, description="objects that can be found in one photo, at most")
    backbone: BackboneName | Annotated[str, StringConstraints(pattern=r"^timm:[\w.-]+$", max_length=100)] = Field(
        "resnet50", description="which ResNet reads the photo; or timm:NAME for one of the timm library"
    )
    in_channels: int = Field(3, ge=1, le=1000, description="of the photos: 3 for RGB, 1 for grey")
    backbone_normalization: Normalization = Field(
        "frozen", description="'frozen' for pretrained weights, 'batch' when trained from scratch"
    )
    frozen_backbone_stages: int = Field(
        2, ge=0, le=5, description="parts of the backbone never trained: 1 is the stem, 2 adds layer1 (as published)"
    )
    dilation: bool = Field(False, description="last stage keeps its input's stride: 16 instead of 32 (DC5); tiny: 8")
    position_embedding: Literal["sine", "learned", "none"] = Field("sine", description="how cells know where they are")
    encoder_positions: PositionInjection = Field(
        "attention", description="where cells' positions are added: at every attention, once at the input, or nowhere"
    )
    decoder_positions: PositionInjection = Field(
        "attention", description="alike, for the memory that the decoder reads"
    )
    query_positions: Literal["attention", "input"] = Field(
        "attention", description="where learned queries are added: at every attention, or once as the decoder's input"
    )
    max_position_embeddings: int = Field(
        50, ge=1, le=10_000, description="rows and columns that learned positions can tell apart"
    )
    hidden_dim: int = Field(256, ge=4, le=16_384, description="D, width of the transformer")
    num_heads: int = Field(8, ge=1, description="attention heads")
    encoder_layers: int = Field(6, ge=0, le=100, description="encoder layers")
    decoder_layers: int = Field(6, ge=1, le=100, description="decoder layers")
    dim_feedforward: int = Field(2048, ge=1, le=100_000, description="width inside the feed-forward networks")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout in the transformer, while training")
    pre_norm: bool = Field(False, description="layer norm before each sublayer instead of after it")
    activation: Literal["relu", "prelu"] = Field("relu", description="inside the feed-forward networks")
    position_temperature: float = Field(
        10_000.0, gt=1, description="ratio of the sine positions' longest and shortest wave (DAB-DETR: 20)"
    )
    scaled_positions: bool = Field(
        False, description="each encoder layer scales cells' positions by what the cells hold (DAB-DETR)"
    )
    encoder: Literal["dense", "deformable"] = Field(
        "dense", description="cells look at all cells, or at a few sampled points (Deformable DETR)"
    )
    decoder: DecoderName = Field(
        "dense",
        description="how queries look at the photo: as in DETR, with content and place apart (Conditional DETR), or at a "
        "few sampled points (Deformable DETR)",
    )
    num_feature_levels: int = Field(
        1, ge=1, le=8, description="feature maps that the transformer sees, each half the size"
    )
    num_points: int = Field(4, ge=1, le=64, description="of deformable attention, per head and feature map")
    align_cells: bool = Field(
        False,
        description="cells of deformable attention and proposals lie where their pixels are; false spreads them evenly "
        "over the photo, as published: off by half a cell, and up to a cell where sides are no multiples of the stride",
    )
    queries: QueryKind = Field(
        "learned",
        description="what queries start from: learned vectors (DETR), vectors that each have a point (Conditional, "
        "Deformable DETR), learned anchor boxes (DAB-DETR), or the encoder's best boxes (two-stage Deformable DETR)",
    )
    two_stage_content: Literal["box", "memory"] = Field(
        "box",
        description="what queries=two_stage hold at first: sines of the box, as published, or also what the cell held "
        "and a learned vector of their rank, which tells apart those that start from one object",
    )
    with_box_refine: bool = Field(False, description="each decoder layer starts from the boxes of the one before it")
    layerwise_heads: bool = Field(False, description="each decoder layer has class and box heads of its own")
    class_scores: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="one of K classes or no object, or a yes or no for every class"
    )
    max_detections: int = Field(
        100, ge=1, le=100_000, description="best pairs of query and class that make the answer, with sigmoid scores"
    )
    mask_head: bool = Field(False, description="predict a mask for every query")

    @property
    def has_published_backbone(self) -> bool:
        """Whether its backbone is one that the published code and Hugging Face's have."""
        return self.backbone in ("resnet18", "resnet34", "resnet50", "resnet101")

    @property
    def supports_padding_invariance(self) -> bool:
        """Whether padding can be kept out of its backbone, so that a photo's features do not depend on its batch."""
        return not self.backbone.startswith(TIMM)

    @property
    def has_published_positions(self) -> bool:
        """Whether positions are added where the published code and Hugging Face's add them."""
        return self.position_embedding != "none" and self.position_places == {"attention"}

    @property
    def position_places(self) -> set[PositionInjection]:
        """Where positions are added, of cells and of queries."""
        return {self.encoder_positions, self.decoder_positions, self.query_positions}

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each feature map that the transformer sees, finest first."""
        stages = [4, 8, 16] if self.backbone == "resnet-tiny" else [4, 8, 16, 32]
        if self.dilation:
            stages[-1] = stages[-2]
        strides = stages[-self.num_backbone_levels :]
        while len(strides) < self.num_feature_levels:
            strides.append(2 * strides[-1])
        return tuple(strides)

    @property
    def stride(self) -> int:
        """Pixels per cell of the finest feature map that the transformer sees."""
        return self.strides[0]

    @property
    def num_backbone_levels(self) -> int:
        """How many of the feature maps come straight from the backbone."""
        return min(self.num_feature_levels, _MAX_BACKBONE_LEVELS)

    @property
    def is_deformable(self) -> bool:
        """Whether any attention samples points instead of looking at all cells."""
        return "deformable" in (self.encoder, self.decoder)

    @property
    def is_multi_scale(self) -> bool:
        """Whether feature maps are projected, normalised and told apart one by one, as Deformable DETR does."""
        return self.is_deformable or self.num_feature_levels > 1

    @property
    def detections_per_image(self) -> int:
        """Objects that the answer for one photo can hold."""
        if self.class_scores == "softmax":
            return self.num_queries
        return min(self.max_detections, self.num_queries * self.num_classes)

    @model_validator(mode="after")
    def _widths_divide(self) -> "ModelConfig":
        if self.hidden_dim % self.num_heads or self.hidden_dim % 4:
            raise ValueError(f"hidden_dim={self.hidden_dim} must be a multiple of 4 and of num_heads={self.num_heads}")
        if self.dilation and self.backbone in ("resnet18", "resnet34"):
            raise ValueError(
                f"backbone {self.backbone!r} cannot be dilated, only resnet50, resnet101 and resnet-tiny can"
            )
        in_encoder = self.encoder_positions == "input" or (self.encoder_layers > 0 and self.encoder_positions != "none")
        if self.position_embedding == "learned" and not in_encoder and self.decoder_positions == "none":
            raise ValueError("learned positions that are added nowhere cannot be learned; set position_embedding=none")
        min_width = 64 if self.backbone == "resnet-tiny" else 128  # halved at every stage, down to groups of norms
        if self.mask_head and (self.hidden_dim % min_width or self.num_heads % 8):
            raise ValueError(
                f"the mask head of this backbone needs hidden_dim a multiple of {min_width} and num_heads of 8"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> "ModelConfig":
        for is_wrong, sentence in (
            (
                self.queries == "learned" and self.decoder != "dense",
                f"{self.decoder} cross-attention asks where a query is, and learned queries are nowhere; set "
                "queries=points or queries=anchors",
            ),
            (
                self.queries == "learned" and self.with_box_refine,
                "with_box_refine starts from a box, and learned queries have none; set queries=points or queries=anchors",
            ),
            (
                self.queries == "two_stage" and not self.with_box_refine,
                "queries=two_stage are boxes to be refined; set with_box_refine=true",
            ),
            (
                self.queries != "two_stage" and self.two_stage_content != "box",
                f"two_stage_content={self.two_stage_content} is for proposals; set queries=two_stage, or "
                "two_stage_content=box",
            ),
            (
                self.queries == "two_stage" and self.class_scores != "sigmoid",
                "queries=two_stage are chosen by a yes or no for every cell; set class_scores=sigmoid",
            ),
            (
                self.align_cells and not (self.is_deformable or self.queries == "two_stage"),
                "align_cells is for deformable attention and proposals; leave it out",
            ),
            (
                self.is_multi_scale and self.position_embedding != "sine",
                f"several feature maps, and deformable attention, need position_embedding=sine, found "
                f"{self.position_embedding!r}",
            ),
            (
                self.is_multi_scale and (self.hidden_dim % 32 != 0 or self.hidden_dim == 32),
                f"hidden_dim={self.hidden_dim} must be 64, 96, 128 and so on: feature maps are normalised in 32 groups",
            ),
            (
                (self.is_multi_scale or self.queries != "learned") and self.position_places != {"attention"},
                "positions elsewhere than at every attention work with dense attention and learned queries alone; leave "
                "encoder_positions, decoder_positions and query_positions out",
            ),
        ):
            if is_wrong:
                raise ValueError(sentence)
        return self
