"""Findings about what the readers of a format had to leave out."""

from collections.abc import Iterator, Sequence

from detrkit.data.dataset import Split
from detrkit.data.findings import Finding, Location, Severity
from detrkit.data.records import NO_SEGMENTATION, ImageError, ObjectError, SegmentationError
from detrkit.errors import DatasetError


def reading_findings(errors: Sequence[DatasetError], *, masks: bool) -> Iterator[Finding]:
    """Turn the errors of readers into findings, one for every kind.

    Args:
        errors: of a reader.
        masks: whether a model with masks is to be trained, for which segmentations matter.
    """
    severity: Severity = "error" if masks else "warning"
    kinds: tuple[tuple[type[DatasetError], Severity, str, str], ...] = (
        (
            ImageError,
            "error",
            "images that cannot be used",
            "correct or export them again; a fixed copy is without them",
        ),
        (
            ObjectError,
            "error",
            "objects that cannot be read",
            "correct them; a fixed copy is without them, and without images that have no other objects",
        ),
        (
            SegmentationError,
            severity,
            "segmentations that cannot be used",
            "correct them: a model with masks needs them; the objects keep their boxes",
        ),
        (DatasetError, "error", "annotations that cannot be read", "correct them; a fixed copy is without them"),
    )
    rest = list(errors)
    for kind, of_kind, title, advice in kinds:
        found = [error for error in rest if isinstance(error, kind)]
        rest = [error for error in rest if not isinstance(error, kind)]
        if found:
            yield Finding(of_kind, title, advice, tuple(Location(str(error)) for error in found))


def segmentation_findings(splits: Sequence[Split], *, masks: bool) -> Iterator[Finding]:
    """Report objects without a segmentation among others that have one; arguments as in `reading_findings`."""
    locations: list[Location] = []
    total = 0
    for split in splits:
        strings = split.records.arrays.segmentations
        if strings is None:
            continue
        is_missing = strings.ends.diff() == len(NO_SEGMENTATION)
        total += len(is_missing)
        ends = split.records.arrays.object_ends
        for index in is_missing.nonzero()[:, 0].tolist():
            path = split.records.path(int((ends > index).nonzero()[0, 0]) - 1)
            box = tuple(split.records.arrays.boxes[index].tolist())
            locations.append(Location(f"{path}: box " + " ".join(f"{value:g}" for value in box), path, box))
    if 0 < len(locations) < total:
        advice = "a model with masks needs one for every object; training on boxes does not"
        title = "objects without a segmentation, among others that have one"
        yield Finding("error" if masks else "note", title, advice, tuple(locations))
