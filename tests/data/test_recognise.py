"""Formats that are recognised and not read are called by their name."""

import json
from pathlib import Path

import pytest

from detrkit.data.formats.recognise import json_kind
from detrkit.data.splits import load_dataset
from detrkit.errors import DatasetError
from tests.data.layouts import coco_document, put_images, put_text

BOX = {"x": 4, "y": 3, "width": 4, "height": 4}
FOREIGN: dict[str, tuple[str, object, str]] = {
    "CVAT 1.1": (
        "annotations.xml",
        "<?xml version='1.0'?><annotations><version>1.1</version><meta/><image id='0' name='a.jpg'/></annotations>",
        "a CVAT 1.1 XML, .*COCO 1.0",
    ),
    "CVAT video": ("annotations.xml", "<annotations><track id='0' label=''/></annotations>", "CVAT 1.1 XML of a video"),
    "VIA project": ("via.json", {"_via_settings": {}, "_via_img_metadata": {}}, r"\(VIA\) project, .*COCO format"),
    "VIA annotations": (
        "via_region_data.json",
        {"a.jpg1": {"filename": "a.jpg", "regions": [{"shape_attributes": {"name": "rect"}, "region_attributes": {}}]}},
        r"\(VIA\) project",
    ),
    "VIA CSV": ("via.csv", "filename,file_size,region_count,region_shape_attributes\n", r"\(VIA\) CSV"),
    "LabelMe": ("a.json", {"version": "5", "shapes": [], "imagePath": "a.jpg"}, "LabelMe JSON, .*labelme2coco"),
    "Label Studio": (
        "export.json",
        [{"id": 1, "annotations": [{"result": [{"from_name": "label", "to_name": "image"}]}], "data": {}}],
        "a Label Studio JSON, .*export the project as COCO or YOLO",
    ),
    "Label Studio, small": ("a.json", [{"image": "a.jpg", "label": [{"rectanglelabels": ["x"]}]}], "a Label Studio JSON"),
    "Supervisely": ("a.jpg.json", {"objects": [{"classTitle": "fish"}]}, "a Supervisely annotation"),
    "CreateML": ("createml.json", [{"image": "a.jpg", "annotations": [{"label": "fish", "coordinates": BOX}]}], "CreateML"),
    "COCO results": (
        "results.json",
        [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}],
        "a COCO results file, .*detrkit evaluate",
    ),
    "COCO captions": ("captions.json", {"annotations": [{"image_id": 1, "caption": "a fish"}]}, "COCO captions"),
    "Datumaro": ("default.json", {"infos": {}, "categories": {"label": {}}, "items": []}, "a Datumaro JSON"),
    "BDD100K": ("labels.json", [{"name": "a.jpg", "labels": [{"box2d": {"x1": 1}}]}], "BDD100K"),
    "FiftyOne": ("samples.json", {"samples": [{"_cls": "Sample"}]}, "a FiftyOne dataset"),
    "Hugging Face": ("metadata.jsonl", '{"file_name": "a.jpg", "objects": {"bbox": []}}\n', "a Hugging Face image folder"),
    "SageMaker": ("output.manifest", '{"source-ref": "s3://b/a.jpg"}\n', "SageMaker"),
    "Open Images": ("boxes.csv", "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\n", "an Open Images CSV"),
    "TensorFlow CSV": ("labels.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\n", "a CSV of boxes"),
    "RetinaNet CSV": ("labels.csv", "images/a.jpg,1,2,3,4,fish\n", "a CSV of boxes"),
    "D-FINE": ("custom.yml", "num_classes: 2\ntrain_dataloader:\n  dataset:\n    img_folder: x\n", "a config of D-FINE"),
    "TFRecord": ("fish.tfrecord-00000-of-00001", "x", "TFRecord"),
    "Parquet": ("train.parquet", "PAR1", "Parquet"),
    "archive": ("photos.zip", "PK", "an archive, .*extract it"),
    "KITTI": ("a.txt", "Car 0.00 0 -1.58 587.01 173.33 614.12 200.12 1.65 1.67 3.64 -0.6 1.7 46.7 -1.5\n", "KITTI labels"),
    "DOTA": ("a.txt", "1.0 2.0 5.0 2.0 5.0 6.0 1.0 6.0 small-vehicle 0\n", "DOTA labels"),
    "MOT": ("gt.txt", "1,1,1.0,2.0,3.0,4.0,1,1,0.5\n", "MOT ground truth"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("place", ["", "annotations"])
def test_format_is_named(tmp_path: Path, name: str, place: str) -> None:
    file, content, message = FOREIGN[name]
    put_images(tmp_path, ["a.jpg"])
    put_text(tmp_path / place / file, content if isinstance(content, str) else json.dumps(content))
    for path in (tmp_path, tmp_path / place / file):
        with pytest.raises(DatasetError, match=f"which detrkit does not read; |{message}") as caught:
            load_dataset(path)
        assert "\n" not in str(caught.value)
        with pytest.raises(DatasetError, match=message):
            load_dataset(path)


def test_unrelated_files_next_to_annotations_do_not_matter(tmp_path: Path) -> None:
    put_images(tmp_path / "images", ["a.jpg", "b.jpg"])
    put_text(tmp_path / "labels.json", json.dumps(coco_document(["a.jpg", "b.jpg"])))
    for file, content, _ in FOREIGN.values():
        put_text(tmp_path / f"other {file}", content if isinstance(content, str) else json.dumps(content))
    assert load_dataset(tmp_path).format == "coco"


def test_kind_of_a_json_is_told_by_its_keys(tmp_path: Path) -> None:
    contents = {
        "coco": coco_document(["a.jpg"]),
        "panoptic": {"images": [], "annotations": [{"segments_info": []}]},
        "other": {"categories": []},
    }
    for kind, content in contents.items():
        put_text(tmp_path / f"{kind}.json", json.dumps(content))
        assert json_kind(tmp_path / f"{kind}.json") == kind
    for text in ("", "images", "\0"):
        put_text(tmp_path / "broken.json", text)
        assert json_kind(tmp_path / "broken.json") == "unreadable"
