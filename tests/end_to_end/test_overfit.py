"""A model can overfit one or two images: the first check of model, criterion and optimizer together."""

import json
import shutil
from pathlib import Path

import pytest

import detrkit
from tests.datasets import write_coco


def overfit(data: Path, output: Path, num_images: int, epochs: int) -> float:
    result = detrkit.train(
        data,
        "detr-tiny",
        output=output,
        loggers=(),
        epochs=epochs,
        evaluate_every=epochs,
        batch_size=num_images,
        overfit=num_images,
        image_size=64,
        lr=1e-3,
        backbone_lr=1e-3,
        clip_grad_norm=1.0,
        cls_loss_coef=2.0,
        lr_scheduler="cosine",
        workers=0,
        num_queries=12,
        encoder_layers=1,
        decoder_layers=2,
        dim_feedforward=128,
    )
    assert result.evaluation is not None
    assert result.evaluation.boxes.num_images == num_images
    assert result.overfit is not None
    assert result.overfit.passed == (result.metrics["ap"] >= 0.95)
    return result.metrics["ap"]


@pytest.mark.slow
def test_model_overfits_two_synthetic_images(tmp_path: Path) -> None:
    write_coco(tmp_path / "shapes", num_train=3)
    assert overfit(tmp_path / "shapes", tmp_path / "run", num_images=2, epochs=300) >= 0.9


@pytest.mark.slow
def test_model_overfits_a_coco_image(shared: Path, tmp_path: Path) -> None:
    """COCO image 30752: five objects, the fourth of the set."""
    source = shared / "data" / "coco-mini-dev"
    document = json.loads((source / "annotations" / "instances_train2017.json").read_text())
    document["images"] = [entry for entry in document["images"] if entry["id"] == 30752]
    document["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] == 30752]
    assert document["images"]
    assert len(document["annotations"]) == 5
    (tmp_path / "one" / "annotations").mkdir(parents=True)
    for name in ("train2017", "val2017"):
        (tmp_path / "one" / name).mkdir()
        shutil.copy(source / "train2017" / document["images"][0]["file_name"], tmp_path / "one" / name)
        (tmp_path / "one" / "annotations" / f"instances_{name}.json").write_text(json.dumps(document))
    assert overfit(tmp_path / "one", tmp_path / "run", num_images=1, epochs=300) >= 0.9
