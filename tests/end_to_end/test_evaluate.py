"""Evaluation as a user meets it: folders, saved results, photos without annotations, thresholds that are kept and used."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detrkit import Detector, build_model
from detrkit._internal.files import file_lock
from detrkit.checkpoints.load import read_checkpoint
from detrkit.checkpoints.native import Checkpoint, Preprocessing, Thresholds, save_checkpoint
from detrkit.cli import main
from detrkit.config.run import RunConfig, write_config
from detrkit.data.convert import convert_dataset
from detrkit.data.segmentation import to_rle
from detrkit.data.splits import load_dataset
from detrkit.data.synthetic import SHAPES
from detrkit.evaluation import evaluate
from detrkit.evaluation import evaluator as judging
from detrkit.evaluation.arrays import DetectionArrays, GroundTruth
from detrkit.evaluation.coco import annotations_of_split
from detrkit.evaluation.panoptic import GroundTruthSegments
from detrkit.evaluation.results_io_panoptic import write_panoptic_results, write_segments
from detrkit.structures import PanopticSegment, PanopticSegments
from detrkit.training import run as run_recipe
from tests.datasets import write_coco, write_panoptic

QUERIES = 25


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("data") / "shapes", 4, 12)


@pytest.fixture
def a_run(tmp_path: Path, shapes: Path) -> Path:
    """What a run leaves, as far as evaluation looks at it; its model has learned nothing."""
    torch.manual_seed(0)
    model = build_model("detr-tiny", num_classes=3)
    weights = Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=64))
    save_checkpoint(tmp_path / "run" / "best" / "model.safetensors", weights)
    write_config(tmp_path / "run" / "config.yaml", RunConfig(data=str(shapes)), {})
    return tmp_path / "run"


def truth_of(shapes: Path) -> GroundTruth:
    return GroundTruth.read(shapes / "annotations" / "instances_val2017.json")


def all_found(truth: GroundTruth) -> DetectionArrays:
    """Everything, with scores of 0.5 to 0.9 by class; and, with scores below 0.1, what is not there."""
    ids = np.array(truth.categories.ids)[truth.labels]
    right = DetectionArrays(
        truth.image_ids[truth.photos], ids, truth.boxes, 0.5 + 0.2 * truth.labels, np.zeros(len(ids), np.int64)
    )
    wrong = DetectionArrays(right.image_ids, ids, right.boxes + 1000, right.scores / 10, right.queries)
    return DetectionArrays.joined([right, wrong])


@pytest.fixture
def knows_all(monkeypatch: pytest.MonkeyPatch, shapes: Path) -> None:
    """Whatever the model says, everything is found."""

    def answer(*_: Any, layers: Sequence[int] = (-1,), **__: Any) -> list[DetectionArrays]:
        return [all_found(truth_of(shapes))] * len(layers)

    monkeypatch.setattr(evaluate, "collect", lambda *a, **_: answer(*a[:5], layers=a[5]))
    monkeypatch.setattr(judging, "collect", answer)
    monkeypatch.setattr(run_recipe, "collect", answer)


def go(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(one) for one in arguments])
    return int(left.value.code or 0)


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def strict(path: Path) -> Any:
    """Read JSON that any reader can: without NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{path} holds {word}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_a_folder_gets_detections_scores_and_a_report_with_the_paper_s_pictures(
    a_run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--by-layer", "--query-map", "--counting", "--workers", 0, "--output", out]
    assert go("evaluate", a_run, shapes, *options) == 0
    pictures = ["by_layer.png", "counting.png", "query_map.png"]
    assert listed(out) == sorted([*pictures, "detections.json", "images.json", "report.html", "scores.json"])
    said = capsys.readouterr().out
    assert "decoder layer 3" in said
    assert "mistakes:" in said
    scores = strict(out / "scores.json")
    assert [entry["layer"] for entry in scores["by_layer"]] == [1, 2, 3]
    assert scores["by_layer"][-1]["ap"] == scores["metrics"]["ap"]
    assert len(scores["query_map"]) == QUERIES
    assert [entry["present"] for entry in scores["counting"]][-1] == 25
    assert scores["num_detections"] == len(strict(out / "detections.json")) == 12 * QUERIES
    page = (out / "report.html").read_text()
    for heading in ("Scores", "By class", "Thresholds and curves", "Kinds of mistakes", "Confusions", "Decoder layers"):
        assert f"<h2>{heading}</h2>" in page
    assert "http" not in page
    assert page.count("data:image/png") == 1  # the query map; curves are drawn in the page's own colours
    assert "at most 100 detections of a class" in page.lower()


def test_a_json_name_gets_the_detections_alone(a_run: Path, shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert go("evaluate", a_run, shapes, "--workers", 0, "--output", tmp_path / "out" / "found.json") == 0
    assert listed(tmp_path / "out") == ["found.json"]


def test_a_run_keeps_the_thresholds_of_its_own_validation_photos(
    a_run: Path, shapes: Path, tmp_path: Path, knows_all: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_checkpoint(a_run)
    assert before.thresholds is None
    assert go("evaluate", a_run, shapes, "--split", "train", "--workers", 0, "-o", tmp_path / "a") == 0
    assert read_checkpoint(a_run).thresholds is None, "these are photos that it learned from"
    elsewhere = shutil.copytree(shapes, tmp_path / "elsewhere")
    assert go("evaluate", a_run, elsewhere, "--workers", 0, "-o", tmp_path / "b") == 0
    assert read_checkpoint(a_run).thresholds is None, "this is another dataset"
    assert go("evaluate", a_run, shapes, "--workers", 0, "-o", tmp_path / "c", "--no-store-thresholds") == 0
    assert read_checkpoint(a_run).thresholds is None
    assert go("evaluate", a_run, shapes, "--workers", 0, "-o", tmp_path / "d") == 0
    after = read_checkpoint(a_run)
    assert after.thresholds is not None
    counts = truth_of(shapes).objects_per_class()
    # halfway between the weakest right detection and the strongest false one of the class
    expected = {i + 1: 0.55 * (0.5 + 0.2 * i) for i in range(3) if counts[i] >= 10}
    assert after.thresholds.per_class == pytest.approx(expected)
    assert len(expected) > 0
    assert after.config == before.config
    assert all(torch.equal(after.state[name], tensor) for name, tensor in before.state.items())
    assert strict(tmp_path / "d" / "scores.json")["thresholds"]["overall"] == after.thresholds.overall


def test_auto_uses_them_and_says_what_to_do_where_there_are_none(
    a_run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = shapes / "val2017" / "2.png"
    assert go("predict", a_run, photo, "--threshold", "auto", "-o", tmp_path / "found") == 2
    error = capsys.readouterr().err
    assert "detrkit evaluate" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "found").exists()

    everything = Detector.load(a_run).predict(photo, threshold=0)
    gaps = -everything.scores.diff()
    middle = float(everything.scores[int(gaps.argmax())] - gaps.max() / 2)  # where rounding moves nothing across
    path = a_run / "best" / "model.safetensors"
    from detrkit.checkpoints.native import store_thresholds

    first = int(everything.category_ids[0])
    store_thresholds(path, Thresholds(overall=middle, per_class={first: 1.0}))
    assert go("predict", a_run, photo, "--threshold", "auto", "-o", tmp_path / "found") == 0
    objects = json.loads((tmp_path / "found" / "2.json").read_text())["objects"]
    expected = [one for one in everything.to_coco(2) if one["category_id"] != first and one["score"] >= middle]
    assert [one["category_id"] for one in objects] == [one["category_id"] for one in expected]
    assert len(Detector.load(a_run).predict([photo, photo], threshold="auto")[1]) == len(expected)


def test_thresholds_go_into_any_file_of_ours_if_asked(
    a_run: Path, shapes: Path, tmp_path: Path, knows_all: None, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = shutil.copy(a_run / "best" / "model.safetensors", tmp_path / "alone.safetensors")
    assert go("evaluate", alone, shapes, "--workers", 0, "-o", tmp_path / "a", "--store-thresholds") == 0
    assert read_checkpoint(alone).thresholds is not None
    (tmp_path / "a.pth").write_bytes(b"weights of the published code")
    capsys.readouterr()
    assert go("evaluate", tmp_path / "a.pth", shapes, "-o", tmp_path / "b", "--store-thresholds") == 2
    assert "detrkit convert" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_thresholds_do_not_go_into_weights_that_came_later(
    a_run: Path, shapes: Path, tmp_path: Path, knows_all: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    weights = a_run / "best" / "model.safetensors"
    collect = evaluate.collect

    def meanwhile(*arguments: Any, **more: Any) -> Any:
        shutil.copy(weights, tmp_path / "new")
        (tmp_path / "new").replace(weights)
        return collect(*arguments, **more)

    monkeypatch.setattr(evaluate, "collect", meanwhile)
    assert go("evaluate", a_run, shapes, "--workers", 0, "-o", tmp_path / "a") == 0
    assert "thresholds were not stored: " in " ".join(capsys.readouterr().out.split())
    assert read_checkpoint(a_run).thresholds is None
    assert (tmp_path / "a" / "report.html").is_file()
    assert go("evaluate", a_run, shapes, "--workers", 0, "-o", tmp_path / "b", "--store-thresholds") == 2
    assert "was written anew since it was read; evaluate again" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(evaluate, "collect", collect)
    with file_lock(a_run):  # as training does
        assert go("evaluate", a_run, shapes, "--workers", 0, "-o", tmp_path / "c") == 0
    assert "another process writes to it" in " ".join(capsys.readouterr().out.split())


def test_where_nothing_can_be_written_nothing_is_predicted(
    a_run: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "collect", lambda *_, **__: pytest.fail("predicted"))
    (tmp_path / "file").write_text("")
    assert go("evaluate", a_run, shapes, "-o", tmp_path / "file" / "e") == 2
    assert "is a file, expected a folder" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr("os.access", lambda *_: False)
    assert go("evaluate", a_run, shapes, "-o", tmp_path / "none") == 2
    assert "cannot be written to; choose another place" in " ".join(capsys.readouterr().err.split())


def test_a_training_s_best_checkpoint_holds_thresholds(shapes: Path, tmp_path: Path, knows_all: None) -> None:
    options = ["--model", "detr-tiny", "--steps", 1, "--batch-size", 2, "--workers", 0, "--image-size", 64]
    assert go("train", shapes, *options, "-o", tmp_path / "run") == 0
    stored = read_checkpoint(tmp_path / "run").thresholds
    assert stored is not None
    scores = strict(tmp_path / "run" / "scores.json")
    assert scores["thresholds"]["overall"] == stored.overall
    assert scores["metrics"]["ap"] == pytest.approx(1)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Kinds of mistakes" in page
    assert "http" not in page


def test_a_run_is_judged_by_the_photos_that_it_set_aside_itself(a_run: Path, shapes: Path, tmp_path: Path) -> None:
    data = shutil.copytree(shapes, tmp_path / "data")
    (data / "annotations" / "instances_val2017.json").unlink()
    config = RunConfig(data=str(data)).model_copy(update={"training": RunConfig(data="").training})
    seeded = config.training.model_copy(update={"seed": 8})
    write_config(a_run / "config.yaml", config.model_copy(update={"training": seeded}), {})
    expected, others = (set(load_dataset(data, seed=seed).val.records.image_ids) for seed in (8, 42))
    assert expected != others
    assert go("evaluate", a_run, data, "--workers", 0, "-o", tmp_path / "found.json") == 0
    assert {entry["image_id"] for entry in strict(tmp_path / "found.json")} == expected
    # its weights know whose they are, too
    assert go("evaluate", a_run / "best", data, "--workers", 0, "-o", tmp_path / "again.json") == 0
    assert {entry["image_id"] for entry in strict(tmp_path / "again.json")} == expected


def test_saved_results_of_any_model_are_scored(
    a_run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go("evaluate", a_run, shapes, "--workers", 0, "-o", tmp_path / "a") == 0
    saved = tmp_path / "a" / "detections.json"
    assert go("evaluate", shapes, "--predictions", saved, "-o", tmp_path / "b") == 0
    assert listed(tmp_path / "b") == ["images.json", "report.html", "scores.json"]
    first, second = (strict(tmp_path / name / "scores.json") for name in "ab")
    assert {**first, "title": ""} == {**second, "title": ""}
    # masks of results are scored where there are outlines to compare them with
    results = strict(saved)
    runs = to_rle({"size": [64, 64], "counts": [0, 10, 4086]}, (64, 64))
    runs["counts"] = runs["counts"].decode()
    (tmp_path / "masks.json").write_text(json.dumps([{**one, "segmentation": runs} for one in results]))
    convert_dataset(shapes, tmp_path / "yolo", "yolo")
    capsys.readouterr()
    assert go("evaluate", tmp_path / "yolo", "--predictions", tmp_path / "masks.json", "-o", tmp_path / "c") == 0
    assert "masks are not scored: " in " ".join(capsys.readouterr().out.split())


RESULT = {"image_id": 2, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"annotations": []}, "found dict, expected COCO results"),
        ([RESULT, {**RESULT, "bbox": [0, 0, -1, 9]}], "entry 1"),
        ([{**RESULT, "score": float("nan")}], "entry 0"),
        ([{**RESULT, "score": None}], "entry 0"),
        ([{**RESULT, "image_id": "2"}], "entry 0"),
        ([{**RESULT, "image_id": 10**30}], "entry 0"),
        ([{**RESULT, "bbox": [0, 0, 10**400, 9]}], "entry 0"),
        ([RESULT, {**RESULT, "image_id": 77}], "entry 1 has image_id 77"),
        ([{**RESULT, "category_id": 0}], "entry 0 has category_id 0"),
        ("[", "not readable as JSON"),
    ],
)
def test_malformed_results_are_refused_in_one_sentence(
    content: object, says: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    assert go("evaluate", shapes, "--predictions", path, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_saved_panoptic_results_are_scored(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert go("evaluate", data, "--predictions", results, "-o", tmp_path / "out") == 0
    assert listed(tmp_path / "out") == ["report.html", "scores.json"]
    assert strict(tmp_path / "out" / "scores.json")["panoptic"]["overall"]["pq"] == 1
    assert "panoptic quality: 2 photos, 6 segments" in capsys.readouterr().out
    assert go("evaluate", shapes, "--predictions", results, "-o", tmp_path / "other") == 2
    error = capsys.readouterr().err
    assert "has no PNGs of segments, by which panoptic results are judged" in error
    assert error.count("\n") == 1


def test_saved_masks_are_scored_beside_their_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_panoptic(tmp_path / "data")
    split = load_dataset(data).val
    document = annotations_of_split(split, masks=True)
    assert isinstance(document, dict)
    results = [{**entry, "score": 0.9} for entry in document["annotations"] if not entry["iscrowd"]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert go("evaluate", data, "--predictions", tmp_path / "results.json", "-o", tmp_path / "out") == 0
    assert strict(tmp_path / "out" / "scores.json")["masks"]["values"]["ap"] == pytest.approx(1)
    assert "masks: 2 photos, 4 objects" in capsys.readouterr().out
    assert "<h2>Masks</h2>" in (tmp_path / "out" / "report.html").read_text()


def test_an_empty_list_of_results_scores_nothing(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("[]")
    assert go("evaluate", shapes, "--predictions", tmp_path / "results.json", "-o", tmp_path / "out") == 0
    scores = strict(tmp_path / "out" / "scores.json")
    assert scores["metrics"]["ap"] == 0
    assert scores["thresholds"] is None
    assert scores["errors"]["counts"]["missed"] == scores["num_objects"]


def test_photos_without_annotations_are_predicted_for_a_test_server(
    a_run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = shapes / "val2017"
    assert go("evaluate", a_run, photos, "--workers", 0, "-o", tmp_path / "folder.json") == 0
    said = capsys.readouterr().out
    assert "no annotations, so nothing was scored" in said
    assert "AP" not in said
    info = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())
    del info["annotations"]
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    shutil.copytree(photos, coco / "test2017")
    info["images"].sort(key=lambda entry: entry["file_name"])  # the order of a folder
    (coco / "annotations" / "image_info_test2017.json").write_text(json.dumps(info))
    info_file = coco / "annotations" / "image_info_test2017.json"
    assert go("evaluate", a_run, info_file, "--workers", 0, "-o", tmp_path / "i") == 0
    assert listed(tmp_path / "i") == ["detections.json", "images.json"]
    assert go("evaluate", a_run, coco, "--split", "test", "--workers", 0, "-o", tmp_path / "split.json") == 0
    found = strict(tmp_path / "folder.json")
    assert len(found) == 12 * QUERIES
    assert {entry["image_id"] for entry in found} == set(range(1, 13))  # the photos' own numbers
    assert strict(tmp_path / "i" / "detections.json") == strict(tmp_path / "split.json") == found


def test_photos_whose_names_are_no_numbers_are_numbered(a_run: Path, shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number, name in ((3, "b"), (2, "a")):
        shutil.copy(shapes / "val2017" / f"{number}.png", tmp_path / "photos" / f"{name}.png")
    assert go("evaluate", a_run, tmp_path / "photos", "--workers", 0, "-o", tmp_path / "out") == 0
    assert strict(tmp_path / "out" / "images.json") == [
        {"id": 1, "file_name": "a.png", "width": 64, "height": 64},
        {"id": 2, "file_name": "b.png", "width": 64, "height": 64},
    ]


def test_photos_are_called_by_the_names_of_their_files(a_run: Path, shapes: Path, tmp_path: Path) -> None:
    convert_dataset(shapes, tmp_path / "yolo", "yolo")
    photos, labels = tmp_path / "yolo" / "val" / "images", tmp_path / "yolo" / "val" / "labels"
    for folder, suffix in ((photos, ".png"), (labels, ".txt")):
        (folder / "night").mkdir()
        (folder / f"7{suffix}").rename(folder / "night" / f"a street{suffix}")
    assert go("evaluate", a_run, tmp_path / "yolo", "--workers", 0, "-o", tmp_path / "out") == 0
    images = {one["id"]: one for one in strict(tmp_path / "out" / "images.json")}
    assert images.keys() == {one["image_id"] for one in strict(tmp_path / "out" / "detections.json")}
    files = {one["file_name"] for one in images.values()}
    assert files == {*(path.name for path in photos.glob("*.png")), "night/a street.png"}
    assert {(one["width"], one["height"]) for one in images.values()} == {(64, 64)}
    page = (tmp_path / "out" / "report.html").read_text()
    for one in strict(tmp_path / "out" / "scores.json")["worst_photos"][:12]:
        name = Path(images[one["image_id"]]["file_name"]).name
        assert f"<figcaption>{name}: {one['mistakes']} mistake" in page


def test_thresholds_that_are_stored_change_no_score(a_run: Path, shapes: Path, tmp_path: Path) -> None:
    from detrkit.checkpoints.native import store_thresholds

    assert go("evaluate", a_run, shapes, "--workers", 0, "-o", tmp_path / "a") == 0
    store_thresholds(a_run / "best" / "model.safetensors", Thresholds(overall=1.0))
    assert go("evaluate", a_run, shapes, "--workers", 0, "-o", tmp_path / "b", "--no-store-thresholds") == 0
    for name in ("detections.json", "scores.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
