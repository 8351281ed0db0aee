"""Check of a dataset before training: annotations, images, duplicates, panoptic segments."""

import html
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detrkit._internal.notebook import html_table
from detrkit._internal.text import plural
from detrkit.config.training import MAX_IMAGE_SIZE
from detrkit.data.categories import Categories
from detrkit.data.checks.annotations import (
    ClassCount,
    count_classes,
    examine_annotations,
    max_objects,
)
from detrkit.data.checks.decode_cache import DecodedImage, cache_path, decode_images
from detrkit.data.checks.panoptic import compare_segments, segment_findings
from detrkit.data.checks.reading import reading_findings, segmentation_findings
from detrkit.data.dataset import DatasetSplits, SampleSplit, Split
from detrkit.data.findings import Finding, Location, sort_findings
from detrkit.data.formats.registry import detect_format
from detrkit.data.records import ImageError, SplitName
from detrkit.data.splits import Data, as_splits, load_dataset, require_train
from detrkit.errors import ConfigError, DatasetError, arg, check_minimum

REPORT_FORMAT = "detrkit-dataset-report-1"


@dataclass(frozen=True, repr=False)
class DatasetReport:
    """Findings about a dataset.

    Attributes:
        source: folder, or name of the class of a torch dataset.
        format: of the annotations; None for a torch dataset.
        num_images: images in each split.
        max_objects: maximum number of objects in an image, without crowds.
        classes: object counts, in the order of the labels.
        findings: most severe first.
        notes: decisions taken while reading.
        dataset: the splits, without what cannot be read.
        unusable: images that cannot be read, or have another size than annotated; or whose PNG of segments has.
        errors: malformed entries that the reader left out.
        split: the only split that was examined; None for all.
    """

    source: Path
    format: str | None
    num_images: dict[SplitName, int]
    max_objects: int
    classes: tuple[ClassCount, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    dataset: DatasetSplits
    unusable: frozenset[Path]
    errors: tuple[DatasetError, ...] = ()
    split: SplitName | None = None

    @property
    def num_errors(self) -> int:
        """Number of findings that would break training or make it wrong."""
        return sum(finding.severity == "error" for finding in self.findings)

    @property
    def summary(self) -> str:
        """Summary of what training would use: classes, objects, images."""
        if self.num_errors:
            purpose = "training" if self.split in (None, "train") else "evaluation"
            count = sum(max(1, len(one.locations)) for one in self.findings if one.severity == "error")
            return f"{plural(count, 'error')} must be fixed before {purpose}"
        if self.split is not None:
            count = sum(one.objects.get(self.split, 0) for one in self.classes)
            images = plural(self.num_images.get(self.split, 0), "image")
            return f"the {self.split} split has no errors: {images} with {plural(count, 'object')}"
        num_val = self.num_images.get("val", 0)
        objects = sum(one.objects["train"] for one in self.classes)
        return (
            f"ready for training: {plural(self.num_images['train'], 'image')} with {plural(objects, 'object')} of "
            f"{plural(len(self.classes), 'class', 'classes')}; validation: {plural(num_val, 'image')}; "
            f"at most {plural(self.max_objects, 'object')} per image"
        )

    def to_json(self) -> str:
        """Return all findings and counts as a JSON document; paths are strings, boxes xyxy in pixels."""
        findings = [
            {**asdict(one), "locations": [_location_json(each) for each in one.locations]} for one in self.findings
        ]
        content = {
            "format": REPORT_FORMAT,
            "dataset": str(self.source),
            "dataset_format": self.format,
            "num_errors": self.num_errors,
            "num_images": self.num_images,
            "max_objects": self.max_objects,
            "notes": self.notes,
            "split": self.split,
            "findings": findings,
            "classes": [asdict(one) for one in self.classes],
        }
        return json.dumps(content, indent=1, ensure_ascii=False)

    def __repr__(self) -> str:
        images = ", ".join(f"{count} {name}" for name, count in self.num_images.items())
        severities = Counter(finding.severity for finding in self.findings)
        found = ", ".join(plural(count, severity) for severity, count in severities.items()) or "no findings"
        return f"DatasetReport({self.source.name}: {images} images, {len(self.classes)} classes; {found})"

    def _repr_html_(self) -> str:
        findings = [
            (one.severity, one.title, len(one.locations) or "", one.advice, one.locations[0] if one.locations else "")
            for one in self.findings
        ]
        splits = list(self.num_images)
        counts = [(one.name, one.category_id, *(one.objects[split] for split in splits)) for one in self.classes]
        return (
            f"<p>{html.escape(repr(self))}: {html.escape(self.summary)}</p>"
            + html_table(("severity", "finding", "count", "advice", "first"), findings)
            + html_table(("class", "id", *splits), counts)
        )


def _location_json(location: Location) -> dict[str, Any]:
    image = None if location.image is None else str(location.image)
    return {"text": location.text, "image": image, "box": location.box}


def examine(
    data: Data,
    format: str | None = None,
    *,
    split: SplitName | None = None,
    classes: Sequence[str] | None = None,
    num_queries: int = 100,
    image_size: int = 800,
    stride: int = 32,
    masks: bool = False,
    workers: int = 2,
    cache: bool | Path = True,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetReport:
    """Check a dataset: read all annotations, decode all images, and report what is wrong.

    Args:
        data: dataset folder, splits or torch dataset; see `as_splits`.
        format: of a folder's annotations; detected if omitted.
        split: the only split to check; the images of others may be missing. By default all are checked.
        classes: class names of a torch dataset.
        num_queries: of the model: maximum number of objects that it can detect in an image.
        image_size: shorter side that images are resized to, pixels.
        stride: of the model's feature map, pixels.
        masks: of the model: whether it predicts masks, so that faults of segmentations are errors.
        workers: processes that decode images; 0 decodes in this one.
        cache: keep the results of decoding in the user's cache folder, or in this file, and skip images that have not
            changed since; so a large dataset can be examined in several runs.
        progress: called with the number of images decoded and the total.

    Returns:
        The findings, most severe first, and the number of objects of each class.

    Raises:
        DatasetError: the data cannot be read at all.
        ConfigError: a number is out of range.
    """
    if not 32 <= image_size <= MAX_IMAGE_SIZE:
        raise ConfigError(
            f"{arg('image_size', image_size)}: expected 32 to {MAX_IMAGE_SIZE} pixels of an image's shorter side"
        )
    check_minimum("workers", workers, 0)
    errors: list[DatasetError] = []
    if isinstance(data, str | Path):
        dataset, source = _load(Path(data), format, split, errors), Path(data)
    else:
        dataset = as_splits(data, classes=classes, workers=workers, progress=progress)
        source = (require_train(dataset) if split is None else dataset.train).source
    if split is None and not errors:
        require_train(dataset)
    splits = {name: one for name, one in dataset.splits.items() if split in (None, name)}
    # the samples of a torch dataset were checked when it was read
    files = {name: split for name, split in splits.items() if not isinstance(split, SampleSplit)}
    records = [record for split in files.values() for record in split.records]
    cache_file = cache if isinstance(cache, Path) else cache_path(source) if cache else None
    images = decode_images(records, workers, progress, cache_file)
    segments = compare_segments(records, workers, progress)
    findings = [
        *reading_findings([*errors, *_decoding_errors(images)], masks=masks),
        *dataset.findings,
        *_image_findings(files, images),
        *segment_findings(segments),
        *segmentation_findings(list(splits.values()), masks=masks),
        *examine_annotations(dataset, num_queries=num_queries, image_size=image_size, stride=stride, split=split),
    ]
    return DatasetReport(
        source=source,
        format=dataset.format,
        num_images={name: len(split) for name, split in splits.items()},
        max_objects=max_objects(dataset),
        classes=tuple(count_classes(splits)),
        findings=sort_findings(findings),
        notes=dataset.notes,
        dataset=dataset,
        unusable=frozenset(
            record.path
            for record in records
            if images[record.path].size != record.size or (record.path in segments and segments[record.path].error)
        ),
        errors=tuple(errors),
        split=split,
    )


def _load(path: Path, format: str | None, split: SplitName | None, errors: list[DatasetError]) -> DatasetSplits:
    """Read a dataset; an empty one if everything in it is malformed, so that the faults are shown."""
    only = None if split is None else (split,)
    try:
        return load_dataset(path, format, masks="available", on_error=errors.append, splits=only)
    except DatasetError:
        if not errors:
            raise
        return DatasetSplits.of({"train": Split.empty(Categories((), ()), path)}, format or detect_format(path))


def _decoding_errors(images: dict[Path, DecodedImage]) -> Iterator[DatasetError]:
    for image in images.values():
        if image.error:
            yield ImageError(image.error)


def _image_findings(splits: dict[SplitName, Split], images: dict[Path, DecodedImage]) -> Iterator[Finding]:
    wrong_size = [
        Location(
            f"{record.path}: {size[1]} x {size[0]} px, annotated as {record.size[1]} x {record.size[0]}", record.path
        )
        for split in splits.values()
        for record in split.records
        if (size := images[record.path].size) is not None and size != record.size
    ]
    if wrong_size:
        yield Finding(
            "error",
            "images with another size than annotated",
            "boxes would be wrong; export images and annotations together",
            tuple(wrong_size),
        )
    counts = Counter(image.channels for image in images.values() if image.error is None)
    if len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        others = [
            Location(f"{path}: {plural(one.channels, 'channel')}", path)
            for path, one in images.items()
            if one.channels not in (0, usual)
        ]
        yield Finding(
            "error", f"images with another number of channels than {usual}", "export all alike", tuple(others)
        )
    yield from _duplicate_findings(splits, images)


def _duplicate_findings(splits: dict[SplitName, Split], images: dict[Path, DecodedImage]) -> Iterator[Finding]:
    """Find images with the same content, in two splits or in one."""
    by_content: dict[str, list[tuple[SplitName, Path]]] = {}
    for name, split in splits.items():
        for record in split.records:
            if digest := images[record.path].digest:
                by_content.setdefault(digest, []).append((name, record.path))
    shared: list[Location] = []
    repeated: list[Location] = []
    for copies in by_content.values():
        if len(copies) > 1:
            location = Location(" = ".join(f"{name}: {path}" for name, path in copies), copies[0][1])
            (shared if len({name for name, _ in copies}) > 1 else repeated).append(location)
    if shared:
        both = sum({"train", "val"} <= {name for name, _ in copies} for copies in by_content.values())
        num_val = len(splits.get("val", ()))
        of_val = f"{both} of {plural(num_val, 'validation image')} are trained on, " if both else ""
        yield Finding(
            "warning",
            "images that are in two splits",
            f"{of_val}metrics on them say nothing about new images; keep each image in one split",
            tuple(shared),
        )
    if repeated:
        yield Finding("warning", "images that are in a split twice", "drop the copies", tuple(repeated))
