"""Parity with Hugging Face's Conditional, DAB and Deformable DETR on random weights, converted in both directions."""

import json
from pathlib import Path

import pytest
import torch

from detrkit import build_model
from detrkit.checkpoints.conversion.architectures import architecture_of_names
from detrkit.checkpoints.conversion.huggingface import huggingface_to_detrkit, write_huggingface_folder
from detrkit.checkpoints.conversion.official import official_from_detrkit, official_to_detrkit
from detrkit.checkpoints.conversion.registry import HUGGINGFACE
from detrkit.checkpoints.hub import write_model_folder
from detrkit.checkpoints.infer_config import infer_config
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Checkpoint, Preprocessing
from detrkit.checkpoints.state_dict import load_state_dict
from detrkit.data.categories import default_categories
from detrkit.losses.criterion import SetCriterion
from detrkit.models.detr import DETR
from detrkit.ops.padding import pad_to_batch
from detrkit.structures import Target

pytestmark = pytest.mark.slow

transformers = pytest.importorskip("transformers")

SMALL = {"num_classes": 5, "encoder_layers": 2, "decoder_layers": 3, "dim_feedforward": 64}
PRESETS = {
    "conditional-detr-r50": ("ConditionalDetr", {}),
    "conditional-detr-r50-dc5": ("ConditionalDetr", {"dilation": True}),
    "dab-detr-r50": ("DabDetr", {}),
    "deformable-detr-r50": ("DeformableDetr", {}),
    "deformable-detr-r50-single-scale": ("DeformableDetr", {"num_feature_levels": 1}),
    "deformable-detr-r50-refine": ("DeformableDetr", {"with_box_refine": True}),
    "deformable-detr-r50-two-stage": ("DeformableDetr", {"with_box_refine": True, "two_stage": True}),
}
NUM_QUERIES = 7


def transformers_model(preset: str, native: bool = False) -> torch.nn.Module:
    name, changes = PRESETS[preset]
    if native:
        first = 4 if "single" in preset or not preset.startswith("deformable") else 2
        changes = {
            **changes,
            "backbone_config": transformers.ResNetConfig(out_features=[f"stage{n}" for n in range(first, 5)]),
        }
    config = getattr(transformers, f"{name}Config")(
        num_queries=NUM_QUERIES,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_labels=5,
        **changes,
    )
    if changes.get("two_stage"):
        config.two_stage_num_proposals = NUM_QUERIES
    model = getattr(transformers, f"{name}ForObjectDetection")(config)
    randomize(model)
    return model.eval()


def random_model(preset: str) -> DETR:
    model = build_model(preset, num_queries=NUM_QUERIES, **SMALL)
    randomize(model)
    return model.eval()


def randomize(model: torch.nn.Module) -> None:
    """Draw all weights, because those that are initialised with zeros or ones would hide swapped names."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 2:
                part = name.removeprefix("query_source.")
                is_table = name == "query_source.weight" or (
                    ("query" in part or "level" in part) and "proj" not in part
                )
                tensor.normal_(0, 1 if is_table and "scale" not in name else tensor.shape[1] ** -0.5)
            elif tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(0.05 * torch.randn_like(tensor))


def images_and_mask() -> tuple[torch.Tensor, torch.Tensor]:
    return pad_to_batch([torch.randn(3, 100, 133), torch.randn(3, 70, 101)])


def difference(reference: torch.nn.Module, model: DETR) -> float:
    images, padding_mask = images_and_mask()
    with torch.inference_mode():
        expected = reference.eval()(pixel_values=images, pixel_mask=(~padding_mask).long())
        actual = model.eval()(images, padding_mask)
    assert expected.pred_boxes[..., :2].std(dim=1).min() > 1e-2, "all boxes are equal"
    return max(
        float((expected.logits - actual.class_logits).abs().max()),
        float((expected.pred_boxes - actual.boxes).abs().max()),
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_converted_transformers_weights_give_the_same_outputs(preset: str) -> None:
    torch.manual_seed(0)
    reference = transformers_model(preset)
    model = build_model(preset, num_queries=NUM_QUERIES, **SMALL)
    load_state_dict(model, huggingface_to_detrkit(reference.state_dict()))
    assert difference(reference, model) < 1e-4


@pytest.mark.parametrize("preset", ["conditional-detr-r50", "dab-detr-r50", "deformable-detr-r50-refine"])
def test_losses_equal_those_of_transformers(preset: str) -> None:
    """Compare the unweighted losses of the last layer.

    With auxiliary losses, Conditional DETR of transformers normalises the states between layers, which is another model.
    Its totals omit the published weight of 2 of the class loss, and the losses of the encoder's proposals.
    """
    torch.manual_seed(0)
    reference = transformers_model(preset)
    reference.config.class_cost = 2  # 1 for Deformable DETR in transformers, 2 in the published code
    model = build_model(preset, num_queries=NUM_QUERIES, **SMALL).eval()
    load_state_dict(model, huggingface_to_detrkit(reference.state_dict()))
    images, padding_mask = images_and_mask()
    targets = [
        Target(torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.6, 0.5, 0.4]]), torch.tensor([1, 4])),
        Target(torch.tensor([[0.5, 0.5, 0.9, 0.8]]), torch.tensor([0])),
    ]
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
    with torch.inference_mode():
        expected = reference(pixel_values=images, pixel_mask=(~padding_mask).long(), labels=labels).loss_dict
        report = SetCriterion(5, class_scores="sigmoid")(model(images, padding_mask), targets)
    for name in ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error"):
        torch.testing.assert_close(report.losses[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("native", [False, True], ids=["timm", "native"])
@pytest.mark.parametrize("preset", [name for name in PRESETS if "dc5" not in name])
def test_written_folder_is_read_by_transformers(tmp_path: Path, preset: str, native: bool) -> None:
    torch.manual_seed(0)
    model = random_model(preset)
    checkpoint = Checkpoint(model.state_dict(), model.config, default_categories(5), Preprocessing())
    write_huggingface_folder(tmp_path, checkpoint, native_backbone=native)
    kind = getattr(transformers, f"{PRESETS[preset][0]}ForObjectDetection")
    reference, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert difference(reference, model) < 1e-4
    back = load_checkpoint(tmp_path)
    assert back.config == model.config
    assert all(torch.equal(back.state[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("preset", ["conditional-detr-r50", "dab-detr-r50", "deformable-detr-r50"])
def test_written_folder_names_a_processor_with_the_scores_of_the_model(tmp_path: Path, preset: str) -> None:
    model = random_model(preset)
    checkpoint = Checkpoint(model.state_dict(), model.config, default_categories(5), Preprocessing(image_size=96))
    write_model_folder(tmp_path, checkpoint, "huggingface-no-timm", "somebody/model")
    card = (tmp_path / "README.md").read_text()
    kind, name = f"{PRESETS[preset][0]}ForObjectDetection", type_of_processor(tmp_path)
    assert f"from transformers import {kind}, {name}\n" in card
    processor = getattr(transformers, name).from_pretrained(tmp_path)
    reference = getattr(transformers, kind).from_pretrained(tmp_path).eval()
    images, padding_mask = images_and_mask()
    with torch.inference_mode():
        output = reference(pixel_values=images, pixel_mask=(~padding_mask).long())
        expected = model(images, padding_mask).class_logits.sigmoid()
    detections = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(100, 100)] * len(images))
    for one, scores in zip(detections, expected, strict=True):
        torch.testing.assert_close(one["scores"].max(), scores.max(), rtol=1e-4, atol=1e-4)
        # the last class is a class, not "no object"
        assert int(one["labels"][one["scores"].argmax()]) == int(scores.amax(0).argmax())


def type_of_processor(folder: Path) -> str:
    return str(json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"])


@pytest.mark.parametrize("preset", ["conditional-detr-r50", "dab-detr-r50", "deformable-detr-r50-two-stage"])
def test_folder_saved_by_transformers_is_loaded(tmp_path: Path, preset: str) -> None:
    torch.manual_seed(0)
    reference = transformers_model(preset)
    reference.save_pretrained(tmp_path)
    model = load_checkpoint(tmp_path).build()
    assert difference(reference, model) < 1e-4


@pytest.mark.parametrize("preset", [*PRESETS, "dab-detr-r101-dc5"])
def test_weights_are_equal_after_conversion_to_transformers_and_back(preset: str) -> None:
    state = build_model(preset, num_queries=NUM_QUERIES, **SMALL).state_dict()
    back = huggingface_to_detrkit(HUGGINGFACE[architecture_of_names(state)].from_detrkit(state))
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("preset", [*PRESETS, "deformable-detr-r50-single-scale-dc5", "dab-detr-r101"])
def test_weights_are_equal_after_conversion_to_published_names_and_back(preset: str) -> None:
    model = random_model(preset)
    weights = model.state_dict()
    official = official_from_detrkit(weights, model.config)
    back = official_to_detrkit(official)
    assert set(back) == set(weights)
    assert all(torch.equal(back[name], weights[name]) for name in weights)
    known = {"dilation": model.config.dilation}
    if model.config.queries == "two_stage":
        known["num_queries"] = NUM_QUERIES
    assert infer_config(back, **known).model_dump(exclude={"dropout"}) == model.config.model_dump(exclude={"dropout"})
