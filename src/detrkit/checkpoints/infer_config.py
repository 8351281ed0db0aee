"""Model configuration from weights.

What the weights do not show gets its published value unless given: the number of heads, dropout, and dilation (a DC5
model has the same tensors as its undilated twin).
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.adapt import HGNET_STEM, RESNET_STEM, RESNET_VD_STEM, VIT_STEM
from detrkit.checkpoints.conversion.architectures import ARCHITECTURES, architecture_of_names
from detrkit.checkpoints.conversion.foundation_fields import vit_name
from detrkit.config.model import ModelConfig
from detrkit.errors import CheckpointError, ConfigError
from detrkit.models.backbones import hgnet, resnet
from detrkit.models.backbones.residual_blocks import Bottleneck

# (number of blocks in each stage, whether they are bottlenecks, whether the stem has three convolutions)
_RESNETS = {
    (variant.depths, variant.block is Bottleneck, name.endswith("-vd")): name
    for name, variant in resnet.VARIANTS.items()
}
# (widths at the begin and end of the stem, channels and blocks of the stages, size of the filters of light convolutions)
_HGNETS = {
    (variant.stem, variant.channels, variant.depths, variant.light_kernel_size): name
    for name, variant in hgnet.VARIANTS.items()
}


def infer_config(state: Mapping[str, Tensor], **known: Any) -> ModelConfig:
    """Infer the configuration of a model from its weights.

    Args:
        state: weights in detrkit's names.
        known: fields of `ModelConfig` that are known from elsewhere.

    Raises:
        CheckpointError: the weights are not a DETR's.
    """
    traits = ARCHITECTURES[architecture_of_names(state)]
    try:
        class_rows, hidden_dim = _class_head(state).shape
        dim_feedforward = state["decoder.layers.0.feed_forward.expand.weight"].shape[0]
        backbone, in_channels = _backbone(state)
        fields = {**traits.fields, **traits.fields_from_weights(state, known.get("num_heads", 8))}
    except KeyError as error:
        raise CheckpointError(
            f"checkpoint: has no entry {error}, which every DETR has; is it a checkpoint of another model?"
        ) from None
    is_softmax = fields.get("class_scores", "softmax") == "softmax"  # one row is "no object"
    table = state.get("neck.positions.rows.weight")
    inferred: dict[str, Any] = {
        "num_classes": class_rows - is_softmax,
        "hidden_dim": hidden_dim,
        "dim_feedforward": dim_feedforward,
        "encoder_layers": _count(state, "encoder.layers"),
        "decoder_layers": _count(state, "decoder.layers"),
        "pre_norm": "encoder.norm.weight" in state,
        "mask_head": any(name.startswith("mask_head.") for name in state),
        "position_embedding": "sine" if table is None else "learned",
        "max_position_embeddings": 50 if table is None else table.shape[0],
        "backbone": backbone,
        "in_channels": in_channels,
        **traits.fields_from_backbone(backbone),
        **fields,
    }
    try:
        return ModelConfig.model_validate({**inferred, **known})
    except (ValueError, ConfigError) as error:
        raise CheckpointError(f"checkpoint: its shape is not that of a DETR ({error})") from None


def _class_head(state: Mapping[str, Tensor]) -> Tensor:
    name = "heads.class_head.0.weight"
    return state[name if name in state else "heads.class_head.weight"]


def _count(state: Mapping[str, Tensor], layers: str) -> int:
    pattern = re.compile(re.escape(layers) + r"\.(\d+)\.")
    return len({match[1] for name in state if (match := pattern.match(name))})


def _backbone(state: Mapping[str, Tensor]) -> tuple[str, int]:
    """Return the name of the backbone, and its input channels."""
    if (vit := vit_name(state)) is not None:
        return vit, state[VIT_STEM].shape[1]
    if (stem := state.get(HGNET_STEM)) is not None:
        return _hgnet(state), stem.shape[1]
    vd_stem = state.get(RESNET_VD_STEM)
    stem = state[RESNET_STEM] if vd_stem is None else vd_stem
    stages = sum(f"backbone.body.layer{stage}.0.conv1.weight" in state for stage in range(1, 5))
    blocks = tuple(_count(state, f"backbone.body.layer{stage}") for stage in range(1, stages + 1))
    name = _RESNETS.get((blocks, "backbone.body.layer1.0.conv3.weight" in state, vd_stem is not None))
    if name is None:
        raise CheckpointError(
            f"checkpoint: its backbone has {blocks} blocks per stage, expected those of ResNet-18, 34, 50 or 101"
        )
    return name, stem.shape[1]


def _hgnet(state: Mapping[str, Tensor]) -> str:
    first, last = (state[f"backbone.body.stem.stem{part}.convolution.weight"].shape[0] for part in (1, 4))
    stages = [f"backbone.body.stages.{stage}" for stage in range(_count(state, "backbone.body.stages"))]
    channels = tuple(state[f"{one}.blocks.0.aggregation.1.convolution.weight"].shape[0] for one in stages)
    depths = tuple(_count(state, f"{one}.blocks") for one in stages)
    kernel_size = state["backbone.body.stages.2.blocks.0.layers.0.depthwise.convolution.weight"].shape[-1]
    name = _HGNETS.get(((first, last), channels, depths, kernel_size))
    if name is None:
        raise CheckpointError(
            f"checkpoint: its HGNetV2 has a stem of widths {first, last} and {depths} blocks per stage, expected one of "
            "Atto, Femto, Pico and B0 to B6"
        )
    return name
