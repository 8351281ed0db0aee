"""Checkpoints as folders of Hugging Face's transformers: weights, ``config.json`` and ``preprocessor_config.json``."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from detrkit._internal.files import make_folder, write_tensors, write_text
from detrkit.checkpoints.conversion import table_transformer_huggingface
from detrkit.checkpoints.conversion.architectures import Architecture, architecture_of_config
from detrkit.checkpoints.conversion.detr_huggingface import resnet_config_fields
from detrkit.checkpoints.conversion.labels import read_categories
from detrkit.checkpoints.conversion.preprocessor import preprocessor_settings, read_preprocessing
from detrkit.checkpoints.conversion.registry import HUGGINGFACE, HuggingFaceConversion, huggingface_conversion
from detrkit.checkpoints.infer_config import infer_config
from detrkit.checkpoints.json_files import read_json
from detrkit.checkpoints.native import Checkpoint, Preprocessing, default_preprocessing
from detrkit.config.model import ModelConfig
from detrkit.data.categories import Categories
from detrkit.errors import CheckpointError, arg, short
from detrkit.models.heads.dot_product import MASK_STRIDE

_REALTIME_TYPES = tuple(HUGGINGFACE[name].MODEL_TYPE for name in ("rtdetr", "rtdetrv2", "dfine", "deimv2"))
_REALTIME_SETTINGS = {
    "activation_function": "silu",
    "encoder_activation_function": "gelu",
    "decoder_activation_function": "relu",
    "normalize_before": False,
    "learn_initial_query": False,
    "with_box_refine": True,
    "positional_encoding_temperature": 10000,
    "decoder_offset_scale": 0.5,
    "layer_scale": 1,
    "layer_norm_eps": 1e-5,
    "batch_norm_eps": 1e-5,
    "top_prob_values": 4,
    "lqe_hidden_dim": 64,
    "lqe_layers": 2,
    "encoder_fuse_op": "sum",
    "encoder_has_trailing_conv": True,
}
_FOUNDATION_TYPES = tuple(HUGGINGFACE[name].MODEL_TYPE for name in ("lwdetr", "rfdetr"))
_FOUNDATION_SETTINGS = {
    "activation_function": "silu",
    "decoder_activation_function": "relu",
    "hidden_expansion": 0.5,
    "c2f_num_blocks": 3,
    "batch_norm_eps": 1e-5,
    "mask_downsample_ratio": MASK_STRIDE,
    "segmentation_head_activation_function": "gelu",
}
_MASK_MODEL_CLASSES: dict[Architecture | None, str] = {
    "detr": "DetrForSegmentation",
    "rfdetr": "RfDetrForInstanceSegmentation",
}


@dataclass(frozen=True)
class HuggingFaceContent:
    """Content of a folder of Hugging Face.

    Attributes:
        state: weights in detrkit's names.
        fields: fields of `ModelConfig` that the weights do not show.
        categories: of the model; None if the folder does not name them.
        preprocessing: how images are prepared.
        notes: what a user should know of the names of the categories.
    """

    state: dict[str, Tensor]
    fields: dict[str, Any]
    categories: Categories | None
    preprocessing: Preprocessing
    notes: tuple[str, ...] = ()


def huggingface_to_detrkit(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename Hugging Face's entries, of files or live models and of any architecture, to detrkit's.

    Raises:
        CheckpointError: they are not Hugging Face's entries, or one has no counterpart.
    """
    conversion = huggingface_conversion(state)
    if conversion is None:
        first = next(iter(state), "none")
        raise CheckpointError(
            f"state_dict: has entries such as {first!r}, expected those of one of {', '.join(HUGGINGFACE)}"
        )
    return conversion.to_detrkit(state)


def read_huggingface(state: Mapping[str, Tensor], folder: Path) -> HuggingFaceContent | None:
    """Read a checkpoint of Hugging Face.

    Args:
        state: its weights.
        folder: holds ``config.json`` and ``preprocessor_config.json``; published values stand in for missing ones. Folders
            of the Trainer, named ``checkpoint-N``, may lack them; then those of their parent are read.

    Returns:
        The content, or None if the entries are not Hugging Face's.

    Raises:
        CheckpointError: an entry has no counterpart, or a JSON file is malformed or of another kind of model.
    """
    conversion = huggingface_conversion(state)
    if conversion is None:
        return None
    renamed = conversion.to_detrkit(state)
    fields: dict[str, Any] = {}
    categories: Categories | None = None
    notes: list[str] = []
    places = [folder, folder.parent] if folder.name.startswith("checkpoint-") else [folder]
    config_file = next((file for place in places if (file := place / "config.json").is_file()), None)
    if config_file is not None:
        content = _read_config(config_file, conversion)
        fields = conversion.fields_from_config(content)
    config = infer_config(renamed, **fields)
    if config_file is not None:
        categories, notes = read_categories(content, config.num_classes, config_file)
    preprocessing = read_preprocessing(folder, default_preprocessing(config))
    return HuggingFaceContent(renamed, fields, categories, preprocessing, tuple(notes))


def write_huggingface_folder(folder: Path, checkpoint: Checkpoint, native_backbone: bool = False) -> None:
    """Write a folder that `from_pretrained` of transformers reads, with the class that its config names.

    Labels are 0..K-1 there; the dataset's category ids are kept in ``config.json`` as "detrkit_category_ids".

    Args:
        folder: is created.
        checkpoint: to write.
        native_backbone: use Hugging Face's own ResNet instead of timm's.

    Raises:
        CheckpointError: Hugging Face has no such variant.
    """
    conversion = _conversion_for(checkpoint.config)
    _check_variant(checkpoint.config, native_backbone)
    make_folder(folder)
    tensors = conversion.from_detrkit(checkpoint.state, native_backbone)
    tensors |= conversion.computed_entries(checkpoint.config)
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_text(folder / "config.json", json.dumps(_config_json(checkpoint, native_backbone), indent=2))
    preprocessor = preprocessor_settings(checkpoint.preprocessing, conversion.IMAGE_PROCESSOR)
    write_text(folder / "preprocessor_config.json", json.dumps(preprocessor, indent=2))


def transformers_classes(config: ModelConfig) -> tuple[str, str]:
    """Return the names of the classes of transformers for the model and its image processor.

    Raises:
        CheckpointError: Hugging Face has no such architecture.
    """
    conversion = _conversion_for(config)
    name = _MASK_MODEL_CLASSES[architecture_of_config(config)] if config.mask_head else conversion.MODEL_CLASS
    return name, conversion.IMAGE_PROCESSOR


def fits_transformers(config: ModelConfig) -> bool:
    """Return whether a model can be saved as a folder that transformers loads, which detrkit's own presets cannot."""
    try:
        _conversion_for(config)
        _check_variant(config, native_backbone=False)
    except CheckpointError:
        return False
    return True


def _conversion_for(config: ModelConfig) -> HuggingFaceConversion:
    architecture = architecture_of_config(config)
    if architecture == "detr" and config.pre_norm and not config.mask_head:
        return table_transformer_huggingface
    if architecture is None or (config.mask_head and architecture not in _MASK_MODEL_CLASSES):
        part = "combination of attention, queries and heads" if architecture is None else "mask head"
        raise CheckpointError(
            f"the model's {part} is not supported by Hugging Face's architectures; use {arg('to', 'detrkit')}, which "
            "can be pushed to the hub with a model card, too"
        )
    return HUGGINGFACE[architecture]


def _check_variant(config: ModelConfig, native_backbone: bool) -> None:
    if config.is_hybrid:
        _check_realtime_variant(config)
        return
    if config.is_vit:
        _check_foundation_variant(config)
        return
    is_table_transformer = architecture_of_config(config) == "detr" and not config.mask_head
    unsupported = (
        (config.pre_norm and not is_table_transformer, "pre_norm", "official"),
        (not config.has_published_positions, "position encodings elsewhere than at every attention", "detrkit"),
        (not config.has_published_backbone, f"backbone {config.backbone!r}", "detrkit"),
        (config.backbone_normalization == "batch", "backbone_normalization 'batch'", "official"),
        (config.dilation and native_backbone, "dilation (DC5)", "huggingface"),
    )
    for is_used, name, format in unsupported:
        if is_used:
            backbone = " with its own ResNet" if native_backbone else ""
            raise CheckpointError(
                f"the model uses {name}, which Hugging Face's DETR{backbone} does not support; use {arg('to', format)}"
            )


def _check_realtime_variant(config: ModelConfig) -> None:
    is_dfine, is_deimv2 = config.decoder == "fine_grained", architecture_of_config(config) == "deimv2"
    kind = "DEIMv2" if is_deimv2 else "D-FINE" if is_dfine else "RT-DETR"
    position_layers = 3 if is_deimv2 else 2
    unsupported = (
        (config.activation != "relu", f"activation {config.activation!r} of DEIM, DEIMv2 and RT-DETRv4,"),
        (not config.selection_projection, "the memory as it is for the selection of queries"),
        (
            config.query_position_layers != position_layers,
            f"{config.query_position_layers} layers of query positions, of DEIM,",
        ),
        (config.distillation_dim is not None, "a projection that learns from a teacher, of RT-DETRv4,"),
        (config.eval_decoder_layers is not None and not is_dfine, "an earlier decoder layer for predictions"),
        (len(set(config.sampling_points)) > 1 and not is_dfine, "different numbers of sampling points"),
        (config.attention_levels > config.num_feature_levels, "attention on more maps than there are"),
    )
    for is_used, name in unsupported:
        if is_used:
            raise CheckpointError(
                f"the model uses {name} which Hugging Face's {kind} does not support; use {arg('to', 'official')}"
            )


def _check_foundation_variant(config: ModelConfig) -> None:
    is_rfdetr = config.backbone.startswith("dinov2-")
    name_there = "RF-DETR" if is_rfdetr else "LW-DETR"
    following = {layer for layer in config.out_layers if layer < config.backbone_layers}
    unsupported = (
        (is_rfdetr and config.num_feature_levels > 1, "several feature maps"),
        (is_rfdetr and set(config.global_layers) != following, "global attention in other blocks than after features"),
        (is_rfdetr and config.num_register_tokens > 0, "register tokens"),
        (config.projector_norm != ("layer" if is_rfdetr else "batch"), f"projector_norm {config.projector_norm!r}"),
        (config.activation != "relu", f"activation {config.activation!r}"),
        (len(set(config.sampling_points)) > 1, "different numbers of sampling points"),
    )
    for is_used, name in unsupported:
        if is_used:
            raise CheckpointError(
                f"the model uses {name}, which Hugging Face's {name_there} does not support; use "
                f"{arg('to', 'official')}"
            )


def _read_config(path: Path, conversion: HuggingFaceConversion) -> dict[str, Any]:
    content = read_json(path)
    model_type = content.get("model_type")
    if model_type != conversion.MODEL_TYPE:
        raise CheckpointError(f"{path}: model_type is {short(model_type)}, expected {conversion.MODEL_TYPE!r}")
    _check_settings(content, path)
    return content


def _check_settings(content: Mapping[str, Any], path: Path) -> None:
    """Check the settings that the weights do not show and detrkit cannot change.

    Raises:
        CheckpointError: one has another value.
    """
    is_table_transformer = content["model_type"] == table_transformer_huggingface.MODEL_TYPE
    expected: dict[str, tuple[Any, ...]] = {"decoder_attention_heads": (content.get("encoder_attention_heads", 8),)}
    if content["model_type"] in _FOUNDATION_TYPES:
        expected = {setting: (value,) for setting, value in _FOUNDATION_SETTINGS.items()}
    elif content["model_type"] in _REALTIME_TYPES:
        expected |= {setting: (value,) for setting, value in _REALTIME_SETTINGS.items()}
    else:
        expected["activation_function"] = ("relu", "prelu") if content["model_type"] == "dab-detr" else ("relu",)
        # true lets transformers normalise the output of every decoder layer before the next one
        expected["auxiliary_loss"] = (False,) if is_table_transformer else (content.get("auxiliary_loss"),)
    for name, values in expected.items():
        if name in content and content[name] not in values:
            raise CheckpointError(
                f"{path}: {name} is {short(content[name])}, which is not supported; expected {short(values[0])}"
            )


def _config_json(checkpoint: Checkpoint, native_backbone: bool) -> dict[str, Any]:
    config = checkpoint.config
    conversion = _conversion_for(config)
    names = checkpoint.categories.names
    labels = {
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
        "detrkit_category_ids": list(checkpoint.categories.ids),
    }
    common = {} if config.is_vit else _common_fields(config, native_backbone)
    return {
        "model_type": conversion.MODEL_TYPE,
        "architectures": [transformers_classes(config)[0]],
        **common,
        **labels,
        **conversion.config_fields(config),
    }


def _common_fields(config: ModelConfig, native_backbone: bool) -> dict[str, Any]:
    """Return the fields that DETR and its successors with an encoder share."""
    return {
        "backbone_config": _native_backbone(config) if native_backbone else _timm_backbone(config),
        "dilation": config.dilation,
        "num_queries": config.num_queries,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.dim_feedforward,
        "decoder_ffn_dim": config.dim_feedforward,
        "dropout": config.dropout,
        "position_embedding_type": config.position_embedding,
    }


def _first_level(config: ModelConfig) -> int:
    """Return the index, 0..3, of the first backbone stage that a Deformable DETR uses; 0 for other models."""
    return 4 - config.num_backbone_levels if config.encoder == "deformable" else 0


def _native_backbone(config: ModelConfig) -> dict[str, Any]:
    first = 0 if config.mask_head else _first_level(config) or 3
    return {
        "model_type": "resnet",
        **resnet_config_fields(config.backbone),
        "out_features": [f"stage{number + 1}" for number in range(first, 4)],
    }


def _timm_backbone(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "timm_backbone",
        "backbone": config.backbone,
        "features_only": True,
        "out_indices": [1, 2, 3, 4][_first_level(config) :],
        "num_channels": 3,
        "use_pretrained_backbone": False,
        **({"output_stride": 16} if config.dilation else {}),
    }
