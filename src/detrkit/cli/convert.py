"""`detrkit convert`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from detrkit.checkpoints.conversion.formats import check_output
from detrkit.checkpoints.path_kinds import MODEL, NEW, check_kinds
from detrkit.checkpoints.sources import check_source
from detrkit.cli.console import get_console

_NOT_STORED = {
    "categories": "This format stores no category names and ids; keep the original for them.",
    "preprocessing": "This format does not store how images are resized and normalised; keep the original for it.",
}


def convert(
    source: str,
    output: Path,
    /,
    *,
    to: Literal["detrkit", "official", "huggingface", "huggingface-no-timm"],
    dilation: Annotated[bool | None, Parameter(negative="")] = None,
    model: str | None = None,
    state_dict_key: str | None = None,
    push: str | None = None,
) -> None:
    """Convert a checkpoint to another format, read the result back, and compare the predictions.

    Prints the largest difference between the outputs of both on two synthetic images.

    Example: `detrkit convert detr-r50-e632da11.pth converted --to huggingface`

    Parameters
    ----------
    source
        Run folder, weights file, Hugging Face folder or id, or preset.
    output
        File to write (.safetensors for detrkit, .pth for official), or folder (Hugging Face).
    to
        detrkit; official: the format of the architecture's authors; huggingface: with a timm backbone, or
        huggingface-no-timm: with transformers' own ResNet.
    dilation
        The source is a DC5 model, whose weights look like those of its undilated twin.
    model
        Preset, or config.yaml of a run, of weights that do not describe their model, such as a saved state_dict().
    state_dict_key
        Entry of a .pth file that holds the weights, such as ema_model or ema.module; by default the moving average if
        there is one.
    push
        OWNER/NAME on the Hugging Face hub: also upload the result there, with a model card.
    """
    check_kinds({"source": (source, MODEL), "output": (output, NEW)})
    check_output(output, to)
    check_source(source)

    from detrkit.checkpoints.conversion.convert import convert as convert_checkpoint

    result = convert_checkpoint(
        source,
        output,
        to,
        dilation=dilation,
        model=model,
        state_dict_key=state_dict_key,
        push=push,
        metrics=_metrics_of_run(source),
    )
    console = get_console()
    console.print(f"{result.path}: {result.format}, {result.num_parameters:,} parameters", soft_wrap=True)
    console.print(f"largest difference of logits and boxes, read back: {result.max_difference:.3g}")
    for part in result.not_stored:
        console.print(_NOT_STORED[part])
    if result.url is not None:
        console.print(f"pushed to {result.url}", soft_wrap=True)


def _metrics_of_run(source: str) -> dict[str, float] | None:
    """Return the metrics of a run folder's best checkpoint, for the model card."""
    from detrkit.training.loggers.jsonl import read_metrics

    evaluations = [entry for entry in read_metrics(Path(source)) if entry["kind"] == "evaluation"]
    scored = [entry for entry in evaluations if entry["ap"] is not None]
    if not scored:
        return None
    best = next((entry for entry in reversed(scored) if entry.get("best")), scored[-1])
    keys = {"AP": "ap", "AP50": "ap50", "AP75": "ap75"}
    return {name: float(str(best[key])) for name, key in keys.items() if best.get(key) is not None}
