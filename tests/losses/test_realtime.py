"""Criterion of RT-DETR, D-FINE and DEIM: exact small numbers, transformers' losses, and what batches may contain."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detrkit.losses.classification import (
    ClassLoss,
    SigmoidFocalClassification,
    VarifocalClassification,
    classification_for,
)
from detrkit.losses.criterion import SetCriterion
from detrkit.losses.matcher import HungarianMatcher, MatchingInput, union_of_matches
from detrkit.losses.realtime import RealTimeCriterion
from detrkit.structures import AuxiliaryPredictions, EdgeDistributions, EncoderProposals, Predictions, Target

CLASSES, QUERIES, LAYERS, BINS = 5, 12, 3, 33
HALF = torch.tensor([*(-4.0 * 0.75**n for n in range(16)), 0.0])
BIN_VALUES = torch.cat([HALF, -HALF[:-1].flip(0)])


def criterion(cls_loss: ClassLoss = "vfl", classes: int = CLASSES, **changes: Any) -> RealTimeCriterion:
    classification = classification_for("sigmoid", classes, cls_loss=cls_loss)
    matcher = HungarianMatcher(classification=classification)
    base = SetCriterion(classes, class_scores="sigmoid", classification=classification, matcher=matcher)
    return RealTimeCriterion(base, **changes)


def boxes_of(*shape: int) -> Tensor:
    return torch.cat([0.3 + 0.4 * torch.rand(*shape, 2), 0.1 + 0.3 * torch.rand(*shape, 2)], dim=-1)


def distributions(layers: int, images: int, queries: int) -> EdgeDistributions:
    references = boxes_of(images, queries)
    return EdgeDistributions(
        torch.randn(layers, images, queries, 4, BINS),
        references,
        BIN_VALUES,
        torch.tensor(4.0),
        torch.randn(images, queries, CLASSES),
        references,
        torch.zeros(layers, images, queries),
    )


def block(images: int, queries: int, *, has_distributions: bool, has_encoder: bool) -> Predictions:
    return Predictions(
        torch.randn(LAYERS, images, queries, CLASSES),
        boxes_of(LAYERS, images, queries),
        class_scores="sigmoid",
        proposals=EncoderProposals(torch.randn(images, queries, CLASSES), boxes_of(images, queries), False)
        if has_encoder
        else None,
        distributions=distributions(LAYERS, images, queries) if has_distributions else None,
    )


def predictions(counts: list[int], copies: int = 0, *, has_distributions: bool = False, seed: int = 0) -> Predictions:
    torch.manual_seed(seed)
    own = block(len(counts), QUERIES, has_distributions=has_distributions, has_encoder=True)
    if not copies:
        return own
    size = copies * 2 * max(1, *counts)
    noised = block(len(counts), size, has_distributions=has_distributions, has_encoder=False)
    return Predictions(
        own.layer_class_logits,
        own.layer_boxes,
        class_scores="sigmoid",
        proposals=own.proposals,
        distributions=own.distributions,
        auxiliary=(AuxiliaryPredictions("denoising", noised, copies),),
    )


def objects(counts: list[int]) -> list[Target]:
    torch.manual_seed(9)
    return [Target(boxes_of(count), torch.randint(CLASSES, (count,))) for count in counts]


def test_losses_of_one_query_and_one_object_are_exact() -> None:
    """Logits of 0; the box is shifted by half of itself: an IoU of 1/3."""
    logits, boxes = torch.zeros(1, 1, 1, 1), torch.tensor([[[[0.5, 0.5, 0.2, 0.2]]]])
    target = Target(torch.tensor([[0.6, 0.5, 0.2, 0.2]]), torch.tensor([0]))
    output = criterion(classes=1)(Predictions(logits, boxes, class_scores="sigmoid"), [target])
    assert set(output.losses) == {"loss_vfl", "loss_bbox", "loss_giou", "class_error"}
    assert float(output.losses["loss_vfl"]) == pytest.approx(math.log(2) / 3)
    assert float(output.losses["loss_bbox"]) == pytest.approx(0.1)
    assert float(output.losses["loss_giou"]) == pytest.approx(2 / 3)
    assert float(output.total) == pytest.approx(math.log(2) / 3 + 5 * 0.1 + 2 * 2 / 3)


def test_losses_have_the_published_names() -> None:
    losses = criterion("mal")(predictions([3, 1], copies=2, has_distributions=True), objects([3, 1])).losses
    sets = ["", "_aux_0", "_aux_1", "_pre", "_enc_0", "_dn_0", "_dn_1", "_dn_2", "_dn_pre"]
    expected = {f"{name}{suffix}" for name in ("loss_mal", "loss_bbox", "loss_giou") for suffix in sets}
    expected |= {f"loss_fgl{suffix}" for suffix in ("", "_aux_0", "_aux_1", "_dn_0", "_dn_1", "_dn_2")}
    expected |= {f"loss_ddf{suffix}" for suffix in ("_aux_0", "_aux_1", "_dn_0", "_dn_1")}
    assert set(losses) == expected | {"class_error"}


@pytest.mark.parametrize("counts", [[3, 1], [2, 0], [4, 4]])
def test_rtdetr_losses_equal_those_of_transformers(counts: list[int]) -> None:
    from transformers import RTDetrConfig
    from transformers.loss.loss_rt_detr import RTDetrForObjectDetectionLoss

    copies = 3
    predicted, targets = predictions(counts, copies), objects(counts)
    noised = predicted.auxiliary[0].predictions
    assert predicted.proposals is not None
    size = noised.boxes.shape[1]
    positions = [
        torch.cat([torch.arange(count) + copy * (size // copies) for copy in range(copies)]) for count in counts
    ]
    logits = torch.cat([noised.layer_class_logits, predicted.layer_class_logits], dim=2)
    boxes = torch.cat([noised.layer_boxes, predicted.layer_boxes], dim=2)
    _, theirs, _ = RTDetrForObjectDetectionLoss(
        logits[-1],
        [{"class_labels": target.labels, "boxes": target.boxes} for target in targets],
        "cpu",
        boxes[-1],
        RTDetrConfig(num_labels=CLASSES),
        logits.transpose(0, 1),
        boxes.transpose(0, 1),
        predicted.proposals.class_logits,
        predicted.proposals.boxes,
        {"dn_num_split": [size, QUERIES], "dn_positive_idx": positions, "dn_num_group": copies},
    )
    real_time_loss = criterion()
    output = real_time_loss(predicted, targets)
    renamed = {name.replace(f"_aux_{LAYERS - 1}", "_enc_0"): loss for name, loss in theirs.items()}
    assert set(renamed) == {name for name in output.losses if name.startswith("loss")}
    for name, loss in renamed.items():
        weight = real_time_loss.weight_dict["_".join(name.split("_")[:2])]
        torch.testing.assert_close(weight * output.losses[name], loss, atol=1e-6, rtol=1e-5, msg=name)
    torch.testing.assert_close(output.total, torch.stack(list(theirs.values())).sum(), atol=1e-5, rtol=1e-5)


def test_dfine_losses_of_given_pairs_equal_those_of_transformers() -> None:
    """Its FGL and DDF for the pairs of the union; their own criterion has neither union nor first boxes."""
    from transformers import DFineConfig
    from transformers.loss.loss_d_fine import DFineLoss
    from transformers.models.d_fine.modeling_d_fine import weighting_function

    counts = [4, 2]
    predicted, targets = predictions(counts, has_distributions=True), objects(counts)
    assert predicted.distributions is not None
    assert predicted.proposals is not None
    predicted.distributions.bin_values.copy_(weighting_function(32, torch.tensor([0.5]), torch.tensor([4.0])))
    output = criterion()(predicted, targets)
    union = union_of(predicted, targets)
    indices = [tuple(torch.tensor(row) for row in zip(*pairs, strict=True)) for pairs in union]
    theirs = DFineLoss(DFineConfig(num_labels=CLASSES))
    divisor = sum(map(len, union))
    for layer, suffix in enumerate(["_aux_0", "_aux_1", ""]):
        outputs = {
            "pred_corners": predicted.distributions.layer_logits[layer].flatten(2),
            "ref_points": predicted.distributions.references,
            "pred_boxes": predicted.layer_boxes[layer],
            "teacher_corners": predicted.distributions.layer_logits[-1].flatten(2),
            "teacher_logits": predicted.class_logits,
        }
        dicts = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
        expected = theirs.loss_local(outputs, dicts, indices, divisor)
        torch.testing.assert_close(output.losses[f"loss_fgl{suffix}"], expected["loss_fgl"], atol=1e-6, rtol=1e-5)
        if suffix:
            torch.testing.assert_close(output.losses[f"loss_ddf{suffix}"], expected["loss_ddf"], atol=1e-6, rtol=1e-4)


def union_of(predicted: Predictions, targets: list[Target]) -> list[list[tuple[int, int]]]:
    """Query and object of every pair of each image: the union of all matchings, counted one by one."""
    assert predicted.proposals is not None
    assert predicted.distributions is not None
    sets = [
        *zip(predicted.layer_class_logits, predicted.layer_boxes, strict=True),
        (predicted.distributions.initial_class_logits, predicted.distributions.initial_boxes),
        (predicted.proposals.class_logits, predicted.proposals.boxes),
    ]
    matcher, union = HungarianMatcher(classification=VarifocalClassification(CLASSES)), []
    counters: list[Counter[tuple[int, int]]] = [Counter() for _ in targets]
    for logits, boxes in sets:
        matches = matcher(logits[None], boxes[None], targets)
        for image, counter in enumerate(counters):
            counter.update(zip(*(part.tolist() for part in matches.pairs(0, image)), strict=True))
    for counter in counters:
        chosen: dict[int, int] = {}
        for query, number in sorted(counter, key=lambda pair: (-counter[pair], pair[1])):
            chosen.setdefault(query, number)
        union.append(sorted(chosen.items()))
    return union


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 15), min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_union_gives_every_query_its_most_frequent_object(counts: list[int], seed: int) -> None:
    predicted, targets = predictions(counts, has_distributions=True, seed=seed), objects(counts)
    assert predicted.proposals is not None
    assert predicted.distributions is not None
    logits = [predicted.layer_class_logits, predicted.distributions.initial_class_logits[None]]
    boxes = [predicted.layer_boxes, predicted.distributions.initial_boxes[None]]
    logits.append(predicted.proposals.class_logits[None])
    boxes.append(predicted.proposals.boxes[None])
    matcher = HungarianMatcher(classification=SigmoidFocalClassification(CLASSES))
    pairs = matcher.assign_all([MatchingInput(torch.cat(logits), torch.cat(boxes), targets)])[0]
    union = union_of_matches(pairs)
    actual = [
        [(query, number) for _, one, query, number in union.T.tolist() if one == image] for image in range(len(counts))
    ]
    assert actual == union_of(predicted, targets)


def test_equally_frequent_objects_are_taken_in_order() -> None:
    # rows: layer, image, query, object; query 3 has the objects 2 and 1 once each, query 5 object 2 twice
    pairs = torch.tensor([[0, 0, 1, 1, 2, 2], [0] * 6, [3, 5, 3, 5, 5, 6], [2, 1, 1, 2, 2, 1]])
    assert union_of_matches(pairs).T.tolist() == [[0, 0, 3, 1], [0, 0, 5, 2], [0, 0, 6, 1]]


def test_box_losses_of_all_sets_use_the_union_and_its_number_of_pairs() -> None:
    predicted, targets = predictions([3, 2], has_distributions=True), objects([3, 2])
    output, union = criterion()(predicted, targets), union_of(predicted, targets)
    assert predicted.proposals is not None
    total = 0.0
    for image, pairs in enumerate(union):
        for query, number in pairs:
            difference = predicted.proposals.boxes[image, query] - targets[image].boxes[number]
            total += float(difference.abs().sum())
    assert float(output.losses["loss_bbox_enc_0"]) == pytest.approx(total / sum(map(len, union)), rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    counts=st.lists(st.integers(0, 15), min_size=1, max_size=3),
    has_distributions=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_number_of_objects_gives_finite_losses_and_gradients(
    counts: list[int], has_distributions: bool, seed: int
) -> None:
    """Including no objects in the whole batch, and more objects than queries."""
    predicted = predictions(counts, copies=2, has_distributions=has_distributions, seed=seed)
    noised = predicted.auxiliary[0].predictions
    tensors = [predicted.layer_class_logits, predicted.layer_boxes, noised.layer_class_logits, noised.layer_boxes]
    if noised.distributions is not None:
        tensors += [noised.distributions.layer_logits]
    for tensor in tensors:
        tensor.requires_grad_()
    output = criterion()(predicted, objects(counts))
    output.total.backward()
    assert output.total.isfinite()
    # every weight takes part in every step: DistributedDataParallel waits for its gradient
    assert all(tensor.grad is not None and bool(tensor.grad.isfinite().all()) for tensor in tensors)
    if not any(counts):
        assert all(float(loss) == 0 for name, loss in output.losses.items() if "_dn_" in name)


def test_losses_of_accumulated_batches_add_up_to_that_of_one_batch() -> None:
    """Without the union, whose number of pairs is known only for the batch; denoising copies differ as well."""
    predicted, targets = predictions([2, 1, 4, 0]), objects([2, 1, 4, 0])
    loss = criterion()
    normalizers = loss.normalizers(targets, QUERIES)

    def part(images: slice) -> Predictions:
        assert predicted.proposals is not None
        proposals = EncoderProposals(predicted.proposals.class_logits[images], predicted.proposals.boxes[images], False)
        return Predictions(
            predicted.layer_class_logits[:, images],
            predicted.layer_boxes[:, images],
            class_scores="sigmoid",
            proposals=proposals,
        )

    halves = [loss(part(images), targets[images], normalizers).total for images in (slice(0, 3), slice(3, 4))]
    torch.testing.assert_close(sum(halves), loss(predicted, targets).total)


def test_two_equal_batches_of_a_step_count_as_much_as_one() -> None:
    """Divisors of the union and of the distillation are scaled from the batch to the step."""
    counts = [2, 3]
    predicted, targets = predictions(counts, copies=2, has_distributions=True), objects(counts)
    loss = criterion()
    one = loss(predicted, targets).total
    half = loss(predicted, targets, loss.normalizers([*targets, *targets], QUERIES)).total
    torch.testing.assert_close(2 * half, one)


@pytest.mark.parametrize("has_distributions", [False, True])
def test_losses_of_bfloat16_predictions_are_computed_in_float32(has_distributions: bool) -> None:
    predicted, targets = predictions([2, 1], 1, has_distributions=has_distributions), objects([2, 1])
    with torch.autocast("cpu", torch.bfloat16):
        inside = criterion()(predicted, targets)
    outside = criterion()(predicted, targets)
    assert inside.total.dtype == torch.float32
    assert torch.equal(inside.total, outside.total)


def test_nonfinite_predictions_give_a_nonfinite_loss() -> None:
    predicted = predictions([2, 1], has_distributions=True)
    predicted.layer_class_logits[0, 0, 0, 0] = torch.nan
    assert not criterion()(predicted, objects([2, 1])).total.isfinite()


def test_queries_are_matched_by_score_times_the_fourth_power_of_iou_if_asked() -> None:
    """The box of query 0 covers half of the object's, that of query 1 all of it, with a lower score."""
    target = Target(torch.tensor([[0.5, 0.5, 0.4, 0.4]]), torch.tensor([2]))
    logits = torch.tensor([[2.0] * CLASSES, [-1.0] * CLASSES])[None, None]
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 0.4, 0.4]])[None, None]
    matcher = HungarianMatcher(classification=SigmoidFocalClassification(CLASSES))
    matcher.by_quality = True
    expected = torch.tensor([-torch.tensor(2.0).sigmoid() / 16, -torch.tensor(-1.0).sigmoid()])
    torch.testing.assert_close(matcher.costs(logits, boxes, [target])[0, 0, :, 0], expected)
    assert matcher(logits, boxes, [target]).queries.tolist() == [1]
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert matcher(logits, boxes, [empty]).queries.tolist() == []


def test_losses_with_a_weight_of_zero_are_omitted_and_matchings_are_united_only_if_asked() -> None:
    torch.manual_seed(0)
    predictions = block(2, QUERIES, has_distributions=True, has_encoder=True)
    targets = [Target(boxes_of(count), torch.randint(CLASSES, (count,))) for count in (3, 2)]
    plain = criterion("mal", fgl_loss_coef=0.0, ddf_loss_coef=0.0, match_union=False)(predictions, targets)
    united = criterion("mal")(predictions, targets)
    kinds = {name for loss in plain.losses for name in ("mal", "bbox", "giou", "fgl", "ddf") if name in loss}
    assert kinds == {"mal", "bbox", "giou"}
    assert set(plain.losses) < set(united.losses)
    matches = HungarianMatcher(classification=SigmoidFocalClassification(CLASSES))(
        predictions.layer_class_logits, predictions.layer_boxes, targets
    )
    for layer, name in ((0, "loss_bbox_aux_0"), (LAYERS - 1, "loss_bbox")):
        distance = 0.0
        for image, target in enumerate(targets):
            queries, objects = matches.pairs(layer, image)
            difference = predictions.layer_boxes[layer, image, queries] - target.boxes[objects]
            distance += float(difference.abs().sum())
        assert float(plain.losses[name]) == pytest.approx(distance / 5, rel=1e-5)
