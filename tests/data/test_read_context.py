"""Reading of single splits, and findings of the readers."""

import shutil
from pathlib import Path

import pytest

import detrkit
from detrkit.data.convert import convert_dataset
from detrkit.data.findings import Location
from detrkit.data.formats.context import ReadContext
from detrkit.data.splits import load_dataset, load_split
from detrkit.errors import DatasetError
from tests.datasets import write_coco


@pytest.fixture(params=["coco", "yolo", "voc", "shards"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A dataset without its training images, in which every read of them fails."""
    original = write_coco(tmp_path / "original")
    data = convert_dataset(original, tmp_path / "data", request.param).dataset
    for record in data.train.records:
        (record.path.parent if record.span else record.path).unlink(missing_ok=True)
    return tmp_path / "data"


def test_split_is_read_without_the_images_of_the_other_splits(folder: Path) -> None:
    val, notes = load_split(folder, "val")
    assert val is not None
    assert (len(val), notes) == (3, ())
    data = load_dataset(folder, splits=("val",))
    assert (len(data.train), len(data.val), len(data.test)) == (0, 3, 0)
    assert data.val.categories.names == ("circle", "square", "triangle")


def test_split_that_does_not_exist_is_a_sentence(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "shapes")
    shutil.rmtree(folder / "train2017")
    with pytest.raises(DatasetError, match="found no test split in this coco dataset"):
        load_dataset(folder, splits=("test",))


def test_findings_are_collected_by_title() -> None:
    context = ReadContext()
    for name in ("a", "b"):
        context.warn("labels without an image", "add the images", Location(name))
    context.inform("something", "nothing to do")
    first, second = context.findings
    assert (first.severity, len(first.locations), second.severity, second.locations) == ("warning", 2, "note", ())
    assert first.line == "warning: labels without an image (2): add the images; first a"


def test_errors_stop_the_reading_or_are_counted() -> None:
    with pytest.raises(DatasetError, match="broken"):
        ReadContext().error(DatasetError("broken"))
    errors: list[DatasetError] = []
    context = ReadContext(errors.append)
    context.error(DatasetError("broken"))
    assert (len(errors), context.num_errors) == (1, 1)


def test_findings_of_the_reader_are_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.data import csv_format

    monkeypatch.setitem(detrkit.data.formats.registry.FORMATS, "csv", "tests.data.csv_format")
    folder = convert_dataset(write_coco(tmp_path / "coco"), tmp_path / "csv", "csv").output
    read = csv_format.read

    def read_with_a_finding(path: Path, context: ReadContext) -> object:
        context.warn("rows without an image", "add the images", Location("row 7"))
        context.notes.append("rows are read in order")
        return read(path, context)

    monkeypatch.setattr(csv_format, "read", read_with_a_finding)
    report = detrkit.examine(folder, workers=0, cache=False)
    assert "rows without an image" in [finding.title for finding in report.findings]
    assert "rows are read in order" in report.notes
