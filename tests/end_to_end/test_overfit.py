"""What a model must be able to do before anything else: learn one or two photos by heart."""

import json
import shutil
from pathlib import Path

from detrkit.config.run import RunConfig
from detrkit.config.training import TrainingConfig
from detrkit.training.train import train
from tests.datasets import write_coco


def overfit(data: Path, output: Path, photos: int, epochs: int) -> float:
    config = RunConfig(
        data=str(data),
        model="detr-tiny",
        model_overrides={"num_queries": 12, "encoder_layers": 1, "decoder_layers": 2, "dim_feedforward": 128},
        training=TrainingConfig(
            epochs=epochs,
            evaluate_every=epochs,
            batch_size=photos,
            overfit=photos,
            image_size=64,
            lr=1e-3,
            backbone_lr=1e-3,
            clip_grad_norm=1.0,
            cls_loss_coef=2.0,
            lr_scheduler="cosine",
            workers=0,
        ),
    )
    scores = train(config, output).scores
    assert scores is not None
    assert scores.boxes.num_images == photos
    return scores.ap


def test_two_drawn_photos_are_learned_by_heart(tmp_path: Path) -> None:
    write_coco(tmp_path / "shapes", num_train=3)
    assert overfit(tmp_path / "shapes", tmp_path / "run", photos=2, epochs=300) >= 0.9


def test_a_real_photo_is_learned_by_heart(shared: Path, tmp_path: Path) -> None:
    """COCO photo 30752: five objects, the fourth of the set."""
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
    assert overfit(tmp_path / "one", tmp_path / "run", photos=1, epochs=300) >= 0.9
