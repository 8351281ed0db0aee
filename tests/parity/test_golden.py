"""All numbers of ../shared/golden, computed by the published code with weights drawn by formula."""

from pathlib import Path

import numpy as np
import pytest
import torch

from detrkit import SetCriterion, build_model, state_dict_as_official
from detrkit.postprocess.boxes import best_class_boxes
from tests.parity.golden import formula_batch, formula_model, formula_targets

VARIANTS = {
    "detr_resnet50": ("detr-r50", {}),
    "detr_resnet50_dc5": ("detr-r50-dc5", {}),
    "detr_resnet101": ("detr-r101", {}),
    "detr_resnet50_prenorm_learned": ("detr-r50", {"pre_norm": True, "position_embedding": "learned"}),
    "detr_resnet50_panoptic": ("detr-r50-panoptic", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("file", VARIANTS)
def test_outputs_losses_and_gradients_equal_the_golden_numbers(shared: Path, file: str) -> None:
    golden = np.load(shared / "golden" / f"{file}.npz")
    name, overrides = VARIANTS[file]
    model = formula_model(name, **overrides)
    num_classes = model.config.num_classes
    unread = set(golden.files) - {"trajectory_loss", "trajectory_gradnorm"}

    def expect(key: str, actual: torch.Tensor | float, **tolerance: float) -> None:
        unread.discard(key)
        actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual)
        np.testing.assert_allclose(actual, golden[key], err_msg=key, **tolerance)

    captured = {}
    hooks = [
        model.encoder.register_forward_hook(lambda _m, _i, output: captured.update(memory=output.tokens)),
        model.neck.positions.register_forward_hook(
            lambda _m, inputs, output: captured.update(pos=output.movedim(-1, 1), mask=inputs[0])
        ),
    ]
    predictions = model(*formula_batch())
    for hook in hooks:
        hook.remove()
    height, width = captured["mask"].shape[-2:]

    expect("pred_logits", predictions.class_logits, rtol=0, atol=2e-4)
    expect("pred_boxes", predictions.boxes, rtol=0, atol=2e-4)
    for layer in range(5):
        rows = golden[f"aux{layer}_logits"].shape[1]
        expect(f"aux{layer}_logits", predictions.layer_class_logits[layer, :, :rows], rtol=0, atol=2e-4)
        expect(f"aux{layer}_boxes", predictions.layer_boxes[layer], rtol=0, atol=2e-4)
    expect("memory", captured["memory"].transpose(1, 2).unflatten(2, (height, width)), rtol=0, atol=2e-4)
    expect("pos", captured["pos"], rtol=0, atol=2e-4)
    expect("mask", captured["mask"], rtol=0, atol=0)
    if predictions.masks is not None:
        expect("pred_masks_first8", predictions.masks[:, :8], rtol=0, atol=2e-4)
        expect("pred_masks_mean", predictions.masks.mean((-2, -1)), rtol=0, atol=2e-4)

    report = SetCriterion(num_classes)(predictions, formula_targets(num_classes, with_masks=model.config.mask_head))
    for layer in (-1, 0, 1, 2, 3, 4):
        for image in range(2):
            queries, objects = report.matches.pairs(layer, image)
            label = "_last" if layer == -1 else str(layer)
            expect(f"match_layer{label}_image{image}", torch.stack([queries, objects]), rtol=0, atol=0)
    for part, value in report.losses.items():
        expect(f"loss/{part}", value, rtol=1e-4, atol=0)
    expect("loss_total", report.total, rtol=1e-4, atol=0)

    report.total.backward()
    norms = official_gradient_norms(model)
    largest = max(float(golden[key]) for key in golden.files if key.startswith("gradnorm/"))
    for key in [key for key in golden.files if key.startswith("gradnorm/")]:
        expect(key, norms[key.removeprefix("gradnorm/")], rtol=1e-3, atol=1e-6 * largest)

    expect("parameters", sum(p.numel() for p in model.parameters()), rtol=0, atol=0)
    expect("parameters_trainable", sum(p.numel() for p in model.parameters() if p.requires_grad), rtol=0, atol=0)

    best = best_class_boxes(predictions.class_logits, predictions.boxes, torch.tensor([[480, 640], [427, 640]]))
    for image, (scores, labels, boxes) in enumerate(zip(*best, strict=True)):
        expect(f"post{image}_scores", scores, rtol=0, atol=2e-4)
        expect(f"post{image}_labels", labels, rtol=0, atol=0)
        expect(f"post{image}_boxes", boxes, rtol=0, atol=2e-4 * 640)
    assert not unread, f"golden numbers that were not compared: {sorted(unread)}"


def official_gradient_norms(model: torch.nn.Module) -> dict[str, float]:
    """Norms of the gradients, under the published names of the parameters."""
    gradients = build_model("detr-r50", **model.config.model_dump())
    for copy, original in zip(gradients.parameters(), model.parameters(), strict=True):
        copy.data = torch.zeros_like(original) if original.grad is None else original.grad
    return {name: float(tensor.norm()) for name, tensor in state_dict_as_official(gradients).items()}


@pytest.mark.slow
def test_four_training_steps_equal_the_golden_trajectory(shared: Path) -> None:
    golden = np.load(shared / "golden" / "detr_resnet50.npz")
    model = formula_model("detr-r50", dropout=0.0).train()
    backbone = [p for name, p in model.named_parameters() if name.startswith("backbone") and p.requires_grad]
    others = [p for name, p in model.named_parameters() if not name.startswith("backbone")]
    optimizer = torch.optim.AdamW([{"params": others, "lr": 1e-4}, {"params": backbone, "lr": 1e-5}], weight_decay=1e-4)
    losses, norms = [], []
    for _ in range(4):
        report = SetCriterion(91)(model(*formula_batch()), formula_targets(91))
        optimizer.zero_grad()
        report.total.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)))
        losses.append(float(report.total.detach()))
        optimizer.step()
    np.testing.assert_allclose(losses, golden["trajectory_loss"], rtol=1e-4)
    np.testing.assert_allclose(norms, golden["trajectory_gradnorm"], rtol=1e-3)
