"""What an evaluation reads and leaves: one part of a dataset; scores, report and pictures in a folder."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from torch.utils.data import Dataset

from detrkit._internal.files import atomic_write, make_folder, write_json_rows
from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit.data.dataset import Split
from detrkit.data.formats.folder import Format
from detrkit.data.records import Records, SplitName
from detrkit.data.splits import load_split
from detrkit.errors import ConfigError, DatasetError
from detrkit.evaluation.analysis import Analysis
from detrkit.evaluation.coco import PUBLISHED_MAX_DETECTIONS
from detrkit.evaluation.metrics import EvalMetrics, headline
from detrkit.evaluation.paper.analyses import PAPER_ANALYSES, PaperAnalysis
from detrkit.evaluation.report.page import counted, write_report
from detrkit.evaluation.report.pictures import draw_worst
from detrkit.structures import Sample
from detrkit.training.run_report import write_scores


def chosen_split(
    data: str, split: SplitName, format: Format | None, seed: int | None, console: Console, *, masks: bool = False
) -> Split:
    """Read one part of a dataset, and say what was noted; arguments as in `load_split`.

    Raises:
        DatasetError: there is no such part, or it is malformed.
    """
    records, notes = load_split(data, split, format, seed, masks=masks)
    if records is None:
        raise DatasetError(f"{data}: found no {split} split, expected one; choose another --split")
    for note in notes:
        console.print(note)
    return records


_FILES = ("detections.json", "images.json", "scores.json", "report.html", *(f"{name}.png" for name in PAPER_ANALYSES))


def check_output(output: Path | None) -> None:
    """See that what is to be written can have its name.

    Raises:
        ConfigError: something else has it, or somebody else's file.
    """
    if output is None:
        return
    if output.suffix == ".json" and output.is_dir():
        raise ConfigError(f"{output}: is a folder, expected the name of a JSON file for the detections")
    if output.suffix != ".json" and output.exists() and not output.is_dir():
        raise ConfigError(f"{output}: is a file, expected a folder for the report, or a name that ends in .json")
    there = next((one for one in (output, *output.absolute().parents) if one.exists()), output)
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{output}: {there} cannot be written to; choose another place with --output")
    if there != output and not there.is_dir():
        raise ConfigError(f"{output}: {there} is a file, expected a folder; choose another place with --output")
    for path in [output] if output.suffix == ".json" else [output / name for name in _FILES]:
        refuse_foreign_overwrite(path)


def print_analysis(analysis: Analysis, console: Console) -> None:
    """Print what the scores of boxes do not say: what counts, the best threshold, kinds of mistakes."""
    if analysis.scores.max_detections != PUBLISHED_MAX_DETECTIONS:
        console.print(counted(analysis.scores))
    if analysis.best.overall is not None:
        best = analysis.best.overall
        console.print(
            f"best threshold {best.threshold:.3f}: precision {best.precision:.3f}, recall {best.recall:.3f}, F1 "
            f"{best.f1:.3f}"
        )
    mistakes = ", ".join(f"{count} {kind}" for kind, count in analysis.errors.counts.items())
    console.print(f"right {analysis.errors.num_right}; mistakes: {mistakes}")


def write_images(folder: Path, records: Records) -> None:
    """Write images.json, which tells the ids of detections.json and scores.json: file, width and height of each photo.

    Files are named below the folder that all of them lie in, as `images` of a COCO file does.
    """
    paths = [records.path(index).absolute() for index in range(len(records))]
    root = os.path.commonpath([path.parent for path in paths])
    images = [
        {"id": image_id, "file_name": path.relative_to(root).as_posix(), "width": width, "height": height}
        for image_id, path, (height, width) in zip(records.image_ids, paths, records.arrays.sizes.tolist(), strict=True)
    ]
    write_json_rows(folder / "images.json", images)


def write_evaluation(
    output: Path | None,
    analysis: Analysis,
    scores: EvalMetrics,
    papers: Sequence[PaperAnalysis],
    pictures: Dataset[Sample],
    records: Split,
    title: str,
    console: Console,
) -> None:
    """Write scores, report and pictures into a folder, if one was named."""
    if output is None or output.suffix == ".json":
        return
    make_folder(output)
    write_images(output, records.records)
    others = {paper.name: paper.content for paper in papers}
    write_scores(output / "scores.json", analysis, scores, title=title, **others)
    for paper in papers:
        with atomic_write(output / f"{paper.name}.png") as temporary:
            temporary.write_bytes(paper.chart.png)
    write_report(
        output / "report.html",
        title=headline(scores),
        subtitle=title,
        analysis=analysis,
        judged_by=f"from {records.source.name}",
        worst=draw_worst(analysis, pictures, records.records.image_ids),
        charts=[paper.chart for paper in papers],
        masks=scores.masks,
        panoptic=scores.panoptic,
    )
    console.print(f"report: {output / 'report.html'}", soft_wrap=True)
