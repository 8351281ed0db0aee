"""Malformed inputs of ../shared/data/nasty: valid ones load, the others raise errors that name them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from detrkit.data.checks.panoptic import compare_segments, segment_findings
from detrkit.data.dataset import DetectionDataset
from detrkit.data.formats.context import ReadContext
from detrkit.data.formats.voc import read_voc
from detrkit.data.formats.yolo import read_yolo
from detrkit.data.images import open_image
from detrkit.data.splits import load_dataset
from detrkit.errors import DatasetError


@pytest.fixture(scope="module")
def nasty(shared: Path) -> Path:
    return shared / "data" / "nasty"


@pytest.fixture(scope="module")
def manifest(nasty: Path) -> dict[str, Any]:
    return dict(json.loads((nasty / "MANIFEST.json").read_text()))


def named_in(faults: list[DatasetError]) -> set[str]:
    """File names that the messages begin with."""
    return {Path(str(fault).split(": ", 1)[0]).name for fault in faults}


def test_malformed_yolo_rows(nasty: Path, manifest: dict[str, Any]) -> None:
    faults: list[DatasetError] = []
    split = read_yolo(nasty / "yolo" / "yaml" / "ok.yaml", "train", ReadContext(faults.append))
    assert split is not None
    refused = {
        "commas.txt", "six_columns.txt", "four_columns.txt", "class_out_of_range.txt", "class_negative.txt",
        "class_name.txt", "pixels.txt", "negative_size.txt", "nan.txt", "text.txt",
    }  # fmt: skip
    assert named_in(faults) == refused
    assert len(split.records) == len(list((nasty / "yolo" / "images").iterdir()))
    loaded = {record.path.stem: len(record.labels) for record in split.records}
    rows = {Path(name).stem for name in manifest["yolo"] if name.startswith("labels/")} - {"no_image"}
    assert {stem for stem in rows if f"{stem}.txt" not in refused} <= set(loaded)
    assert loaded["empty"] == loaded["no_label_file"] == 0
    assert loaded["duplicates"] == 1
    assert min(loaded[stem] for stem in ("ok", "bom", "crlf", "scientific", "tabs_and_spaces", "polygon", "mixed")) > 0


def test_malformed_yolo_settings(nasty: Path) -> None:
    outcomes = {}
    for path in sorted((nasty / "yolo" / "yaml").iterdir()):
        try:
            load_dataset(path, on_error=lambda _fault: None)
            outcomes[path.stem] = "loaded"
        except DatasetError as error:
            assert "\n" not in str(error)
            outcomes[path.stem] = "refused"
    assert outcomes["ok"] == outcomes["names_dict"] == outcomes["list_of_dirs"] == "loaded"
    for stem in ("empty", "missing_dir", "nc_mismatch", "no_names", "python_tag", "tabs"):
        assert outcomes[stem] == "refused", stem


def test_malformed_voc_files(nasty: Path) -> None:
    faults: list[DatasetError] = []
    split = read_voc(nasty / "voc", ReadContext(faults.append))["train"]
    assert named_in(faults) == {
        "no_bndbox.xml", "no_name.xml", "inverted.xml", "text_coords.xml", "malformed.xml", "empty.xml",
        "wrong_root.xml", "external_entity.xml", "entity_expansion.xml",
    }  # fmt: skip
    loaded = {record.path.stem: record for record in split.records}
    for stem in (
        "ok",
        "no_size",
        "size_zero",
        "floats",
        "reordered",
        "no_difficult",
        "filename_missing",
        "filename_path",
    ):
        assert len(loaded[stem].labels) > 0, stem
    assert len(loaded["parts"].labels) == 1
    assert loaded["difficult"].is_crowd.any()
    assert "root:" not in " ".join(map(str, faults))  # nothing of /etc/passwd was read


def test_malformed_images(nasty: Path, manifest: dict[str, Any]) -> None:
    outcomes: Counter[str] = Counter()
    for name, facts in manifest["images"].items():
        path = nasty / "images" / name
        is_healthy = facts.get("pillow", {}).get("load") == "ok" and "bomb" not in name
        try:
            photo = open_image(path)
        except DatasetError as error:
            assert "\n" not in str(error)
            assert not is_healthy, f"{name}: {error}"
            outcomes["refused"] += 1
        else:
            assert photo.mode == "RGB"
            outcomes["loaded"] += 1
    assert sum(outcomes.values()) == len(manifest["images"])
    assert outcomes["refused"] == 9


def test_malformed_panoptic_files(nasty: Path, manifest: dict[str, Any]) -> None:
    """Every one loads whole, loads without what is named, or is refused in one sentence."""
    whole, without, refused = [], {}, {}
    for name in sorted(manifest["panoptic"]):
        faults: list[DatasetError] = []
        try:
            train = load_dataset(nasty / "panoptic" / name, on_error=faults.append).train
            sample = DetectionDataset(train, masks=True)[0]
        except DatasetError as error:
            assert "\n" not in str(error)
            refused[name] = str(error)
            continue
        named = {finding.title for finding in segment_findings(compare_segments(train.records, workers=0))}
        assert sample.annotations.masks is not None
        assert len(sample.annotations.labels) == len(sample.annotations.masks)
        if faults or named:
            without[name] = (len(sample.annotations.labels), sorted(named) or [str(faults[0]).split(": ", 2)[2]])
        else:
            whole.append(name)
    assert whole == ["no_bbox_no_area.json", "ok.json", "png_rgba.json"]
    unnamed, empty = "PNGs with ids that segments_info does not contain", "segments without pixels in the PNG"
    assert without == {
        "all_void.json": (0, [empty]),
        "duplicate_segment_id.json": (5, ["segment id 8941399 occurs twice; keep one of them"]),
        "no_segments.json": (0, [unnamed]),
        "segment_not_in_json.json": (4, [unnamed]),
        "segment_not_in_png.json": (5, [empty]),
        "unknown_category.json": (4, [unnamed]),
    }
    with pytest.raises(DatasetError, match=r"no such PNG .*png_missing\.png"):
        load_dataset(nasty / "panoptic" / "png_missing.json")
    assert {name: message.split(": ", 1)[1][:30] for name, message in refused.items()} == {
        "png_gray.json": "is a gray PNG of 8 bits a chan",
        "png_missing.json": "found no image with a PNG of s",
        "png_other_size.json": "has 213 x 320 pixels, its imag",
    }
