"""The demo: train a small DETR from scratch on synthetic shapes, in minutes on any machine."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch.utils.data import Dataset

from detrkit._internal.files import atomic_write, refuse_overwrite, write_text
from detrkit.config.run import RunConfig
from detrkit.config.training import TrainingConfig
from detrkit.config.validation import check_seed
from detrkit.data.categories import Categories
from detrkit.data.dataset import SampleDataset
from detrkit.data.images import tensor_to_image
from detrkit.data.samplers import BatchGrouping
from detrkit.data.synthetic import SCENES, SHAPES, SyntheticShapes, SyntheticStyle
from detrkit.data.torch_dataset import read_torch_dataset
from detrkit.data.transforms.augmentation import AugmentedDataset
from detrkit.data.transforms.geometry import EvalTransform, RandomOrientation
from detrkit.evaluation.ground_truth import samples_to_coco
from detrkit.structures import Sample
from detrkit.training.callbacks import Callback
from detrkit.training.data import TrainingData
from detrkit.training.result import TrainResult
from detrkit.training.run import run_training
from detrkit.training.run_folder import refuse_used_run_folder

Task = Literal["boxes", "panoptic"]
Model = Literal["detrkit-s", "detr-tiny"]
NUM_TRAIN = 3000
NUM_VAL = 200
NUM_DRAWINGS = 12  # validation images written to files
EPOCHS: dict[tuple[Model, Task], int] = {  # a few minutes each; steps with masks take longer
    ("detrkit-s", "boxes"): 6,
    ("detrkit-s", "panoptic"): 4,
    ("detr-tiny", "boxes"): 16,
    ("detr-tiny", "panoptic"): 10,
}
STYLE = SyntheticStyle(size=128)  # pixels per side
IMAGE_SIZES: dict[Model, int] = {"detrkit-s": 128, "detr-tiny": 64}  # after resizing
# lr and backbone_lr
LEARNING_RATES: dict[Model, tuple[float, float]] = {"detrkit-s": (1e-3, 1e-3), "detr-tiny": (5e-4, 1.5e-3)}


def demo_config(seed: int = 42, task: Task = "boxes", model: Model = "detrkit-s") -> RunConfig:
    """Return the settings of the demo, which its run folder has as config.yaml."""
    mask_head = {"mask_head": True} if task == "panoptic" else {}
    is_detr = model == "detr-tiny"
    lr, backbone_lr = LEARNING_RATES[model]
    return RunConfig(
        data="synthetic scenes" if task == "panoptic" else "synthetic shapes",
        model=model,
        model_overrides={"num_queries": 12 if is_detr else 25, **mask_head},
        training=TrainingConfig(
            epochs=EPOCHS[model, task],
            evaluate_every=max(1, EPOCHS[model, task] // 4),
            batch_size=16,
            lr=lr,
            backbone_lr=backbone_lr,
            clip_grad_norm=1.0,
            cls_loss_coef=2.0,
            eos_coef=0.3 if is_detr else 0.1,
            cls_loss="default" if is_detr else "align",
            look_forward_twice=not is_detr,
            ema_decay=0.0 if is_detr else 0.99,
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
    """Train on synthetic shapes, and write some validation images to ``drawings/`` in the run folder.

    Args:
        output: run folder to create.
        seed: of the images, the weights and the order of the data.
        task: "boxes", or "panoptic" for panoptic segmentation with sky, water and grass.
        model: "detrkit-s" or "detr-tiny".
        callbacks: as in `detrkit.train`.

    Raises:
        ConfigError: the seed is out of range, or the folder is in use.
    """
    check_seed(seed)
    refuse_used_run_folder(output)
    refuse_overwrite(output / "drawings")
    data = synthetic_data(NUM_TRAIN, NUM_VAL, seed, task, image_size=IMAGE_SIZES[model])
    result = run_training(demo_config(seed, task, model), data, output, callbacks=callbacks)
    if result.is_complete:
        _write_images(output / "drawings", data.pictures, data.categories)
    return result


def synthetic_data(
    num_train: int,
    num_val: int,
    seed: int,
    task: Task = "boxes",
    style: SyntheticStyle = STYLE,
    image_size: int = STYLE.size,
) -> TrainingData:
    """Draw all images and keep them in memory.

    Training images are drawn from seed 2 * seed, validation images from 2 * seed + 1.

    Args:
        num_train: number of training images.
        num_val: number of validation images.
        seed: of the images, and of the augmentation.
        task: "panoptic" includes masks and stuff.
        style: of the images.
        image_size: side after resizing, in pixels.
    """
    resize = EvalTransform(image_size)
    with_masks = task == "panoptic"
    style = replace(style, stuff=with_masks)
    categories = SCENES if with_masks else SHAPES
    train_samples = SyntheticShapes(num_train, 2 * seed, style).draw_all()
    train = [resize(sample if with_masks else drop_masks(sample)) for sample in train_samples]
    scenes = SyntheticShapes(num_val, 2 * seed + 1, style).draw_all()
    val_samples = [drop_masks(sample) for sample in scenes]
    val_split = read_torch_dataset(SampleDataset(scenes), categories, masks=with_masks, is_panoptic=with_masks)
    return TrainingData(
        train=AugmentedDataset(SampleDataset(train), RandomOrientation(), seed=seed),
        grouping=BatchGrouping.ungrouped(num_train),
        val_split=val_split,
        val=SampleDataset(val_samples, resize),
        pictures=SampleDataset(val_samples),
    )


def drop_masks(sample: Sample) -> Sample:
    """Drop the masks, so that transforms are faster."""
    return replace(sample, annotations=replace(sample.annotations, masks=None))


def _write_images(folder: Path, images: Dataset[Sample], categories: Categories) -> None:
    """Write some validation images and their annotations, to try `predict` and `explain` with."""
    samples = [images[index] for index in range(NUM_DRAWINGS)]
    write_text(folder / "annotations.json", json.dumps(samples_to_coco(samples, categories)))
    for sample in samples:
        with atomic_write(folder / f"{sample.image_id}.png") as temporary:
            tensor_to_image(sample.image).save(temporary)
