"""The model of a run with its first weights, and its loss."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from detrkit._internal.text import printable
from detrkit.checkpoints.adapt import Adaptation, load_adapted
from detrkit.checkpoints.backbones import load_backbone_file, load_imagenet_backbone
from detrkit.checkpoints.load import read_checkpoint
from detrkit.config.model import ModelConfig
from detrkit.config.run import RunConfig, read_yaml
from detrkit.config.training import TrainingConfig
from detrkit.data.categories import Categories
from detrkit.errors import CheckpointError, ConfigError
from detrkit.losses.classification import classification_for
from detrkit.losses.criterion import SetCriterion
from detrkit.losses.matcher import HungarianMatcher
from detrkit.models.build import model_from_config
from detrkit.models.detr import DETR
from detrkit.models.presets import PRESETS, preset_config


def build_for(
    config: RunConfig, categories: Categories, *, with_weights: bool = True
) -> tuple[DETR, Adaptation | None]:
    """Build the model of a run and give it its first weights, adapted where it differs.

    Args:
        config: of the run.
        categories: of its data.
        with_weights: false for a run that is gone on with, whose state has them; where they came from may be gone.

    Raises:
        ConfigError: no such preset or setting.
        CheckpointError: the weights do not fit.
    """
    settings = {**config.model_overrides, "num_classes": len(categories)}
    model = model_from_config(preset_config(config.model, **settings))
    if not with_weights:
        return model, None
    if config.backbone_weights is not None:
        load_backbone_file(model, Path(config.backbone_weights))
    if config.weights is None:
        return model, None
    if config.weights == "imagenet":
        load_imagenet_backbone(model)
        return model, None
    try:
        checkpoint = read_checkpoint(config.weights)
        adaptation = load_adapted(model, categories, checkpoint.state, checkpoint.categories)
    except CheckpointError as error:
        raise CheckpointError(f"--weights {config.weights}: {error}") from None
    _check_frozen(config, categories, checkpoint.categories, adaptation)
    return model, adaptation


def with_architecture_of_weights(config: RunConfig) -> RunConfig:
    """Take the architecture of the weights, where nobody named another.

    Raises:
        CheckpointError: they cannot be read.
    """
    if config.model_fields_set & {"model"} or config.weights is None or config.origin != "detector":
        return config
    try:
        checkpoint = read_checkpoint(config.weights)
    except CheckpointError as error:
        raise CheckpointError(f"--weights {config.weights}: {error}") from None
    known = checkpoint.config.model_dump(exclude={"num_classes"})
    training = config.training
    if "image_size" not in training.explicit:
        training = training.replace(image_size=checkpoint.preprocessing.image_size)
    changes = {"model": _preset_like(Path(config.weights), known), "training": training}
    return config.model_copy(update={**changes, "model_overrides": {**known, **config.model_overrides}})


def _preset_like(weights: Path, known: dict[str, Any]) -> str:
    """The preset that a run named, or one that is put together alike: it decides how the model is trained."""
    own_config = weights / "config.yaml"
    if own_config.is_file():
        name = read_yaml(own_config).get("model")
        if name in PRESETS:
            return str(name)
    parts = ("decoder", "queries", "two_stage_content", "class_scores", "hidden_dim")
    alike = (name for name, one in PRESETS.items() if all(getattr(one, part) == known[part] for part in parts))
    return next(alike, "detr-r50")


def _check_frozen(config: RunConfig, categories: Categories, known: Categories, adaptation: Adaptation) -> None:
    """See that what stays frozen has all its weights.

    Raises:
        ConfigError: some of it would stay as random as it starts.
    """
    frozen = [part for part, rate in config.training.optimizer.lr_of_parts().items() if rate == 0]
    missing = len(categories) - len(adaptation.known_classes)
    if "heads" in frozen and missing:
        raise ConfigError(
            f"--weights {config.weights}: has {len(known)} classes, the data {len(categories)}, of which {missing} would "
            "stay random under --freeze; train boxes on this data first, without --freeze"
        )
    new = [name for name in adaptation.new if name.partition(".")[0] in frozen]
    if new:
        raise ConfigError(
            f"--weights {config.weights}: has nothing for {new[0]} and {len(new) - 1} other entries that --freeze keeps as "
            "they are; give weights of the same architecture, or freeze fewer parts"
        )


def print_adaptation(adaptation: Adaptation, source: str, console: Console) -> None:
    """Print what was taken from a checkpoint, part by part."""
    table = Table(title=f"weights from {source}", title_justify="left")
    for heading in ("part", "loaded", "adapted", "new", "unused"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    lists = (adaptation.loaded, adaptation.adapted, adaptation.new, adaptation.unused)
    for part in dict.fromkeys(name.partition(".")[0] for names in lists for name in names):
        counts = [sum(name.partition(".")[0] == part for name in names) for names in lists]
        table.add_row(part, *(str(count) if count else "-" for count in counts))
    console.print(table)
    for what, names in (("adapted", adaptation.adapted), ("new", adaptation.new), ("unused", adaptation.unused)):
        if names:
            others = f" and {len(names) - 3} more" if len(names) > 3 else ""
            console.print(f"{what}: {', '.join(names[:3])}{others}")
    if any(name.startswith("heads.class_head") for name in adaptation.adapted):
        known = ", ".join(map(printable, adaptation.known_classes[:8])) or "none"
        console.print(f"classes known by name ({len(adaptation.known_classes)}): {known}")


def loss_for(model: ModelConfig, settings: TrainingConfig, *, masks_only: bool = False) -> SetCriterion:
    """Weigh the losses, and the costs of the matching alike; with `masks_only`, boxes are frozen."""
    weights = (settings.loss.cls_loss_coef, settings.loss.bbox_loss_coef, settings.loss.giou_loss_coef)
    classification = classification_for(
        model.class_scores, model.num_classes, settings.loss.eos_coef, iou_aware=settings.loss.iou_aware
    )
    return SetCriterion(
        model.num_classes,
        class_scores=model.class_scores,
        cls_loss_coef=settings.loss.cls_loss_coef,
        bbox_loss_coef=settings.loss.bbox_loss_coef,
        giou_loss_coef=settings.loss.giou_loss_coef,
        mask_loss_coef=settings.loss.mask_loss_coef,
        dice_loss_coef=settings.loss.dice_loss_coef,
        eos_coef=settings.loss.eos_coef,
        matcher=HungarianMatcher(*weights, classification),
        padding_invariant=settings.padding_invariant,
        masks_only=masks_only,
        classification=classification,
    )
