"""Mixed query selection: learned content per rank, groups in training, boxes relative to selected ones."""

import pytest
import torch

from detrkit import build_model
from detrkit.errors import ConfigError
from detrkit.models.detr import DETR
from detrkit.models.heads.relative_boxes import move_boxes
from tests.parity.modern_golden import set_train_mode


def small(**changes: object) -> DETR:
    settings = {"num_classes": 3, "num_queries": 4, "group_detr": 3, "dim_feedforward": 32, "num_windows": 2}
    return build_model("lwdetr-tiny", **{**settings, **changes})


def test_boxes_are_moved_by_their_size_and_scaled_by_the_exponential() -> None:
    box = torch.tensor([0.5, 0.25, 0.2, 0.1])
    moved = move_boxes(box, torch.tensor([0.5, -1.0, torch.tensor(2.0).log(), 0.0]))
    torch.testing.assert_close(moved, torch.tensor([0.6, 0.15, 0.4, 0.1]))
    assert move_boxes(box, torch.tensor([4.0, 0, 3.0, 0])).max() > 1  # unlike DETR's, not limited to the image


def test_predictions_use_the_first_group_which_the_others_do_not_change() -> None:
    model = small()
    with torch.no_grad():
        model.query_source.box_deltas.normal_(std=0.1)
    set_train_mode(model)  # but not of batch norms, whose statistics would change
    images = torch.randn(2, 3, 64, 64)
    trained = model(images)
    assert [one.kind for one in trained.auxiliary] == ["group"] * 2
    assert all(one.predictions.boxes.shape == (2, 4, 4) for one in trained.auxiliary)
    predicted = model.eval()(images)
    assert not predicted.auxiliary
    torch.testing.assert_close(predicted.boxes, trained.boxes)
    torch.testing.assert_close(predicted.class_logits, trained.class_logits)
    set_train_mode(model)
    with torch.no_grad():
        model.query_source.content[1:] += 1
    again = model(images)
    torch.testing.assert_close(again.boxes, trained.boxes)
    assert not torch.equal(again.auxiliary[0].predictions.class_logits, trained.auxiliary[0].predictions.class_logits)


def test_every_parameter_but_the_unused_ones_gets_a_gradient() -> None:
    model = small()
    predictions = model(torch.randn(1, 3, 64, 64))
    parts = [predictions, *(one.predictions for one in predictions.auxiliary)]
    sum(
        one.layer_class_logits.square().sum()
        + one.layer_boxes.square().sum()
        + one.proposals.class_logits.square().sum()
        + one.proposals.boxes.square().sum()
        for one in parts
    ).backward()
    without = [name for name, one in model.named_parameters() if one.grad is None]
    assert without == ["backbone.class_position"]


def test_queries_without_a_cell_start_from_their_learned_box() -> None:
    model = small(num_queries=20, group_detr=1).eval()  # more than the 16 cells
    with torch.no_grad():
        model.query_source.box_deltas.uniform_(0.1, 0.9)
        predictions = model(torch.randn(1, 3, 64, 64))
        memory = model.encoder(model.neck(model.backbone(torch.randn(1, 3, 64, 64)), (64, 64)))
        queries = model.query_source(memory)
    assert predictions.boxes.shape == (1, 20, 4)
    torch.testing.assert_close(queries.reference[0, 16:], model.query_source.box_deltas[0, 16:])
    assert queries.proposals is not None
    assert (queries.proposals.class_logits[0, 16:] < -1000).all()


@pytest.mark.parametrize("name", ["rfdetr-xlarge", "rfdetr-2xlarge", "deimv2-s"])
def test_models_of_other_licences_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"is not included: its .*(Platform Model License|DINOv3).*Apache-2\.0"):
        build_model(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_layers": (2, 7)}, "different numbers from 1 to"),
        ({"global_layers": (6,)}, "blocks from 0 to 5"),
        ({"encoder_layers": 1}, "have no position encodings"),
        ({"num_feature_levels": 4}, "1, 2 or 3"),
        ({"num_register_tokens": 1}, "is for DINOv2"),
        ({"backbone": "resnet18"}, "is for ViT backbones"),
        ({"with_box_refine": True}, "keeps its boxes in all layers"),
        ({"cross_attention_heads": 7}, "must divide"),
        ({"queries": "two_stage", "with_box_refine": True}, "is for queries='mixed'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_register_tokens_are_learned_tokens_of_every_window() -> None:
    settings = {"group_detr": 1, "num_queries": 4, "num_register_tokens": 3, "backbone_layers": 3}
    model = build_model("rfdetr-nano", **settings, out_layers=(3,), global_layers=(1,)).eval()
    assert model.backbone.tokens.shape == (4, 384)
    assert model(torch.randn(1, 3, 64, 64)).boxes.shape == (1, 4, 4)
