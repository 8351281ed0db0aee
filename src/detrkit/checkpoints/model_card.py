"""Model cards: the README.md of a folder with weights, for people who find it on the hub."""

import html
import json
from collections.abc import Iterable, Mapping

from detrkit._internal.text import plural
from detrkit.checkpoints.conversion.huggingface import transformers_classes
from detrkit.checkpoints.native import Checkpoint


def model_card(
    checkpoint: Checkpoint,
    name: str,
    *,
    metrics: Mapping[str, float] | None = None,
    licence: str | None = None,
    for_transformers: bool,
) -> str:
    """Return the text of a model card.

    Args:
        checkpoint: of the model.
        name: by which the model is loaded: a hub id, or a folder.
        metrics: such as AP, 0..1, by name; None if the model was not evaluated.
        licence: as the hub names it, for example "apache-2.0"; None leaves it to the owner.
        for_transformers: whether the weights are in a format of transformers.
    """
    return (
        "\n\n".join(
            [
                _front_matter(licence, for_transformers),
                f"# {_escape(name.rstrip('/').rpartition('/')[2])}",
                _description(checkpoint),
                "## Loading",
                _usage(name, checkpoint, for_transformers),
                "## Classes",
                _table(("id", "name"), zip(checkpoint.categories.ids, checkpoint.categories.names, strict=True)),
                "## Preprocessing",
                _preprocessing(checkpoint),
                "## Metrics",
                _metrics(metrics),
                "## Licence",
                _licence(licence, checkpoint),
            ]
        )
        + "\n"
    )


def _front_matter(licence: str | None, for_transformers: bool) -> str:
    licence = f"license: {json.dumps(licence)}" if licence else "# license: apache-2.0, mit, other ..."
    library = "transformers" if for_transformers else "detrkit"
    tags = ["object-detection", "detr", "detrkit"]
    return "\n".join(
        [
            "---",
            licence,
            f"library_name: {library}",
            "pipeline_tag: object-detection",
            f"tags: {json.dumps(tags)}",
            "---",
        ]
    )


def _description(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    parameters = sum(tensor.numel() for tensor in checkpoint.state.values())
    return (
        f"An object detector for {plural(len(checkpoint.categories), 'class', 'classes')}: a DETR (arXiv:2005.12872) "
        f"with backbone `{_escape(config.backbone)}`, {config.encoder_layers} encoder and {config.decoder_layers} decoder "
        f"layers of width {config.hidden_dim}, {config.num_queries} queries, {parameters / 1e6:.1f} million parameters. "
        "No anchors, no non-maximum suppression."
    )


def _usage(name: str, checkpoint: Checkpoint, for_transformers: bool) -> str:
    quoted = json.dumps(name)
    blocks = [
        [
            "import detrkit",
            "",
            f"detector = detrkit.Detector.from_pretrained({quoted})",
            'detections = detector.predict("image.jpg", threshold=0.5)',
            "print(detections.to_json())",
        ]
    ]
    if for_transformers:
        model, processor = transformers_classes(checkpoint.config)
        transformers = [
            f"from transformers import {model}, {processor}",
            "",
            f"model = {model}.from_pretrained({quoted})",
            f"processor = {processor}.from_pretrained({quoted})",
        ]
        blocks.insert(0, transformers)
    return "\n\n".join("\n".join(["```python", *block, "```"]) for block in blocks)


def _preprocessing(checkpoint: Checkpoint) -> str:
    channels = checkpoint.config.in_channels
    normalization = checkpoint.preprocessing.normalization(channels)
    pixels = "RGB" if channels == 3 else f"{channels} channels"
    text = f"{pixels}, EXIF orientation applied; size: {checkpoint.preprocessing.describe()}; pixels of 0..255 "
    text += f"multiplied by {normalization.scale:g}"
    if normalization.mean is None or normalization.std is None:
        return f"{text}."
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (normalization.mean, normalization.std))
    return f"{text}, minus the mean {mean}, divided by the standard deviation {std}."


def _metrics(metrics: Mapping[str, float] | None) -> str:
    if not metrics:
        return "Not evaluated yet."
    return _table(("metric", "value"), ((name, f"{value:.3f}") for name, value in metrics.items()))


def _licence(licence: str | None, checkpoint: Checkpoint) -> str:
    text = "See `license` above." if licence else "Not stated yet: the owner fills in `license` above."
    if checkpoint.config.backbone.startswith("dinov2-"):
        text += (
            " The published weights of RF-DETR and of its backbone, DINOv2, are under the Apache License 2.0: what derives "
            "from them keeps their licence and notices."
        )
    return text


def _table(heads: tuple[str, str], rows: Iterable[tuple[object, object]]) -> str:
    lines = [f"| {heads[0]} | {heads[1]} |", "|---|---|"]
    lines += [f"| {_escape(first)} | {_escape(second)} |" for first, second in rows]
    return "\n".join(lines)


def _escape(value: object) -> str:
    """Return text that Markdown and HTML show as it is, such as names of classes with special characters."""
    plain = html.escape(" ".join(str(value).split()))
    return "".join(f"\\{sign}" if sign in "\\|`*_[]#~" else sign for sign in plain)
