"""The whole workflow from Python, as in a notebook: no command line, and nothing printed by the library."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

import detrkit
from detrkit.data.images import tensor_to_image
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle

CLASSES = ["circle", "square", "triangle"]


class ShapesInTorchvisionForm(Dataset[tuple[Image.Image, dict[str, Any]]]):
    """Synthetic shapes as (PIL image, {"boxes": xyxy pixels, "labels": 0..K-1}), as torchvision's datasets return them."""

    def __init__(self, count: int, seed: int) -> None:
        self.samples = SyntheticShapes(count, seed, SyntheticStyle(size=96, max_objects=3))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, dict[str, Any]]:
        sample = self.samples[index]
        return tensor_to_image(sample.image), {"boxes": sample.annotations.boxes, "labels": sample.annotations.labels}


class StopAfter(detrkit.Callback):
    """Requests the end of training after some steps, and counts the events."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.events: list[str] = []

    def on_train_start(self, state: Any) -> None:
        self.events.append("train_start")

    def on_step_end(self, state: Any) -> None:
        self.events.append("step_end")
        if state.step >= self.steps:
            state.request_stop()

    def on_evaluate_end(self, state: Any) -> None:
        self.events.append("evaluate_end")

    def on_train_end(self, state: Any) -> None:
        self.events.append("train_end")


@pytest.fixture(scope="module")
def silent_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[detrkit.TrainResult, StopAfter]:
    callback = StopAfter(20)
    result = detrkit.train(
        ShapesInTorchvisionForm(16, seed=1),
        val=ShapesInTorchvisionForm(4, seed=2),
        classes=CLASSES,
        model="detrkit-s",
        output=tmp_path_factory.mktemp("runs") / "shapes",
        callbacks=[callback],
        loggers=["jsonl"],
        steps=40,
        batch_size=4,
        image_size=64,
        workers=0,
        num_queries=10,
        hidden_dim=64,
        decoder_layers=1,
    )
    return result, callback


@pytest.fixture(autouse=True)
def nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


@pytest.mark.slow
def test_callback_stops_training_early_and_sees_its_events(silent_run: tuple[detrkit.TrainResult, StopAfter]) -> None:
    result, callback = silent_run
    assert callback.events.count("step_end") == 20
    assert (callback.events[0], callback.events[-1]) == ("train_start", "train_end")
    assert (Path(result.output) / "config.yaml").is_file()
    assert (Path(result.output) / "metrics.jsonl").is_file()


@pytest.mark.slow
def test_trained_detector_evaluates_predicts_shows_itself_and_exports(
    silent_run: tuple[detrkit.TrainResult, StopAfter], tmp_path: Path
) -> None:
    result, _ = silent_run
    val = ShapesInTorchvisionForm(4, seed=2)

    scores = detrkit.evaluate(result.output, val, classes=CLASSES)
    assert 0 <= scores.ap <= 1
    assert scores.to_json()["num_images"] == 4
    assert "AP" in repr(scores)
    assert "<table" in scores._repr_html_()

    detector = result.detector
    assert detector.categories.names == tuple(CLASSES)
    image, _ = val[0]
    detections = detector.predict(image, threshold=0.0)
    assert len(detections) > 0
    assert set(detections.labels.tolist()) <= {0, 1, 2}
    assert len(detections[detections.scores > 2]) == 0
    assert [one.score for one in detections] == detections.scores.tolist()
    assert detections._repr_png_()[:4] == b"\x89PNG"
    assert detections.draw().size == image.size
    assert repr(detections).count("\n") == 0

    exported = detrkit.export(result.output, "onnx", output=tmp_path / "model.onnx")
    assert exported.max_difference < 1e-3
    again = detrkit.Detector.load(exported.path).predict(image, threshold=0.0)
    torch.testing.assert_close(again.scores[0], detections.scores[0], atol=1e-3, rtol=0)


def test_unknown_setting_is_refused_with_the_closest_name() -> None:
    with pytest.raises(detrkit.ConfigError, match="batch_size"):
        detrkit.train(ShapesInTorchvisionForm(4, seed=1), classes=CLASSES, batchsize=4)


def test_errors_name_the_python_argument(tmp_path: Path) -> None:
    with pytest.raises(detrkit.DetrkitError) as error:
        detrkit.train(tmp_path / "nowhere")
    assert "--" not in str(error.value)


def test_packages_that_share_a_name_with_a_function_can_be_called_and_imported() -> None:
    import detrkit.benchmark.cases
    import detrkit.explain.figures
    import detrkit.export.graph

    assert callable(detrkit.export)
    assert callable(detrkit.explain)
    assert callable(detrkit.benchmark)


def test_models_are_listed_with_their_licences_and_shown_as_a_table() -> None:
    models = detrkit.list_models()
    names = [model.name for model in models]
    assert {"detr-r50", "deformable-detr-r50-two-stage", "detrkit-s"} <= set(names)
    assert all(model.code_licence for model in models)
    assert "detr-r50" in repr(models)
