"""Recognises annotation files by their content: COCO's kinds, and formats that detrkit does not read."""

import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detrkit._internal.files import open_file

JsonKind = Literal["coco", "panoptic", "other", "unreadable"]
_HEAD = 65_536  # bytes of a file that are looked at
_MAX_FILES = 300  # of a folder
_MAX_DEPTH = 3
_AS_COCO = "export it as COCO, or as YOLO"


@dataclass(frozen=True)
class ForeignFormat:
    """A format that is not read.

    Attributes:
        name: of the format.
        suffixes: of its files.
        markers: regular expressions that the beginning of a file contains, all of them.
        advice: how to get a format that is read.
    """

    name: str
    suffixes: tuple[str, ...]
    markers: tuple[str, ...] = ()
    advice: str = f"{_AS_COCO} with the tool it is from, or convert it"


_JSON, _XML, _CSV = (".json", ".jsonl", ".ndjson"), (".xml",), (".csv", ".tsv")
_FOREIGN = (
    ForeignFormat(
        "a CVAT 1.1 XML of a video", _XML, ("<annotations>", "<track "), "export the task as COCO 1.0 in CVAT"
    ),
    ForeignFormat("a CVAT 1.1 XML", _XML, (r"<annotations>", "<image |<meta>"), "export the task as COCO 1.0 in CVAT"),
    ForeignFormat("a dlib (imglab) XML", _XML, ("<dataset>", "<box |<images>"), "convert it to Pascal VOC or COCO"),
    ForeignFormat(
        "a VGG Image Annotator (VIA) project",
        _JSON,
        ('"_via_(img_metadata|settings|attributes)"|"region_attributes"|"shape_attributes"',),
        "in VIA, choose Annotation > Export Annotations (COCO format)",
    ),
    ForeignFormat(
        "a VGG Image Annotator (VIA) CSV",
        _CSV,
        ("region_shape_attributes",),
        "in VIA, choose Annotation > Export Annotations (COCO format)",
    ),
    ForeignFormat(
        "LabelMe JSON",
        _JSON,
        ('"shapes"\\s*:', '"(flags|imagePath|imageData|shape_type)"'),
        "convert it with labelme2coco or labelme2yolo",
    ),
    ForeignFormat(
        "a Label Studio JSON",
        _JSON,
        (
            '"(rectanglelabels|brushlabels|polygonlabels|from_name|to_name)"|"(completions|annotations)"[^}]*"result"\\s*:',
        ),
        "export the project as COCO or YOLO in Label Studio",
    ),
    ForeignFormat(
        "a Supervisely annotation",
        _JSON,
        ('"classTitle"|"projectType"|"geometryType"|"classId".*"labelerLogin"',),
        "export the project with Supervisely's app Export to COCO or Convert to YOLO",
    ),
    ForeignFormat(
        "a CreateML JSON",
        _JSON,
        ('"coordinates"\\s*:\\s*{', '"(label|image|imagefilename)"'),
        "export the dataset as COCO",
    ),
    ForeignFormat(
        "a COCO results file, which has detections and no images",
        _JSON,
        (r"\A\s*\[", '"image_id"', '"score"', '"category_id"'),
        "pass the annotation file (instances_*.json); to evaluate the results, use detrkit evaluate",
    ),
    ForeignFormat("COCO captions", _JSON, ('"caption"\\s*:', '"image_id"'), "pass instances_*.json of the same images"),
    ForeignFormat(
        "a Datumaro JSON",
        _JSON,
        (r'"dm_format_version"|"items"\s*:\s*\[',),
        "convert it with datum convert -f coco",
    ),
    ForeignFormat("a BDD100K or Scalabel JSON", _JSON, ('"box2d"',), "convert it with scalabel.label.to_coco"),
    ForeignFormat(
        "a Cityscapes JSON", _JSON, ('"imgHeight"', '"polygon"'), "convert it with cityscapesscripts to COCO"
    ),
    ForeignFormat("a VoTT JSON", _JSON, ('"(visitedRegions|assets|vott)"|"asset"\\s*:',), "convert it to COCO or YOLO"),
    ForeignFormat("a Labelbox export", _JSON, ('"(data_row|Labeled Data|labelbox)"',), "convert it to COCO"),
    ForeignFormat(
        "a FiftyOne dataset",
        _JSON,
        ('"(sample_fields|media_type|_sample_collection_name)"|"_cls"\\s*:\\s*"Sample"',),
        "export it with dataset_type=fiftyone.types.COCODetectionDataset",
    ),
    ForeignFormat("a SageMaker Ground Truth manifest", (".manifest",), ('"source-ref"',), "convert it to COCO"),
    ForeignFormat(
        "a Hugging Face image folder", _JSON, ('"file_name"', '"objects"\\s*:\\s*{'), "convert its boxes to COCO"
    ),
    ForeignFormat("an Open Images CSV", _CSV, ("ImageID", "XMin"), "export it as COCO with FiftyOne"),
    ForeignFormat(
        "a CSV of boxes",
        _CSV,
        (r"(?i)\A[^\n]*(xmin|x_min|x1|bbox|left)[^\n]*|\A[^\n,]+\.(jpe?g|png|bmp|webp|tiff?)(,-?[\d.]+){4},",),
        "convert it to COCO or YOLO",
    ),
    ForeignFormat(
        "a config of D-FINE, RT-DETR or mmdetection",
        (".yaml", ".yml"),
        (r"(?m)^\s*(img_folder|ann_file|train_dataloader|data_root)\s*:",),
        "pass the folder of the dataset, or its annotation file",
    ),
    ForeignFormat("TFRecord", (".tfrecord", ".tfrecords", ".record"), (), "export the dataset as COCO"),
    ForeignFormat("Parquet or Arrow", (".parquet", ".arrow", ".feather"), (), "convert its boxes to COCO"),
    ForeignFormat("MATLAB annotations", (".mat",), (), "convert them to COCO"),
    ForeignFormat("an LMDB database", (".mdb",), (), "export it as images with COCO annotations"),
    ForeignFormat(
        "an archive",
        (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz"),
        (),
        "extract it, and pass the folder",
    ),
    ForeignFormat(
        "KITTI labels",
        (".txt",),
        (r"\A\s*[A-Za-z_]+ -?[\d.]+ -?\d( -?[\d.]+){12}",),
        "convert them to YOLO or COCO",
    ),
    ForeignFormat(
        "DOTA labels, whose boxes are rotated",
        (".txt",),
        (r"(?m)^\s*(-?[\d.]+ ){8}[A-Za-z][\w-]* \d\s*$",),
        "convert them to COCO or YOLO; detrkit detects upright boxes",
    ),
    ForeignFormat("MOT ground truth", (".txt",), (r"\A\s*\d+,-?\d+(,-?[\d.]+){4,8}\s",), "convert it to COCO"),
    ForeignFormat(
        "YOLO labels without the names of their classes",
        (".txt",),
        (r"\A\s*\d+(\.0)?( -?[01]?\.?\d+(e-?\d+)?){4}\s*(\n|\Z)",),
        "add a classes.txt with one name a line, or a data.yaml with 'names', next to the folders of images and labels",
    ),
)


def json_kind(path: Path) -> JsonKind:
    """Return the kind of COCO file that a JSON is, by the keys in it; files may be too large to be parsed for this."""
    try:
        with open_file(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in (b"{", b"["):
                return "unreadable"
            if content.find(b'"segments_info"') >= 0:
                return "panoptic"
            has_images = content.find(b'"images"') >= 0
            return "coco" if has_images and not _is_foreign(_head(path), path.suffix) else "other"
    except (OSError, ValueError):  # an empty file cannot be mapped
        return "unreadable"


def _is_foreign(head: str, suffix: str) -> bool:
    return '"images"' not in head and any(_matches(one, head, suffix) for one in _FOREIGN[:-1])


def recognise(path: Path) -> str | None:
    """Describe a file, or a folder with files, of a format that is not read.

    Returns:
        A sentence with the name of the format and what to do; None if it is unknown.
    """
    for file in [path] if path.is_file() else _files_below(path):
        head = _head(file)
        for known in _FOREIGN:
            if _matches(known, head, file.suffix):
                return f"{file}: found {known.name}, which detrkit does not read; {known.advice}"
    return None


def _matches(known: ForeignFormat, head: str, suffix: str) -> bool:
    # a TFRecord may be named photos.tfrecord-00000-of-00004
    return suffix.lower().startswith(known.suffixes) and all(re.search(marker, head) for marker in known.markers)


def _head(file: Path) -> str:
    try:
        with open_file(file) as opened:
            return opened.read(_HEAD).decode("utf-8-sig", errors="replace")
    except OSError:
        return ""


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the first files of every suffix in every folder, nearest first."""
    suffixes = tuple({suffix for known in _FOREIGN for suffix in known.suffixes})
    count = 0
    for place, folders, names in os.walk(folder):
        depth = len(Path(place).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and depth < _MAX_DEPTH)
        seen: dict[str, int] = {}
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            seen[suffix] = seen.get(suffix, 0) + 1
            if suffix.startswith(suffixes) and seen[suffix] <= 3 and not name.startswith("."):
                count += 1
                if count > _MAX_FILES:
                    return
                yield Path(place, name)
