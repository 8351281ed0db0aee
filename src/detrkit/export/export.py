"""A model written for other engines, and checked against PyTorch before it takes its name."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import track
from torch.export import ExportedProgram

from detrkit._internal.files import make_folder, refuse_overwrite
from detrkit._internal.text import plain_console, plural
from detrkit.checkpoints.load import read_checkpoint
from detrkit.checkpoints.native import Checkpoint, Preprocessing
from detrkit.data.batching import collate
from detrkit.data.dataset import DetectionDataset, Split, unannotated
from detrkit.data.images import read_image
from detrkit.data.splits import load_dataset
from detrkit.data.suffixes import IMAGE_SUFFIXES
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle, in_channels
from detrkit.data.transforms.geometry import EvalTransform
from detrkit.errors import ConfigError, ExportError
from detrkit.evaluation.ground_truth import check_categories, split_to_coco
from detrkit.export.graph import export_program
from detrkit.export.onnx_file import write_onnx
from detrkit.export.openvino_folder import write_openvino
from detrkit.export.program_file import write_program
from detrkit.export.verify import ExportComparison, compare
from detrkit.inference.engines.exported import ExportMetadata, ExportPrecision, make_metadata
from detrkit.inference.engines.load import load_exported
from detrkit.inference.engines.torch import TorchEngine
from detrkit.structures import Batch, Sample

Format = Literal["onnx", "torch", "openvino"]
DEFAULT_OUTPUT: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2", "openvino": "model_openvino"}
_SUFFIX: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2", "openvino": ""}
_BATCH_SIZE = 2  # of the check, so that photos are padded
_DRAWN_SIZES = ((192, 256), (256, 192), (256, 256), (144, 256))  # (height, width) of drawn photos to check on


@dataclass(frozen=True)
class CheckImages:
    """What an export is calibrated with and checked on."""

    calibration: Sequence[Sample]
    check: Sequence[Sample]
    annotations: Path | dict[str, Any] | None  # of the photos of the check
    origin: str


def export_model(
    source: str,
    format: Format,
    *,
    precision: ExportPrecision,
    data: Path | None,
    postprocess: bool,
    image_size: int | None,
    num_check: int,
    num_calibration: int,
    output: Path | None,
) -> ExportComparison:
    """Write, read back, compare with PyTorch, print what differs, and only then give the file its name.

    Raises:
        DetrkitError: the source or the data cannot be read, or the form cannot express the model.
        ExportError: the export says something else than PyTorch; nothing is left.
    """
    output = output or Path(DEFAULT_OUTPUT[format])
    _check_wishes(format, precision, data, output, num_check, num_calibration)
    checkpoint = read_checkpoint(source)
    if image_size is not None:
        checkpoint = replace(checkpoint, preprocessing=_resized(checkpoint.preprocessing, image_size))
    photos = _open_photos(data, checkpoint, num_check, num_calibration if precision == "int8" else 0)
    console, model = plain_console(), checkpoint.build().eval()
    console.print(f"checked on {photos.origin}", soft_wrap=True)
    metadata = make_metadata(
        checkpoint.config,
        checkpoint.categories,
        checkpoint.preprocessing,
        precision,
        postprocess,
        checkpoint.thresholds,
    )
    program = export_program(
        model, padding_invariant=checkpoint.preprocessing.padding_invariant, postprocess=postprocess
    )
    with _aside(output) as place:
        _write(format, program, metadata, place, photos.calibration)
        comparison = compare(
            TorchEngine(model, torch.device("cpu"), checkpoint.preprocessing.padding_invariant),
            load_exported(place),
            track(
                _batches(photos.check),
                "comparing",
                total=-(-len(photos.check) // _BATCH_SIZE),
                console=Console(stderr=True),
                transient=True,
            ),
            checkpoint.categories,
            photos.annotations,
            has_logits=not postprocess,
        )
        for line in comparison.lines():
            console.print(line, soft_wrap=True)
        comparison.check(precision)
    console.print(f"{output}: {format}, {precision}, {_megabytes(output):.1f} MB", soft_wrap=True)
    return comparison


def _check_wishes(
    format: Format, precision: ExportPrecision, data: Path | None, output: Path, num_check: int, num_calibration: int
) -> None:
    if precision != "float32" and format != "openvino":
        raise ConfigError(f"--precision {precision}: --format {format} holds float32 only; use --format openvino")
    if precision == "int8" and data is None:
        raise ConfigError("--precision int8: needs photos to measure ranges on; give --data, your dataset or photos")
    if num_check < 1 or num_calibration < 1:
        raise ConfigError(
            f"found --photos {num_check} and --calibration {num_calibration}, expected at least 1 of each"
        )
    if _SUFFIX[format] != output.suffix and (_SUFFIX[format] or output.suffix in _SUFFIX.values()):
        expected = f"a file ending in {_SUFFIX[format]}" if _SUFFIX[format] else "a folder"
        raise ConfigError(f"{output}: expected {expected} for --format {format}; rename it")
    refuse_overwrite(output)


def _resized(preprocessing: Preprocessing, image_size: int) -> Preprocessing:
    field = Preprocessing.model_fields["image_size"]
    if not 1 <= image_size <= 10_000:
        raise ConfigError(f"--image-size: found {image_size}, expected 1 to 10000, the {field.description}")
    return preprocessing.model_copy(update={"image_size": image_size})


def _write(
    format: Format, program: ExportedProgram, metadata: ExportMetadata, place: Path, calibration: Sequence[Sample]
) -> None:
    if format == "openvino":
        write_openvino(program, metadata, make_folder(place), calibration)
        return
    write: Callable[[ExportedProgram, ExportMetadata, Path], None] = write_onnx if format == "onnx" else write_program
    write(program, metadata, place)


def _batches(samples: Sequence[Sample]) -> Iterator[Batch]:
    """Batches of neighbours, so that most photos are padded; the last one may be alone."""
    return (collate(list(samples[first : first + _BATCH_SIZE])) for first in range(0, len(samples), _BATCH_SIZE))


def _open_photos(data: Path | None, checkpoint: Checkpoint, num_check: int, num_calibration: int) -> CheckImages:
    """Prepare photos as the model will see them: from a dataset, from a folder of bare photos, or drawn."""
    transform, channels = EvalTransform(checkpoint.preprocessing.image_size), checkpoint.config.in_channels
    if data is None:
        drawn = [transform(_drawn(index, channels)) for index in range(min(num_check, len(_DRAWN_SIZES)))]
        return CheckImages([], drawn, None, f"{plural(len(drawn), 'drawn photo')}; --data checks on your own")
    bare = _bare_photos(data)
    if bare:
        calibration, check = (
            [transform(_bare(path, index, channels)) for index, path in enumerate(_spread(bare, count))]
            for count in (num_calibration, num_check)
        )
        return CheckImages(calibration, check, None, f"photos of {data}")
    folder = load_dataset(data)
    check_categories(checkpoint.categories, folder.val.categories, folder.val.source)
    return CheckImages(
        calibration=_samples(folder.train, num_calibration, transform, channels),
        check=_samples(folder.val, num_check, transform, channels),
        annotations=split_to_coco(folder.val),
        origin=f"photos of {data}, the validation split",
    )


def _samples(split: Split, count: int, transform: EvalTransform, channels: int) -> list[Sample]:
    dataset = DetectionDataset(split, transform, channels)
    return [dataset[index] for index in _spread(range(len(dataset)), count)]


def _spread(things: Sequence[Any], count: int) -> list[Any]:
    """So many of them, at equal distances."""
    count = min(count, len(things))
    return [things[index * len(things) // count] for index in range(count)]


def _bare_photos(data: Path) -> list[Path]:
    """The photos of a folder that holds nothing else."""
    inside = sorted(one for one in data.iterdir() if not one.name.startswith(".")) if data.is_dir() else []
    return inside if all(one.is_file() and one.suffix.lower() in IMAGE_SUFFIXES for one in inside) else []


def _bare(path: Path, index: int, channels: int) -> Sample:
    return unannotated(read_image(path, channels=channels), index)


def _drawn(index: int, channels: int) -> Sample:
    height, width = _DRAWN_SIZES[index]
    pixels = SyntheticShapes(len(_DRAWN_SIZES), seed=0, style=SyntheticStyle(size=256))[index].image[:, :height, :width]
    return unannotated(in_channels(pixels, channels), index)


@contextmanager
def _aside(output: Path) -> Iterator[Path]:
    """A place of the same name in a folder beside `output`, moved there when the block ends without an error."""
    make_folder(output.parent)
    try:
        folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}."))
    except OSError as error:
        raise ConfigError(
            f"{output}: cannot be written ({error.strerror}); choose another place with --output"
        ) from None
    try:
        place = folder / output.name
        yield place
        if output.is_dir():
            output.rmdir()  # it is empty
        place.replace(output)
    except OSError as error:
        raise ExportError(
            f"{output}: cannot be written ({error.strerror}); choose another place with --output"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _megabytes(output: Path) -> float:
    files = [output] if output.is_file() else list(output.iterdir())
    return sum(one.stat().st_size for one in files) / 1e6
