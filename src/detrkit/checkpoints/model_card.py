"""A model card: README.md of a folder with weights, written from what is known, for those who find it on the hub."""

import html
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from detrkit._internal.text import plural
from detrkit.checkpoints.conversion import huggingface
from detrkit.checkpoints.native import Checkpoint
from detrkit.data.batching import normalization_stats
from detrkit.data.transforms.geometry import max_long_side


@dataclass(frozen=True)
class CardFacts:
    """What the weights do not say.

    Attributes:
        name: what the model is loaded by: a hub id, or a folder.
        scores: such as AP, 0 .. 1, by their names; None when nobody measured.
        licence: the hub's word for it, such as "apache-2.0"; None leaves it to the owner.
    """

    name: str
    scores: Mapping[str, float] | None = None
    licence: str | None = None


def model_card(checkpoint: Checkpoint, facts: CardFacts, *, for_transformers: bool) -> str:
    """Write the card."""
    return (
        "\n\n".join(
            [
                _front_matter(facts, for_transformers),
                f"# {_shown(facts.name.rstrip('/').rpartition('/')[2])}",
                _what_it_is(checkpoint),
                "## Loading it",
                _loading(facts.name, checkpoint, for_transformers),
                "## Classes",
                _table(("id", "name"), zip(checkpoint.categories.ids, checkpoint.categories.names, strict=True)),
                "## Photos",
                _preprocessing(checkpoint),
                "## Scores",
                _scores(facts.scores),
                "## Licence",
                "See `license` above." if facts.licence else "Not stated yet: its owner fills in `license` above.",
            ]
        )
        + "\n"
    )


def _front_matter(facts: CardFacts, for_transformers: bool) -> str:
    licence = f"license: {json.dumps(facts.licence)}" if facts.licence else "# license: apache-2.0, mit, other ..."
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


def _what_it_is(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    parameters = sum(tensor.numel() for tensor in checkpoint.state.values())
    return (
        f"An object detector for {plural(len(checkpoint.categories), 'class', 'classes')}: a DETR (arXiv:2005.12872) "
        f"with backbone `{_shown(config.backbone)}`, {config.encoder_layers} encoder and {config.decoder_layers} decoder "
        f"layers of width {config.hidden_dim}, {config.num_queries} queries, {parameters / 1e6:.1f} million numbers. "
        "No anchors, no non-maximum suppression."
    )


def _loading(name: str, checkpoint: Checkpoint, for_transformers: bool) -> str:
    quoted = json.dumps(name)
    ours = [
        "import detrkit",
        "",
        f"detector = detrkit.Detector.from_pretrained({quoted})",
        'detections = detector.predict("photo.jpg", threshold=0.5)',
        "print(detections.to_json())",
    ]
    blocks = [ours]
    if for_transformers:
        kind, processor = huggingface.classes_of(checkpoint.config)
        theirs = [
            f"from transformers import {kind}, {processor}",
            "",
            f"model = {kind}.from_pretrained({quoted})",
            f"processor = {processor}.from_pretrained({quoted})",
        ]
        blocks.insert(0, theirs)
    return "\n\n".join("\n".join(["```python", *block, "```"]) for block in blocks)


def _preprocessing(checkpoint: Checkpoint) -> str:
    short = checkpoint.preprocessing.image_size
    channels = checkpoint.config.in_channels
    mean, deviation = normalization_stats(channels)
    colours = "RGB" if channels == 3 else f"{channels} channels"
    return (
        f"{colours}, upright, resized to a shorter side of {short} pixels (the longer at most "
        f"{max_long_side(short)}), scaled to 0 .. 1, minus the mean "
        f"{', '.join(f'{value:g}' for value in mean)}, divided by {', '.join(f'{value:g}' for value in deviation)}."
    )


def _scores(scores: Mapping[str, float] | None) -> str:
    if not scores:
        return "Not measured yet."
    return _table(("score", "value"), ((name, f"{value:.3f}") for name, value in scores.items()))


def _table(heads: tuple[str, str], rows: Iterable[tuple[object, object]]) -> str:
    lines = [f"| {heads[0]} | {heads[1]} |", "|---|---|"]
    lines += [f"| {_shown(first)} | {_shown(second)} |" for first, second in rows]
    return "\n".join(lines)


def _shown(value: object) -> str:
    """Names of classes are shown as they are, whatever signs they hold."""
    plain = html.escape(" ".join(str(value).split()))
    return "".join(f"\\{sign}" if sign in "\\|`*_[]#~" else sign for sign in plain)
