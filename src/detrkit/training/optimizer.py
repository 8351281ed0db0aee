"""AdamW with rates per part (paper, section A.4; published code, main.py), and parts that are not trained at all."""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import AdamW

from detrkit.config.training import PARTS, TrainingConfig
from detrkit.errors import ConfigError, arg
from detrkit.models.detr import DETR

_QUERIES = re.compile(r"(query_source|hybrid|groups\.\d+)\.weight")  # of the model, and of helpers


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
    rates = {str(part): rate for part, rate in settings.optimizer.lr_of_parts().items()}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    beside = [("helpers", name, one) for name, one in helpers.named_parameters()] if helpers else []
    for part, name, parameter in [*_parameters_by_part(model), *beside]:
        rate = rates.get(part, settings.optimizer.lr) * (
            settings.optimizer.offset_lr_factor if _says_where(name) else 1.0
        )
        if rate == 0:
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            decays = settings.optimizer.decay_norms or not (parameter.ndim == 1 or _QUERIES.fullmatch(name))
            groups.setdefault((rate, decays), []).append(parameter)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"{arg('freeze')}: nothing is left to train. Freeze fewer parts.")
    options: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate, "weight_decay": settings.optimizer.weight_decay if decays else 0.0}
        for (rate, decays), parameters in groups.items()
    ]
    # the log shows the first group's rate: the transformer's
    options.sort(key=lambda group: group["lr"] != settings.optimizer.lr)
    return AdamW(options, fused=True)


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
