"""Model configuration from weights.

What the weights do not show gets its published value unless given: the number of heads, dropout, and dilation (a DC5
model has the same tensors as its undilated twin).
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from detrkit.checkpoints.conversion.architectures import ARCHITECTURES, architecture_of_names
from detrkit.config.model import BackboneName, ModelConfig
from detrkit.errors import CheckpointError, ConfigError

# (number of blocks in each stage, whether they are bottlenecks)
_BACKBONES: dict[tuple[tuple[int, ...], bool], BackboneName] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((1, 1, 1), False): "resnet-tiny",
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
        in_channels = state["backbone.body.conv1.weight"].shape[1]
        fields = {**traits.fields, **traits.fields_from_weights(state, known.get("num_heads", 8))}
    except KeyError as error:
        raise CheckpointError(
            f"checkpoint: has no entry {error}, which every DETR has; is it a checkpoint of another model?"
        ) from None
    is_softmax = fields.get("class_scores", "softmax") == "softmax"  # one row is "no object"
    table = state.get("neck.positions.rows.weight")
    inferred: dict[str, Any] = {
        **fields,
        "num_classes": class_rows - is_softmax,
        "hidden_dim": hidden_dim,
        "dim_feedforward": dim_feedforward,
        "encoder_layers": _count(state, "encoder.layers"),
        "decoder_layers": _count(state, "decoder.layers"),
        "pre_norm": "encoder.norm.weight" in state,
        "mask_head": "mask_head.output.weight" in state,
        "position_embedding": "sine" if table is None else "learned",
        "max_position_embeddings": 50 if table is None else table.shape[0],
        "backbone": _backbone(state),
        "in_channels": in_channels,
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


def _backbone(state: Mapping[str, Tensor]) -> BackboneName:
    stages = sum(f"backbone.body.layer{stage}.0.conv1.weight" in state for stage in range(1, 5))
    blocks = tuple(_count(state, f"backbone.body.layer{stage}") for stage in range(1, stages + 1))
    is_bottleneck = "backbone.body.layer1.0.conv3.weight" in state
    if (blocks, is_bottleneck) not in _BACKBONES:
        raise CheckpointError(
            f"checkpoint: its backbone has {blocks} blocks per stage, expected those of ResNet-18, 34, 50 or 101"
        )
    return _BACKBONES[blocks, is_bottleneck]
