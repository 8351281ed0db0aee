"""PyTorch engine: fused weights and automatic bfloat16 keep the detections of the model."""

import pytest
import torch

from detrkit import build_model
from detrkit.inference.engines import torch as torch_engine
from detrkit.inference.engines.torch import TorchEngine, has_fast_bfloat16, same_detections
from detrkit.structures import Batch, Predictions
from tests.rounding import assert_equal_up_to_rounding

CPU = torch.device("cpu")


def batch() -> Batch:
    torch.manual_seed(1)
    shape = (64, 96)
    mask = torch.zeros(2, *shape, dtype=torch.bool)
    return Batch(torch.randn(2, 3, *shape), mask, [], [0, 1], [shape] * 2, [shape] * 2)


def confident_model(bias: float = 1.0) -> torch.nn.Module:
    """A model with confident predictions, so that there are detections to compare."""
    torch.manual_seed(0)
    model = build_model("detr-tiny", num_classes=3)
    with torch.no_grad():
        model.heads.class_head.bias += torch.tensor([3.0, 0, 0, 0]) * bias
    return model


def predictions(score: float, label: int = 0, box: tuple[float, ...] = (0.5, 0.5, 0.2, 0.2)) -> Predictions:
    others = (1 - score) / 3
    shares = torch.full((4,), others)
    shares[label] = score
    return Predictions(shares.log()[None, None, None], torch.tensor(box)[None, None, None])


def test_changed_weights_are_used_by_the_next_prediction() -> None:
    model = build_model("detr-tiny", num_classes=3)
    engine = TorchEngine(model, CPU, padding_invariant=True)
    before = engine.predict(batch())
    with torch.no_grad():
        model.backbone.body.conv1.weight.mul_(2)
    after = engine.predict(batch())
    assert not torch.equal(before.class_logits, after.class_logits)
    expected = model.eval()(batch().images)
    torch.testing.assert_close(after.class_logits, expected.class_logits.detach(), rtol=1e-4, atol=1e-4)
    assert len(after.layer_boxes) == 1


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (predictions(0.62), True),
        (predictions(0.64), False),  # 0.04 away
        (predictions(0.6, label=1), False),
        (predictions(0.6, box=(0.505, 0.5, 0.2, 0.2)), True),  # IoU 0.951
        (predictions(0.6, box=(0.506, 0.5, 0.2, 0.2)), False),  # IoU 0.942
    ],
)
def test_same_detections_tolerates_small_changes_only(other: Predictions, same: bool) -> None:
    assert same_detections(predictions(0.6), other) == same
    assert same_detections(predictions(0.2), predictions(0.2, label=1))  # below the compared scores


def test_same_detections_ignores_the_order_of_queries() -> None:
    first, second = predictions(0.6), predictions(0.9, label=1, box=(0.2, 0.2, 0.1, 0.1))

    def concatenate(*several: Predictions) -> Predictions:
        logits = torch.cat([one.layer_class_logits for one in several], 2)
        return Predictions(logits, torch.cat([one.layer_boxes for one in several], 2))

    assert same_detections(concatenate(first, second), concatenate(second, first))
    assert not same_detections(concatenate(first, second), concatenate(first, first))
    assert not same_detections(concatenate(first, first), concatenate(first, second))  # one more than there was


def test_auto_precision_becomes_bfloat16_after_equal_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "has_fast_bfloat16", lambda device: True)
    engine = TorchEngine(confident_model(), CPU, padding_invariant=True, precision="auto")
    for _ in range(torch_engine._NUM_COMPARED):
        assert engine.precision == "auto"
        engine.predict(batch())
    assert engine.precision == "bfloat16"


def test_auto_precision_stays_float32_after_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "has_fast_bfloat16", lambda device: True)
    monkeypatch.setattr(torch_engine, "same_detections", lambda exact, rough: False)
    model = confident_model()
    engine = TorchEngine(model, CPU, padding_invariant=True, precision="auto")
    result = engine.predict(batch())
    assert engine.precision == "float32"
    exact = TorchEngine(model, CPU, padding_invariant=True).predict(batch())
    assert_equal_up_to_rounding(result.boxes, exact.boxes)  # layers are packed once the precision is decided


def test_auto_precision_is_float32_without_fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert not has_fast_bfloat16(CPU)
    assert TorchEngine(confident_model(), CPU, padding_invariant=True, precision="auto").precision == "float32"


def test_auto_precision_is_undecided_without_detections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "has_fast_bfloat16", lambda device: True)
    engine = TorchEngine(confident_model(-1.0), CPU, padding_invariant=True, precision="auto")
    with torch.no_grad():
        engine.model.heads.class_head.bias[-1] = 20  # no object anywhere
    for _ in range(torch_engine._NUM_COMPARED + 1):
        engine.predict(batch())
    assert engine.precision == "auto"
