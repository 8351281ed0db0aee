"""A dataset format is one module and one line in the registry."""

from pathlib import Path

import pytest
import torch

import detrkit
from detrkit.data.convert import convert_dataset
from detrkit.data.formats import registry
from detrkit.errors import ConfigError, DatasetError
from tests.datasets import write_coco


@pytest.fixture
def csv_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(registry.FORMATS, "csv", "tests.data.csv_format")  # the line in the registry
    return convert_dataset(write_coco(tmp_path / "coco", num_train=4, num_val=3), tmp_path / "csv", "csv").output


def test_custom_format_is_detected_written_and_read(csv_folder: Path) -> None:
    dataset = detrkit.load_dataset(csv_folder)
    assert (dataset.format, dataset.categories.names) == ("csv", ("circle", "square", "triangle"))
    original = detrkit.load_dataset(csv_folder.parent / "coco")
    objects = {
        name: sum(len(record.labels) for split in data.splits.values() for record in split.records)
        for name, data in (("csv", dataset), ("coco", original))
    }
    assert objects["csv"] == objects["coco"]
    assert dataset.train[0].image.dtype == torch.uint8


def test_custom_format_is_examined_and_converted(csv_folder: Path, tmp_path: Path) -> None:
    report = detrkit.examine(csv_folder, workers=0, cache=False)
    assert (report.format, report.num_errors) == ("csv", 0)
    assert convert_dataset(csv_folder, tmp_path / "yolo", "yolo").dataset.format == "yolo"
    with pytest.raises(DatasetError, match="detrkit reads no masks from csv data"):
        detrkit.load_dataset(csv_folder, masks=True)


def test_unknown_format_is_rejected_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'coco'"):
        detrkit.load_dataset(tmp_path, "cocoo")


def test_every_registered_module_defines_a_format() -> None:
    for name in registry.FORMATS:
        assert isinstance(registry.load_format(name), registry.DatasetFormat)
