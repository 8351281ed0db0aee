"""The mask head of RF-DETR: masks as products of queries and cells, of every layer, group and the encoder."""

from typing import cast

import pytest
import torch
from torch import Tensor

from detrkit import ConfigError, Detector, build_model
from detrkit.config.model import ModelConfig
from detrkit.models.heads.dot_product import CellBlock, DotProductMaskHead, DotProductMasks
from detrkit.structures import LayerMaskSource, Predictions
from tests.models.vit_models import LAYERS, small_vit
from tests.rounding import assert_equal_up_to_rounding

IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def source_of(predictions: Predictions) -> DotProductMasks:
    assert isinstance(predictions.mask_source, DotProductMasks)
    assert isinstance(predictions.mask_source, LayerMaskSource)
    return predictions.mask_source


def test_mask_is_the_product_of_a_query_and_each_cell_plus_a_bias() -> None:
    features = torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.0, 1.0, 1.0, -1.0]]).view(1, 2, 2, 2)
    masks = DotProductMasks((features,), torch.tensor([[[[1.0, 2.0], [3.0, 0.0]]]]), torch.tensor([0.5]))
    expected = torch.tensor([[[1.5, 2.5], [4.5, -0.5]], [[3.5, 0.5], [6.5, 3.5]]])
    assert masks.all_masks()[0].equal(expected)
    assert masks.masks_of(torch.tensor([1]), [1]).equal(expected[1:])
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.25], [0.5, 0.5], [0.0, 1.0]]])  # centers, the middle, a corner
    assert_equal_up_to_rounding(masks.at_points(points)[0, 0, 0], torch.tensor([1.5, 2.5, 2.0, 4.5]))


def test_block_adds_what_it_computes_from_each_cell_and_its_neighbours() -> None:
    torch.manual_seed(0)
    block, cells = CellBlock(8), torch.randn(1, 8, 5, 5)
    changed = cells.clone()
    changed[:, :, 0, 0] += 1
    with torch.no_grad():
        difference = (block(changed) - block(cells))[0].abs().amax(0)
        block.projection.weight.zero_()
        block.projection.bias.zero_()
        assert block(cells).equal(cells)
    assert (difference[:2, :2] > 0).all()
    assert not difference[2:].any()
    assert not difference[:, 2:].any()


def test_masks_have_a_value_per_four_pixels_in_every_layer_group_and_for_the_encoder() -> None:
    model = small_vit("rfdetr-seg-nano")
    predictions = model(IMAGES)
    (group,) = predictions.auxiliary
    proposals = predictions.proposals
    assert proposals is not None
    for source, layers in (
        (predictions.mask_source, 2),
        (group.predictions.mask_source, 2),
        (proposals.mask_source, 1),
    ):
        assert isinstance(source, LayerMaskSource)
        assert (source.num_layers, source.num_queries, source.mask_size) == (layers, 10, (16, 24))
    own, other = source_of(predictions), source_of(group.predictions)
    assert own.features is other.features
    assert not own.queries.equal(other.queries)
    assert model.eval()(IMAGES).masks.shape == (2, 10, 16, 24)


def test_masks_of_some_queries_equal_those_of_all() -> None:
    predictions = small_vit("rfdetr-seg-nano").eval()(IMAGES)
    masks = cast(Tensor, predictions.masks)
    chosen = predictions.masks_of([torch.tensor([7, 2]), torch.tensor([3])])
    assert_equal_up_to_rounding(chosen, torch.stack([masks[0, 7], masks[0, 2], masks[1, 3]]))
    source = source_of(predictions)
    assert_equal_up_to_rounding(source.layer_masks_of(-1, torch.tensor([7, 2, 3]), [2, 1]), chosen)
    one = source.select_image(1)
    assert_equal_up_to_rounding(one.all_masks()[0], masks[1])
    assert one.select_image(0, (40, 56)).mask_size == (10, 14)


def test_masks_that_are_computed_without_gradient_have_none() -> None:
    model = small_vit("rfdetr-seg-nano")
    with torch.inference_mode():
        predictions = model.eval()(IMAGES)
    assert not cast(Tensor, predictions.masks).requires_grad
    assert cast(Tensor, model(IMAGES).masks).requires_grad


def test_earlier_decoder_layers_use_as_many_blocks() -> None:
    model = small_vit("rfdetr-seg-nano").eval()
    head = model.mask_head
    assert isinstance(head, DotProductMaskHead)
    both = source_of(model(IMAGES))
    model.decoder.return_intermediate = False
    last = source_of(model(IMAGES))
    assert_equal_up_to_rounding(last.features[0], both.features[1])
    early = small_vit("rfdetr-seg-nano", eval_decoder_layers=1).eval()
    assert len(source_of(early(IMAGES)).features) == 1


def test_detector_returns_masks_of_the_original_size_and_coco_run_lengths() -> None:
    detector = Detector.from_model(small_vit("rfdetr-seg-nano").eval(), image_size=64)
    detections = detector.predict(torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8), threshold=0.0)
    assert detections.masks is not None
    assert detections.masks.shape == (len(detections), 50, 70)
    assert detections.to_coco(3)[0]["segmentation"]["size"] == [50, 70]
    assert detections.draw().size == (70, 50)


def test_masks_of_vits_need_mixed_queries() -> None:
    with pytest.raises(ConfigError, match="needs queries='mixed' to predict masks: it has one feature map"):
        ModelConfig(
            **{**LAYERS, "backbone": "dinov2-small", "mask_head": True, "encoder_layers": 0},
            queries="points",
            decoder="deformable",
            class_scores="sigmoid",
        )
    assert build_model("lwdetr-tiny", mask_head=True, group_detr=1).mask_head is not None
