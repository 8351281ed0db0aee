"""Rewriting weights under other names, and proving that nothing was lost."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from detrkit._internal.files import atomic_write
from detrkit._internal.text import plain_console
from detrkit.checkpoints.conversion import huggingface
from detrkit.checkpoints.conversion.architecture import family_of
from detrkit.checkpoints.conversion.detr import state_dict_as_official
from detrkit.checkpoints.hub import hub_token, push_checkpoint
from detrkit.checkpoints.load import read_checkpoint
from detrkit.checkpoints.model_card import CardFacts
from detrkit.checkpoints.native import Checkpoint, save_checkpoint
from detrkit.config.model import ModelConfig
from detrkit.data.batching import collate
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle, in_channels
from detrkit.errors import CheckpointError, ConfigError, DetrkitError
from detrkit.models.detr import DETR
from detrkit.structures import Predictions
from detrkit.training.loggers.run_log import read_metrics

Format = Literal["detrkit", "official", "huggingface", "huggingface-no-timm"]
_SUFFIX: dict[Format, str] = {
    "detrkit": ".safetensors",
    "official": ".pth",
    "huggingface": "",
    "huggingface-no-timm": "",
}


def convert_weights(
    source: str, output: Path, format: Format, dilation: bool | None = None, push: str | None = None
) -> float:
    """Convert, read back, compare, and print the largest difference of the outputs.

    Args:
        source: of the weights.
        output: file or folder, as the form wants.
        format: whose names.
        dilation: see `cli/convert.py`.
        push: hub id to which the weights are then uploaded, in the same form, with a card.

    Raises:
        DetrkitError: the source cannot be read, the form cannot express it, the output exists, or the hub refuses.
    """
    _check_output(output, format)
    if push is not None:
        if format == "official":
            raise ConfigError("--push: readers of the hub know no .pth of the published code; use --to detrkit")
        hub_token(push)
    checkpoint = read_checkpoint(source)
    if dilation is not None:
        checkpoint = replace(checkpoint, config=checkpoint.config.model_copy(update={"dilation": dilation}))
    model = checkpoint.build().eval()
    _write(checkpoint, model, output, format)
    written = read_checkpoint(output)
    difference = largest_difference(model, written.build().eval())
    console = plain_console()
    console.print(f"{output}: {format}, {sum(p.numel() for p in model.parameters()):,} parameters")
    console.print(f"largest difference of logits and boxes, read back: {difference:.3g}")
    if written.categories != checkpoint.categories:
        console.print("this form holds no category names and ids; keep the original for them")
    if written.preprocessing != checkpoint.preprocessing:
        size = checkpoint.preprocessing.image_size
        console.print(f"this form does not say that photos are resized to {size} px; remember it")
    if push is not None and format != "official":
        try:
            address = push_checkpoint(checkpoint, format, CardFacts(push, _scores_of(source)))
        except DetrkitError as error:
            raise type(error)(f"{error}; {output} is written, so give another place to try again") from None
        console.print(f"pushed to {address}", soft_wrap=True)
    return difference


def _scores_of(source: str) -> dict[str, float] | None:
    """The best scores of a run folder, which its weights in best/ have."""
    evaluations = (entry for entry in read_metrics(Path(source)) if entry["kind"] == "evaluation")
    scored = [entry for entry in evaluations if entry["ap"] is not None]
    if not scored:
        return None
    best = next((entry for entry in reversed(scored) if entry.get("best")), scored[-1])
    keys = {"AP": "ap", "AP50": "ap50", "AP75": "ap75"}
    return {name: float(str(best[key])) for name, key in keys.items() if best.get(key) is not None}


@torch.inference_mode()
def largest_difference(first: DETR, second: DETR) -> float:
    """Compare two models on a batch of two drawn photos of different sizes."""
    drawn = [SyntheticShapes(1, seed=0, style=SyntheticStyle(size=size))[0] for size in (224, 160)]
    batch = collate([replace(one, image=in_channels(one.image, first.config.in_channels)) for one in drawn])
    answers = [_tensors(model(batch.images, batch.padding_mask)) for model in (first, second)]
    return max(float((a - b).abs().max()) for a, b in zip(*answers, strict=True))


def _tensors(predictions: Predictions) -> list[Tensor]:
    tensors = [predictions.layer_class_logits, predictions.layer_boxes]
    return tensors if predictions.masks is None else [*tensors, predictions.masks]


def _write(checkpoint: Checkpoint, model: DETR, output: Path, format: Format) -> None:
    if format == "detrkit":
        save_checkpoint(output, checkpoint)
    elif format == "official":
        if not checkpoint.config.has_published_backbone:
            raise CheckpointError(
                f"the model uses backbone {checkpoint.config.backbone!r}, which the published code does not have; use "
                "--to detrkit"
            )
        family = family_of(checkpoint.config)
        if family is None or (checkpoint.config.mask_head and family != "detr"):
            raise CheckpointError(
                "the model is of no architecture that was published (its attention, queries, heads and masks together); "
                "use --to detrkit"
            )
        if not checkpoint.config.has_published_positions:
            raise CheckpointError(
                "the model adds positions elsewhere than at every attention, which the published code does not; use --to "
                "detrkit"
            )
        with atomic_write(output) as temporary:
            torch.save({"model": state_dict_as_official(model), "args": _arguments(checkpoint.config)}, temporary)
    else:
        huggingface.write_folder(output, checkpoint, native_backbone=format == "huggingface-no-timm")


def _arguments(config: ModelConfig) -> dict[str, object]:
    """What the weights do not show, under the names of the published training script; a plain dict loads anywhere."""
    arguments: dict[str, object] = {"dilation": config.dilation, "nheads": config.num_heads, "dropout": config.dropout}
    if config.queries == "two_stage":
        arguments |= {"two_stage": True, "num_queries": config.num_queries}
    if config.queries == "anchors":
        arguments |= {"pe_temperatureH": config.position_temperature, "num_select": config.max_detections}
    return arguments


def _check_output(output: Path, format: Format) -> None:
    suffix = _SUFFIX[format]
    if suffix and output.suffix != suffix:
        raise ConfigError(f"{output}: expected a file ending in {suffix} for --to {format}; rename it")
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise ConfigError(f"{output}: exists already; choose another place, or remove it")
