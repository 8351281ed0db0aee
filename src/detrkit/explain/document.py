"""An explanation as one JSON document and one block of bytes: what the page shows, and what a server can send.

Boxes are xyxy in pixels of the photo; sizes are (height, width); layers, heads, queries, objects count from 0.
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
from detrkit.explain.maps import BinaryBlock, max_queries, pack_decoder, pack_encoder, pack_points
from detrkit.explain.masks import Masks, pack_masks, pack_segments
from detrkit.explain.matching import MatchingExplanation
from detrkit.explain.stage_descriptions import describe_outputs

_PHOTO_SIDE = 1066  # pixels at most, in the page
_PHOTO_BYTES = 240_000
_QUALITIES = (88, 80, 70, 55, 40)
_TOP_CLASSES = 3


@dataclass(frozen=True)
class PageDocument:
    """What the page is made of.

    Attributes:
        document: plain values, ready for JSON; `maps` in it says where each array lies in `block`.
        block: the arrays.
    """

    document: dict[str, Any]
    block: bytes


def page_document(
    explanation: Explanation,
    config: ModelConfig,
    *,
    photo_name: str,
    model_name: str,
    threshold: float,
    queries: Sequence[int] = (),
) -> PageDocument:
    """Put the document of a page together.

    Args:
        explanation: of one photo.
        config: of the model.
        photo_name: shown as the title.
        model_name: shown below it.
        threshold: least score of a detection when the page opens.
        queries: whose attention must be in the page, whatever their scores.
    """
    attention, masks = explanation.attention, explanation.masks
    block = BinaryBlock()
    num_mask_values = 0 if masks is None else masks.num_values
    kept = _chosen_queries(explanation, queries, max_queries(attention, num_mask_values))
    cross, to_queries = pack_decoder(block, attention, kept)
    points = pack_points(block, attention, kept)
    encoder = pack_encoder(block, attention)
    matching = explanation.matching
    document = {
        "version": 1,
        "photo": {"name": photo_name, "size": attention.grid.original, "url": _photo_url(explanation.photo)},
        "model": {
            "name": model_name,
            "heads": config.num_heads,
            "encoderLayers": config.encoder_layers,
            "decoderLayers": config.decoder_layers,
            "levels": config.num_feature_levels,
            "answer": {"boxes": config.detections_per_image, "meaning": describe_outputs(config)},
        },
        "classes": explanation.categories.names,
        "grid": asdict(attention.grid),
        "threshold": threshold,
        "keptQueries": kept,
        "queries": _queries(explanation, set(kept)),
        "stages": [asdict(passage) for passage in explanation.passages],
        "objects": _objects(explanation),
        "matching": None if matching is None else _matching(matching, block, kept),
        "maps": {
            "cross": asdict(cross),
            "toQueries": asdict(to_queries),
            "encoder": None if encoder is None else asdict(encoder),
            "points": None if points is None else asdict(points),
        },
    }
    if masks is not None:
        document["masks"] = _masks(explanation, masks, block, kept)
    return PageDocument(document, bytes(block.content))


def _chosen_queries(explanation: Explanation, asked_for: Sequence[int], limit: int) -> list[int]:
    """Those asked for, then those that have to do with an object, then by score."""
    scores, _ = explanation.scores_and_labels
    concerned: list[int] = list(asked_for)
    for outcome in explanation.matching.outcomes if explanation.matching else ():
        involved = (outcome.found_by, outcome.matched_query, outcome.best_query)
        concerned += [query for query in involved if query is not None]
    ranked = scores.argsort(descending=True, stable=True).tolist()
    return list(dict.fromkeys([*concerned, *ranked]))[:limit]


def _queries(explanation: Explanation, kept: set[int]) -> list[dict[str, Any]]:
    """What every query says: after every layer if its attention is kept, or after the last one alone."""
    boxes, probabilities = explanation.layer_boxes, explanation.layer_probabilities
    predictions = explanation.attention.predictions
    no_object = predictions.layer_no_object[:, 0] if predictions.class_scores == "softmax" else None
    top = probabilities.topk(min(_TOP_CLASSES, probabilities.shape[-1]), dim=-1)
    rows = []
    for query in range(boxes.shape[1]):
        layers = range(len(boxes)) if query in kept else [len(boxes) - 1]
        rows.append(
            [
                {
                    "box": _rounded(boxes[layer, query], 2),
                    "top": [
                        [label, round(value, 4)]
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
            "foundBy": outcome.found_by,
            "score": outcome.score,
            "bestQuery": outcome.best_query,
            "bestIou": round(outcome.best_iou, 4),
            "ifMissed": outcome.if_missed,
        }
        for outcome in explanation.matching.outcomes
    ]


def _matching(matching: MatchingExplanation, block: BinaryBlock, kept: list[int]) -> dict[str, Any]:
    """Costs of the kept queries as an array (queries, objects, [class, box, GIoU, IoU]); losses of all queries."""
    terms = (matching.class_cost, matching.box_cost, matching.giou_cost, matching.iou)
    return {
        "costs": asdict(block.add(torch.stack(terms, dim=-1)[kept].numpy())),
        "layerPairs": matching.layer_pairs,
        "measure": matching.measure,
        "losses": [
            {
                "query": one.query,
                "object": one.object,
                "entropy": _significant(one.entropy),
                "class": _significant(one.class_loss),
                "box": _significant(one.box_loss),
                "giou": _significant(one.giou_loss),
            }
            for one in matching.losses
        ],
    }


def _masks(explanation: Explanation, masks: Masks, block: BinaryBlock, kept: list[int]) -> dict[str, Any]:
    """Masks of the kept queries, and, where things and stuff are known, whose every pixel is."""
    packed, segments = asdict(pack_masks(block, masks, kept)), explanation.segments
    if segments is None:
        return {**packed, "segments": None}
    height, width = segments.ids.shape
    named = [
        {
            "name": one.class_name,
            "label": one.label,
            "isThing": one.is_thing,
            "score": round(one.score, 4),
            "share": _significant(one.area / (height * width)),
        }
        for one in segments.segments
    ]
    return {**packed, "segments": {"ids": asdict(pack_segments(block, segments)), "named": named}}


def _photo_url(photo: Image) -> str:
    """The photo as an address of itself, small enough for a page."""
    small = photo.convert("RGB")
    small.thumbnail((_PHOTO_SIDE, _PHOTO_SIDE))
    if max(photo.size) <= 256:  # drawn and tiny photos: sharp, and hardly larger
        return f"data:image/png;base64,{base64.b64encode(_encoded(small, 'PNG')).decode()}"
    content = b""
    for quality in _QUALITIES:
        content = _encoded(small, "JPEG", quality=quality)
        if len(content) <= _PHOTO_BYTES:
            break
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def _encoded(photo: Image, format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, format, **options)
    return buffer.getvalue()


def _rounded(values: torch.Tensor, digits: int) -> list[float]:
    return [round(value, digits) for value in values.tolist()]


def _significant(value: float) -> float:
    return float(f"{value:.4g}")
