"""`detrkit export`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def export(
    source: str,
    /,
    *,
    format: Literal["onnx", "torch", "openvino"],
    precision: Literal["float32", "bfloat16", "int8"] = "float32",
    data: Path | None = None,
    postprocess: Annotated[bool, Parameter(negative="")] = False,
    image_size: int | None = None,
    photos: int = 64,
    calibration: int = 128,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
) -> None:
    """Write a model for ONNX Runtime, torch.export or OpenVINO, and compare it with PyTorch.

    The file is read back and predicts photos; it stays only if it says what PyTorch says. `detrkit predict` and
    `detrkit evaluate` take it like any model.

    Example: `detrkit export runs/first --format openvino --precision int8 --data photos`

    Parameters
    ----------
    source
        Run folder, weights file, Hugging Face folder or id, or preset.
    format
        `onnx`: one .onnx file; `torch`: one .pt2 file; `openvino`: a folder.
    precision
        `bfloat16` and `int8` with openvino only; int8 measures ranges on photos of --data.
    data
        Your photos: a dataset folder, which also tells the loss of AP, or a folder of bare photos. Drawn photos if not
        given.
    postprocess
        The file gives scores, labels and boxes in pixels, and takes the photos' sizes.
    image_size
        Shorter side in pixels to which photos are resized; the model's own if not given.
    photos
        Photos to compare on, at most; no more than 4 are drawn.
    calibration
        Photos of --data to measure ranges on, at most.
    output
        File or folder to write: model.onnx, model.pt2 or model_openvino if not given.
    """
    from detrkit.export.export import export_model

    export_model(
        source,
        format,
        precision=precision,
        data=data,
        postprocess=postprocess,
        image_size=image_size,
        num_check=photos,
        num_calibration=calibration,
        output=output,
    )
