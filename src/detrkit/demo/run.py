"""The demo: a small DETR trained on drawn shapes from scratch, in minutes, on any machine."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from detrkit._internal.files import atomic_write, refuse_overwrite, write_text
from detrkit.config.run import RunConfig
from detrkit.config.training import TrainingConfig
from detrkit.data.categories import Categories
from detrkit.data.dataset import SampleDataset
from detrkit.data.images import tensor_to_image
from detrkit.data.samplers import BatchGrouping
from detrkit.data.synthetic import SCENES, SHAPES, SyntheticShapes, SyntheticStyle
from detrkit.data.torch_dataset import read_torch_dataset
from detrkit.data.transforms.augmentation import AugmentedDataset
from detrkit.data.transforms.geometry import EvalTransform, RandomOrientation
from detrkit.errors import ConfigError, arg
from detrkit.evaluation.ground_truth import samples_to_coco
from detrkit.structures import Sample
from detrkit.training.callbacks import Callback
from detrkit.training.data import TrainingData
from detrkit.training.result import TrainResult
from detrkit.training.run import run_training
from detrkit.training.train import refuse_used_run_folder

Task = Literal["boxes", "panoptic"]
Model = Literal["detrkit-s", "detr-tiny"]
NUM_TRAIN = 3000
NUM_TEST = 200
NUM_DRAWINGS = 12  # left as files
EPOCHS: dict[tuple[Model, Task], int] = {  # some minutes each: steps with masks take longer, and teach more
    ("detrkit-s", "boxes"): 6,
    ("detrkit-s", "panoptic"): 4,
    ("detr-tiny", "boxes"): 16,
    ("detr-tiny", "panoptic"): 10,
}
STYLE = SyntheticStyle(size=128)  # pixels a side, as people look at them
IMAGE_SIZES: dict[Model, int] = {"detrkit-s": 128, "detr-tiny": 64}  # pixels a side, as the model sees them
RATES: dict[Model, tuple[float, float]] = {"detrkit-s": (1e-3, 1e-3), "detr-tiny": (5e-4, 1.5e-3)}


def demo_config(seed: int = 42, task: Task = "boxes", model: Model = "detrkit-s") -> RunConfig:
    """The demo's settings, as `config.yaml` in its run folder shows them."""
    with_masks = {"mask_head": True} if task == "panoptic" else {}
    is_own = model == "detrkit-s"
    rate, backbone_rate = RATES[model]
    return RunConfig(
        data="drawn scenes" if task == "panoptic" else "drawn shapes",
        model=model,
        model_overrides={"num_queries": 25 if is_own else 12, **with_masks},
        training=TrainingConfig(
            epochs=EPOCHS[model, task],
            evaluate_every=max(1, EPOCHS[model, task] // 4),
            batch_size=16,
            lr=rate,
            backbone_lr=backbone_rate,
            clip_grad_norm=1.0,
            cls_loss_coef=2.0,
            eos_coef=0.1 if is_own else 0.3,
            iou_aware=is_own,
            look_forward_twice=is_own,
            ema_decay=0.99 if is_own else 0.0,
            lr_scheduler="cosine",
            warmup_steps=100,
            image_size=IMAGE_SIZES[model],
            workers=0,
            seed=seed,
        ),
    )


def run_demo(
    output: Path,
    seed: int = 42,
    task: Task = "boxes",
    model: Model = "detrkit-s",
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train on synthetic shapes, and write some unseen ones to ``drawings/`` in the run folder.

    Args:
        output: run folder to create.
        seed: of the drawings, the weights and the order of the data.
        task: boxes, or panoptic segmentation with sky, water and grass.
        model: preset.
        callbacks: as in `detrkit.train`.

    Raises:
        ConfigError: the seed is out of range, or the folder is in use.
    """
    if not 0 <= seed < 2**62:
        raise ConfigError(f"{arg('seed', seed)} is out of range; use 0 or more, and less than 2 to the power of 62")
    refuse_used_run_folder(output)
    refuse_overwrite(output / "drawings")
    data = draw_data(NUM_TRAIN, NUM_TEST, seed, task, image_size=IMAGE_SIZES[model])
    result = run_training(demo_config(seed, task, model), data, output, callbacks=callbacks)
    if result.is_complete:
        _write_drawings(output / "drawings", data.pictures, data.categories)
    return result


def draw_data(
    num_train: int,
    num_test: int,
    seed: int,
    task: Task = "boxes",
    style: SyntheticStyle = STYLE,
    image_size: int = STYLE.size,
) -> TrainingData:
    """Draw the photos once and keep them in memory; the two seeds never meet."""
    to_model = EvalTransform(image_size)
    with_masks = task == "panoptic"
    style = replace(style, stuff=with_masks)
    categories = SCENES if with_masks else SHAPES
    drawn = SyntheticShapes(num_train, 2 * seed, style).draw_all()
    train = [to_model(one if with_masks else without_masks(one)) for one in drawn]
    scenes = SyntheticShapes(num_test, 2 * seed + 1, style).draw_all()
    test = [without_masks(one) for one in scenes]
    val = read_torch_dataset(SampleDataset(scenes), categories, masks=with_masks, is_panoptic=with_masks)
    return TrainingData(
        train=AugmentedDataset(SampleDataset(train), RandomOrientation(), seed=seed),
        grouping=BatchGrouping.ungrouped(num_train),
        val_split=val,
        val=SampleDataset(test, to_model),
        pictures=SampleDataset(test),
    )


def without_masks(sample: Sample) -> Sample:
    """Leave out what boxes do not need, so that transforms are quicker."""
    return replace(sample, annotations=replace(sample.annotations, masks=None))


def _write_drawings(folder: Path, pictures: Dataset[Sample], categories: Categories) -> None:
    """Leave some unseen drawings as files with their annotations, to be predicted and explained."""
    samples = [pictures[index] for index in range(NUM_DRAWINGS)]
    write_text(folder / "annotations.json", json.dumps(samples_to_coco(samples, categories)))
    for sample in samples:
        with atomic_write(folder / f"{sample.image_id}.png") as temporary:
            tensor_to_image(sample.image).save(temporary)
