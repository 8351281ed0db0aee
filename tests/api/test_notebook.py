"""The whole workflow from Python, as in a notebook: no command line, and nothing printed by the library."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import detrkit
from tests.api.shapes import CLASSES, SMALL_RUN, ShapesInTorchvisionForm, StopAfter


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
        steps=40,
        **SMALL_RUN,
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
