"""Names of models, and how each is put together.

A preset is a `ModelConfig`; a variant is a preset with some fields changed.
"""

from typing import Any

from pydantic import ValidationError

from detrkit.errors import ConfigError, did_you_mean
from detrkit.models.backbone import ResNetBackbone
from detrkit.models.backbone_timm import TimmBackbone
from detrkit.models.config import TIMM, ModelConfig
from detrkit.models.detr import DETR, Parts
from detrkit.models.heads import Heads
from detrkit.models.panoptic import PanopticHead
from detrkit.models.positions import LearnedPositions, NoPositions, SinePositions
from detrkit.models.transformer import Decoder, Encoder


def _published(**changes: Any) -> dict[str, ModelConfig]:
    name = "detr-" + {"resnet50": "r50", "resnet101": "r101"}[changes["backbone"]]
    name += "-dc5" if changes.get("dilation") else ""
    return {
        name: ModelConfig(**changes),
        f"{name}-panoptic": ModelConfig(**changes, panoptic=True, num_classes=250),
    }


PRESETS: dict[str, ModelConfig] = {
    **_published(backbone="resnet50"),
    **_published(backbone="resnet50", dilation=True),
    **_published(backbone="resnet101"),
    **_published(backbone="resnet101", dilation=True),
    "detr-r18": ModelConfig(backbone="resnet18"),
    "detr-tiny": ModelConfig(
        backbone="resnet-tiny",
        backbone_normalization="batch",
        frozen_backbone_stages=0,
        dilation=True,
        num_queries=25,
        hidden_dim=128,
        encoder_layers=2,
        decoder_layers=3,
        feedforward_dim=512,
        dropout=0.0,
        pre_norm=True,
    ),
}


def preset_config(name: str, **overrides: Any) -> ModelConfig:
    """Look up a preset and change some of its fields.

    Raises:
        ConfigError: no such preset, no such field, or a value out of range.
    """
    if name not in PRESETS:
        raise ConfigError(f"model {name!r} is not a preset; {did_you_mean(name, PRESETS)}")
    for field in overrides:
        if field not in ModelConfig.model_fields:
            raise ConfigError(
                f"model setting {field!r} does not exist; {did_you_mean(field, ModelConfig.model_fields)}"
            )
    try:
        return ModelConfig.model_validate({**PRESETS[name].model_dump(), **overrides})
    except ValidationError as error:
        first = error.errors()[0]
        where = f"model setting {first['loc'][0]!r}: found {first['input']!r}, " if first["loc"] else "model settings: "
        raise ConfigError(where + first["msg"].removeprefix("Value error, ")) from None


def build_model(name: str, num_classes: int | None = None, **overrides: Any) -> DETR:
    """Build a model by the name of its preset, with random weights; nothing is downloaded.

    Args:
        name: "detr-r50", "detr-r50-dc5", "detr-r101", "detr-r101-dc5", each also with "-panoptic"; "detr-r18",
            "detr-tiny".
        num_classes: K, without no-object; None takes the preset's (91, or 250 for panoptic).
        overrides: fields of `ModelConfig`.

    Returns:
        The model in train mode. `model.config` is the resolved `ModelConfig`.

    Raises:
        ConfigError: no such preset, no such field, or a value out of range.
    """
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    return model_from_config(preset_config(name, **overrides))


def model_from_config(config: ModelConfig) -> DETR:
    """Put the parts together."""
    width = config.hidden_dim
    layer = (width, config.num_heads, config.feedforward_dim, config.dropout, config.pre_norm)
    build = TimmBackbone if config.backbone.startswith(TIMM) else ResNetBackbone
    backbone = build(
        config.backbone,  # type: ignore[arg-type]  # each gets a name of its own kind
        config.backbone_normalization,
        config.dilation,
        config.frozen_backbone_stages,
        config.in_channels,
    )
    parts = Parts(
        backbone=backbone,
        positions=_positions(config),
        encoder=Encoder(config.encoder_layers, *layer, config.encoder_positions),
        decoder=Decoder(config.decoder_layers, *layer, config.decoder_positions, config.query_positions),
        heads=Heads(width, config.num_classes),
        panoptic=PanopticHead(width, config.num_heads, backbone.channels[-2::-1]) if config.panoptic else None,
    )
    return DETR(parts, config)


def _positions(config: ModelConfig) -> SinePositions | LearnedPositions | NoPositions:
    if config.position_encoding == "learned":
        return LearnedPositions(config.hidden_dim, config.position_table_size)
    return SinePositions(config.hidden_dim) if config.position_encoding == "sine" else NoPositions(config.hidden_dim)
