"""Fused models give the same predictions and leave the original unchanged."""

import pytest
import torch

from detrkit import build_model
from detrkit.models.detr import DETR
from detrkit.models.fuse import fuse_for_inference
from tests.rounding import assert_equal_up_to_rounding


def with_statistics(name: str, **settings: object) -> DETR:
    torch.manual_seed(0)
    model = build_model(name, num_classes=3, **settings).eval()
    for buffer_name, buffer in model.backbone.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5) if buffer_name.endswith(("var", "weight")) else buffer.uniform_(-0.2, 0.2)
    return model


@pytest.mark.parametrize(
    ("name", "normalization"), [("detr-tiny", "batch"), ("detr-r18", "frozen"), ("detr-r50", "frozen")]
)
def test_fused_model_gives_the_same_predictions(name: str, normalization: str) -> None:
    model = with_statistics(name, backbone_normalization=normalization, encoder_layers=1, decoder_layers=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = fuse_for_inference(model)
    norms = [module for module in fused.backbone.modules() if "BatchNorm" in type(module).__name__]
    assert not norms
    images, mask = torch.randn(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool)
    mask[1, 48:] = True
    with torch.no_grad():
        for padding_invariant in (True, False):
            model.padding_invariant = fused.padding_invariant = padding_invariant
            expected, actual = model(images, mask), fused(images, mask)
            assert len(actual.layer_boxes) == 1
            assert_equal_up_to_rounding(actual.class_logits, expected.class_logits)
            assert_equal_up_to_rounding(actual.boxes, expected.boxes)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    shared = zip(fused.encoder.parameters(), model.encoder.parameters(), strict=True)
    assert all(first is second for first, second in shared)  # to save memory
