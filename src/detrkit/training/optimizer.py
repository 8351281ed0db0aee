"""AdamW with learning rates per part (paper, section A.4; published code, main.py), and frozen parts."""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import AdamW

from detrkit.config.setting_groups import PARTS
from detrkit.config.training import TrainingConfig
from detrkit.errors import ConfigError, arg
from detrkit.models.backbones.vit import ViTBackbone
from detrkit.models.detr import DETR

_QUERIES = re.compile(r"(query_source|hybrid|groups\.\d+)\.weight")  # learned queries, training-only ones included


def build_optimizer(model: DETR, settings: TrainingConfig, auxiliary: nn.Module | None = None) -> AdamW:
    """Build the optimizer: parameters grouped by learning rate and weight decay; frozen ones need no gradient.

    Weight decay applies to all parameters, biases and norms included, as published, unless `decay_norms` is off or one of
    `no_weight_decay` is found in their names. Learned
    position embeddings have the transformer's learning rate; in the published code their name gives them the backbone's.

    Args:
        model: its parts may have their own learning rates.
        settings: of the run.
        auxiliary: training-only queries, which have the common learning rate.

    Raises:
        ConfigError: nothing is left to train.
    """
    rates = {str(part): rate for part, rate in settings.optimizer.lr_of_parts().items()}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    extra = [("", name, parameter) for name, parameter in auxiliary.named_parameters()] if auxiliary else []
    for part, name, parameter in [*_parameters_by_part(model), *extra]:
        rate = rates.get(part, settings.optimizer.lr)
        if rate == 0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            rate = _replaced_rate(name, settings, rate)
            rate *= settings.optimizer.offset_lr_factor if _is_offset_parameter(name) else 1.0
            decays = _decays(name, parameter, settings)
            groups.setdefault((rate, decays), []).append(parameter)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"{arg('freeze')}: nothing is left to train. Freeze fewer parts.")
    options: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate, "weight_decay": settings.optimizer.weight_decay if decays else 0.0}
        for (rate, decays), parameters in groups.items()
    ]
    # the learning rate of the first group is logged: the transformer's
    options.sort(key=lambda group: group["lr"] != settings.optimizer.lr)
    return AdamW(options, fused=True)


def freeze_unused(model: DETR, settings: TrainingConfig) -> None:
    """Freeze parameters that get no gradient, which DistributedDataParallel expects of all others.

    They are used by losses that are off, or that detrkit does not have.
    """
    unused: list[nn.Module | nn.Parameter | None] = [
        getattr(model.encoder, "teacher_projection", None)
    ]  # RT-DETRv4's distillation
    if not settings.auxiliary_queries.has_denoising:
        unused.append(getattr(model.query_source, "denoising_labels", None))
    if isinstance(model.backbone, ViTBackbone):
        unused += model.backbone.unused
    for part in unused:
        if part is not None:
            part.requires_grad_(False)


def freeze_modes(model: DETR) -> None:
    """Put frozen parts and batch norms of frozen stages into eval mode: no dropout, no update of statistics."""
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


def _replaced_rate(name: str, settings: TrainingConfig, rate: float) -> float:
    """Return `lr` times the factor of the first of `lr_factors` that is found in a name, or else the given rate."""
    optimizer = settings.optimizer
    return next((factor * optimizer.lr for rule, factor in optimizer.lr_factors.items() if re.search(rule, name)), rate)


def _decays(name: str, parameter: nn.Parameter, settings: TrainingConfig) -> bool:
    optimizer = settings.optimizer
    if any(re.search(pattern, name) for pattern in optimizer.no_weight_decay):
        return False
    return optimizer.decay_norms or not (parameter.ndim == 1 or _QUERIES.fullmatch(name))


def _is_offset_parameter(name: str) -> bool:
    """Return whether a parameter belongs to sampling offsets or reference points (`offset_lr_factor`)."""
    return ".offset_projection." in name or name.endswith(("point_head.weight", "point_head.bias"))
