"""AdamW with rates per part (paper, section A.4; published code, main.py), and parts that are not trained at all."""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import AdamW

from detrkit.config.model import ModelConfig
from detrkit.config.training import TrainingConfig
from detrkit.errors import ConfigError, did_you_mean
from detrkit.models.detr import DETR

BOXES = "boxes"  # in --freeze: all parts but the mask head
_QUERIES = re.compile(r"(queries|hybrid|groups\.\d+)\.weight")  # of the model, and of helpers
PARTS = ("backbone", "input_projection", "positions", "encoder", "queries", "decoder", "heads", "panoptic")


def build_optimizer(model: DETR, settings: TrainingConfig, helpers: nn.Module | None = None) -> AdamW:
    """Group the trainable parameters by rate and decay, and freeze what the settings say.

    Weight decay goes to all parameters, biases and norms too, as published, unless `decay_norms` is off. A learned position
    encoding belongs to the transformer here; the published code trains it at the backbone's rate, because of its name.

    Args:
        model: whose parts have rates of their own.
        settings: of the run.
        helpers: what is learned beside the model, at the common rate.

    Raises:
        ConfigError: there is no such part, or nothing is left to train.
    """
    rates = lr_overrides(settings)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    beside = [("helpers", name, one) for name, one in helpers.named_parameters()] if helpers else []
    for part, name, parameter in [*_parameters_by_part(model), *beside]:
        rate = rates.get(part, settings.lr) * (settings.offset_lr_factor if _says_where(name) else 1.0)
        if rate == 0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            decays = settings.decay_norms or not (parameter.ndim == 1 or _QUERIES.fullmatch(name))
            groups.setdefault((rate, decays), []).append(parameter)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("training: nothing is left to train; name fewer parts in --freeze")
    options: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate, "weight_decay": settings.weight_decay if decays else 0.0}
        for (rate, decays), parameters in groups.items()
    ]
    # the log shows the first group's rate: the transformer's
    options.sort(key=lambda group: group["lr"] != settings.lr)
    return AdamW(options, fused=True)


def lr_overrides(settings: TrainingConfig) -> dict[str, float]:
    """Learning rate of every part; 0 for a frozen one.

    Raises:
        ConfigError: a part does not exist, or a rate is no number.
    """
    rates = dict.fromkeys(PARTS, settings.lr)
    rates["backbone"] = settings.backbone_lr
    for entry in _entries(settings.lr_overrides):
        part, equals, value = entry.partition("=")
        try:
            rates[_known_part(part, "--lr-overrides")] = float(value)
        except ValueError:
            equals = ""
        if not equals or not 0 <= rates[part.strip()] < float("inf"):
            raise ConfigError(f"--lr-overrides: found {entry!r}, expected PART=RATE, for example heads=1e-3")
    for entry in _entries(settings.freeze):
        for part in [part for part in PARTS if part != "panoptic"] if entry == BOXES else [entry]:
            rates[_known_part(part, "--freeze")] = 0.0
    return rates


def trains_masks_only(config: ModelConfig, settings: TrainingConfig) -> bool:
    """Whether all but the mask head is frozen, as in the second of the paper's two stages (section 4.4)."""
    rates = lr_overrides(settings)
    return config.panoptic and rates["panoptic"] > 0 and not any(rates[part] for part in PARTS if part != "panoptic")


def keep_frozen_parts_still(model: DETR) -> None:
    """Put parts of which nothing is trained into eval mode, and norms of frozen stages: no dropout, no new statistics."""
    for part in PARTS:
        module = getattr(model, part)
        if isinstance(module, nn.Module) and not any(p.requires_grad for p in module.parameters()):
            module.eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not any(
            p.requires_grad for p in module.parameters()
        ):
            module.eval()


def _parameters_by_part(model: DETR) -> Iterator[tuple[str, str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        yield name.partition(".")[0], name, parameter


def _says_where(name: str) -> bool:
    """Whether a parameter chooses where deformable attention looks (a tenth of the rate, as published)."""
    return ".offset_projection." in name or name.endswith(("point_head.weight", "point_head.bias"))


def _entries(text: str) -> list[str]:
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def _known_part(name: str, option: str) -> str:
    name = name.strip()
    if name not in PARTS:
        raise ConfigError(f"{option}: {name!r} is no part of a model; {did_you_mean(name, PARTS)}")
    return name
