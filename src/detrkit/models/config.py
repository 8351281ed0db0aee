"""Everything that decides a model's shape, as one typed value. Light: reading it does not wait for torch."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

BackboneName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet-tiny"]
TIMM = "timm:"  # before the name of a backbone of the timm library
Normalization = Literal["frozen", "batch"]
Place = Literal["attention", "input", "none"]  # where positions are added (paper, table 3)


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
    position_encoding: Literal["sine", "learned", "none"] = Field("sine", description="how cells know where they are")
    encoder_positions: Place = Field(
        "attention", description="where cells' positions are added: at every attention, once at the input, or nowhere"
    )
    decoder_positions: Place = Field("attention", description="alike, for the memory that the decoder reads")
    query_positions: Literal["attention", "input"] = Field(
        "attention", description="where learned queries are added: at every attention, or once as the decoder's input"
    )
    position_table_size: int = Field(
        50, ge=1, le=10_000, description="rows and columns that learned positions can tell apart"
    )
    hidden_dim: int = Field(256, ge=4, le=16_384, description="D, width of the transformer")
    num_heads: int = Field(8, ge=1, description="attention heads")
    encoder_layers: int = Field(6, ge=0, le=100, description="encoder layers")
    decoder_layers: int = Field(6, ge=1, le=100, description="decoder layers")
    feedforward_dim: int = Field(2048, ge=1, le=100_000, description="width inside the feed-forward networks")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout in the transformer, while training")
    pre_norm: bool = Field(False, description="layer norm before each sublayer instead of after it")
    panoptic: bool = Field(False, description="with the mask head")

    @property
    def has_published_backbone(self) -> bool:
        """Whether its backbone is one that the published code and Hugging Face's have."""
        return self.backbone in ("resnet18", "resnet34", "resnet50", "resnet101")

    @property
    def has_published_positions(self) -> bool:
        """Whether positions are added where the published code and Hugging Face's add them."""
        places = (self.encoder_positions, self.decoder_positions, self.query_positions)
        return self.position_encoding != "none" and set(places) == {"attention"}

    @property
    def stride(self) -> int:
        """Pixels per cell of the feature map that the transformer sees."""
        return (16 if self.backbone == "resnet-tiny" else 32) // (2 if self.dilation else 1)

    @model_validator(mode="after")
    def _widths_divide(self) -> "ModelConfig":
        if self.hidden_dim % self.num_heads or self.hidden_dim % 4:
            raise ValueError(f"hidden_dim={self.hidden_dim} must be a multiple of 4 and of num_heads={self.num_heads}")
        if self.dilation and self.backbone in ("resnet18", "resnet34"):
            raise ValueError(
                f"backbone {self.backbone!r} cannot be dilated, only resnet50, resnet101 and resnet-tiny can"
            )
        if self.position_encoding == "learned" and self.encoder_positions == self.decoder_positions == "none":
            raise ValueError("learned positions that are added nowhere cannot be learned; set position_encoding=none")
        least_width = 64 if self.backbone == "resnet-tiny" else 128  # halved at every stage, down to groups of norms
        if self.panoptic and (self.hidden_dim % least_width or self.num_heads % 8):
            raise ValueError(
                f"the mask head of this backbone needs hidden_dim a multiple of {least_width} and num_heads of 8"
            )
        return self
