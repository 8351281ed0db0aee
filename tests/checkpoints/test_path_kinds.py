"""Models, datasets, images and results are distinguished by their names, so that swapped arguments can be named."""

from pathlib import Path

import pytest
from PIL import Image

import detrkit
from detrkit.checkpoints.path_kinds import DATASET, IMAGES, MODEL, MODEL_OR_RESULTS, NEW, check_kinds, kind_of
from detrkit.errors import ConfigError

FOLDERS = {
    "run": ("model", ["config.yaml", "best/model.safetensors", "predictions/1.png", "report.html"]),
    "run that was not saved yet": ("model", ["config.yaml", "metrics.jsonl", "categories.json"]),
    "Hugging Face": ("model", ["config.json", "model.safetensors", "preprocessor_config.json"]),
    "Hugging Face, sharded": (
        "model",
        ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"],
    ),
    "output of transformers' Trainer": ("model", ["checkpoint-500/model.safetensors", "runs/events"]),
    "OpenVINO": ("model", ["model.xml", "model.bin", "detrkit.json"]),
    "COCO": ("dataset", ["annotations/instances_train2017.json", "train2017/1.jpg"]),
    "COCO, one JSON": ("dataset", ["annotations.json", "1.jpg"]),
    "Roboflow": ("dataset", ["train/_annotations.coco.json", "README.roboflow.txt"]),
    "YOLO": ("dataset", ["data.yaml", "images/train/1.jpg", "labels/train/1.txt"]),
    "YOLO, capitals": ("dataset", ["Images/1.JPG", "Labels/1.txt"]),
    "Label Studio": ("dataset", ["classes.txt", "notes.json", "images/1.jpg"]),
    "FiftyOne": ("dataset", ["labels.json", "data/1.jpg"]),
    "VOC": ("dataset", ["Annotations/1.xml", "JPEGImages/1.jpg"]),
    "VOCdevkit": ("dataset", ["VOC2012/Annotations/1.xml"]),
    "shards": ("dataset", ["shards.json", "train-00000.tar"]),
    "images": ("images", ["1.jpg", "2.JPEG", "notes.odt"]),
    "anything else": (None, ["notes.odt", "song.ogg"]),
    "a model among images": (None, ["images/1.jpg", "model.safetensors"]),
}
FILES = {
    "model.safetensors": "model",
    "checkpoint.PTH": "model",
    "model.onnx": "model",
    "photo.png": "image",
    "PHOTO.JPG": "image",
    "clip.mp4": "video",
    "notes.odt": None,
}


def write(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_kind_of_folder(name: str, tmp_path: Path) -> None:
    kind, files = FOLDERS[name]
    assert kind_of(write(tmp_path / "folder", files)) == kind


@pytest.mark.parametrize("name", FILES)
def test_kind_of_file(name: str, tmp_path: Path) -> None:
    write(tmp_path, [name])
    assert kind_of(tmp_path / name) == FILES[name]


def test_kind_of_other_sources(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('\ufeff [{"image_id": 1}]')
    (tmp_path / "coco.json").write_text('{"images": []}')
    assert kind_of(tmp_path / "results.json") == "results"
    assert kind_of(tmp_path / "coco.json") is None  # annotations, or panoptic results
    assert kind_of("detr-r50") == "model"
    assert kind_of("facebook/detr-resnet-50") is None
    assert kind_of(tmp_path / "nowhere") is None


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run", FOLDERS["run"][1])
    write(tmp_path / "photos", FOLDERS["COCO"][1])
    Image.new("RGB", (8, 8)).save("a.png")
    Path("results.json").write_text("[]")
    return tmp_path


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": ("photos", MODEL), "data": ("run", DATASET)}, "source='photos' is a dataset and data='run' is a model"),
        ({"source": ("a.png", MODEL), "images": (["b.png", "run"], IMAGES)}, "images='run' is a model: they are swapped"),
        ({"source": ("photos", MODEL_OR_RESULTS), "data": ("results.json", DATASET)}, "results: they are swapped"),
        ({"source": ("photos", MODEL), "data": ("nowhere", DATASET)}, "expected a model: run folder"),
        ({"source": ("photos", MODEL), "data": ("detr-r50", DATASET)}, "data='detr-r50' is a model: they are swapped"),
        ({"source": ("a.png", MODEL), "images": (["a.png"], IMAGES)}, "source='a.png' is an image, expected a model"),
        ({"source": ("run", MODEL), "images": (["run"], IMAGES)}, "images='run' is a model, expected images or videos"),
        ({"data": ("a.png", DATASET)}, "data='a.png' is an image, expected a dataset folder"),
        ({"data": ("new", DATASET), "output": ("photos", NEW)}, "output='photos' is a dataset: they are swapped"),
    ],
)  # fmt: skip
def test_wrong_kind_is_named(arguments: dict[str, tuple[str, tuple[str, ...]]], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_kinds(arguments)  # type: ignore[arg-type]
    assert message in str(error.value)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "arguments",
    [
        {"source": ("run", MODEL), "images": (["photos", "a.png", "camera:0"], IMAGES)},
        {"source": ("results.json", MODEL_OR_RESULTS), "data": ("photos", DATASET)},
        {"source": ("facebook/detr-resnet-50", MODEL), "output": ("run", NEW)},
        {"source": ("run", MODEL), "output": ("run", NEW)},
        {"weights": (None, MODEL), "data": ("nowhere", DATASET)},
    ],
)
def test_right_kinds_pass(arguments: dict[str, tuple[str, tuple[str, ...]]]) -> None:
    check_kinds(arguments)  # type: ignore[arg-type]


@pytest.mark.usefixtures("place")
def test_swapped_arguments_of_python_functions_are_named() -> None:
    with pytest.raises(ConfigError, match="source='photos' is a dataset and data='run' is a model: they are swapped"):
        detrkit.evaluate("photos", "run")
    with pytest.raises(ConfigError, match="image='run' is a model: they are swapped"):
        detrkit.explain("a.png", "run")
