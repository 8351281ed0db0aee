"""Predicting photo files: a picture and a JSON document for each, or one file of lines that a second call goes on with."""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrkit._internal.files import atomic_write, make_folder, write_text
from detrkit._internal.provenance import provenance_mark
from detrkit._internal.text import plural, printable
from detrkit.checkpoints.load import local_file
from detrkit.data.segment_png import write_ids
from detrkit.distributed.rank import Process
from detrkit.errors import DatasetError
from detrkit.inference.images import ImageInput
from detrkit.inference.prediction import PredictionRun, progress_bar
from detrkit.inference.writers.jsonl import JsonlWriter, lines_name
from detrkit.inference.writers.parquet import write_parquet
from detrkit.structures import Detections

PHOTO_KINDS = "pictures,json"


def predict_photos(job: PredictionRun, source: str, photos: Sequence[str], process: Process) -> None:
    """Predict this process's photos.

    Raises:
        DetrkitError: the output cannot be written.
    """
    output, kinds = job.options.output, job.options.kinds(PHOTO_KINDS)
    with ExitStack() as stack:
        lines = None
        if kinds & {"jsonl", "parquet"}:
            path = output / f"{lines_name(process)}.jsonl"
            lines = stack.enter_context(JsonlWriter(path, _settings(job, source, process)))
        todo = [photo for photo in photos if lines is None or photo not in lines.done]
        if lines is not None and len(todo) < len(photos):
            job.console.print(
                f"{len(photos) - len(todo)} of {plural(len(photos), 'photo')} done already", soft_wrap=True
            )
        progress = stack.enter_context(progress_bar("photos", is_shown=lines is not None))
        task = progress.add_task("", total=len(todo))
        outputs = _Outputs(job, kinds, lines)
        found = job.stream(todo, "pictures" in kinds, fault=outputs.refuse)
        for detections in stack.enter_context(closing(found)):
            outputs.add(detections)
            progress.update(task, completed=job.tally.photos + job.tally.faults)
            if job.stop.received is not None:
                break
    known = [] if lines is None else [lines.faults[photo] for photo in photos if photo in lines.faults]
    _conclude(job, kinds, lines, len(photos), len(known))
    for fault in known:  # the same command ends alike, whenever the fault was found
        job.tally.refuse(fault)


def _conclude(
    job: PredictionRun, kinds: frozenset[str], lines: JsonlWriter | None, count: int, num_known_faults: int
) -> None:
    tally = job.tally
    if lines is None:
        if tally.photos:
            names = {"pictures": "pictures", "json": "JSON", "segments": "segments"}
            what = " and ".join(name for kind, name in names.items() if kind in kinds)
            verb = "is" if what == "JSON" else "are"
            job.console.print(f"{what} {verb} in {job.options.output}", soft_wrap=True)
        return
    if num_known_faults:
        job.console.print(
            f"photos that could not be read before: {num_known_faults}; their lines say why, and without these "
            "they are tried again"
        )
    if job.stop.received is not None:
        done = len(lines.done) + tally.photos + tally.faults
        job.console.print(f"stopped after {done} of {plural(count, 'photo')}; the same command goes on")
        return
    if tally.photos:
        job.console.print(f"{plural(tally.photos, 'photo')} predicted, {plural(tally.objects, 'object')} found")
    if "parquet" in kinds:
        write_parquet(lines.path, lines.path.with_suffix(".parquet"))
        job.console.print(f"table: {lines.path.with_suffix('.parquet')}", soft_wrap=True)
    job.console.print(f"lines: {lines.path}", soft_wrap=True)


def _settings(job: PredictionRun, source: str, process: Process) -> dict[str, Any]:
    """What decides about the numbers of the lines."""
    options = job.options
    weights = local_file(source)
    if weights is None:
        model = source
    else:
        with weights.open("rb") as content:
            model = f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"
    classes = options.class_names(job.detector)
    return {
        "model": model,
        "threshold": job.detector.resolve_threshold(options.threshold),
        "precision": options.precision,
        "classes": None if classes is None else sorted(set(classes)),
        "tile": options.tile,
        "overlap": None if options.tile is None else options.overlap,
        "share": f"{process.rank}/{process.world}",
    }


@dataclass(frozen=True)
class _Outputs:
    """Writes what was found in each photo; its line last, for it says that the photo is done."""

    job: PredictionRun
    kinds: frozenset[str]
    lines: JsonlWriter | None

    def add(self, found: Detections) -> None:
        """Write all that is asked for of one photo."""
        assert found.path is not None
        assert found.size is not None
        path, folder = found.path, self.job.options.output
        name = self.job.names[path]
        make_folder(folder)
        if "pictures" in self.kinds:
            with atomic_write(folder / f"{name}.png") as temporary:
                found.draw().save(temporary, pnginfo=provenance_mark())
        if "segments" in self.kinds and found.segments is not None:
            write_ids(folder / f"{name}.segments.png", found.segments.ids)
        if "json" in self.kinds:
            write_text(folder / f"{name}.json", found.to_json())
        if self.lines is not None:
            height, width = found.size
            self.lines.add({"image": path, "width": width, "height": height, **found.to_dict()})
        else:
            pairs = zip(found.class_names, found.scores.tolist(), strict=True)
            in_words = ", ".join(f"{printable(name)} {score:.2f}" for name, score in pairs)
            self.job.console.print(f"{Path(path).name}: {in_words or 'nothing above the threshold'}")
        self.job.tally.photos += 1
        self.job.tally.objects += len(found)

    def refuse(self, photo: ImageInput, error: DatasetError) -> None:
        """Record a photo that cannot be read."""
        self.job.tally.refuse(str(error))
        if self.lines is not None:
            self.lines.add({"image": str(photo), "error": str(error), "objects": []})
        else:
            self.job.console.print(f"{Path(str(photo)).name}: not predicted")
