"""Fine-tuning weights: rows of known classes and queries are copied, and everything else that fits."""

import pytest
import torch

from detrkit.checkpoints.adapt import load_adapted
from detrkit.data.categories import Categories
from tests.checkpoints.models import CATEGORIES, small_model

NEW_CATEGORIES = Categories((7, 8), ("horse", "cow"))


@pytest.mark.parametrize("preset", ["dab-detr-r50", "deformable-detr-r50-refine"])
def test_rows_of_classes_with_the_same_name_and_first_queries_are_copied(preset: str) -> None:
    source = small_model(preset, num_queries=8)
    model = small_model(preset, num_classes=2, num_queries=12)
    name = next(one for one in model.state_dict() if one.startswith("heads.class_head.") and one.endswith("weight"))
    before, queries = model.state_dict()[name].clone(), model.query_source.weight.detach().clone()
    adaptation = load_adapted(model, NEW_CATEGORIES, source.state_dict(), CATEGORIES)
    # sigmoid heads have no "no object" row: the last row is a class like the others
    assert torch.equal(model.state_dict()[name][0], source.state_dict()[name][2])
    assert torch.equal(model.state_dict()[name][1], before[1])
    assert torch.equal(model.query_source.weight[:8], source.query_source.weight)
    assert torch.equal(model.query_source.weight[8:], queries[8:])
    assert adaptation.known_classes == ("horse",)
    assert not adaptation.new


def test_no_object_row_is_kept_when_classes_change() -> None:
    source, model = small_model(), small_model(num_classes=2)
    load_adapted(model, NEW_CATEGORIES, source.state_dict(), CATEGORIES)
    assert torch.equal(model.heads.class_head.weight[-1], source.heads.class_head.weight[-1])


def test_objectness_row_of_two_stage_models_is_kept_when_classes_change() -> None:
    source, model = (small_model("deformable-detr-r50-two-stage", num_classes=count) for count in (3, 2))
    adaptation = load_adapted(model, NEW_CATEGORIES, source.state_dict(), CATEGORIES)
    assert torch.equal(model.query_source.class_head.weight[0], source.query_source.class_head.weight[0])
    assert not adaptation.new
