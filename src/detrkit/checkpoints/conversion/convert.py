"""Convert checkpoints between formats, and verify that the result predicts the same."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrkit.checkpoints.conversion.formats import CheckpointFormat, check_output
from detrkit.checkpoints.conversion.huggingface import write_huggingface_folder
from detrkit.checkpoints.conversion.official import write_official_file
from detrkit.checkpoints.hub import hub_token, push_checkpoint
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.named_model import NamedModel
from detrkit.checkpoints.native import Checkpoint, save_checkpoint
from detrkit.data.batching import collate
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle, repeat_channels
from detrkit.errors import CheckpointError, ConfigError, DetrkitError, arg
from detrkit.models.detr import DETR
from detrkit.structures import Predictions


@dataclass(frozen=True)
class ConvertResult:
    """Result of a conversion.

    Attributes:
        path: file or folder that was written.
        format: its format.
        num_parameters: of the model.
        max_difference: largest absolute difference of logits, boxes and masks between the source and the result.
        not_stored: what the source knows and the format cannot store: "categories", "preprocessing".
        notes: decisions taken while the source was read.
        url: address of the repository on the hub; None unless it was pushed.
    """

    path: Path
    format: CheckpointFormat
    num_parameters: int
    max_difference: float
    not_stored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    url: str | None = None


def convert(
    source: Path | str,
    output: Path | str,
    to: CheckpointFormat = "detrkit",
    *,
    dilation: bool | None = None,
    model: NamedModel | None = None,
    state_dict_key: str | None = None,
    push: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> ConvertResult:
    """Convert a checkpoint to another format, read it back, and compare the predictions.

    Args:
        source: run folder, weights file, Hugging Face folder or id, or preset.
        output: file (``.safetensors`` for "detrkit", ``.pth`` for "official") or folder (Hugging Face) to write.
        to: "detrkit"; "official", the names of the architecture's authors; "huggingface" with a backbone of timm, or
            "huggingface-no-timm" with transformers' own ResNet.
        dilation: whether the source is a DC5 model, whose weights look like those of its undilated twin; None takes what
            the source states.
        model: preset, ``config.yaml`` of a run, or config, for weights that do not describe their model, such as a saved
            `state_dict()`.
        state_dict_key: entry of a ``.pth`` file that holds the weights; see `load_checkpoint`.
        push: OWNER/NAME on the Hugging Face hub to which the result is also uploaded, with a model card.
        metrics: for the model card, such as AP, 0..1, by name.

    Returns:
        The path and the largest difference.

    Raises:
        ConfigError: an argument is wrong, the output exists, or there is no token for the hub.
        CheckpointError: the source cannot be read, the format cannot express the model, or the hub refuses.
    """
    output = Path(output)
    check_output(output, to)
    if push is not None:
        if to == "official":
            raise ConfigError(
                f"{arg('push', push)} does not go with {arg('to', to)}, which the hub's readers do not know; use "
                f"{arg('to', 'detrkit')}"
            )
        hub_token(push)
    checkpoint = load_checkpoint(source, model=model, state_dict_key=state_dict_key)
    if dilation is not None:
        checkpoint = replace(checkpoint, config=checkpoint.config.model_copy(update={"dilation": dilation}))
    built = checkpoint.build()
    try:
        _write(checkpoint, output, to)
        written = load_checkpoint(output)
        difference = max_difference(built, written.build())
    except DetrkitError:
        _remove(output)  # which cannot be read, or is another model
        raise
    url = None
    if push is not None and to != "official":
        try:
            url = push_checkpoint(checkpoint, to, push, metrics=metrics)
        except DetrkitError as error:
            raise type(error)(
                f"{error.message}; {output} is written, so choose another {arg('output')} to try again"
            ) from None
    return ConvertResult(
        path=output,
        format=to,
        num_parameters=sum(parameter.numel() for parameter in built.parameters()),
        max_difference=difference,
        not_stored=_not_stored(checkpoint, written),
        notes=checkpoint.notes,
        url=url,
    )


@torch.inference_mode()
def max_difference(first: DETR, second: DETR) -> float:
    """Compare the predictions of two models, which are put into eval mode, on a padded batch of synthetic images.

    Raises:
        CheckpointError: they predict tensors of different shapes.
    """
    unit = first.config.size_divisor
    styles = [SyntheticStyle(size=-(-size // unit) * unit) for size in (224, 160)]
    samples = [SyntheticShapes(1, seed=0, style=style)[0] for style in styles]
    batch = collate([replace(one, image=repeat_channels(one.image, first.config.in_channels)) for one in samples])
    predictions = [_tensors(model.eval()(batch.images, batch.padding_mask)) for model in (first, second)]
    for expected, found in zip(*predictions, strict=True):
        if expected.shape != found.shape:
            raise CheckpointError(
                f"checkpoint: predicts {tuple(found.shape)} instead of {tuple(expected.shape)} values when it is read "
                f"back: the format does not store all settings of the model; use {arg('to', 'detrkit')}"
            )
    return max(float((a - b).abs().max()) for a, b in zip(*predictions, strict=True))


def _tensors(predictions: Predictions) -> list[Tensor]:
    tensors = [predictions.layer_class_logits, predictions.layer_boxes]
    return tensors if predictions.masks is None else [*tensors, predictions.masks]


def _not_stored(checkpoint: Checkpoint, written: Checkpoint) -> tuple[str, ...]:
    categories = () if written.categories == checkpoint.categories else ("categories",)
    # formats round the longer side of limited images in their own way; stretched images have no padding
    ignored: dict[str, Any] = {"rounding": "published"}
    if checkpoint.preprocessing.resize == "stretch":
        ignored["padding_invariant"] = True
    read, given = (one.preprocessing.model_copy(update=ignored) for one in (written, checkpoint))
    return (*categories, *(() if read == given else ("preprocessing",)))


def _remove(output: Path) -> None:
    """Remove what was written, if anything: it did not exist before."""
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)


def _write(checkpoint: Checkpoint, output: Path, format: CheckpointFormat) -> None:
    if format == "detrkit":
        save_checkpoint(output, checkpoint)
    elif format == "official":
        write_official_file(output, checkpoint)
    else:
        write_huggingface_folder(output, checkpoint, native_backbone=format == "huggingface-no-timm")
