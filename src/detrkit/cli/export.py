"""`detrkit export`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from detrkit._internal.text import plural
from detrkit.checkpoints.export_formats import EXPORT_FORMATS, check_export
from detrkit.checkpoints.path_kinds import DATASET, MODEL, check_kinds
from detrkit.checkpoints.sources import check_source
from detrkit.cli.console import get_console, progress_bar
from detrkit.data.formats.registry import check_dataset_path

if TYPE_CHECKING:
    from detrkit.export.verify import ExportComparison

_FORMATS = "; ".join(f"`{name}`: {format.summary}" for name, format in EXPORT_FORMATS.items())


def export(
    source: str,
    /,
    *,
    format: Annotated[str, Parameter(help=f"{_FORMATS}.")],
    precision: Literal["float32", "bfloat16", "int8"] = "float32",
    data: Path | None = None,
    postprocess: Annotated[bool, Parameter(negative="")] = False,
    image_size: int | None = None,
    max_images: int = 64,
    max_calibration_images: int = 128,
    model: str | None = None,
    state_dict_key: str | None = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
) -> None:
    """Export a model to ONNX, torch.export or OpenVINO, and compare it with PyTorch.

    The result is read back and predicts the same images as PyTorch; it is kept only if the predictions agree.
    `detrkit predict` and `detrkit evaluate` take it like any model.

    Example: `detrkit export runs/first --format openvino --precision int8 --data photos`

    Parameters
    ----------
    source
        Run folder, weights file, Hugging Face folder or id, or preset.
    precision
        `bfloat16` and `int8` with openvino only; int8 measures ranges on images of --data.
    data
        Images to compare on: a dataset folder, for which the loss of AP is measured, too, or a folder of images.
        Default: synthetic images.
    postprocess
        The exported model returns scores, labels and boxes in pixels, and takes the images' sizes.
    image_size
        Shorter side in pixels to which images are resized, or side of the square to which models that stretch images
        resize them. Default: the model's own.
    max_images
        Images to compare on; at most 4 are synthetic.
    max_calibration_images
        Images of --data on which int8 measures ranges.
    model
        Preset, or config.yaml of a run, of weights that do not describe their model, such as a saved state_dict().
    state_dict_key
        Entry of a .pth file that holds the weights, such as ema_model; default: the moving average if there is one.
    output
        File or folder to write. Default: model.onnx, model.pt2 or model_openvino.
    """
    check_export(
        format,
        precision=precision,
        output=output,
        has_data=data is not None,
        max_images=max_images,
        max_calibration_images=max_calibration_images,
    )
    check_kinds({"source": (source, MODEL), "data": (data, DATASET)})
    check_source(source)
    if data is not None:
        check_dataset_path(data)

    from detrkit.export.export import export as export_model

    with progress_bar("comparing") as progress:
        result = export_model(
            source,
            format,
            output=output,
            precision=precision,
            data=data,
            postprocess=postprocess,
            image_size=image_size,
            max_images=max_images,
            max_calibration_images=max_calibration_images,
            model=model,
            state_dict_key=state_dict_key,
            progress=progress,
        )
    console = get_console()
    hint = "" if data else "; --data compares on your own"
    console.print(f"compared on {result.checked_on}{hint}", soft_wrap=True)
    for line in comparison_lines(result.comparison, result.precision):
        console.print(line, soft_wrap=True)
    console.print(f"{result.path}: {result.format}, {result.precision}, {result.size / 1e6:.1f} MB", soft_wrap=True)


def comparison_lines(comparison: "ExportComparison", precision: str = "float32") -> Iterator[str]:
    """Yield the lines that are printed about a comparison: detections first, then queries, which may be reordered."""
    from detrkit.export.verify import REORDERED_MIN_SCORE, SCORE_THRESHOLD

    if comparison.num_detections:
        yield (
            f"detections above {SCORE_THRESHOLD}: {comparison.num_detections} by PyTorch, {comparison.num_matched} of them "
            "matched"
        )
    else:
        yield f"detections above {SCORE_THRESHOLD}: none by PyTorch on these images"
    logits, masks = comparison.max_logit_difference, comparison.max_mask_difference
    reordered = "" if precision == "float32" else "; equally good queries may have changed places"
    yield (
        "largest difference of a query from PyTorch: "
        + ("" if logits is None else f"logits {logits:.2g}, ")
        + f"scores {comparison.max_score_difference:.2g}, boxes {comparison.max_box_difference:.2g} (relative)"
        + ("" if masks is None else f", masks {masks:.2g}")
        + reordered
    )
    if comparison.num_reordered:
        yield (
            f"on {plural(comparison.num_reordered, 'image')} other proposals are selected, with the same "
            f"{comparison.num_reordered_detections} detections above {REORDERED_MIN_SCORE}"
        )
    if comparison.ap is not None:
        yield (
            f"AP {comparison.exported_ap:.4f}, PyTorch {comparison.ap:.4f}, difference {comparison.ap_difference:+.4f}"
        )
