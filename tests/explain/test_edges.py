"""Distributions of edges in pixels of the image."""

import pytest
import torch

from detrkit import ConfigError, Detector, Sample
from detrkit.explain.edges import query_edges
from detrkit.explain.explain import explain_sample
from detrkit.explain.explanation import Explanation
from detrkit.structures import EdgeDistributions


def test_edges_move_by_the_expected_distance() -> None:
    """One box of 20 x 40 px at the center of an image of 100 x 200 px; three bins of -2, 0 and 2, in quarters of a side."""
    probabilities = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])
    distributions = EdgeDistributions(
        layer_logits=probabilities.clamp(min=1e-30).log()[None, None, None],
        references=torch.tensor([[[0.5, 0.5, 0.1, 0.4]]]),
        bin_values=torch.tensor([-2.0, 0.0, 2.0]),
        reg_scale=torch.tensor(4.0),
        initial_class_logits=torch.zeros(1, 1, 3),
        initial_boxes=torch.zeros(1, 1, 4),
        layer_quality=torch.tensor([[[0.25]]]),
    )
    edges = query_edges(distributions, 0, (100, 200))
    assert edges.reference.tolist() == pytest.approx([90, 30, 110, 70])
    torch.testing.assert_close(edges.distances[0], torch.tensor([-10.0, 0.0, 10.0]))
    torch.testing.assert_close(edges.distances[3], torch.tensor([-20.0, 0.0, 20.0]))
    torch.testing.assert_close(edges.positions[0], torch.tensor([100.0, 90.0, 80.0]))  # outwards is to the left
    torch.testing.assert_close(edges.positions[3], torch.tensor([50.0, 70.0, 90.0]))
    torch.testing.assert_close(edges.moved, torch.tensor([[10.0, 0.0, -2.5, 0.0]]))
    torch.testing.assert_close(edges.boxes, torch.tensor([[80.0, 30.0, 107.5, 70.0]]))
    assert edges.quality.tolist() == [0.25]


def test_expected_edges_are_the_boxes_of_the_layers(fine_grained: Explanation) -> None:
    for query in (0, 7, 11):
        edges = fine_grained.edge_distributions(query)
        assert edges.probabilities.shape == (3, 4, 33)
        torch.testing.assert_close(edges.boxes, fine_grained.layer_boxes[:, query], rtol=0, atol=1e-3)
        predictions = fine_grained.attention.predictions
        assert predictions.distributions is not None
        assert edges.quality.tolist() == predictions.distributions.layer_quality[:, 0, query].tolist()
    assert edges.moved.abs().max() > 0.5


def test_models_without_distributions_selection_or_sampling_points_are_refused_in_a_sentence(
    explanation: Explanation, deformable_detector: Detector, sample: Sample, fine_grained: Explanation
) -> None:
    deformable = explain_sample(deformable_detector, sample, model_name="runs/first")
    calls = [
        (lambda: explanation.edge_distributions(0), "tiny has no distributions of edges: .*D-FINE, DEIM or RT-DETRv4"),
        (lambda: deformable.edge_distributions(0), "runs/first has no distributions of edges"),
        (lambda: explanation.selected_cells(), "tiny selects no cells: its queries are learned"),
        (lambda: explanation.sampling_points([0]), "tiny has no sampling points: its decoder attends to all cells"),
        (lambda: fine_grained.edge_distributions(12), "queries=12 is out of range; expected 0 to 11"),
        (lambda: fine_grained.sampling_points([12]), "queries=12 is out of range; expected 0 to 11"),
        (lambda: fine_grained.sampling_points([0], layer=3), "layer=3 does not exist"),
        (lambda: fine_grained.sampling_points([0], head=8), "head=8 is out of range; expected 0 to 7"),
    ]
    for call, message in calls:
        with pytest.raises(ConfigError, match=message) as refused:
            call()
        assert "\n" not in str(refused.value)


def test_two_stage_deformable_models_have_selected_cells_with_one_object_score(
    deformable_detector: Detector, sample: Sample
) -> None:
    selection = explain_sample(deformable_detector, sample).selected_cells()
    assert selection.labels is None
    assert len(selection.levels) == 6
    assert selection.sizes == ((8, 8), (4, 4))
