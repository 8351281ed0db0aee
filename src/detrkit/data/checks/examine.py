"""What is wrong with a dataset, worst first, before anything is learned from it.

Input: a dataset folder. Output: a `Diagnosis`: findings with place and advice, and the table of classes.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detrkit._internal.text import plural
from detrkit.data.checks.annotations import (
    ClassCount,
    Finding,
    Location,
    count_classes,
    examine_annotations,
    max_objects,
    worst_first,
)
from detrkit.data.checks.decode_cache import DecodedImage, decode_images
from detrkit.data.checks.panoptic import compare_segments, segment_findings
from detrkit.data.dataset import DatasetSplits, Split
from detrkit.data.formats.folder import Format
from detrkit.data.records import SplitName
from detrkit.data.splits import load_dataset, require_train
from detrkit.errors import DatasetError


@dataclass(frozen=True)
class DatasetReport:
    """Everything the doctor found.

    Attributes:
        format: how the dataset is written down.
        num_images: photos of each split.
        max_objects: of the fullest photo, crowds left out.
        classes: in the order of the labels.
        findings: worst first.
        notes: what reading it decided.
        folder: the dataset, without what cannot be read.
        unusable: photos that cannot be read, or are of another size than annotated; alike for their PNGs of segments.
    """

    format: str | None
    num_images: dict[SplitName, int]
    max_objects: int
    classes: tuple[ClassCount, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    folder: DatasetSplits
    unusable: frozenset[Path]

    @property
    def is_fit(self) -> bool:
        """Whether training would go right."""
        return all(finding.severity != "error" for finding in self.findings)


def examine(
    path: Path,
    format: Format | None = None,
    *,
    num_queries: int = 100,
    image_size: int = 800,
    stride: int = 32,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
    memory: Path | None = None,
) -> DatasetReport:
    """Read every file, decode every photo, and say what is wrong.

    Args:
        path: dataset folder.
        format: how it is written down; None looks.
        num_queries: objects that the model can find in one photo.
        image_size: shorter side to which photos are resized, pixels.
        stride: pixels per cell of the model's feature map.
        workers: processes that decode photos.
        progress: told how many photos of how many are done.
        memory: file of what was decoded before, and where to add to it; None decodes all.

    Raises:
        DatasetError: the folder cannot be understood at all.
    """
    faults: list[DatasetError] = []
    folder = load_dataset(path, format, on_error=faults.append)
    require_train(folder)
    splits = folder.splits
    records = [record for split in splits.values() for record in split.records]
    photos = decode_images(records, workers, progress, memory)
    segments = compare_segments(records, workers, progress)
    findings = [
        *_of_reading(faults),
        *_of_photos(splits, photos),
        *segment_findings(segments),
        *examine_annotations(folder, num_queries=num_queries, image_size=image_size, stride=stride),
    ]
    return DatasetReport(
        format=folder.format,
        num_images={name: len(split.records) for name, split in splits.items()},
        max_objects=max_objects(folder),
        classes=tuple(count_classes(splits)),
        findings=worst_first(findings),
        notes=folder.notes,
        folder=folder,
        unusable=frozenset(
            record.path
            for split in splits.values()
            for record in split.records
            if photos[record.path].size != record.size or (record.path in segments and segments[record.path].fault)
        ),
    )


def _of_reading(faults: Sequence[DatasetError]) -> Iterator[Finding]:
    if faults:
        yield Finding(
            "error",
            "entries that cannot be read",
            "correct them, or let --fix leave them out",
            tuple(Location(str(fault)) for fault in faults),
        )


def _of_photos(splits: dict[SplitName, Split], photos: dict[Path, DecodedImage]) -> Iterator[Finding]:
    unreadable = tuple(Location(photo.fault) for photo in photos.values() if photo.fault)
    if unreadable:
        yield Finding("error", "photos that cannot be read", "export them again, or drop them", unreadable)
    wrong_size = [
        Location(
            f"{record.path}: {size[1]} x {size[0]} px, annotated as {record.size[1]} x {record.size[0]}", record.path
        )
        for split in splits.values()
        for record in split.records
        if (size := photos[record.path].size) is not None and size != record.size
    ]
    if wrong_size:
        yield Finding(
            "error",
            "photos of another size than their annotations say",
            "boxes would miss; export photos and annotations together",
            tuple(wrong_size),
        )
    kinds = Counter(photo.channels for photo in photos.values() if photo.fault is None)
    if len(kinds) > 1:
        usual = kinds.most_common(1)[0][0]
        others = [
            Location(f"{path}: {plural(one.channels, 'channel')}", path)
            for path, one in photos.items()
            if one.channels not in (0, usual)
        ]
        yield Finding(
            "error", f"photos with another number of channels than {usual}", "export them alike", tuple(others)
        )
    yield from _of_copies(splits, photos)


def _of_copies(splits: dict[SplitName, Split], photos: dict[Path, DecodedImage]) -> Iterator[Finding]:
    """Photos with the same content, in two splits or in one."""
    by_content: dict[str, list[tuple[SplitName, Path]]] = {}
    for name, split in splits.items():
        for record in split.records:
            if digest := photos[record.path].digest:
                by_content.setdefault(digest, []).append((name, record.path))
    shared: list[Location] = []
    repeated: list[Location] = []
    for copies in by_content.values():
        if len(copies) > 1:
            place = Location(" = ".join(f"{name}: {path}" for name, path in copies), copies[0][1])
            (shared if len({name for name, _ in copies}) > 1 else repeated).append(place)
    if shared:
        yield Finding(
            "warning",
            "photos that stand in two splits",
            "scores would be too good; keep each photo in one split",
            tuple(shared),
        )
    if repeated:
        yield Finding("warning", "photos that stand twice in a split", "drop the copies", tuple(repeated))
