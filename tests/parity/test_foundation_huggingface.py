"""Parity with transformers' RfDetr and LwDetr on random weights, converted in both directions."""

from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit import DETR, build_model
from detrkit.checkpoints.conversion.huggingface import huggingface_to_detrkit, write_huggingface_folder
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Checkpoint, default_preprocessing
from detrkit.checkpoints.state_dict import load_state_dict
from detrkit.data.categories import default_categories
from detrkit.errors import CheckpointError

pytestmark = pytest.mark.slow
transformers = pytest.importorskip("transformers")
# transformers swaps rows and columns of RF-DETR's windows, so that only square images can be compared
SIZES = {"rfdetr-nano": ((320, 320), (384, 384)), "rfdetr-base": ((280, 280), (336, 336))}
SIZES |= {"lwdetr-tiny": ((320, 384), (256, 256)), "lwdetr-large": ((192, 256), (256, 256))}
SIZES |= {"rfdetr-seg-nano": ((192, 240), (240, 240)), "rfdetr-seg-small": ((192, 192), (240, 240))}


def draw_image(size: tuple[int, int]) -> torch.Tensor:
    y, x = torch.meshgrid(*(torch.arange(float(side)) for side in size), indexing="ij")
    waves = [(x / 17 + color).sin() + (y / (23 + color)).cos() + (x * y / 9000).sin() for color in range(3)]
    return torch.stack(waves)[None] + 0.3 * torch.randn(1, 3, *size)


def randomize(model: torch.nn.Module) -> None:
    """Draw all weights, as initial zeros and ones would hide swapped names; attention and boxes stay moderate."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif not tensor.is_floating_point():
                continue
            elif tensor.ndim == 1 or name.endswith("box_deltas"):
                tensor.add_(0.1 * torch.randn_like(tensor))
            else:
                gain = 0.25 if "box_head" in name or "cross_attention" in name else 1.0
                if name.startswith("mask_head.query_block.projection"):
                    gain = 1 / 16  # logits of masks are products over the whole width
                fan_in = tensor.shape[-1] if tensor.ndim == 3 else tensor[0].numel()
                tensor.normal_(0, gain * fan_in**-0.5)


def random_model(preset: str) -> DETR:
    torch.manual_seed(0)
    model = build_model(preset, group_detr=2, num_queries=60, max_detections=60).eval()
    randomize(model)
    return model


def compare(model: DETR, other: Any, size: tuple[int, int]) -> None:
    """Compare predictions query by query: queries of one rank have learned content of that rank."""
    images = draw_image(size)
    with torch.inference_mode():
        own, reference = model(images), other(images)
    torch.testing.assert_close(own.class_logits, reference.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(own.boxes, reference.pred_boxes, rtol=0, atol=1e-4)
    if model.config.mask_head:
        torch.testing.assert_close(own.masks, reference.pred_masks, rtol=0, atol=1e-4)


@pytest.mark.parametrize("preset", SIZES)
def test_written_folders_are_read_by_transformers_and_back(preset: str, tmp_path: Path) -> None:
    model = random_model(preset)
    written, again = tmp_path / "written", tmp_path / "again"
    preprocessing = default_preprocessing(model.config)
    write_huggingface_folder(
        written, Checkpoint(model.state_dict(), model.config, default_categories(91), preprocessing)
    )
    kind = "RfDetrForInstanceSegmentation" if model.config.mask_head else "AutoModelForObjectDetection"
    other = getattr(transformers, kind).from_pretrained(written).eval()
    for size in SIZES[preset]:
        compare(model, other, size)
    read = load_checkpoint(written)
    assert read.config == model.config.model_copy(update={"drop_path": read.config.drop_path})
    assert read.categories == default_categories(91)
    assert read.preprocessing == preprocessing.model_copy(update={"rounding": "transformers"})

    live = build_model(preset, group_detr=2, num_queries=60).eval()
    load_state_dict(live, huggingface_to_detrkit(other.state_dict()))
    other.save_pretrained(again)
    for copy in (live, load_checkpoint(again).build().eval()):
        for name, tensor in model.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                assert torch.equal(tensor, copy.state_dict()[name]), name


def test_models_that_transformers_cannot_compute_are_not_written(tmp_path: Path) -> None:
    model = build_model("rfdetr-nano", num_feature_levels=2, group_detr=1)
    checkpoint = Checkpoint(
        model.state_dict(), model.config, default_categories(91), default_preprocessing(model.config)
    )
    with pytest.raises(CheckpointError, match="several feature maps, which Hugging Face's RF-DETR does not support"):
        write_huggingface_folder(tmp_path / "folder", checkpoint)
    assert not (tmp_path / "folder").exists()
