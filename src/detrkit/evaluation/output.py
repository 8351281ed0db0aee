"""Files written by an evaluation: detections, metrics and report."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detrkit._internal.files import atomic_write, make_folder, write_json_rows, write_text
from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit.data.records import Records
from detrkit.errors import ConfigError, arg
from detrkit.evaluation.analysis import Analysis, replace_nan
from detrkit.evaluation.arrays import DetectionArrays
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.evaluation.paper.analysis import PAPER_ANALYSES
from detrkit.evaluation.result import EvalResult

SCORES_FILE, REPORT_FILE, DETECTIONS_FILE, IMAGES_FILE = "scores.json", "report.html", "detections.json", "images.json"
_FILES = (DETECTIONS_FILE, IMAGES_FILE, SCORES_FILE, REPORT_FILE, *(f"{name}.png" for name in PAPER_ANALYSES))


def check_output(output: Path | None) -> None:
    """Check that the output can be written.

    Args:
        output: folder; or a name that ends in .json, for the detections only.

    Raises:
        ConfigError: it is not writable, or files of another program would be overwritten.
    """
    if output is None:
        return
    is_json = output.suffix == ".json"
    if is_json and output.is_dir():
        raise ConfigError(f"{arg('output', output)} is a folder, expected the name of a JSON file for the detections")
    if not is_json and output.exists() and not output.is_dir():
        raise ConfigError(f"{arg('output', output)} is a file, expected a folder, or a name that ends in .json")
    existing = next((one for one in (output, *output.absolute().parents) if one.exists()), output)
    if existing.is_dir() and not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{arg('output', output)}: {existing} is not writable; choose another folder")
    if existing != output and not existing.is_dir():
        raise ConfigError(f"{arg('output', output)}: {existing} is a file, expected a folder; choose another one")
    for path in [output] if is_json else [output / name for name in _FILES]:
        refuse_foreign_overwrite(path)


def write_detections(output: Path, detections: DetectionArrays) -> None:
    """Write detections as COCO results, into a folder or a JSON file."""
    path = output if output.suffix == ".json" else make_folder(output) / DETECTIONS_FILE
    write_json_rows(path, detections.to_coco())


def write_images_list(output: Path, records: Records) -> None:
    """Write images.json: id, file name, width and height of each image, as `images` of a COCO file.

    File names are relative to the folder that contains all images.
    """
    paths = [records.path(index).absolute() for index in range(len(records))]
    root = os.path.commonpath([path.parent for path in paths])
    images = [
        {"id": image_id, "file_name": path.relative_to(root).as_posix(), "width": width, "height": height}
        for image_id, path, (height, width) in zip(records.image_ids, paths, records.arrays.sizes.tolist(), strict=True)
    ]
    write_json_rows(make_folder(output) / IMAGES_FILE, images)


def write_scores(path: Path, analysis: Analysis, metrics: EvalMetrics, extra: Mapping[str, Any] | None = None) -> None:
    """Write the analysis of a training run's best checkpoint as JSON."""
    content = {**analysis.to_json(), **(extra or {})}
    if metrics.masks is not None:
        content["masks"] = metrics.masks.to_json()
    if metrics.panoptic is not None:
        content["panoptic"] = metrics.panoptic.to_json()
    _write_json(path, content)


def write_result(output: Path, result: EvalResult) -> Path:
    """Write metrics, report and figures into a folder.

    Returns:
        The path of the report.
    """
    folder = make_folder(output)
    _write_json(folder / SCORES_FILE, result.to_json())
    for analysis in result.paper_analyses:
        with atomic_write(folder / f"{analysis.name}.png") as temporary:
            temporary.write_bytes(analysis.figure.png)
    return result.to_html(folder / REPORT_FILE)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(replace_nan(dict(content)), indent=1, ensure_ascii=False))
