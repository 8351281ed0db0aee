"""Fine-tuning weights: rows of known classes and queries are copied, and everything else that fits."""

import pytest
import torch

from detrkit import build_model
from detrkit.checkpoints.adapt import load_adapted
from detrkit.data.categories import Categories
from detrkit.data.objects365 import OBJECTS365_SLOTS, objects365_categories
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


@pytest.mark.parametrize("preset", ["rtdetr-r18", "dfine-n"])
def test_rows_of_the_encoder_and_of_denoising_labels_are_copied_by_class_name(preset: str) -> None:
    few = {"backbone": "resnet-tiny", "hidden_dim": 64}
    source, model = small_model(preset, **few), small_model(preset, num_classes=2, **few)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adaptation = load_adapted(model, NEW_CATEGORIES, source.state_dict(), CATEGORIES)
    given, adapted = source.state_dict(), model.state_dict()
    names = ("query_source.class_head.weight", "query_source.denoising_labels.weight", "heads.class_head.1.bias")
    for name in names:
        assert torch.equal(adapted[name][0], given[name][2]), name  # horse
        assert torch.equal(adapted[name][1], before[name][1]), name
        assert name in adaptation.adapted
    assert not adapted["query_source.denoising_labels.weight"][2].any()  # padding
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


def test_rows_of_all_query_groups_are_copied_by_class_name_and_rank() -> None:
    few = {"num_queries": 5, "dim_feedforward": 32}
    source = build_model("lwdetr-tiny", num_classes=len(CATEGORIES), group_detr=3, **few)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    model = build_model("lwdetr-tiny", num_classes=2, group_detr=2, **{**few, "num_queries": 7})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adaptation = load_adapted(model, NEW_CATEGORIES, source.state_dict(), CATEGORIES)
    given, adapted = source.state_dict(), model.state_dict()
    for name in (
        "query_source.groups.0.class_head.weight",
        "query_source.groups.1.class_head.bias",
        "heads.class_head.bias",
    ):
        assert torch.equal(adapted[name][0], given[name][2]), name  # horse
        assert torch.equal(adapted[name][1], before[name][1]), name
    for name in ("query_source.content", "query_source.box_deltas"):
        assert torch.equal(adapted[name][:, :5], given[name][:2]), name
        assert torch.equal(adapted[name][:, 5:], before[name][:, 5:]), name
    assert not adaptation.new


def test_names_of_coco_are_found_in_weights_of_objects365() -> None:
    few = {"backbone": "resnet-tiny", "hidden_dim": 64}
    source = small_model("dfine-n", num_classes=OBJECTS365_SLOTS, **few)
    model = small_model("dfine-n", num_classes=3, **few)
    own = Categories((1, 2, 3), ("TV", "bicycle", "red blood cell"))
    adaptation = load_adapted(model, own, source.state_dict(), objects365_categories())
    assert adaptation.known_classes == ("TV", "bicycle")
    adapted, given = (one.state_dict()["query_source.class_head.weight"] for one in (model, source))
    assert torch.equal(adapted[:2], given[[38, 47]])  # "Moniter/TV" and "Bicycle"
