"""Compute the explanation of a model's prediction for one image."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.named_model import NamedModel
from detrkit.checkpoints.path_kinds import IMAGES, MODEL, check_kinds
from detrkit.config.run import load_run_config
from detrkit.config.setting_groups import LossConfig
from detrkit.config.training import TrainingConfig
from detrkit.data.batching import collate
from detrkit.data.dataset import DetectionDataset, unannotated
from detrkit.data.formats.lookup import find_record
from detrkit.data.images import tensor_to_image
from detrkit.distributed.devices import choose_device
from detrkit.errors import CheckpointError, ConfigError, arg
from detrkit.evaluation.class_matching import match_split
from detrkit.explain.explanation import Explanation
from detrkit.explain.masks import masks_for, merge_masks
from detrkit.explain.matching import explain_matching
from detrkit.explain.stages import capture_stages
from detrkit.inference.detector import Detector
from detrkit.inference.images import path_of, read_image_input
from detrkit.inference.options import check_threshold
from detrkit.losses.criterion import SetCriterion
from detrkit.models.attention.recording import record_attention_of_copy, with_own_mask_head
from detrkit.postprocess.panoptic import MIN_SCORE
from detrkit.structures import Annotations, Sample
from detrkit.training.build import build_criterion
from detrkit.training.realtime_recipes import common_settings


def explain(
    source: Path | str | Detector,
    image: Any,
    *,
    annotations: Path | str | Annotations | None = None,
    threshold: Any = 0.5,
    device: str = "auto",
    model: NamedModel | None = None,
    state_dict_key: str | None = None,
) -> Explanation:
    """Explain the prediction of a model for one image.

    Args:
        source: run folder, weights file, Hugging Face folder or hub id, preset, or a loaded `Detector`.
        image: as in `Detector.predict`: path, bytes, open file, Pillow image, (H, W, C) array or (C, H, W) tensor.
        annotations: ground truth of the image: COCO JSON or dataset folder that contains it, or `Annotations` with boxes
            in xyxy pixels and labels in 0..K-1. With it, the explanation includes the matching, the losses of the run
            that the weights are from, and why objects were missed.
        threshold: minimum score of a detection, 0 to 1; "auto" uses the thresholds that evaluation stored.
        device: "cpu", "cuda", "cuda:1", or "auto" for a GPU if there is one; ignored for a loaded `Detector`.
        model: see `Detector.load`.
        state_dict_key: see `Detector.load`.

    Returns:
        Attention maps, boxes and classes after every decoder layer, tensor shapes, and the matching;
        `Explanation.to_html` and `Explanation.save_figure` show them.

    Raises:
        ConfigError: an argument is out of range, or "auto" for a model that has not been evaluated.
        DatasetError: the image or its annotations cannot be read.
        CheckpointError: the model cannot be read, or its output is not finite.
    """
    if not isinstance(threshold, str) or threshold != "auto":
        check_threshold(threshold)
    if isinstance(source, str | Path) and isinstance(image, str | Path):
        check_kinds({"source": (source, MODEL), "image": (image, IMAGES)})
    if isinstance(source, Detector):
        detector, model_name = source, "model"
    else:
        checkpoint = load_checkpoint(source, model=model, state_dict_key=state_dict_key)
        detector = Detector.from_checkpoint(checkpoint, choose_device(device))
        model_name = Path(source).name or str(source)
    criterion = None if annotations is None else _criterion(source, detector)
    return explain_sample(
        detector,
        _read_sample(detector, image, annotations),
        criterion=criterion,
        threshold=threshold,
        image_name=Path(path_of(image) or "image").name,
        model_name=model_name,
    )


@torch.no_grad()
def explain_sample(
    detector: Detector,
    sample: Sample,
    *,
    criterion: SetCriterion | None = None,
    segment_threshold: float | None = None,
    threshold: Any = 0.5,
    image_name: str = "image",
    model_name: str = "model",
) -> Explanation:
    """Explain the prediction for one sample.

    Args:
        detector: with a PyTorch model.
        sample: the original image, with its annotations if there is a criterion.
        criterion: computes the matching to the annotations; None if there are none.
        segment_threshold: minimum score of a query in the panoptic segmentation. Default: the detector's threshold.
        threshold: minimum score of a detection, or "auto".
        image_name: name of the image to show.
        model_name: name of the model to show.

    Raises:
        CheckpointError: the model's output is not finite.
        ConfigError: the detector runs an exported model, or its attention cannot be shown; or the threshold is wrong.
    """
    min_scores = detector.resolve_threshold(threshold)
    model, preprocessing, categories = detector.exact_model(), detector.preprocessing, detector.categories
    batch = collate([preprocessing.transform(model.config.in_channels)(sample)])
    with capture_stages(model) as stages:
        attention = record_attention_of_copy(model, batch)[0]
        predictions = attention.predictions
        _check_finite(predictions.layer_boxes, predictions.layer_class_logits)
        masks = masks_for(attention, preprocessing.padding_invariant)
        if masks is not None:
            _check_finite(masks.probabilities([0]))  # one mask, so that the shapes of the mask head are captured
    attention = replace(attention, predictions=with_own_mask_head(attention.predictions))
    masks = masks_for(attention, preprocessing.padding_invariant)
    segments = None
    if masks is not None and categories.is_thing is not None:
        if segment_threshold is None:
            segment_threshold = detector.resolve_segment_threshold("auto") if model.config.mask_head else MIN_SCORE
        segments = merge_masks(masks, attention, batch, categories, segment_threshold)
    matching = None if criterion is None else explain_matching(predictions, batch.targets[0], criterion, categories)
    return Explanation(
        image=tensor_to_image(sample.image),
        image_name=image_name,
        model_name=model_name,
        config=model.config,
        categories=categories,
        threshold=min_scores,
        attention=attention,
        stages=tuple(stages),
        annotations=None if criterion is None else sample.annotations,
        matching=matching,
        masks=masks,
        segments=segments,
    )


def _check_finite(*outputs: Tensor) -> None:
    if not all(output.isfinite().all() for output in outputs):
        raise CheckpointError(
            "The model's output for this image is not finite (NaN or infinity): the weights are damaged, or their "
            "training diverged."
        )


def _read_sample(detector: Detector, image: Any, annotations: Path | str | Annotations | None) -> Sample:
    """Read the image, with its objects if annotations are given."""
    channels = detector.model.config.in_channels
    if annotations is None or isinstance(annotations, Annotations):
        sample = unannotated(read_image_input(image, channels))
        return sample if annotations is None else replace(sample, annotations=annotations)
    path = path_of(image)
    if path is None:
        raise ConfigError(
            f"{arg('annotations', str(annotations))} is searched by file name, but the image is not a path. Pass the "
            "path of the image, or its Annotations."
        )
    split = find_record(Path(path), Path(annotations))
    labels_in_model = torch.tensor(match_split(detector.categories, split, "explain").labels)
    sample = DetectionDataset(split, channels=channels)[0]
    labels = labels_in_model[sample.annotations.labels]
    return replace(sample, annotations=replace(sample.annotations, labels=labels))


def _criterion(source: Path | str | Detector, detector: Detector) -> SetCriterion:
    """Build the criterion of the run that the weights are from, or the published one if they are from no run."""
    config = detector.model.config
    if not isinstance(source, Detector):
        path = Path(source).absolute()
        runs = [folder.parent for folder in (path, path.parent) if folder.name in ("best", "last")]
        for file in (folder / "config.yaml" for folder in (path, *runs)):
            if file.is_file():
                return build_criterion(config, load_run_config(file).training)
    if config.queries == "selected":  # RT-DETR and its descendants
        cls_loss = common_settings(source if isinstance(source, str) else "")["cls_loss"][0]
        return build_criterion(config, TrainingConfig(loss=LossConfig(cls_loss=cls_loss)))
    if config.queries == "mixed":  # LW-DETR and RF-DETR
        return build_criterion(config, TrainingConfig(loss=LossConfig(cls_loss="ia_bce", cls_loss_coef=1.0)))
    return SetCriterion(config.num_classes, class_scores=config.class_scores)
