"""ImageNet weights of ResNet-vd and HGNetV2: the names of their authors, other channels, addresses."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from detrkit.checkpoints import backbones
from detrkit.checkpoints.adapt import FIRST_CONVOLUTIONS, adapt_input_channels
from detrkit.checkpoints.backbones import load_backbone_file, load_imagenet_backbone
from detrkit.checkpoints.conversion.dfine_official import HGNET_RULES
from detrkit.checkpoints.conversion.key_mapping import rename_from_detrkit
from detrkit.checkpoints.conversion.rtdetr_official import RESNET_VD_RULES
from detrkit.checkpoints.zoo import imagenet_url
from detrkit.config.model import HGNetName, ResNetVdName
from detrkit.errors import CheckpointError
from detrkit.models.detr import DETR
from tests.models.hybrid_models import hybrid_model
from tests.parameters import slow_except

RULES = {"rtdetr_r18vd": RESNET_VD_RULES, "dfine_n": HGNET_RULES}
# entries of the smallest HGNetV2 that those of B0 do not fit
PARTS_OF_B0 = {"atto": 13, "femto": 0, "pico": 0}


def authors_backbone(model: DETR, name: str) -> dict[str, Tensor]:
    """Weights of a backbone as its authors publish them, with a classifier."""
    state = {f"backbone.{entry}": value for entry, value in model.backbone.state_dict().items()}
    renamed = rename_from_detrkit(state, RULES[name])
    weights = {entry.removeprefix("backbone."): value.clone() for entry, value in renamed.items()}
    return {**weights, "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("prefix", slow_except(("backbone.",), ["", "backbone.", "module."]))
def test_names_of_the_authors_are_known(name: str, prefix: str, tmp_path: Path) -> None:
    source, model = hybrid_model(name), hybrid_model(name)
    with torch.no_grad():
        for parameter in source.backbone.parameters():
            parameter.add_(1)
    state = {prefix + entry: value for entry, value in authors_backbone(source, name).items()}
    torch.save(state, tmp_path / "weights.pth")
    load_backbone_file(model, tmp_path / "weights.pth")
    for entry, value in source.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[entry], value), entry


@pytest.mark.parametrize("name", RULES)
def test_first_convolution_adapts_to_other_channels(name: str, tmp_path: Path) -> None:
    source, model = hybrid_model(name), hybrid_model(name, in_channels=1)
    torch.save(authors_backbone(source, name), tmp_path / "weights.pth")
    load_backbone_file(model, tmp_path / "weights.pth")
    first = next(entry for entry in FIRST_CONVOLUTIONS if entry in model.state_dict())
    weight = source.state_dict()[first]
    torch.testing.assert_close(model.state_dict()[first], weight.sum(1, keepdim=True))
    adapted = adapt_input_channels(source.state_dict(), 1)
    torch.testing.assert_close(adapted[first], weight.sum(1, keepdim=True))


def test_backbone_of_another_size_is_refused(tmp_path: Path) -> None:
    torch.save(authors_backbone(hybrid_model("dfine_n"), "dfine_n"), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="entries of the backbone hgnetv2-b2 are missing or of another shape"):
        load_backbone_file(hybrid_model("dfine_m"), tmp_path / "weights.pth")
    without_affine = hybrid_model("dfine_n", learnable_affine_block=False)
    with pytest.raises(CheckpointError, match="lacks 60 of the entries, first "):
        load_backbone_file(without_affine, tmp_path / "weights.pth")  # its features would be others


@pytest.mark.parametrize("backbone", [*get_args(ResNetVdName), *get_args(HGNetName)])
def test_every_backbone_has_an_address(backbone: str) -> None:
    url = imagenet_url(backbone)
    assert url is not None
    assert url.startswith("https://github.com/")
    assert url.endswith(".pth")


def test_imagenet_weights_are_loaded_by_the_name_of_the_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, model = hybrid_model("rtdetr_r18vd"), hybrid_model("rtdetr_r18vd")
    with torch.no_grad():
        source.backbone.body.conv1[0].convolution.weight.add_(1)
    torch.save(authors_backbone(source, "rtdetr_r18vd"), tmp_path / "weights.pth")
    asked: list[str] = []
    monkeypatch.setattr(backbones, "imagenet_weights", lambda name: asked.append(name) or tmp_path / "weights.pth")
    load_imagenet_backbone(model)
    assert asked == ["resnet18-vd"]
    assert torch.equal(
        model.backbone.body.conv1[0].convolution.weight, source.backbone.body.conv1[0].convolution.weight
    )


@pytest.mark.parametrize("size", PARTS_OF_B0)
def test_smallest_hgnets_start_from_the_fitting_weights_of_b0(size: str, tmp_path: Path) -> None:
    source, model = hybrid_model("dfine_n"), hybrid_model(f"deimv2_{size}")
    with torch.no_grad():
        for parameter in source.backbone.parameters():
            parameter.add_(1)
    torch.save(authors_backbone(source, "dfine_n"), tmp_path / "weights.pth")
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    load_backbone_file(model, tmp_path / "weights.pth")
    after, given = model.backbone.state_dict(), source.backbone.state_dict()
    fitting = [name for name, value in before.items() if given[name].shape == value.shape]
    assert all(torch.equal(after[name], given[name]) for name in fitting)
    others = [name for name in before if name not in fitting]
    assert len(others) == PARTS_OF_B0[size]
    assert all(torch.equal(after[name], before[name]) for name in others)
