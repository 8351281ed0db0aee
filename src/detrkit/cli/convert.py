"""`detrkit convert`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def convert(
    source: str,
    output: Path,
    /,
    *,
    to: Literal["detrkit", "official", "huggingface", "huggingface-no-timm"],
    dilation: Annotated[bool | None, Parameter(negative="")] = None,
    push: str | None = None,
) -> None:
    """Rewrite weights under other names, then read them back and compare.

    Prints the largest difference between the outputs of the two on one drawn photo.

    Example: `detrkit convert detr-r50-e632da11.pth converted --to huggingface`

    Parameters
    ----------
    source
        Run folder, weights file, Hugging Face folder or id, or preset.
    output
        File to write (.safetensors for detrkit, .pth for official), or folder (huggingface).
    to
        Whose names: ours, the published code's, or Hugging Face's (with a timm backbone, or with its own ResNet).
    dilation
        Say that this is a DC5 model, whose weights look like those of its undilated twin.
    push
        OWNER/NAME on the Hugging Face hub: also upload the result there, with a model card.
    """
    from detrkit.checkpoints.conversion.convert import convert_weights

    convert_weights(source, output, to, dilation=dilation, push=push)
