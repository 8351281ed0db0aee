"""An explanation as a JSON document and a block of bytes, which the page shows and the server sends.

Boxes are xyxy in pixels of the image; sizes are (height, width); layers, heads, queries and objects are counted from 0.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL.Image import Image

from detrkit.config.model import ModelConfig
from detrkit.explain.explanation import Explanation
from detrkit.explain.masks import Masks, pack_masks, pack_segments
from detrkit.explain.matching import MatchingExplanation
from detrkit.explain.packing import BinaryBlock, max_queries, pack_decoder, pack_encoder, pack_points
from detrkit.explain.query_packing import levels_of, pack_edges, pack_selection
from detrkit.explain.stage_descriptions import describe_outputs
from detrkit.models.attention.recording import AttentionKind, RecordedAttention

_MAX_IMAGE_SIDE = 1066  # pixels
_MAX_IMAGE_BYTES = 240_000
_MAX_PNG_SIDE = 256  # pixels; images up to this size stay lossless
_JPEG_QUALITIES = (88, 80, 70, 55, 40)
_NUM_TOP_CLASSES = 3
_KIND_NAMES: dict[str, AttentionKind] = {"encoder": "encoder", "self": "decoder_self", "cross": "decoder_cross"}


@dataclass(frozen=True)
class PageDocument:
    """Contents of a page.

    Attributes:
        document: JSON document; `maps` in it holds the locations of arrays in `block`.
        block: the arrays.
    """

    document: dict[str, Any]
    block: bytes


def page_document(explanation: Explanation, *, queries: Sequence[int] = ()) -> PageDocument:
    """Create the document of a page.

    Args:
        explanation: of one image.
        queries: queries whose attention must be included, whatever their scores.
    """
    attention, masks, config = explanation.attention, explanation.masks, explanation.config
    block = BinaryBlock()
    num_mask_values = 0 if masks is None else masks.num_values
    included = _included_queries(explanation, queries, max_queries(attention, num_mask_values))
    cross, self_attention = pack_decoder(block, attention, included)
    points = pack_points(block, attention, included)
    edges = pack_edges(block, attention, included)
    encoder = pack_encoder(block, attention)
    matching = explanation.matching
    document = {
        "version": 3,
        "image": {
            "name": explanation.image_name,
            "size": attention.grid.original,
            "url": _image_url(explanation.image),
        },
        "model": {
            "name": explanation.model_name,
            "heads": _num_heads(attention),
            "encoderLayers": len(attention.layers["encoder"]),
            "decoderLayers": len(attention.layers["decoder_cross"]),  # fewer than in training for rtdetr-r50-m
            "featureLevels": config.num_feature_levels,
            "windows": _windows(config),
            "outputs": {"boxes": config.detections_per_image, "description": describe_outputs(config)},
        },
        "classes": explanation.categories.names,
        "grid": asdict(attention.grid),
        "levels": levels_of(attention, config.strides),
        "threshold": None if isinstance(explanation.threshold, tuple) else explanation.threshold,
        "classThresholds": explanation.threshold if isinstance(explanation.threshold, tuple) else None,
        "includedQueries": included,
        "queries": _queries(explanation, set(included)),
        "stages": [asdict(stage) for stage in explanation.stages],
        "objects": _objects(explanation),
        "matching": None if matching is None else _matching(matching, block, included),
        "maps": {
            "cross": asdict(cross),
            "self": asdict(self_attention),
            "encoder": None if encoder is None else asdict(encoder),
            "points": None if points is None else asdict(points),
            "edges": None if edges is None else asdict(edges),
        },
        "selection": pack_selection(block, attention.selection),
    }
    if masks is not None:
        document["masks"] = _masks(explanation, masks, block, included)
    return PageDocument(document, bytes(block.content))


def _windows(config: ModelConfig) -> dict[str, Any] | None:
    """Return the windows of a ViT on each side of the image, and the blocks in which all of them attend to each other."""
    if not config.is_vit:
        return None
    return {
        "perSide": config.num_windows,
        "globalLayers": config.global_layers,
        "hasClassToken": config.backbone.startswith("dinov2-"),
    }


def _num_heads(attention: RecordedAttention) -> dict[str, int]:
    """Return the number of heads by kind of attention; 0 for kinds that the model lacks."""
    return {
        name: layers[0].module.num_heads if (layers := attention.layers[kind]) else 0
        for name, kind in _KIND_NAMES.items()
    }


def _included_queries(explanation: Explanation, requested: Sequence[int], limit: int) -> list[int]:
    """Return the queries to include: requested ones, then those related to an object, then by descending score."""
    related: list[int] = list(requested)
    for outcome in explanation.matching.outcomes if explanation.matching else ():
        involved = (outcome.detected_by, outcome.matched_query, outcome.best_query)
        related += [query for query in involved if query is not None]
    return list(dict.fromkeys([*related, *explanation.ranked_queries()]))[:limit]


def _queries(explanation: Explanation, included: set[int]) -> list[dict[str, Any]]:
    """Return the predictions of all queries: after every layer for included queries, otherwise after the last one."""
    boxes, probabilities = explanation.layer_boxes, explanation.layer_probabilities
    predictions = explanation.attention.predictions
    no_object = predictions.layer_no_object[:, 0] if predictions.class_scores == "softmax" else None
    top = probabilities.topk(min(_NUM_TOP_CLASSES, probabilities.shape[-1]), dim=-1)
    rows = []
    for query in range(boxes.shape[1]):
        layers = range(len(boxes)) if query in included else [len(boxes) - 1]
        rows.append(
            [
                {
                    "box": _rounded(boxes[layer, query], 2),
                    "top": [
                        [label, round(value, 6)]
                        for label, value in zip(
                            top.indices[layer, query].tolist(), top.values[layer, query].tolist(), strict=True
                        )
                    ],
                    "noObject": None if no_object is None else round(float(no_object[layer, query]), 4),
                }
                for layer in layers
            ]
        )
    return [{"layers": layers} for layers in rows]


def _objects(explanation: Explanation) -> list[dict[str, Any]] | None:
    if explanation.annotations is None or explanation.matching is None:
        return None
    return [
        {
            "label": outcome.label,
            "box": _rounded(explanation.annotations.boxes[outcome.object], 2),
            "matchedQuery": outcome.matched_query,
            "detectedBy": outcome.detected_by,
            "score": outcome.score,
            "bestQuery": outcome.best_query,
            "bestIou": round(outcome.best_iou, 4),
            "reason": outcome.reason,
        }
        for outcome in explanation.matching.outcomes
    ]


def _matching(matching: MatchingExplanation, block: BinaryBlock, included: list[int]) -> dict[str, Any]:
    """Return the costs of included queries (queries, objects, [class, box, GIoU, IoU]) and the losses of all queries."""
    terms = (matching.cost_class, matching.cost_bbox, matching.cost_giou, matching.iou)
    return {
        "costs": asdict(block.add(torch.stack(terms, dim=-1)[included].numpy())),
        "layerPairs": matching.layer_pairs,
        "classLoss": matching.class_loss,
        "losses": [
            {
                "query": loss.query,
                "object": loss.object,
                "unweighted": _significant(loss.unweighted_class_loss),
                "class": _significant(loss.loss_ce),
                "box": _significant(loss.loss_bbox),
                "giou": _significant(loss.loss_giou),
            }
            for loss in matching.losses
        ],
    }


def _masks(explanation: Explanation, masks: Masks, block: BinaryBlock, included: list[int]) -> dict[str, Any]:
    """Return the masks of included queries and the panoptic segmentation, if there is one."""
    packed, segments = asdict(pack_masks(block, masks, included)), explanation.segments
    if segments is None:
        return {**packed, "segments": None}
    height, width = segments.ids.shape
    named = [
        {
            "name": segment.class_name,
            "label": segment.label,
            "isThing": segment.is_thing,
            "score": round(segment.score, 4),
            "share": _significant(segment.area / (height * width)),
        }
        for segment in segments.segments
    ]
    return {**packed, "segments": {"ids": asdict(pack_segments(block, segments)), "named": named}}


def _image_url(image: Image) -> str:
    """Encode the image as a data URL, reduced in size."""
    small = image.convert("RGB")
    small.thumbnail((_MAX_IMAGE_SIDE, _MAX_IMAGE_SIDE))
    if max(image.size) <= _MAX_PNG_SIDE:
        return f"data:image/png;base64,{base64.b64encode(_encode(small, 'PNG')).decode()}"
    content = b""
    for quality in _JPEG_QUALITIES:
        content = _encode(small, "JPEG", quality=quality)
        if len(content) <= _MAX_IMAGE_BYTES:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def _encode(image: Image, format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _rounded(values: torch.Tensor, digits: int) -> list[float]:
    return [round(value, digits) for value in values.tolist()]


def _significant(value: float) -> float:
    return float(f"{value:.4g}")
