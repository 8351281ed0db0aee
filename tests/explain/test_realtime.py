"""Real-time detectors: sampling points per map, distributions of edges, selected cells; in results, pages and commands."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit import ConfigError, Detector, Sample, SetCriterion
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.cli import main
from detrkit.data.synthetic import SHAPES
from detrkit.explain.document import PageDocument, page_document
from detrkit.explain.explain import explain_sample
from detrkit.explain.explanation import Explanation
from detrkit.explain.page import build_page
from detrkit.models.detr import DETR
from tests.detectors import realtime_detector
from tests.parameters import slow_except


def array(page: PageDocument, location: dict[str, Any]) -> torch.Tensor:
    shape, kind = location["shape"], np.dtype(location["type"])
    values = np.frombuffer(page.block, kind, int(np.prod(shape)), location["offset"]).reshape(shape)
    return torch.from_numpy(values.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "points", "levels"),
    [
        ("rtdetr-r18", (4, 4, 4), 3),
        ("rtdetrv2-s", (4, 4, 4), 3),
        ("rtdetrv2-s-sp1", (1, 1, 1), 3),
        ("rtdetrv2-s-dsp", (4, 4, 4), 3),
        ("dfine-n", (6, 6), 2),
        ("dfine-s", (3, 6, 3), 3),
        ("deim-dfine-n", (6, 6), 2),
        ("deimv2-atto", (4, 2), 2),
        ("deimv2-n", (6, 6), 2),
    ],
)
def test_pages_have_points_references_and_cells_of_all_layers(
    name: str, points: tuple[int, ...], levels: int, sample: Sample
) -> None:
    criterion = SetCriterion(3, class_scores="sigmoid")
    explanation = explain_sample(realtime_detector(name), sample, criterion=criterion, threshold=0)
    page = page_document(explanation, queries=[4])
    document = json.loads(json.dumps(page.document, allow_nan=False))
    packed, row = document["maps"]["points"], document["includedQueries"].index(4)
    assert tuple(packed["counts"]) == points
    assert len(document["levels"]) == levels
    assert document["levels"][-1]["cells"] == [2, 2]
    for layer in range(document["model"]["decoderLayers"]):
        sampled = explanation.sampling_points([4], layer=layer)
        shown = array(page, packed["points"])[row, layer] / packed["units"] * 96
        torch.testing.assert_close(shown, sampled.points[:, 0], rtol=0, atol=96 / 8192)
        boxes = array(page, packed["boxes"])[row, layer] / packed["units"] * 96
        assert sampled.reference_boxes is not None
        torch.testing.assert_close(boxes, sampled.reference_boxes[0], rtol=0, atol=96 / 8192)
    selection = explanation.selected_cells()
    assert document["selection"]["cells"][4] == [int(selection.levels[4]), *selection.positions[4].tolist()]
    assert selection.labels is not None
    assert document["selection"]["labels"] == selection.labels.tolist()
    assert document["selection"]["scores"] == pytest.approx(selection.scores.tolist(), abs=1e-4)
    torch.testing.assert_close(array(page, document["selection"]["boxes"]), selection.boxes)
    assert (document["maps"]["edges"] is not None) == ("dfine" in name or "deimv2" in name)
    assert build_page(page).startswith("<!doctype html>")


def test_distributions_are_packed_with_distances_and_quality(fine_grained: Explanation) -> None:
    page = page_document(fine_grained, queries=[7])
    packed, edges = page.document["maps"]["edges"], fine_grained.edge_distributions(7)
    row = page.document["includedQueries"].index(7)
    scales = array(page, packed["probabilities"]["scales"])[row][..., None]
    probabilities = array(page, packed["probabilities"]["bytes"])[row] * scales / 255
    assert (probabilities - edges.probabilities).abs().max() <= edges.probabilities.max() / 255
    torch.testing.assert_close(array(page, packed["distances"])[row], edges.distances)
    torch.testing.assert_close(array(page, packed["references"])[row], edges.reference)
    torch.testing.assert_close(array(page, packed["quality"])[row], edges.quality)


def test_layers_that_are_not_run_outside_of_training_are_not_on_the_page(sample: Sample) -> None:
    detector = realtime_detector("rtdetr-r50-m", backbone="resnet18-vd", backbone_normalization="batch")
    document = page_document(explain_sample(detector, sample, threshold=0)).document
    assert document["model"]["decoderLayers"] == 3
    assert {len(query["layers"]) for query in document["queries"]} == {3}
    assert document["maps"]["points"]["points"]["shape"][1] == 3


def test_encoders_with_attention_on_several_maps_show_that_of_the_coarsest(sample: Sample) -> None:
    detector = realtime_detector("rtdetr-r18", attention_levels=2, encoder_layers=2)
    document = page_document(explain_sample(detector, sample, threshold=0)).document
    assert document["model"]["encoderLayers"] == 2
    assert len(document["maps"]["encoder"]["layers"]) == 2


def test_models_with_learned_queries_and_dense_attention_have_neither(explanation: Explanation) -> None:
    document = page_document(explanation).document
    assert document["levels"] == []
    assert document["selection"] is None
    assert document["maps"]["edges"] is None


def test_images_with_fewer_cells_than_queries_can_be_explained(sample: Sample) -> None:
    explanation = explain_sample(realtime_detector(num_queries=30), sample, threshold=0)
    assert len(explanation.selected_cells().levels) == 20
    assert len(page_document(explanation).document["selection"]["cells"]) == 20
    explanation.figure("selection", queries=(3, 25))
    explanation.figure("layers", queries=(25,))
    explanation.figure("distributions", queries=(25,))


def test_images_that_keep_their_aspect_show_what_the_model_samples(sample: Sample) -> None:
    """A wide image: the published discrete sampling would limit columns to the number of rows."""
    detector = realtime_detector("rtdetrv2-s-dsp")
    preprocessing = Preprocessing(image_size=64, max_size=128, normalize=False)
    wide = replace(sample, image=sample.image[:, :48], original_size=(48, 96))
    explanation = explain_sample(Detector(detector.engine, detector.categories, preprocessing), wide, threshold=0)
    assert explanation.image.size == (96, 48)
    points = explanation.sampling_points().points
    assert (points > 0).all()
    assert (points < torch.tensor([96, 48])).all()
    assert (points[..., 0] > 60).any()
    areas = explanation.selected_cells().areas
    assert (areas[:, 2:] <= torch.tensor([96, 48])).all()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of D-FINE and of RT-DETR, and an image."""
    root = tmp_path_factory.mktemp("realtime")
    for name in ("dfine-n", "rtdetr-r18"):
        model = realtime_detector(name).model
        assert isinstance(model, DETR)
        checkpoint = Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=64))
        save_checkpoint(root / f"{name}.safetensors", checkpoint)
    Image.effect_noise((96, 80), 90).convert("RGB").save(root / "noise.png")
    return root


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("figure", slow_except(("selection",), ["layers", "distributions", "selection"]))
def test_the_command_writes_the_figures(figure: str, place: Path, tmp_path: Path) -> None:
    output = tmp_path / "figure.svg"
    head = ["--head", "2"] if figure == "layers" else []
    source, image = str(place / "dfine-n.safetensors"), str(place / "noise.png")
    assert not run(["explain", source, image, "--figure", figure, "--queries", "3", *head, "--output", str(output)])
    assert "<svg" in output.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--figure", "distributions"], "has no distributions of edges: its boxes are predicted directly"),
        (["--figure", "distributions", "--head", "1"], "--head is for --figure encoder, decoder or layers; omit it"),
        (
            ["--figure", "layers", "--layer", "1"],
            "--layer is for --figure encoder or decoder; omit it for --figure layers",
        ),
        (["--layer", "1"], "--layer is for --figure encoder or decoder; the page has a slider instead"),
        (["--figure", "layers", "--queries", "1", "2"], "--figure layers shows one query, but --queries has 2"),
        (["--figure", "selection", "--queries", "12"], "--queries 12 is out of range; expected 0 to 11"),
        (["--figure", "selection", "--points", "1,1"], "--points is for --figure encoder"),
    ],
)
def test_the_command_refuses_what_a_figure_does_not_have(
    options: list[str], message: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, image = str(place / "rtdetr-r18.safetensors"), str(place / "noise.png")
    output = tmp_path / ("figure.svg" if "--figure" in options else "page.html")
    assert run(["explain", source, image, *options, "--output", str(output)]) == 2
    assert message in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_the_library_names_the_model_that_lacks_distributions(place: Path) -> None:
    explanation = detrkit.explain(place / "rtdetr-r18.safetensors", place / "noise.png")
    with pytest.raises(ConfigError, match=r"rtdetr-r18.safetensors has no distributions of edges"):
        explanation.edge_distributions(0)


def test_losses_of_weights_from_no_run_are_the_published_ones(place: Path, sample: Sample) -> None:
    assert sample.annotations is not None
    weights = place / "dfine-n.safetensors"
    image = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
    for source in (weights, Detector.load(weights)):
        matching = detrkit.explain(source, image, annotations=sample.annotations).matching
        assert matching is not None
        assert matching.class_loss == "varifocal loss"
