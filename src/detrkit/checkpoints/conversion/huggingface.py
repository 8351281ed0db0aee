"""Hugging Face's names of DETR and its successors, in all forms they have had, and their folders.

The forms, told apart by their entries: names on disk (written by every version) or in memory since version 5, each with
a timm backbone ("facebook/detr-resnet-50") or with Hugging Face's own ResNet (its revision "no_timm").
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from detrkit._internal.files import make_folder, write_tensors, write_text
from detrkit.checkpoints.conversion.architecture import Family, family_of, family_of_state
from detrkit.checkpoints.conversion.huggingface_deformable import DECODER, MODEL_TYPES, family_of_names, successor_rules
from detrkit.checkpoints.conversion.key_mapping import Rule, to_ours, to_theirs
from detrkit.checkpoints.conversion.layer_heads import listed_by_layer, listed_once
from detrkit.checkpoints.infer_config import infer_config
from detrkit.checkpoints.native import Checkpoint, Preprocessing
from detrkit.config.model import ModelConfig
from detrkit.data.batching import IMAGENET_MEAN, IMAGENET_STD
from detrkit.data.categories import Categories
from detrkit.data.transforms.geometry import max_long_side
from detrkit.errors import CheckpointError

_POSITIONS = "positions elsewhere than at every attention"


@dataclass(frozen=True)
class Format:
    """Which of the names are meant."""

    in_memory: bool = False  # names of a live model since version 5, not those on disk
    native_backbone: bool = False  # Hugging Face's own ResNet, not timm's
    has_masks: bool = False
    family: Family = "detr"


def detect_format(state: Mapping[str, Tensor]) -> Format:
    """Tell the form by its entries."""
    family = family_of_names(state)
    return Format(
        in_memory=family != "dab" and any(".mlp.fc1." in name for name in state),
        native_backbone=any("embedder.embedder.convolution" in name for name in state),
        has_masks=any(name.startswith("mask_head.") for name in state),
        family=family,
    )


def ours_from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename entries of any of the forms to ours.

    Raises:
        CheckpointError: an entry has no counterpart.
    """
    kept = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    format = detect_format(kept)
    if format.family == "dab":
        kept = {name: tensor for name, tensor in kept.items() if not name.startswith(f"{DECODER}bbox_embed.")}
    if format.family == "deformable":
        kept = listed_once(kept, DECODER)
    return to_ours(kept, _rules(format))


def huggingface_from_ours(state: Mapping[str, Tensor], format: Format) -> dict[str, Tensor]:
    """Rename our entries to one of the forms."""
    named = to_theirs(state, _rules(format))
    if format.family == "dab":
        heads = {name: tensor for name, tensor in named.items() if name.startswith("bbox_predictor.")}
        named |= {name.replace("bbox_predictor.", f"{DECODER}bbox_embed."): tensor for name, tensor in heads.items()}
    if format.family == "deformable":
        named = listed_by_layer(
            named, DECODER, len({n.split(".")[2] for n in state if n.startswith("decoder.layers.")})
        )
    return named


def read_config(path: Path, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], Categories | None]:
    """Read from `config.json` what the weights do not show.

    Returns:
        Fields of `ModelConfig`, and the categories if the file names them.

    Raises:
        CheckpointError: the file is missing, malformed, or of another kind of model.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); a Hugging Face folder holds one") from None
    expected = MODEL_TYPES[family_of_state(state)][0]
    if not isinstance(content, dict) or content.get("model_type") != expected:
        kind = content.get("model_type") if isinstance(content, dict) else None
        raise CheckpointError(f"{path}: found model_type {kind!r}, expected {expected!r}")
    known: dict[str, Any] = {
        "num_heads": content.get("encoder_attention_heads", 8),
        "dropout": content.get("dropout", 0.1),
        "dilation": bool(content.get("dilation", False)),
    }
    if expected == "deformable_detr" and content.get("two_stage"):
        known["num_queries"] = content.get("two_stage_num_proposals", 300)
    if expected == "dab-detr":
        known["position_temperature"] = float(content.get("temperature_height", 20))
    names = content.get("id2label")
    num_classes = infer_config(state, **known).num_classes
    if not isinstance(names, dict) or set(names) != {str(label) for label in range(num_classes)}:
        return known, None
    ids = content.get("detrkit_category_ids")
    if not isinstance(ids, list) or len(set(map(str, ids))) != num_classes or not all(type(i) is int for i in ids):
        ids = list(range(num_classes))
    return known, Categories(tuple(ids), tuple(str(names[str(label)]) for label in range(num_classes)))


def read_preprocessing(path: Path) -> Preprocessing:
    """Read the photo size from `preprocessor_config.json`; the published one where the file is missing or odd.

    The shorter side; where a box is named that photos are to fit into or to fill, the box's, as square photos get it.

    Raises:
        CheckpointError: photos are normalised otherwise than DETR's.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        size = content["size"]
        for name, ours in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)):
            if content.get("do_normalize", True) and content.get(name, list(ours)) != list(ours):
                raise CheckpointError(
                    f"{path}: {name}: found {content[name]}, expected {list(ours)}, by which detrkit prepares photos"
                )
        if not isinstance(size, dict):
            return Preprocessing(image_size=size)
        sides = [size[name] for name in ("shortest_edge", "height", "width", "max_height", "max_width") if name in size]
        return Preprocessing(image_size=min(sides))
    except (OSError, ValueError, KeyError, TypeError):
        return Preprocessing()


def write_folder(folder: Path, checkpoint: Checkpoint, native_backbone: bool = False) -> None:
    """Write a folder that `from_pretrained` of `transformers` reads, by the class that its config names.

    Category ids of our own are kept in config.json under "detrkit_category_ids"; there labels are 0 .. K-1.

    Raises:
        CheckpointError: Hugging Face has no such variant.
    """
    config = checkpoint.config
    family = _family_there(config)
    unknown_there = {
        "pre_norm": config.pre_norm,
        _POSITIONS: not config.has_published_positions,
        f"backbone {config.backbone!r}": not config.has_published_backbone,
        "backbone_normalization 'batch'": config.backbone_normalization == "batch",
        "dilation (DC5)": config.dilation and native_backbone,
    }
    for what, is_used in unknown_there.items():
        if is_used:
            other = {"dilation (DC5)": "huggingface", _POSITIONS: "detrkit"}.get(what, "detrkit or official")
            raise CheckpointError(
                f"the model uses {what}, which {'this form of ' if native_backbone else ''}Hugging Face's DETR does not "
                f"have; use --to {other}"
            )
    make_folder(folder)
    format = Format(native_backbone=native_backbone, has_masks=config.mask_head, family=family)
    tensors = huggingface_from_ours(checkpoint.state, format)
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_text(folder / "config.json", json.dumps(_config_json(checkpoint, family, native_backbone), indent=2))
    preprocessor = _preprocessor_json(checkpoint.preprocessing, classes_of(config)[1])
    write_text(folder / "preprocessor_config.json", json.dumps(preprocessor, indent=2))


def _family_there(config: ModelConfig) -> Family:
    family = family_of(config)
    if family is None or (config.mask_head and family != "detr"):
        what = "its combination of attention, queries and heads" if family is None else "the mask head on top of it"
        raise CheckpointError(f"the model is of no architecture that Hugging Face has, for {what}; use --to detrkit")
    return family


def classes_of(config: ModelConfig) -> tuple[str, str]:
    """The classes of `transformers` that a folder is read by: of the model, and of what prepares photos for it.

    Raises:
        CheckpointError: Hugging Face has no such architecture.
    """
    family = _family_there(config)
    model = "DetrForSegmentation" if config.mask_head else MODEL_TYPES[family][1]
    # DAB-DETR has none of its own: scores are sigmoids, and Conditional DETR's takes them for such
    processors = {
        "detr": "Detr",
        "dab": "ConditionalDetr",
        "conditional": "ConditionalDetr",
        "deformable": "DeformableDetr",
    }
    return model, f"{processors[family]}ImageProcessor"


def _config_json(checkpoint: Checkpoint, family: Family, native_backbone: bool) -> dict[str, Any]:
    config = checkpoint.config
    first_level = 4 - config.num_backbone_levels if family == "deformable" else 0
    if native_backbone:
        depths = {"resnet18": (2, 2, 2, 2), "resnet101": (3, 4, 23, 3)}.get(config.backbone, (3, 4, 6, 3))
        is_basic = config.backbone in ("resnet18", "resnet34")
        widths = [64, 128, 256, 512] if is_basic else [256, 512, 1024, 2048]
        backbone: dict[str, Any] = {
            "model_type": "resnet",
            "depths": list(depths),
            "hidden_sizes": widths,
            "layer_type": "basic" if is_basic else "bottleneck",
            "out_features": [f"stage{number + 1}" for number in range(0 if config.mask_head else first_level or 3, 4)],
        }
    else:
        backbone = {
            "model_type": "timm_backbone",
            "backbone": config.backbone,
            "features_only": True,
            "out_indices": [1, 2, 3, 4][first_level:],
            "num_channels": 3,
            "use_pretrained_backbone": False,
            **({"output_stride": 16} if config.dilation else {}),
        }
    names = checkpoint.categories.names
    model_type, _ = MODEL_TYPES[family]
    architecture, _ = classes_of(config)
    return {
        "model_type": model_type,
        "architectures": [architecture],
        **_of_family(config, family),
        "backbone_config": backbone,
        "dilation": config.dilation,
        "hidden_size" if family == "dab" else "d_model": config.hidden_dim,
        "num_queries": config.num_queries,
        "encoder_layers": config.encoder_layers,
        "decoder_layers": config.decoder_layers,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.dim_feedforward,
        "decoder_ffn_dim": config.dim_feedforward,
        "dropout": config.dropout,
        "position_embedding_type": config.position_embedding,
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
        "detrkit_category_ids": list(checkpoint.categories.ids),
    }


def _of_family(config: ModelConfig, family: Family) -> dict[str, Any]:
    """What only one kind of config has a word for."""
    if family == "dab":
        temperature = int(config.position_temperature)
        return {
            "temperature_height": temperature,
            "temperature_width": temperature,
            "activation_function": config.activation,
        }
    if family == "deformable":
        is_two_stage = config.queries == "two_stage"
        return {
            "num_feature_levels": config.num_feature_levels,
            "encoder_n_points": config.num_points,
            "decoder_n_points": config.num_points,
            "with_box_refine": config.with_box_refine,
            "two_stage": is_two_stage,
            "two_stage_num_proposals": config.num_queries,
        }
    return {}


def _preprocessor_json(preprocessing: Preprocessing, processor: str) -> dict[str, Any]:
    return {
        "image_processor_type": processor,
        "do_resize": True,
        "size": {
            "shortest_edge": preprocessing.image_size,
            "longest_edge": max_long_side(preprocessing.image_size),
        },
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "do_pad": True,
        "format": "coco_detection",
    }


def _rules(format: Format) -> list[Rule]:
    """Pair our names with those of a form; the first that fits wins."""
    model = "detr." if format.has_masks else ""
    output = "o_proj" if format.in_memory else "out_proj"
    feed_forward = "mlp.fc" if format.in_memory else "fc"
    backbone = "backbone.model." if format.in_memory else "backbone.conv_encoder.model."
    if format.family == "dab" and not format.native_backbone:
        backbone += "_backbone."
    box_rules: list[Rule] = [
        *successor_rules(format.family, format.in_memory),
        *_backbone_rules(f"model.{backbone}", format.native_backbone),
        ("positions.rows.", "model.position_embedding.row_embeddings."),
        ("positions.columns.", "model.position_embedding.column_embeddings."),
        ("positions.rows.", "model.backbone.position_embedding.row_embeddings."),  # before version 5
        ("positions.columns.", "model.backbone.position_embedding.column_embeddings."),
        ("input_projection.", "model.input_projection."),
        ("query_source.", "model.query_position_embeddings."),
        ("decoder.norm.", "model.decoder.layernorm."),
        ("heads.class_head.", "class_labels_classifier."),
        *((f"heads.box_head.{2 * index}.", f"bbox_predictor.layers.{index}.") for index in range(3)),
    ]
    for stack in ("encoder", "decoder"):
        ours, theirs = f"{stack}.layers.{{n}}.", f"model.{stack}.layers.{{n}}."
        attentions = [("self_attention", "self_attn")]
        if stack == "decoder":
            attentions.append(("cross_attention", "encoder_attn"))
        for attention, their_attention in attentions:
            box_rules += [
                (f"{ours}{attention}.query_projection.", f"{theirs}{their_attention}.q_proj."),
                (f"{ours}{attention}.key_projection.", f"{theirs}{their_attention}.k_proj."),
                (f"{ours}{attention}.value_projection.", f"{theirs}{their_attention}.v_proj."),
                (f"{ours}{attention}.output_projection.", f"{theirs}{their_attention}.{output}."),
                (f"{ours}{attention}_residual.norm.", f"{theirs}{their_attention}_layer_norm."),
            ]
        box_rules += [
            (f"{ours}feed_forward.expand.", f"{theirs}{feed_forward}1."),
            (f"{ours}feed_forward.contract.", f"{theirs}{feed_forward}2."),
            (f"{ours}feed_forward_residual.norm.", f"{theirs}final_layer_norm."),
        ]
    rules = [(ours, model + theirs) for ours, theirs in box_rules]
    return rules + _mask_rules(format.in_memory)


def _backbone_rules(prefix: str, native: bool) -> list[Rule]:
    if not native:
        return [("backbone.body.", prefix)]
    rules: list[Rule] = [
        ("backbone.body.conv1.", f"{prefix}embedder.embedder.convolution."),
        ("backbone.body.bn1.", f"{prefix}embedder.embedder.normalization."),
    ]
    for stage in range(4):
        ours, theirs = f"backbone.body.layer{stage + 1}.{{n}}.", f"{prefix}encoder.stages.{stage}.layers.{{n}}."
        rules += [
            (f"{ours}downsample.0.", f"{theirs}shortcut.convolution."),
            (f"{ours}downsample.1.", f"{theirs}shortcut.normalization."),
        ]
        for index in range(3):
            rules += [
                (f"{ours}conv{index + 1}.", f"{theirs}layer.{index}.convolution."),
                (f"{ours}bn{index + 1}.", f"{theirs}layer.{index}.normalization."),
            ]
    return rules


def _mask_rules(in_memory: bool) -> list[Rule]:
    projection = "proj" if in_memory else "linear"
    rules: list[Rule] = [
        ("mask_head.attention_maps.query_projection.", f"bbox_attention.q_{projection}."),
        ("mask_head.attention_maps.key_projection.", f"bbox_attention.k_{projection}."),
        ("mask_head.output.", "mask_head.output_conv." if in_memory else "mask_head.out_lay."),
    ]
    ours_of_stage = [f"mask_head.input_stages.{index}." for index in range(2)] + [
        f"mask_head.stages.{index}." for index in range(3)
    ]
    for index, ours in enumerate(ours_of_stage):
        stage = f"mask_head.conv{index + 1}." if index < 2 else f"mask_head.fpn_stages.{index - 2}.refine."
        rules += [
            (f"{ours}convolution.", f"{stage}conv." if in_memory else f"mask_head.lay{index + 1}."),
            (f"{ours}norm.", f"{stage}norm." if in_memory else f"mask_head.gn{index + 1}."),
        ]
    for index in range(3):
        theirs = f"mask_head.fpn_stages.{index}.fpn_adapter." if in_memory else f"mask_head.adapter{index + 1}."
        rules.append((f"mask_head.adapters.{index}.", theirs))
    return rules
