"""`detrkit.explain` and the command: from files to an explanation, pages and figures."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import detrkit
from detrkit import ConfigError, Detector, DetrkitError
from detrkit.checkpoints.native import Checkpoint, Preprocessing, Thresholds, save_checkpoint
from detrkit.cli import main
from detrkit.data.synthetic import SHAPES
from detrkit.explain.explanation import FigureName
from detrkit.structures import Annotations
from tests.datasets import write_coco
from tests.detectors import small_detector


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder, and a run folder whose model was trained with eos_coef 0.7."""
    root = tmp_path_factory.mktemp("explain")
    write_coco(root / "shapes")
    model = small_detector().model
    save_checkpoint(
        root / "run" / "best" / "model.safetensors",
        Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=64)),
    )
    (root / "run" / "config.yaml").write_text(yaml.safe_dump({"data": "x", "loss": {"eos_coef": 0.7}}))
    return root


def document_of(page: Path) -> dict[str, Any]:
    match = re.search(r'<script type="application/json" id="document">(.*?)</script>', page.read_text(), re.DOTALL)
    assert match is not None
    return dict(json.loads(match[1]))


def test_command_writes_a_page_and_prints_the_missed_objects(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, page = place / "shapes" / "val2017" / "3.png", tmp_path / "p.html"
    arguments = ["explain", str(place / "run"), str(image), "--annotations", str(place / "shapes")]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--threshold", "0.99", "-o", str(page)])
    assert not stopped.value.code
    document = document_of(page)
    content = json.loads((place / "shapes" / "annotations" / "instances_val2017.json").read_text())["annotations"]
    boxes = [annotation["bbox"] for annotation in content if annotation["image_id"] == 3]
    objects = document["objects"]
    assert [one["box"][:2] for one in objects] == [box[:2] for box in boxes]
    out = capsys.readouterr().out
    assert out.count("missed object") == len(objects)
    assert f"0 of {len(objects)} objects detected" in out
    assert page.stat().st_size < 1_000_000


def test_library_prints_nothing_and_the_result_has_a_repr_of_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place / "shapes" / "val2017" / "3.png"
    explanation = detrkit.explain(place / "run", path, annotations=place / "shapes", threshold=0.6)
    explanation.to_html(tmp_path / "page.html")
    assert capsys.readouterr() == ("", "")
    detected = len(explanation.detected_queries())
    assert 0 < detected < 9
    assert repr(explanation).startswith(f"Explanation('3.png', model='run', {detected} detections at 0.6, ")
    assert "\n" not in repr(explanation)
    png = explanation._repr_png_()
    assert png is not None
    assert png[1:4] == b"PNG"


def test_detector_array_and_annotations_give_the_same_as_files(place: Path) -> None:
    path = place / "shapes" / "val2017" / "2.png"
    from_files = detrkit.explain(place / "run" / "best", path, annotations=place / "shapes")
    assert from_files.annotations is not None
    annotations = Annotations(from_files.annotations.boxes, from_files.annotations.labels)
    from_memory = detrkit.explain(
        detrkit.Detector.load(place / "run"), Image.open(path).convert("RGB"), annotations=annotations
    )
    assert from_memory.boxes.equal(from_files.boxes)
    assert from_memory.matching is not None
    assert from_files.matching is not None
    assert from_memory.matching.layer_pairs == from_files.matching.layer_pairs
    assert from_memory.image_name == "image"


def test_annotations_path_needs_an_image_path(place: Path) -> None:
    image = Image.new("RGB", (64, 64))
    with pytest.raises(ConfigError, match="the image is not a path"):
        detrkit.explain(place / "run", image, annotations=place / "shapes")


def test_losses_use_the_coefficients_of_the_run(place: Path, tmp_path: Path) -> None:
    in_run, alone = place / "run" / "best" / "model.safetensors", tmp_path / "model.safetensors"
    alone.write_bytes(in_run.read_bytes())

    def unmatched_losses(source: Path, image: str) -> list[tuple[float, float]]:
        path = place / "shapes" / "val2017" / image
        matching = detrkit.explain(source, path, annotations=place / "shapes").matching
        assert matching is not None
        return [(loss.loss_ce, loss.unweighted_class_loss) for loss in matching.losses if loss.object is None]

    empty = unmatched_losses(place / "run", "1.png")  # an image without objects
    assert len(empty) == 9
    for loss_ce, unweighted in empty:
        # each is weighted by 0.7 and divided by the sum of the weights, 9 x 0.7
        assert loss_ce == pytest.approx(unweighted / 9, rel=1e-3)
    totals = [sum(loss for loss, _ in unmatched_losses(source, "2.png")) for source in (place / "run", in_run, alone)]
    assert totals[0] > 1.5 * totals[2]
    assert totals[0] == totals[1]


@pytest.mark.parametrize("figure", ["encoder", "decoder", "matching"])
def test_figures_are_written(figure: FigureName, place: Path, tmp_path: Path) -> None:
    explanation = detrkit.explain(place / "run", place / "shapes" / "val2017" / "2.png", annotations=place / "shapes")
    path = tmp_path / "figure.svg"
    explanation.save_figure(figure, path, points=[(5, 5), (40.5, 60)] if figure == "encoder" else [], queries=[2])
    assert path.read_text().count("<image") >= 1


LEGAL = (
    "1x1.png",
    "1x500.png",
    "panorama_8000x200.jpg",
    "gray16.png",
    "exif_orientation_6.jpg",
    "hash#question&amp.jpg",
)
REFUSED = (
    "zero_byte.jpg",
    "text_named.jpg",
    "directory_named.jpg",
    "decompression_bomb_20000x20000.png",
    "random_bytes.jpg",
)


@pytest.mark.parametrize("name", [*LEGAL, *REFUSED])
def test_unusual_images_give_a_page_or_a_one_line_error(name: str, place: Path, shared: Path, tmp_path: Path) -> None:
    image, page = shared / "data" / "nasty" / "images" / name, tmp_path / "page.html"
    if name in LEGAL:
        detrkit.explain(place / "run", image).to_html(page)
        assert document_of(page)["image"]["name"] == name
        return
    with pytest.raises(DetrkitError) as refused:
        detrkit.explain(place / "run", image)
    assert "\n" not in str(refused.value)


def test_auto_uses_the_stored_thresholds_as_predict_does(place: Path, tmp_path: Path, detector: Detector) -> None:
    path = place / "shapes" / "val2017" / "3.png"
    with pytest.raises(ConfigError, match="needs thresholds stored in the model"):
        detrkit.explain(detector, path, threshold="auto")
    scores = detector.predict(path, 0.0).scores
    middle = float(scores[3] + scores[4]) / 2
    thresholds = Thresholds(overall=middle, per_class={5: middle + 1e-6})
    evaluated = Detector(detector.engine, detector.categories, detector.preprocessing, thresholds)
    explanation = detrkit.explain(evaluated, path, threshold="auto")
    predicted = evaluated.predict(path, "auto")
    assert predicted.queries is not None
    assert sorted(explanation.detected_queries()) == sorted(predicted.queries.tolist())
    assert len(predicted) == 4
    assert " at auto" in repr(explanation)
    explanation.to_html(tmp_path / "page.html")
    assert document_of(tmp_path / "page.html")["classThresholds"] == list(explanation.threshold)  # type: ignore[arg-type]


@pytest.mark.parametrize("threshold", [None, "high", 1.5, True])
def test_wrong_thresholds_are_refused(threshold: Any, detector: Detector) -> None:
    with pytest.raises(ConfigError, match="is not a score; use a number between 0 and 1, or 'auto'"):
        detrkit.explain(detector, np.zeros((8, 8, 3), np.uint8), threshold=threshold)


@pytest.mark.parametrize("threshold", ["auto", "0.25"])
def test_the_command_takes_the_thresholds_of_predict(
    threshold: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(place / "shapes" / "val2017" / "3.png")
    with pytest.raises(SystemExit) as stopped:
        main(["explain", str(place / "run"), image, "--threshold", threshold, "-o", str(tmp_path / "p.html")])
    assert (stopped.value.code == 2) == (threshold == "auto")  # this run was not evaluated
    captured = capsys.readouterr()
    assert ("--threshold auto needs thresholds" in captured.err) == (threshold == "auto")
    assert ("at threshold 0.25" in captured.out) == (threshold == "0.25")
