"""Targets: annotations of every dataset format, read, checked, converted and evaluated as the commands do it."""

import io
import json
import shutil
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco import mask as rle
from PIL import Image

from detrkit._internal.files import write_text
from detrkit.data.checks.examine import examine
from detrkit.data.convert import convert_dataset, shard_dataset
from detrkit.data.dataset import DatasetSplits
from detrkit.data.formats.recognise import recognise
from detrkit.data.formats.registry import load_format
from detrkit.data.formats.shards import write_shards
from detrkit.data.splits import load_dataset
from detrkit.errors import DetrkitError
from detrkit.evaluation.ground_truth import ground_truth_of_split, ground_truth_segments
from tests.datasets import panoptic_document
from tests.fuzz.target import Target
from tests.fuzz.values import YAML_BOMB

_SIZES = {"1.png": (30, 20), "2.jpg": (64, 48), "a.png": (30, 20)}  # (width, height)
_NASTY_SIZE = (64, 64)
_MAX_SAMPLES = 3
_FORMATS = ("coco", "yolo", "voc", "panoptic", "shards")


def image(size: tuple[int, int], suffix: str = ".png", mode: str = "RGB") -> bytes:
    """Return the content of an image file with a gradient."""
    pixels = np.add.outer(np.arange(size[1]) * 3, np.arange(size[0]) * 2).astype(np.uint8)
    buffer = io.BytesIO()
    formats = {".png": "PNG", ".jpg": "JPEG", ".gif": "GIF", ".bmp": "BMP", ".webp": "WEBP", ".tif": "TIFF"}
    Image.fromarray(pixels).convert(mode).save(buffer, formats[suffix])
    return buffer.getvalue()


def write_images(folder: Path, names: Iterable[str] = ()) -> None:
    """Write small images with known names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in [*_SIZES.items(), *((name, _NASTY_SIZE) for name in names)]:
        (folder / name).write_bytes(image(size, Path(name).suffix.lower() or ".png"))


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write files, and remove those that are empty."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content:
            path.write_bytes(content)
        else:
            path.unlink(missing_ok=True)


def use_dataset(files: Sequence[bytes], folder: Path, format: str) -> None:
    """Do with a dataset what the commands do: check it, read samples, convert it, read it for training and evaluation.

    Args:
        files: of the input.
        folder: with the dataset in `data`.
        format: of its annotations.

    Raises:
        DetrkitError: it is malformed.
    """
    path, work = folder / "data", folder / "work"
    work.mkdir(exist_ok=True)
    report = examine(path, format, workers=0, cache=False)
    write_text(work / "report.json", report.to_json())
    repr(report), report._repr_html_(), report.summary
    for split in report.dataset.splits.values():
        for index in range(min(len(split), _MAX_SAMPLES)):
            with suppress(DetrkitError):
                split.read(index, masks=split.has_masks)
    other = _FORMATS[zlib.crc32(b"".join(files)) % len(_FORMATS)]  # one of them, for more executions
    shutil.rmtree(work / "converted", ignore_errors=True)
    with suppress(DetrkitError):
        if other == "shards":
            shard_dataset(report.dataset, work / "converted")
        else:
            convert_dataset(report.dataset, work / "converted", other)
    with suppress(DetrkitError):
        _evaluate(load_dataset(path, format))
    _evaluate(load_dataset(path, format, masks=load_format(format).HAS_MASKS))


def _evaluate(dataset: DatasetSplits) -> None:
    """Prepare the evaluation of a dataset without faults."""
    for split in dataset.splits.values():
        truth = ground_truth_of_split(split, masks=split.has_masks)
        assert truth.image_ids.tolist() == sorted(split.records.image_ids), "images are lost"
        if split.has_segments:
            for image_id in split.records.image_ids[:_MAX_SAMPLES]:
                ground_truth_segments(split)(image_id)


def run_lengths(size: tuple[int, int], box: tuple[int, int, int, int]) -> dict[str, Any]:
    """Return compressed run lengths of a rectangle (left, top, right, bottom) in an image of (height, width)."""
    mask = np.zeros(size, np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    encoded = dict(rle.encode(np.asfortranarray(mask)))
    counts = encoded["counts"]
    return {"size": list(size), "counts": counts.decode() if isinstance(counts, bytes) else counts}


# COCO


def coco_document() -> dict[str, Any]:
    """Return annotations of every kind: polygons, run lengths, crowds, text ids."""
    return {
        "info": {"year": 2026},
        "images": [
            {"id": 1, "file_name": "1.png", "width": 30, "height": 20},
            {"id": 2, "file_name": "2.jpg", "width": 64, "height": 48, "license": 1},
        ],
        "annotations": [
            {
                "id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 12.5], "area": 125.0, "iscrowd": 0,
                "segmentation": [[1, 2, 11, 2, 11, 14.5, 1, 14.5]],
            },
            {
                "id": 2, "image_id": 1, "category_id": 7, "bbox": [0, 0, 30, 20], "area": 6, "iscrowd": 1,
                "segmentation": {"size": [20, 30], "counts": [5, 6, 589]},
            },
            {
                "id": 3, "image_id": 2, "category_id": 7, "bbox": [5.0, 5.0, 20.0, 20.0], "area": 400,
                "segmentation": run_lengths((48, 64), (5, 5, 25, 25)),
            },
        ],
        "categories": [{"id": 3, "name": "cat", "supercategory": "animal"}, {"id": 7, "name": "dog"}],
    }  # fmt: skip


def _coco_seeds(_folder: Path, nasty: Path | None) -> Iterable[Sequence[bytes]]:
    yield [json.dumps(coco_document()).encode()]
    text_ids = coco_document()
    for entry in text_ids["images"]:
        entry["id"] = f"image{entry['id']}"
    for entry in text_ids["annotations"]:
        entry["image_id"] = f"image{entry['image_id']}"
    yield [json.dumps(text_ids).encode()]
    without_sizes = coco_document()
    for entry in without_sizes["images"]:
        del entry["width"], entry["height"]
    yield [json.dumps(without_sizes).encode()]
    if nasty is not None:
        yield from ([_shortened(path.read_bytes())] for path in sorted((nasty / "coco").glob("*.json")))


def _shortened(content: bytes) -> bytes:
    """Return a COCO JSON with its first entries only; one that cannot be parsed stays as it is."""
    try:
        document = json.loads(content)
        for name in ("images", "annotations", "licenses"):
            document[name] = document[name][: 4 if name == "annotations" else 2]
        for entry in document["annotations"]:
            if isinstance(entry["segmentation"], list):
                entry["segmentation"] = [
                    part[:12] if isinstance(part, list) else part for part in entry["segmentation"][:2]
                ]
    except (ValueError, RecursionError, KeyError, TypeError):
        return content
    return json.dumps(document).encode()


def _coco_run(files: Sequence[bytes], folder: Path) -> None:
    write_files(folder, {"data/annotations/instances_train.json": files[0]})
    use_dataset(files, folder, "coco")


def _coco_prepare(folder: Path) -> None:
    names = ("000000126107.jpg", "000000500663.jpg", "000000184324.jpg", "000000311303.jpg")
    write_images(folder / "data" / "images", names)


# Pascal VOC

_VOC = b"""<annotation><folder>x</folder><filename>1.png</filename>
<size><width>30</width><height>20</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult><truncated>1</truncated>
<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>12.5</xmax><ymax>13</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object></annotation>
"""


def _voc_seeds(_folder: Path, nasty: Path | None) -> Iterable[Sequence[bytes]]:
    lists = b"1\n"
    yield [_VOC, b"", b""]
    yield [_VOC, lists, b"item {\n id: 1\n name: 'cat'\n}\n"]
    if nasty is not None:
        yield from ([path.read_bytes(), b"", b""] for path in sorted((nasty / "voc" / "Annotations").glob("*.xml")))


def _voc_run(files: Sequence[bytes], folder: Path) -> None:
    names = {
        "data/Annotations/1.xml": files[0], "data/ImageSets/Main/train.txt": files[1], "data/label_map.pbtxt": files[2]
    }  # fmt: skip
    write_files(folder, names)
    use_dataset(files, folder, "voc")


# YOLO

_YOLO = b"path: .\ntrain: images\nval: images\nnc: 2\nnames:\n  0: cat\n  1: dog\n"


def _yolo_seeds(_folder: Path, nasty: Path | None) -> Iterable[Sequence[bytes]]:
    rows = b"0 0.5 0.5 0.2 0.4\n1 0.25 0.25 0.125 1e-1\n1 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.6\n"
    yield [_YOLO, rows]
    yield [b"names: [cat, dog]\ntrain: ../images\nkpt_shape: [2, 3]\n", b"0 0.5 0.5 0.2 0.4 0.1 0.1 2 0.2 0.2 1\n"]
    yield [b"train: images\nnames: " + YAML_BOMB + b"\n", rows]
    yield [b"train: " + YAML_BOMB + b"\nnames: [cat, dog]\n", rows]
    if nasty is not None:
        yield from ([_YOLO, path.read_bytes()] for path in sorted((nasty / "yolo" / "labels").glob("*.txt")))
        yield from ([path.read_bytes(), rows] for path in sorted((nasty / "yolo" / "yaml").glob("*.yaml")))


def _yolo_run(files: Sequence[bytes], folder: Path) -> None:
    write_files(folder, {"data/data.yaml": files[0], "data/labels/1.txt": files[1]})
    use_dataset(files, folder, "yolo")


def _darknet_seeds(_folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    yield [
        b"classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = x\n",
        b"cat\ndog\n",
        b"images/1.png\nimages/2.jpg\n",
    ]


def _darknet_run(files: Sequence[bytes], folder: Path) -> None:
    write_files(folder, {"data/obj.data": files[0], "data/obj.names": files[1], "data/train.txt": files[2]})
    use_dataset(files, folder, "yolo")


def _images_prepare(folder: Path) -> None:
    write_images(folder / "data" / "images")


# COCO panoptic


def _panoptic_seeds(folder: Path, nasty: Path | None) -> Iterable[Sequence[bytes]]:
    document, ids = panoptic_document(1)
    document["images"][0]["file_name"] = "1.png"
    buffer = io.BytesIO()
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(buffer, "PNG")
    yield [json.dumps(document).encode(), buffer.getvalue()]
    for entry in document["annotations"][0]["segments_info"]:
        del entry["bbox"]
    yield [json.dumps(document).encode(), buffer.getvalue()]
    if nasty is not None:
        for path in sorted((nasty / "panoptic").glob("*.json")):
            content = json.loads(path.read_text())
            for entry in content["images"]:
                entry.update(file_name="1.png", width=30, height=20)
            for entry in content["annotations"]:
                entry.update(file_name="1.png")
            yield [json.dumps(content).encode(), buffer.getvalue()]


def _panoptic_run(files: Sequence[bytes], folder: Path) -> None:
    names = {"data/annotations/panoptic_train.json": files[0], "data/annotations/panoptic_train/1.png": files[1]}
    write_files(folder, names)
    use_dataset(files, folder, "panoptic")


# shards


def _shards_seeds(folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    _coco_prepare(folder)
    write_files(folder, {"data/annotations/instances_train.json": json.dumps(coco_document()).encode()})
    split = load_dataset(folder / "data", "coco").train
    output = folder / "shards"
    write_shards({"train": split.select(range(len(split)))}, output)
    plan, tar, index = ((output / name).read_bytes() for name in ("shards.json", "train-00000.tar", "train.index"))
    yield [plan, tar, index]
    yield [plan, tar, b""]


def _shards_run(files: Sequence[bytes], folder: Path) -> None:
    write_files(folder, dict(zip(("data/shards.json", "data/train-00000.tar", "data/train.index"), files, strict=True)))
    use_dataset(files, folder, "shards")


# files of unknown formats

_SUFFIXES = (".json", ".xml", ".csv", ".txt", ".yaml", ".jsonl", ".manifest", ".data", ".names", ".pbtxt")


def _recognise_seeds(_folder: Path, nasty: Path | None) -> Iterable[Sequence[bytes]]:
    yield [b"0", b'{"shapes": [], "imagePath": "x", "annotations": [{"result": 1}]}']
    yield [b"1", b"<annotations><meta></meta><image ></image></annotations>"]
    yield [b"2", b"filename,width,height,class,xmin,ymin,xmax,ymax\n1.png,30,20,cat,1,2,3,4\n"]
    yield [b"3", b"Car 0.00 0 -1.57 599.41 156.40 629.75 189.25 2.85 2.63 12.34 0.47 1.49 69.44 -1.56\n"]
    yield [b"3", b"1.0 2.0 3.0 4.0 5.0 6.0 7.0 8.0 plane 0\n"]
    yield [b"4", b"img_folder: x\nann_file: y\n"]
    if nasty is not None:
        yield from ([b"0", path.read_bytes()[:4000]] for path in sorted((nasty / "coco").glob("*.json"))[:10])


def _recognise_run(files: Sequence[bytes], folder: Path) -> None:
    data = folder / "data"
    shutil.rmtree(data, ignore_errors=True)
    suffix = _SUFFIXES[(files[0][-1] - ord("0")) % len(_SUFFIXES)] if files[0] else ".json"
    write_files(folder, {f"data/file{suffix}": files[1]})
    recognise(data)
    load_dataset(data)


TARGETS = (
    Target("coco", ("json",), _coco_run, _coco_seeds, _coco_prepare, is_slow=True),
    Target(
        "voc",
        ("xml", "text", "text"),
        _voc_run,
        _voc_seeds,
        lambda folder: write_images(folder / "data" / "JPEGImages"),
    ),
    Target("yolo", ("yaml", "text"), _yolo_run, _yolo_seeds, _images_prepare),
    Target("darknet", ("text", "text", "text"), _darknet_run, _darknet_seeds, _images_prepare),
    Target("panoptic", ("json", "png"), _panoptic_run, _panoptic_seeds, _images_prepare),
    Target("shards", ("json", "tar", "safetensors"), _shards_run, _shards_seeds),
    Target("recognise", ("bytes", "text"), _recognise_run, _recognise_seeds),
)
