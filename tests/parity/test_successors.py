"""Against Hugging Face's Conditional, DAB and Deformable DETR, randomly initialised, weights converted both ways."""

import pytest
import torch

from detrkit import build_model
from detrkit.checkpoints.huggingface import (
    ours_from_huggingface,
)
from detrkit.checkpoints.loading import load_state
from detrkit.models.detr import DETR
from detrkit.ops.padding import pad_to_batch

transformers = pytest.importorskip("transformers")

SMALL = {"num_classes": 5, "encoder_layers": 2, "decoder_layers": 3, "feedforward_dim": 64}
PRESETS = {
    "conditional-detr-r50": ("ConditionalDetr", {}),
    "conditional-detr-r50-dc5": ("ConditionalDetr", {"dilation": True}),
    "dab-detr-r50": ("DabDetr", {}),
    "deformable-detr-r50": ("DeformableDetr", {}),
    "deformable-detr-r50-single-scale": ("DeformableDetr", {"num_feature_levels": 1}),
    "deformable-detr-r50-refine": ("DeformableDetr", {"with_box_refine": True}),
    "deformable-detr-r50-two-stage": ("DeformableDetr", {"with_box_refine": True, "two_stage": True}),
}
NUM_QUERIES = 7


def their_model(preset: str, native: bool = False) -> torch.nn.Module:
    name, changes = PRESETS[preset]
    if native:
        first = 4 if "single" in preset or not preset.startswith("deformable") else 2
        changes = {
            **changes,
            "backbone_config": transformers.ResNetConfig(out_features=[f"stage{n}" for n in range(first, 5)]),
        }
    config = getattr(transformers, f"{name}Config")(
        num_queries=NUM_QUERIES,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_labels=5,
        **changes,
    )
    if changes.get("two_stage"):
        config.two_stage_num_proposals = NUM_QUERIES
    model = getattr(transformers, f"{name}ForObjectDetection")(config)
    randomize(model)
    return model.eval()


def our_model(preset: str) -> DETR:
    model = build_model(preset, num_queries=NUM_QUERIES, **SMALL)
    randomize(model)
    return model.eval()


def randomize(model: torch.nn.Module) -> None:
    """Give all of it values that make a difference: what starts at zero or one would hide a swap."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 2:
                is_table = any(part in name for part in ("query", "queries.weight", "level")) and "proj" not in name
                tensor.normal_(0, 1 if is_table and "scale" not in name else tensor.shape[1] ** -0.5)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(0.05 * torch.randn_like(tensor))


def photos() -> tuple[torch.Tensor, torch.Tensor]:
    return pad_to_batch([torch.randn(3, 96, 128), torch.randn(3, 64, 96)])


def difference(theirs: torch.nn.Module, ours: DETR) -> float:
    images, padding_mask = photos()
    with torch.inference_mode():
        expected = theirs.eval()(pixel_values=images, pixel_mask=(~padding_mask).long())
        actual = ours.eval()(images, padding_mask)
    assert expected.pred_boxes[..., :2].std(dim=1).min() > 1e-2, "all boxes are the same: nothing would be compared"
    return max(
        float((expected.logits - actual.class_logits).abs().max()),
        float((expected.pred_boxes - actual.boxes).abs().max()),
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_their_weights_give_their_outputs_here(preset: str) -> None:
    torch.manual_seed(0)
    theirs = their_model(preset)
    ours = build_model(preset, num_queries=NUM_QUERIES, **SMALL)
    load_state(ours, ours_from_huggingface(theirs.state_dict()))
    assert difference(theirs, ours) < 1e-4
