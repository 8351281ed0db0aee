"""Pictures of validation images that loggers get after every evaluation."""

from types import SimpleNamespace
from typing import Any

import pytest

from detrkit.checkpoints.native import Thresholds
from detrkit.evaluation.report.images import PREDICTION_THRESHOLD
from detrkit.training import run


@pytest.mark.parametrize(("thresholds", "expected"), [(Thresholds(overall=0.23), 0.23), (None, PREDICTION_THRESHOLD)])
def test_pictures_are_drawn_at_the_threshold_of_the_evaluation(
    monkeypatch: pytest.MonkeyPatch, thresholds: Thresholds | None, expected: float
) -> None:
    drawn: list[float] = []

    def draw_predictions(_detector: Any, _pictures: Any, _count: int, *, threshold: float) -> list[Any]:
        drawn.append(threshold)
        return []

    for name in ("TorchEngine", "Detector"):
        monkeypatch.setattr(run, name, lambda *_arguments: None)
    monkeypatch.setattr(run, "draw_predictions", draw_predictions)
    state: Any = SimpleNamespace(
        train_step=SimpleNamespace(best_model=None),
        device=None,
        preprocessing=SimpleNamespace(padding_invariant=True),
        data=SimpleNamespace(categories=None, pictures=[]),
        evaluator=SimpleNamespace(thresholds=thresholds),
    )
    run.TrainingRun._draw_examples(state)
    assert drawn == [expected]
