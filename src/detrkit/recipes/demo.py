"""The demo: a small DETR trained on drawn shapes from scratch, in minutes, on any machine."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from torch.utils.data import Dataset

from detrkit.data.augmentation import TrainingPhotos
from detrkit.data.categories import Categories
from detrkit.data.dataset import SampleDataset
from detrkit.data.photos import tensor_to_photo
from detrkit.data.sampling import Arrangement
from detrkit.data.synthetic import SCENES, SHAPES, DrawingStyle, DrawnShapes
from detrkit.data.transforms import RandomFlip, TestTransform
from detrkit.errors import ConfigError
from detrkit.evaluation.coco import annotations_of_samples
from detrkit.evaluation.panoptic import TrueSegments
from detrkit.files import replacing, write_text
from detrkit.recipes.config import RunConfig
from detrkit.recipes.data import RunData
from detrkit.recipes.run import run_training
from detrkit.recipes.train import refuse_used_folder
from detrkit.structures import Sample
from detrkit.terminal import plain_console
from detrkit.training.settings import TrainingSettings
from detrkit.training.trainer import TrainingResult

Task = Literal["boxes", "panoptic"]
NUM_TRAIN = 3000
NUM_TEST = 200
NUM_DRAWINGS = 12  # left as files
EPOCHS = 16
PANOPTIC_EPOCHS = 10  # of longer steps, and with more to learn from in each photo
STYLE = DrawingStyle(size=128)  # pixels a side, as people look at them
IMAGE_SIZE = 64  # pixels a side, as the model sees them


def demo_config(seed: int = 42, task: Task = "boxes") -> RunConfig:
    """The demo's settings, as `config.yaml` in its run folder shows them."""
    with_masks = {"panoptic": True} if task == "panoptic" else {}
    return RunConfig(
        data="drawn scenes" if task == "panoptic" else "drawn shapes",
        model="detr-tiny",
        model_settings={"num_queries": 12, **with_masks},
        training=TrainingSettings(
            epochs=PANOPTIC_EPOCHS if with_masks else EPOCHS,
            evaluate_every=2 if with_masks else 4,
            batch_size=16,
            learning_rate=5e-4,
            backbone_learning_rate=1.5e-3,
            clip_norm=1.0,
            class_weight=2.0,
            no_object_weight=0.3,
            schedule="cosine",
            warmup_steps=100,
            image_size=IMAGE_SIZE,
            workers=0,
            seed=seed,
        ),
    )


def run_demo(output: Path, seed: int = 42, task: Task = "boxes") -> TrainingResult:
    """Draw, train, evaluate on unseen drawings, and say what to try next."""
    if seed < 0:
        raise ConfigError(f"--seed: found {seed}, expected 0 or more")
    refuse_used_folder(output)
    console = plain_console()
    console.print(f"drawing {NUM_TRAIN} photos to learn from and {NUM_TEST} to be tested on")
    data = draw_data(NUM_TRAIN, NUM_TEST, seed, task)
    result = run_training(demo_config(seed, task), data, output, console)
    if not result.interrupted:
        _write_drawings(output / "drawings", data.pictures, data.categories)
        _say_what_next(output, console)
    return result


def draw_data(num_train: int, num_test: int, seed: int, task: Task = "boxes") -> RunData:
    """Draw the photos once and keep them in memory; the two seeds never meet."""
    to_model = TestTransform(IMAGE_SIZE)
    with_masks = task == "panoptic"
    style = replace(STYLE, stuff=with_masks)
    categories = SCENES if with_masks else SHAPES
    drawn = DrawnShapes(num_train, 2 * seed, style).draw_all()
    train = [to_model(one if with_masks else without_masks(one)) for one in drawn]
    scenes = DrawnShapes(num_test, 2 * seed + 1, style).draw_all()
    test = [without_masks(one) for one in scenes]
    segments = {one.image_id: TrueSegments.of_annotations(one.annotations) for one in scenes} if with_masks else {}
    return RunData(
        train=TrainingPhotos(SampleDataset(train), RandomFlip(), seed=seed),
        arrangement=Arrangement.anything(num_train),
        test=SampleDataset(test, to_model),
        pictures=SampleDataset(test),
        annotations=annotations_of_samples(test, categories),
        test_ids=[sample.image_id for sample in test],
        categories=categories,
        segments=segments.__getitem__ if with_masks else None,
    )


def without_masks(sample: Sample) -> Sample:
    """Leave out what boxes do not need, so that transforms are quicker."""
    return replace(sample, annotations=replace(sample.annotations, masks=None))


def _write_drawings(folder: Path, pictures: Dataset[Sample], categories: Categories) -> None:
    """Leave some unseen drawings as files with their annotations, to be predicted and explained."""
    samples = [pictures[index] for index in range(NUM_DRAWINGS)]
    write_text(folder / "annotations.json", json.dumps(annotations_of_samples(samples, categories)))
    for sample in samples:
        with replacing(folder / f"{sample.image_id}.png") as temporary:
            tensor_to_photo(sample.image).save(temporary)


def _say_what_next(output: Path, console: Console) -> None:
    console.print(
        f"\nTry next:\n"
        f"  open {output / 'report.html'}\n"
        f"  detrkit predict {output} {output / 'drawings'}\n"
        f"  detrkit explain {output / 'drawings' / '6.png'} --weights {output} --annotations {output / 'drawings'}\n"
        f"  detrkit describe {output} --size {IMAGE_SIZE}x{IMAGE_SIZE}\n"
        f"  detrkit train YOUR_COCO_FOLDER --model detr-r18 --weights imagenet",
        soft_wrap=True,
    )
