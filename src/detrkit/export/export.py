"""Export a model to another engine's format, compare it with PyTorch, and keep it only if they agree."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from detrkit._internal.files import make_folder
from detrkit.checkpoints.export_formats import EXPORT_FORMATS, check_export
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.named_model import NamedModel
from detrkit.checkpoints.native import Checkpoint, Preprocessing
from detrkit.config.model_validation import check_image_size
from detrkit.config.training import MAX_IMAGE_SIZE
from detrkit.data.splits import Data
from detrkit.errors import ConfigError, ExportError, arg
from detrkit.export.check_images import CheckImages, open_check_images
from detrkit.export.graph import export_program
from detrkit.export.verify import ExportComparison, compare
from detrkit.inference.engines.metadata import ExportPrecision, make_metadata
from detrkit.inference.engines.torch import TorchEngine
from detrkit.structures import Batch


@dataclass(frozen=True, repr=False)
class ExportResult:
    """Result of an export.

    Attributes:
        path: file or folder that was written.
        format: name of its format.
        precision: in which it is computed.
        size: in bytes.
        checked_on: description of the images that PyTorch and the export were compared on.
        comparison: all differences.
    """

    path: Path
    format: str
    precision: ExportPrecision
    size: int
    checked_on: str
    comparison: ExportComparison

    @property
    def max_difference(self) -> float:
        """Largest difference from PyTorch of a logit (or else score) or relative box coordinate."""
        return self.comparison.max_difference

    @property
    def ap_difference(self) -> float | None:
        """AP of the export minus AP of PyTorch; None without annotations."""
        return self.comparison.ap_difference

    def __repr__(self) -> str:
        ap = "" if self.ap_difference is None else f", AP {self.ap_difference:+.4f}"
        return (
            f"ExportResult({str(self.path)!r}: {self.format}, {self.precision}, {self.size / 1e6:.1f} MB, "
            f"max_difference {self.max_difference:.2g}{ap})"
        )


def export(
    source: Path | str,
    format: str,
    *,
    output: Path | str | None = None,
    precision: ExportPrecision = "float32",
    data: Data | None = None,
    postprocess: bool = False,
    image_size: int | None = None,
    max_images: int = 64,
    max_calibration_images: int = 128,
    model: NamedModel | None = None,
    state_dict_key: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExportResult:
    """Export a model to ONNX, torch.export or OpenVINO, and compare it with PyTorch.

    The result is read back and predicts the same images as PyTorch; it is kept only if the predictions agree.
    `Detector.load` takes it like any model.

    Args:
        source: run folder, weights file, Hugging Face folder or id, or preset.
        format: "onnx", "torch" (a ``.pt2`` file) or "openvino" (a folder).
        output: file or folder to write; by default ``model.onnx``, ``model.pt2`` or ``model_openvino``.
        precision: "float32"; "bfloat16" or "int8" with OpenVINO. int8 measures ranges on images of `data`.
        data: images to compare on: a dataset (folder, splits, or torch dataset of (image, target)), for which the loss of
            AP is measured, too, or a folder of images without annotations; synthetic images if omitted.
        postprocess: let the exported model return scores, labels and boxes in pixels instead of logits and relative boxes;
            it then takes the images' sizes as a third input.
        image_size: shorter side in pixels to which images are resized, or side of the square to which models that stretch
            images resize them; the model's own if omitted.
        max_images: images to compare on; at most 4 are synthetic.
        max_calibration_images: images on which int8 measures ranges.
        model: see `Detector.load`.
        state_dict_key: see `Detector.load`.
        progress: called with the number of compared batches and their total.

    Returns:
        The path and the differences from PyTorch.

    Raises:
        ConfigError: an argument is wrong, the output exists, or a package is not installed.
        CheckpointError: the source cannot be read.
        DatasetError: the data cannot be read, or its categories are not the model's.
        ExportError: the format cannot express the model, or the predictions differ too much; nothing is left.
    """
    output = check_export(
        format,
        precision=precision,
        output=None if output is None else Path(output),
        has_data=data is not None,
        max_images=max_images,
        max_calibration_images=max_calibration_images,
    )
    checkpoint = load_checkpoint(source, model=model, state_dict_key=state_dict_key)
    if image_size is not None:
        checkpoint = replace(checkpoint, preprocessing=_resized(checkpoint, image_size))
    images = open_check_images(data, checkpoint, max_images, max_calibration_images if precision == "int8" else 0)
    network = checkpoint.build().eval()
    network.padding_invariant = checkpoint.preprocessing.padding_invariant
    metadata = make_metadata(
        checkpoint.config,
        checkpoint.categories,
        checkpoint.preprocessing,
        precision,
        postprocess,
        checkpoint.thresholds,
    )
    program = export_program(network, postprocess=postprocess)
    with _staged(output) as path:
        EXPORT_FORMATS[format].write(program, metadata, path, images.calibration)
        comparison = compare(
            TorchEngine(network, torch.device("cpu"), checkpoint.preprocessing.padding_invariant),
            EXPORT_FORMATS[format].read(path),
            _with_progress(images, progress),
            images.categories,
            images.annotations,
            has_logits=not postprocess,
        )
        comparison.check(precision)
    return ExportResult(output, format, precision, _size(output), images.description, comparison)


def _resized(checkpoint: Checkpoint, image_size: int) -> Preprocessing:
    field = Preprocessing.model_fields["image_size"]
    if not 1 <= image_size <= MAX_IMAGE_SIZE:
        raise ConfigError(f"{arg('image_size', image_size)} is not in 1..{MAX_IMAGE_SIZE}, the {field.description}")
    changes: dict[str, Any] = {"image_size": image_size, "resize": "shorter_side", "size": None, "max_size": None}
    if checkpoint.preprocessing.resize == "stretch":
        changes |= {"resize": "stretch", "size": (image_size, image_size)}
        check_image_size((image_size, image_size), checkpoint.config.size_divisor)
    return checkpoint.preprocessing.model_copy(update=changes)


def _with_progress(images: CheckImages, progress: Callable[[int, int], None] | None) -> Iterator[Batch]:
    for done, batch in enumerate(images.batches(), start=1):
        yield batch
        if progress is not None:
            progress(done, images.num_batches)


@contextmanager
def _staged(output: Path) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder, which replaces the output if the block succeeds."""
    make_folder(output.parent)
    try:
        folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error.strerror}); choose another {arg('output')}") from None
    try:
        path = folder / output.name
        yield path
        if output.is_dir():
            output.rmdir()  # it is empty
        path.replace(output)
    except OSError as error:
        raise ExportError(f"{output}: cannot be written ({error.strerror}); choose another {arg('output')}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _size(output: Path) -> int:
    files = [output] if output.is_file() else list(output.iterdir())
    return sum(file.stat().st_size for file in files)
