"""`detrkit evaluate` and `detrkit.evaluate`: models, saved predictions, images without annotations, stored thresholds."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import detrkit
from detrkit import DatasetError, Detector, build_model
from detrkit._internal.files import file_lock
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Checkpoint, Preprocessing, Thresholds, save_checkpoint
from detrkit.cli import main
from detrkit.config.run import RunConfig, write_config
from detrkit.data.convert import convert_dataset
from detrkit.data.segmentation import to_rle
from detrkit.data.splits import load_dataset
from detrkit.data.synthetic import SHAPES
from detrkit.evaluation import evaluate, evaluator
from detrkit.evaluation.arrays import DetectionArrays, GroundTruth
from detrkit.evaluation.ground_truth import GroundTruthSegments, split_to_coco
from detrkit.evaluation.results_io import write_panoptic_results, write_segments
from detrkit.structures import PanopticSegment, PanopticSegments
from detrkit.training import run as training_run
from tests.datasets import write_coco, write_panoptic

pytestmark = pytest.mark.slow

QUERIES = 25


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("data") / "shapes", 4, 12)


@pytest.fixture
def run_folder(tmp_path: Path, shapes: Path) -> Path:
    """A run folder with an untrained model."""
    torch.manual_seed(0)
    model = build_model("detr-tiny", num_classes=3)
    weights = Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=64))
    save_checkpoint(tmp_path / "run" / "best" / "model.safetensors", weights)
    write_config(tmp_path / "run" / "config.yaml", RunConfig(data=str(shapes)), {})
    return tmp_path / "run"


def ground_truth_of(shapes: Path) -> GroundTruth:
    return GroundTruth.from_coco(shapes / "annotations" / "instances_val2017.json")


def perfect_detections(truth: GroundTruth) -> DetectionArrays:
    """All objects with scores of 0.5 to 0.9 by class, and false positives with scores below 0.1."""
    ids = np.array(truth.categories.ids)[truth.labels]
    right = DetectionArrays(
        truth.image_ids[truth.image_indices], ids, truth.boxes, 0.5 + 0.2 * truth.labels, np.zeros(len(ids), np.int64)
    )
    wrong = DetectionArrays(right.image_ids, ids, right.boxes + 1000, right.scores / 10, right.queries)
    return DetectionArrays.concat([right, wrong])


@pytest.fixture
def perfect_model(monkeypatch: pytest.MonkeyPatch, shapes: Path) -> None:
    """Replace every model's detections by perfect ones."""

    def predict(*_: Any, layers: Sequence[int] = (-1,), **__: Any) -> list[DetectionArrays]:
        return [perfect_detections(ground_truth_of(shapes))] * len(layers)

    monkeypatch.setattr(evaluate, "run_inference", lambda *a, **_: predict(*a[:5], layers=a[5]))
    monkeypatch.setattr(evaluator, "run_inference", predict)
    monkeypatch.setattr(training_run, "run_inference", predict)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main([str(one) for one in arguments])
    return int(exit_info.value.code or 0)


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read_json(path: Path) -> Any:
    """Read JSON, and fail on NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{path} holds {word}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_output_folder_contains_detections_metrics_report_and_paper_figures(
    run_folder: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--by-layer", "--query-map", "--instance-capacity", "--workers", 0, "--output", out]
    assert run("evaluate", run_folder, shapes, *options) == 0
    figures = ["by_layer.png", "instance_capacity.png", "query_map.png"]
    assert file_names(out) == sorted([*figures, "detections.json", "images.json", "report.html", "scores.json"])
    said = capsys.readouterr().out
    assert "decoder layer" in said
    assert "true positives" in said
    scores = read_json(out / "scores.json")
    assert [entry["layer"] for entry in scores["by_layer"]] == [1, 2, 3]
    assert scores["by_layer"][-1]["ap"] == scores["metrics"]["ap"]
    assert len(scores["query_map"]) == QUERIES
    assert [entry["present"] for entry in scores["instance_capacity"]][-1] == 25
    assert scores["num_detections"] == len(read_json(out / "detections.json")) == 12 * QUERIES
    page = (out / "report.html").read_text()
    for heading in ("Metrics", "Per class", "Score thresholds", "Error types", "Confusion matrix", "Decoder layers"):
        assert f"<h2>{heading}</h2>" in page
    assert "http" not in page
    assert page.count("data:image/png") == 1  # the query map; all other figures are SVG
    assert "At most 100 detections per image and class" in page


def test_json_output_contains_the_detections_only(run_folder: Path, shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run("evaluate", run_folder, shapes, "--workers", 0, "--output", tmp_path / "out" / "found.json") == 0
    assert file_names(tmp_path / "out") == ["found.json"]


def test_thresholds_are_stored_only_for_the_run_s_own_validation_split(
    run_folder: Path, shapes: Path, tmp_path: Path, perfect_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_checkpoint(run_folder)
    assert before.thresholds is None
    assert run("evaluate", run_folder, shapes, "--split", "train", "--workers", 0, "-o", tmp_path / "a") == 0
    assert load_checkpoint(run_folder).thresholds is None, "the model was trained on these images"
    elsewhere = shutil.copytree(shapes, tmp_path / "elsewhere")
    assert run("evaluate", run_folder, elsewhere, "--workers", 0, "-o", tmp_path / "b") == 0
    assert load_checkpoint(run_folder).thresholds is None, "another dataset"
    assert run("evaluate", run_folder, shapes, "--workers", 0, "-o", tmp_path / "c", "--no-store-thresholds") == 0
    assert load_checkpoint(run_folder).thresholds is None
    assert run("evaluate", run_folder, shapes, "--workers", 0, "-o", tmp_path / "d") == 0
    after = load_checkpoint(run_folder)
    assert after.thresholds is not None
    counts = ground_truth_of(shapes).objects_per_class()
    # halfway between the lowest true positive and the highest false positive of the class
    expected = {i + 1: 0.55 * (0.5 + 0.2 * i) for i in range(3) if counts[i] >= 10}
    assert after.thresholds.per_class == pytest.approx(expected)
    assert len(expected) > 0
    assert after.config == before.config
    assert all(torch.equal(after.state[name], tensor) for name, tensor in before.state.items())
    assert read_json(tmp_path / "d" / "scores.json")["thresholds"]["overall"] == after.thresholds.overall


def test_auto_threshold_needs_and_uses_stored_thresholds(
    run_folder: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = shapes / "val2017" / "2.png"
    assert run("predict", run_folder, photo, "--threshold", "auto", "-o", tmp_path / "found") == 2
    error = capsys.readouterr().err
    assert "--store-thresholds" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "found").exists()

    everything = Detector.load(run_folder).predict(photo, threshold=0)
    gaps = -everything.scores.diff()
    middle = float(everything.scores[int(gaps.argmax())] - gaps.max() / 2)  # far from any score
    path = run_folder / "best" / "model.safetensors"
    from detrkit.checkpoints.native import store_thresholds

    first = int(everything.category_ids[0])
    store_thresholds(path, Thresholds(overall=middle, per_class={first: 1.0}))
    assert run("predict", run_folder, photo, "--threshold", "auto", "-o", tmp_path / "found") == 0
    objects = json.loads((tmp_path / "found" / "2.json").read_text())["objects"]
    expected = [one for one in everything.to_coco(2) if one["category_id"] != first and one["score"] >= middle]
    assert [one["category_id"] for one in objects] == [one["category_id"] for one in expected]
    assert len(Detector.load(run_folder).predict([photo, photo], threshold="auto")[1]) == len(expected)


def test_thresholds_are_stored_in_a_detrkit_checkpoint_on_request_and_in_no_other_format(
    run_folder: Path, shapes: Path, tmp_path: Path, perfect_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = shutil.copy(run_folder / "best" / "model.safetensors", tmp_path / "alone.safetensors")
    assert run("evaluate", alone, shapes, "--workers", 0, "-o", tmp_path / "a", "--store-thresholds") == 0
    assert load_checkpoint(alone).thresholds is not None
    (tmp_path / "a.pth").write_bytes(b"weights of the published code")
    capsys.readouterr()
    assert run("evaluate", tmp_path / "a.pth", shapes, "-o", tmp_path / "b", "--store-thresholds") == 2
    assert "detrkit convert" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_thresholds_are_not_stored_in_a_checkpoint_that_was_replaced_meanwhile(
    run_folder: Path, shapes: Path, tmp_path: Path, perfect_model: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    weights = run_folder / "best" / "model.safetensors"
    run_inference = evaluate.run_inference

    def replace_weights(*arguments: Any, **more: Any) -> Any:
        shutil.copy(weights, tmp_path / "new")
        (tmp_path / "new").replace(weights)
        return run_inference(*arguments, **more)

    monkeypatch.setattr(evaluate, "run_inference", replace_weights)
    assert run("evaluate", run_folder, shapes, "--workers", 0, "-o", tmp_path / "a") == 0
    assert "thresholds were not stored: " in " ".join(capsys.readouterr().err.split())
    assert load_checkpoint(run_folder).thresholds is None
    assert (tmp_path / "a" / "report.html").is_file()
    assert run("evaluate", run_folder, shapes, "--workers", 0, "-o", tmp_path / "b", "--store-thresholds") == 2
    assert "has been replaced since it was loaded; evaluate again" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(evaluate, "run_inference", run_inference)
    with file_lock(run_folder):  # as training does
        assert run("evaluate", run_folder, shapes, "--workers", 0, "-o", tmp_path / "c") == 0
    assert "another process" in " ".join(capsys.readouterr().err.split())


def test_unwritable_output_is_rejected_before_inference(
    run_folder: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "run_inference", lambda *_, **__: pytest.fail("predicted"))
    (tmp_path / "file").write_text("")
    assert run("evaluate", run_folder, shapes, "-o", tmp_path / "file" / "e") == 2
    assert "is a file, expected a folder" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr("os.access", lambda *_: False)
    assert run("evaluate", run_folder, shapes, "-o", tmp_path / "none") == 2
    assert "is not writable; choose another folder" in " ".join(capsys.readouterr().err.split())


def test_best_checkpoint_of_a_training_run_contains_thresholds(
    shapes: Path, tmp_path: Path, perfect_model: None
) -> None:
    options = ["--model", "detr-tiny", "--steps", 1, "--batch-size", 2, "--workers", 0, "--image-size", 64]
    assert run("train", shapes, *options, "-o", tmp_path / "run") == 0
    stored = load_checkpoint(tmp_path / "run").thresholds
    assert stored is not None
    scores = read_json(tmp_path / "run" / "scores.json")
    assert scores["thresholds"]["overall"] == stored.overall
    assert scores["metrics"]["ap"] == pytest.approx(1)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Error types" in page
    assert "http" not in page


def test_run_without_validation_split_is_evaluated_on_the_images_it_set_aside(
    run_folder: Path, shapes: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(shapes, tmp_path / "data")
    (data / "annotations" / "instances_val2017.json").unlink()
    config = RunConfig(data=str(data)).model_copy(update={"training": RunConfig(data="").training})
    seeded = config.training.model_copy(update={"seed": 8})
    write_config(run_folder / "config.yaml", config.model_copy(update={"training": seeded}), {})
    expected, others = (set(load_dataset(data, seed=seed).val.records.image_ids) for seed in (8, 42))
    assert expected != others
    assert run("evaluate", run_folder, data, "--workers", 0, "-o", tmp_path / "found.json") == 0
    assert {entry["image_id"] for entry in read_json(tmp_path / "found.json")} == expected
    # likewise for its weights
    assert run("evaluate", run_folder / "best", data, "--workers", 0, "-o", tmp_path / "again.json") == 0
    assert {entry["image_id"] for entry in read_json(tmp_path / "again.json")} == expected


def test_saved_predictions_are_evaluated_like_the_model(
    run_folder: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", run_folder, shapes, "--workers", 0, "-o", tmp_path / "a") == 0
    saved = tmp_path / "a" / "detections.json"
    assert run("evaluate", saved, shapes, "-o", tmp_path / "b") == 0
    assert file_names(tmp_path / "b") == ["images.json", "report.html", "scores.json"]
    first, second = (read_json(tmp_path / name / "scores.json") for name in "ab")
    assert {**first, "title": ""} == {**second, "title": ""}
    # masks are evaluated only against annotations with masks
    results = read_json(saved)
    runs = to_rle({"size": [64, 64], "counts": [0, 10, 4086]}, (64, 64))
    runs["counts"] = runs["counts"].decode()
    (tmp_path / "masks.json").write_text(json.dumps([{**one, "segmentation": runs} for one in results]))
    convert_dataset(shapes, tmp_path / "yolo", "yolo")
    capsys.readouterr()
    assert run("evaluate", tmp_path / "masks.json", tmp_path / "yolo", "-o", tmp_path / "c") == 0
    assert "masks are not evaluated: " in " ".join(capsys.readouterr().err.split())


RESULT = {"image_id": 2, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"annotations": []}, "found dict, expected COCO results"),
        ([RESULT, {**RESULT, "bbox": [0, 0, -1, 9]}], "entry 1: bbox: found [0, 0, -1, 9]"),
        ([{**RESULT, "score": float("nan")}], "entry 0: score: found nan"),
        ([{**RESULT, "score": None}], "entry 0: score: found None"),
        ([{**RESULT, "image_id": "two"}], "entry 0: image_id: found 'two', expected an integer"),
        ([{**RESULT, "image_id": 2.5}], "entry 0: image_id: found 2.5, expected an integer"),
        ([{**RESULT, "category_id": True}], "entry 0: category_id: found True, expected an integer"),
        ([{**RESULT, "image_id": float("inf")}], "entry 0: image_id: found inf"),
        ([{**RESULT, "image_id": 10**30}], "entry 0: image_id"),
        ([{**RESULT, "bbox": [0, 0, 10**400, 9]}], "entry 0: bbox"),
        ([[1, 2]], "entry 0 is [1, 2], expected COCO results"),
        ([RESULT, {**RESULT, "image_id": 77}], "entry 1 has image_id 77"),
        ([{**RESULT, "category_id": 0}], "entry 0 has category_id 0"),
        ("[", "not readable as JSON"),
    ],
)
def test_malformed_results_are_rejected(content: object, message: str, shapes: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DatasetError, match=re.escape(message)) as caught:
        detrkit.evaluate(path, shapes, output=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes", [{"image_id": 2.0}, {"category_id": 1.0}, {"image_id": 2.0, "category_id": 1.0}])
def test_ids_written_as_floats_are_read(changes: dict[str, float], shapes: Path, tmp_path: Path) -> None:
    for name, entry in (("integers", RESULT), ("floats", {**RESULT, **changes})):
        (tmp_path / f"{name}.json").write_text(json.dumps([entry]))
    integers, floats = (detrkit.evaluate(tmp_path / f"{name}.json", shapes) for name in ("integers", "floats"))
    assert floats.to_json()["per_class"] == integers.to_json()["per_class"]


def test_saved_panoptic_results_are_evaluated(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_panoptic(tmp_path / "data")
    split = load_dataset(data).val
    results = tmp_path / "theirs" / "panoptic_predictions.json"
    entries = []
    for record in split.records:
        true = GroundTruthSegments.from_record(record)
        numbers = zip(true.segment_ids.tolist(), true.labels.tolist(), strict=True)
        segments = tuple(PanopticSegment(n, k, split.categories.ids[k], True, 1.0, 1) for n, k in numbers)
        found = PanopticSegments(torch.from_numpy(true.ids), segments)
        entries.append(write_segments(results, record.image_id, found))
    write_panoptic_results(results, entries)
    assert run("evaluate", results, data, "-o", tmp_path / "out") == 0
    assert file_names(tmp_path / "out") == ["report.html", "scores.json"]
    assert read_json(tmp_path / "out" / "scores.json")["panoptic"]["overall"]["pq"] == 1
    assert "panoptic quality: 2 images, 6 segments" in capsys.readouterr().out
    assert run("evaluate", results, shapes, "-o", tmp_path / "other") == 2
    error = capsys.readouterr().err
    assert "is not panoptic, but" in error
    assert error.count("\n") == 1


def test_saved_masks_are_evaluated_in_addition_to_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_panoptic(tmp_path / "data")
    split = load_dataset(data).val
    document = split_to_coco(split, masks=True)
    assert isinstance(document, dict)
    results = [{**entry, "score": 0.9} for entry in document["annotations"] if not entry["iscrowd"]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert run("evaluate", tmp_path / "results.json", data, "-o", tmp_path / "out") == 0
    assert read_json(tmp_path / "out" / "scores.json")["masks"]["values"]["ap"] == pytest.approx(1)
    assert "masks: 2 images, 4 objects" in capsys.readouterr().out
    assert "<h2>Masks</h2>" in (tmp_path / "out" / "report.html").read_text()


def test_empty_results_have_an_ap_of_zero(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    assert run("evaluate", tmp_path / "results.json", shapes, "-o", tmp_path / "out") == 0
    scores = read_json(tmp_path / "out" / "scores.json")
    assert scores["metrics"]["ap"] == 0
    assert scores["thresholds"] is None
    assert scores["errors"]["counts"]["missed"] == scores["num_objects"]


def test_images_without_annotations_are_only_predicted(
    run_folder: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = shapes / "val2017"
    assert run("evaluate", run_folder, photos, "--workers", 0, "-o", tmp_path / "folder.json") == 0
    said = capsys.readouterr().out
    assert "has no annotations" in said
    assert "AP" not in said
    info = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())
    del info["annotations"]
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    shutil.copytree(photos, coco / "test2017")
    info["images"].sort(key=lambda entry: entry["file_name"])  # in the order of a folder
    (coco / "annotations" / "image_info_test2017.json").write_text(json.dumps(info))
    info_file = coco / "annotations" / "image_info_test2017.json"
    assert run("evaluate", run_folder, info_file, "--workers", 0, "-o", tmp_path / "i") == 0
    assert file_names(tmp_path / "i") == ["detections.json", "images.json"]
    assert run("evaluate", run_folder, coco, "--split", "test", "--workers", 0, "-o", tmp_path / "split.json") == 0
    found = read_json(tmp_path / "folder.json")
    assert len(found) == 12 * QUERIES
    assert {entry["image_id"] for entry in found} == set(range(1, 13))  # the numbers of the file names
    assert read_json(tmp_path / "i" / "detections.json") == read_json(tmp_path / "split.json") == found


def test_images_whose_names_are_not_numbers_get_ids_in_order(run_folder: Path, shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number, name in ((3, "b"), (2, "a")):
        shutil.copy(shapes / "val2017" / f"{number}.png", tmp_path / "photos" / f"{name}.png")
    assert run("evaluate", run_folder, tmp_path / "photos", "--workers", 0, "-o", tmp_path / "out") == 0
    assert read_json(tmp_path / "out" / "images.json") == [
        {"id": 1, "file_name": "a.png", "width": 64, "height": 64},
        {"id": 2, "file_name": "b.png", "width": 64, "height": 64},
    ]


def test_report_names_images_by_their_files(run_folder: Path, shapes: Path, tmp_path: Path) -> None:
    convert_dataset(shapes, tmp_path / "yolo", "yolo")
    photos, labels = tmp_path / "yolo" / "val" / "images", tmp_path / "yolo" / "val" / "labels"
    for folder, suffix in ((photos, ".png"), (labels, ".txt")):
        (folder / "night").mkdir()
        (folder / f"7{suffix}").rename(folder / "night" / f"a street{suffix}")
    assert run("evaluate", run_folder, tmp_path / "yolo", "--workers", 0, "-o", tmp_path / "out") == 0
    images = {one["id"]: one for one in read_json(tmp_path / "out" / "images.json")}
    assert images.keys() == {one["image_id"] for one in read_json(tmp_path / "out" / "detections.json")}
    files = {one["file_name"] for one in images.values()}
    assert files == {*(path.name for path in photos.glob("*.png")), "night/a street.png"}
    assert {(one["width"], one["height"]) for one in images.values()} == {(64, 64)}
    page = (tmp_path / "out" / "report.html").read_text()
    for one in read_json(tmp_path / "out" / "scores.json")["worst_images"][:12]:
        name = Path(images[one["image_id"]]["file_name"]).name
        assert f"<figcaption>{name}: {one['errors']} error" in page


def test_stored_thresholds_do_not_change_the_metrics(run_folder: Path, shapes: Path, tmp_path: Path) -> None:
    from detrkit.checkpoints.native import store_thresholds

    assert run("evaluate", run_folder, shapes, "--workers", 0, "-o", tmp_path / "a") == 0
    store_thresholds(run_folder / "best" / "model.safetensors", Thresholds(overall=1.0))
    assert run("evaluate", run_folder, shapes, "--workers", 0, "-o", tmp_path / "b", "--no-store-thresholds") == 0
    for name in ("detections.json", "scores.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
