"""Models with a mask head from the command line: trained jointly or on a frozen box model, evaluated, used."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit import Detector, build_model
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.cli import main
from detrkit.data.images import tensor_to_image
from detrkit.data.synthetic import SCENES, SyntheticShapes, SyntheticStyle
from detrkit.evaluation.ground_truth import GroundTruthSegments
from detrkit.ops.segments import ids_to_rgb
from detrkit.structures import PanopticSegments
from detrkit.training.loggers.jsonl import read_metrics

pytestmark = pytest.mark.slow

TINY = [
    *("--model", "detr-tiny", "--mask-head", "--num-queries", "10", "--image-size", "64"),
    *("--workers", "0", "--log-every", "1", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic scenes as COCO panoptic data, in the official layout."""
    root = tmp_path_factory.mktemp("scenes")
    for split, count in (("train2017", 6), ("val2017", 3)):
        samples = SyntheticShapes(count, seed=len(split), style=SyntheticStyle(size=64, stuff=True)).draw_all()
        folder, pngs = root / split, root / "annotations" / f"panoptic_{split}"
        folder.mkdir(parents=True)
        pngs.mkdir(parents=True)
        annotations, images = [], []
        for sample in samples:
            name = f"{sample.image_id:012d}"
            tensor_to_image(sample.image).save(folder / f"{name}.jpg")
            truth = GroundTruthSegments.from_annotations(sample.annotations)
            pixels = ids_to_rgb(torch.from_numpy(truth.ids).int()).numpy()
            Image.fromarray(pixels).save(pngs / f"{name}.png")
            segments = [
                {
                    "id": int(number),
                    "category_id": SCENES.ids[label],
                    "iscrowd": 0,
                    "area": int((truth.ids == number).sum()),
                }
                for number, label in zip(truth.segment_ids, truth.labels.tolist(), strict=True)
            ]
            annotations.append({"image_id": sample.image_id, "file_name": f"{name}.png", "segments_info": segments})
            images.append({"id": sample.image_id, "file_name": f"{name}.jpg", "height": 64, "width": 64})
        document = {"images": images, "annotations": annotations, "categories": SCENES.to_json()}
        (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(document))
    return root


def run_cli(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main([str(one) for one in arguments])
    return int(exit_info.value.code or 0)


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "joint"
    assert run_cli("train", scenes, *TINY, "--epochs", 2, "--batch-size", 3, "-o", output) == 0
    return output


def test_joint_training_reports_panoptic_quality(run: Path) -> None:
    entries = read_metrics(run)
    losses = next(entry for entry in entries if entry["kind"] == "train")
    assert {"loss_ce", "loss_bbox_0", "loss_mask", "loss_dice"} <= set(losses)
    evaluation = next(entry for entry in entries if entry["kind"] == "evaluation")
    assert {"ap", "pq", "sq", "rq", "pq_things", "pq_stuff"} <= set(evaluation)
    assert load_checkpoint(run).categories == SCENES
    assert "Panoptic quality" in (run / "report.html").read_text()
    assert "panoptic" in json.loads((run / "scores.json").read_text())
    assert len(list((run / "predictions").glob("*.png"))) == 3


def test_evaluation_repeats_the_panoptic_quality_of_training(scenes: Path, tmp_path: Path) -> None:
    model = build_model("detr-tiny", num_classes=len(SCENES), num_queries=10, mask_head=True)
    with torch.no_grad():  # predicts one stuff class everywhere, which matches where it covers most of an image
        model.heads.class_head.bias[SCENES.names.index("grass")] = 10
        model.mask_head.output.bias.fill_(10)
    everywhere = Checkpoint(model.state_dict(), model.config, SCENES, Preprocessing())
    save_checkpoint(tmp_path / "w.safetensors", everywhere)
    rates = ("--weights", tmp_path / "w.safetensors", "--lr", 1e-6, "--backbone-lr", 1e-6)
    assert run_cli("train", scenes, *TINY, *rates, "--epochs", 1, "-o", tmp_path / "run") == 0
    assert run_cli("evaluate", tmp_path / "run", scenes, "--workers", 0, "--device", "cpu", "-o", tmp_path / "e") == 0
    said = json.loads((tmp_path / "run" / "scores.json").read_text())
    scores = json.loads((tmp_path / "e" / "scores.json").read_text())
    assert scores["panoptic"]["num_images"] == 3
    assert set(scores["masks"]["values"]) == set(scores["metrics"])
    assert scores["panoptic"]["overall"] == said["panoptic"]["overall"]
    assert scores["panoptic"]["overall"]["pq"] > 0


def test_second_stage_trains_only_the_mask_head(
    run: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "head"
    frozen = ("--weights", run, "--freeze", "boxes")
    assert run_cli("train", scenes, *TINY, *frozen, "--epochs", 1, "--ema-decay", 0, "-o", output) == 0
    before, after = load_checkpoint(run).state, load_checkpoint(output / "last").state
    weights = [name for name in before if not name.endswith("num_batches_tracked")]
    changed = {name.partition(".")[0] for name in weights if not torch.equal(before[name], after[name])}
    assert changed == {"mask_head"}
    losses = next(entry for entry in read_metrics(output) if entry["kind"] == "train")
    assert {name for name in losses if name.startswith("loss")} == {"loss", "loss_mask", "loss_dice"}
    # resuming needs no weights: they are in the run's state
    left = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run_cli("train", "--resume", output) == 2
    said = capsys.readouterr()
    error = " ".join(said.err.split())
    assert "the run has ended, after 1 epoch" in error
    assert f"--weights {output} and another --output" in error
    assert said.out == ""
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()} == left


def test_frozen_box_model_with_other_classes_is_rejected(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from detrkit.data.synthetic import SHAPES

    boxes = build_model("detr-tiny", num_classes=3, num_queries=10)
    save_checkpoint(tmp_path / "w.safetensors", Checkpoint(boxes.state_dict(), boxes.config, SHAPES, Preprocessing()))
    frozen = ("--weights", tmp_path / "w.safetensors", "--freeze", "boxes")
    assert run_cli("train", scenes, *TINY, *frozen, "-o", tmp_path / "run") == 2
    said = capsys.readouterr()
    assert "data 6, of which 3 would stay random" in " ".join((said.err + said.out).split())
    assert not (tmp_path / "run").exists()
    assert run_cli("train", scenes, *TINY, "--freeze", "boxes", "-o", tmp_path / "run") == 2
    assert "Pass --weights" in " ".join(capsys.readouterr().err.split())


def test_training_masks_needs_segmentations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.datasets import write_coco

    assert run_cli("train", write_coco(tmp_path / "boxes"), *TINY, "-o", tmp_path / "run") == 2
    assert "segmentation: found nothing, expected polygons" in " ".join(capsys.readouterr().err.split())


def test_detector_predicts_segments_of_an_image(run: Path, scenes: Path) -> None:
    detector = Detector.load(run)
    found = detector.predict_segments(next((scenes / "val2017").glob("*.jpg")), threshold=0.0)
    assert isinstance(found, PanopticSegments)
    assert found.ids.shape == (64, 64)
    assert all(one.class_name in SCENES.names for one in found.segments)
    things = dict(zip(SCENES.names, SCENES.things, strict=True))
    assert all(one.is_thing == things[one.class_name] for one in found.segments)
    assert np.asarray(found.draw()).shape == (64, 64, 3)


def test_prediction_writes_masks_and_segments(run: Path, scenes: Path, tmp_path: Path) -> None:
    from detrkit.data.segment_png import read_ids

    kinds = ("--write", "images,json,segments", "--threshold", "0.05", "--device", "cpu")
    assert run_cli("predict", run, scenes / "val2017", *kinds, "-o", tmp_path) == 0
    documents = sorted(tmp_path.glob("*.json"))
    assert len(documents) == 3
    for document in documents:
        content = json.loads(document.read_text())
        assert content["objects"]
        assert all(one["mask"]["size"] == [64, 64] for one in content["objects"])
        ids = read_ids(document.with_suffix(".segments.png"), (64, 64))
        assert set(ids.unique().tolist()) - {0} == {one["id"] for one in content["segments"]}
    assert run_cli("predict", run, scenes / "val2017", "--tile", 32, "--device", "cpu", "-o", tmp_path) == 2


def test_writing_segments_needs_a_panoptic_model(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from detrkit.data.synthetic import SHAPES

    boxes, file = build_model("detr-tiny", num_classes=3), tmp_path / "w.safetensors"
    save_checkpoint(file, Checkpoint(boxes.state_dict(), boxes.config, SHAPES, Preprocessing()))
    assert run_cli("predict", file, scenes / "val2017", "--write", "segments", "-o", tmp_path / "out") == 2
    assert "needs a panoptic model" in " ".join(capsys.readouterr().err.split())
