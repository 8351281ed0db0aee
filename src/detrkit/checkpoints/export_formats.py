"""Formats of exported models: file names, and the modules that write and read them. Light: imports no torch.

A new export format is one module with a writer and a reader, and one entry in `EXPORT_FORMATS`.
"""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from detrkit._internal.files import refuse_overwrite
from detrkit.errors import ConfigError, arg, check_minimum, did_you_mean, install_hint

METADATA_FILE = "detrkit.json"  # of formats that are folders
NETWORK_FILE = "model.xml"  # of OpenVINO


@dataclass(frozen=True)
class ExportFormat:
    """One format of exported models.

    Attributes:
        summary: one line for the help.
        suffix: of the file; empty for a folder.
        default_output: name of the file or folder.
        writer: ``module:function`` that is called with the program (a `torch.export.ExportedProgram`), its
            `ExportMetadata`, the path to write, and samples for calibration.
        reader: ``module:function`` that opens a path and returns an `ExportedEngine`.
        precisions: names of the precisions that it can hold.
        marker: for folders: name of a file that only this format has.
        packages: that the writer needs.
        extra: of detrkit, that installs them.
    """

    summary: str
    suffix: str
    default_output: str
    writer: str
    reader: str
    precisions: tuple[str, ...] = ("float32",)
    marker: str = ""
    packages: tuple[str, ...] = ()
    extra: str = ""

    def is_format_of(self, path: Path) -> bool:
        """Return whether a file or folder is in this format, by its name and the files in it."""
        if self.marker:
            return path.is_dir() and (path / self.marker).is_file()
        return path.is_file() and path.suffix == self.suffix

    def write(self, *args: Any) -> None:
        """Call the writer."""
        _function(self.writer)(*args)

    def read(self, path: Path) -> Any:
        """Call the reader."""
        return _function(self.reader)(path)


EXPORT_FORMATS: dict[str, ExportFormat] = {
    "onnx": ExportFormat(
        "one .onnx file for ONNX Runtime",
        ".onnx",
        "model.onnx",
        "detrkit.export.onnx:write_onnx",
        "detrkit.inference.engines.onnx:read_onnx",
        packages=("onnx", "onnxscript"),
        extra="export",
    ),
    "torch": ExportFormat(
        "one .pt2 file of torch.export",
        ".pt2",
        "model.pt2",
        "detrkit.export.program:write_program",
        "detrkit.inference.engines.program:read_program",
    ),
    "openvino": ExportFormat(
        "a folder for OpenVINO",
        "",
        "model_openvino",
        "detrkit.export.openvino:write_openvino",
        "detrkit.inference.engines.openvino:read_openvino",
        ("float32", "bfloat16", "int8"),
        marker=NETWORK_FILE,
        packages=("openvino",),
        extra="openvino",
    ),
}


def export_format_of(source: Path | str) -> ExportFormat | None:
    """Return the format of an exported file or folder, or None if it is not an exported model."""
    path = Path(source)
    return next((format for format in EXPORT_FORMATS.values() if format.is_format_of(path)), None)


def is_exported(source: Path | str) -> bool:
    """Return whether a source is an exported file or folder, by its name and the files in it."""
    return export_format_of(source) is not None or (Path(source) / METADATA_FILE).is_file()


def check_export(
    format: str,
    *,
    precision: str,
    output: Path | None,
    has_data: bool,
    max_images: int,
    max_calibration_images: int,
) -> Path:
    """Check the arguments of an export.

    Returns:
        The file or folder to write.

    Raises:
        ConfigError: one is wrong, they do not fit each other, or a package is not installed.
        DatasetError: the output exists.
    """
    if format not in EXPORT_FORMATS:
        raise ConfigError(f"{arg('format', format)} is not an export format; {did_you_mean(format, EXPORT_FORMATS)}")
    chosen = EXPORT_FORMATS[format]
    if precision not in chosen.precisions:
        others = [name for name, one in EXPORT_FORMATS.items() if precision in one.precisions]
        raise ConfigError(
            f"{arg('precision', precision)} is not supported by {arg('format', format)}; "
            + (f"use {arg('format', others[0])}" if others else f"use one of {', '.join(chosen.precisions)}")
        )
    if precision == "int8" and not has_data:
        raise ConfigError(
            f"{arg('precision', precision)} needs images to measure ranges on; pass your dataset or images as {arg('data')}"
        )
    for name, count in (("max_images", max_images), ("max_calibration_images", max_calibration_images)):
        check_minimum(name, count, 1)
    output = output or Path(chosen.default_output)
    suffixes = {one.suffix for one in EXPORT_FORMATS.values() if one.suffix}
    if chosen.suffix != output.suffix and (chosen.suffix or output.suffix in suffixes):
        expected = f"a file ending in {chosen.suffix}" if chosen.suffix else "a folder"
        raise ConfigError(f"{output}: expected {expected} for {arg('format', format)}; rename it")
    refuse_overwrite(output)
    for package in chosen.packages:
        if find_spec(package) is None:
            raise ConfigError(f"{arg('format', format)} needs {package}; {install_hint(f'detrkit[{chosen.extra}]')}")
    return output


def _function(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)
