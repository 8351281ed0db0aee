"""Parity with transformers' RTDetr, RTDetrV2 and DFine on random weights, converted in both directions."""

from pathlib import Path
from typing import Any

import pytest
import torch

from detrkit import DETR, Detector, build_model
from detrkit.checkpoints.conversion.huggingface import huggingface_to_detrkit, write_huggingface_folder
from detrkit.checkpoints.conversion.registry import HUGGINGFACE
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Checkpoint, default_preprocessing
from detrkit.checkpoints.state_dict import load_state_dict
from detrkit.data.batching import collate
from detrkit.data.categories import contiguous_coco_categories
from detrkit.errors import CheckpointError
from detrkit.models.presets import PRESETS

pytestmark = pytest.mark.slow
transformers = pytest.importorskip("transformers")

CLASSES = {
    "rtdetr-r18": ("rtdetr", "RTDetr", "RTDetrResNetConfig"),
    "rtdetr-r50": ("rtdetr", "RTDetr", "RTDetrResNetConfig"),
    "rtdetrv2-s": ("rtdetrv2", "RTDetrV2", "RTDetrResNetConfig"),
    "dfine-n": ("dfine", "DFine", "HGNetV2Config"),
    "dfine-s": ("dfine", "DFine", "HGNetV2Config"),
}

# weights that move sampling points, by which rounding errors grow from layer to layer
MOVING = ("sampling_offsets", "offset_projection", "bbox_", "box_head", "output_proj")


def transformers_model(preset: str) -> torch.nn.Module:
    """Build transformers' model of a preset with random weights, in eval mode."""
    config = PRESETS[preset]
    architecture, name, backbone = CLASSES[preset]
    fields: dict[str, Any] = HUGGINGFACE[architecture].config_fields(config)
    own = {key: value for key, value in fields["backbone_config"].items() if key != "model_type"}
    fields["backbone_config"] = getattr(transformers, backbone)(**own)
    settings = getattr(transformers, f"{name}Config")(
        num_labels=80,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers,
        decoder_ffn_dim=config.dim_feedforward,
        **fields,
    )
    torch.manual_seed(0)
    model: torch.nn.Module = getattr(transformers, f"{name}ForObjectDetection")(settings)
    randomize(model)
    return model.eval()


def randomize(model: torch.nn.Module) -> None:
    """Draw all weights but constants (initial zeros and ones would hide swapped names), and measure the norms' statistics.

    Features of cells have to differ, or equally good cells are selected by rounding errors.
    """
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            last = name.rpartition(".")[2]
            if last == "running_var":
                tensor.uniform_(0.5, 1.5)
            elif last == "running_mean":
                tensor.normal_(0, 0.05)
            elif last in ("up", "reg_scale", "n_points_scale", "num_points_scale") or not tensor.is_floating_point():
                continue
            elif tensor.ndim == 1:
                tensor.add_(0.05 * torch.randn_like(tensor))
            else:
                gain = 0.3 if any(part in name for part in MOVING) else (2.0 if tensor.ndim == 4 else 1.0) ** 0.5
                tensor.normal_(0, gain * tensor[0].numel() ** -0.5)
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all batches
        model.train()(drawn_image((320, 320)))
        model.eval()


def drawn_image(size: tuple[int, int]) -> torch.Tensor:
    """Draw an image of waves and noise."""
    y, x = torch.meshgrid(*(torch.arange(float(side)) for side in size), indexing="ij")
    waves = torch.stack(
        [(x / 17 + color).sin() + (y / (23 + color)).cos() + (x * y / 9000).sin() for color in range(3)]
    )
    return (0.5 + 0.15 * waves + 0.1 * torch.randn(3, *size)).clamp(0, 1)[None]


def compare(model: DETR, other: torch.nn.Module, size: tuple[int, int]) -> None:
    """Compare predictions query by query; queries of equally good cells may be swapped."""
    images = drawn_image(size)
    with torch.inference_mode():
        detrkit_output, reference = model(images), other(images)
    assert detrkit_output.proposals is not None
    rows = torch.cdist(reference.enc_topk_bboxes[0], detrkit_output.proposals.boxes[0]).argmin(1)
    assert len(rows.unique()) == len(rows)
    torch.testing.assert_close(detrkit_output.class_logits[:, rows], reference.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(detrkit_output.boxes[:, rows], reference.pred_boxes, rtol=0, atol=1e-4)


@pytest.mark.parametrize("preset", CLASSES)
def test_weights_of_transformers_give_the_same_predictions(preset: str) -> None:
    other = transformers_model(preset)
    model = build_model(preset).eval()
    load_state_dict(model, huggingface_to_detrkit(other.state_dict()))
    # transformers corrected the order of the positions on maps that are not square; so does a padding-invariant model
    model.padding_invariant = True
    for size in ((640, 640), (320, 448)):
        compare(model, other, size)


@pytest.mark.parametrize("preset", ["rtdetr-r18", "rtdetrv2-s", "dfine-n"])
def test_written_folders_are_read_by_transformers_and_back(preset: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(preset).eval()
    randomize(model)
    model.padding_invariant = True
    written, again = tmp_path / "written", tmp_path / "again"
    preprocessing = default_preprocessing(model.config)
    write_huggingface_folder(
        written, Checkpoint(model.state_dict(), model.config, contiguous_coco_categories(), preprocessing)
    )
    other = transformers.AutoModelForObjectDetection.from_pretrained(written).eval()
    compare(model, other, (320, 320))
    read = load_checkpoint(written)
    assert read.config == model.config
    assert read.categories == contiguous_coco_categories()
    assert read.preprocessing == preprocessing.model_copy(update={"rounding": "transformers"})

    other.save_pretrained(again)  # without some of the repeated tensors
    read = load_checkpoint(again).build().eval()
    read.padding_invariant = True
    compare(read, other, (320, 320))


def test_image_processor_of_a_written_folder_prepares_the_same_pixels(tmp_path: Path) -> None:
    model = build_model("dfine-n").eval()
    checkpoint = Checkpoint(
        model.state_dict(), model.config, contiguous_coco_categories(), default_preprocessing(model.config)
    )
    write_huggingface_folder(tmp_path / "folder", checkpoint)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "folder")
    image = torch.randint(0, 256, (3, 300, 500), dtype=torch.uint8)
    reference = processor(images=image, return_tensors="pt")["pixel_values"]
    batch = collate([Detector.load(tmp_path / "folder").preprocess(image)])
    assert reference.shape == (1, 3, 640, 640)
    torch.testing.assert_close(batch.images, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("preset", ["deim-dfine-n", "deim-rtdetrv2-s", "rtdetrv4-s", "rtdetr-r50-m"])
def test_models_that_transformers_cannot_compute_are_not_written(preset: str, tmp_path: Path) -> None:
    model = build_model(preset)
    checkpoint = Checkpoint(
        model.state_dict(), model.config, contiguous_coco_categories(), default_preprocessing(model.config)
    )
    with pytest.raises(CheckpointError, match="does not support; use to='official'"):
        write_huggingface_folder(tmp_path / "folder", checkpoint)
    assert not (tmp_path / "folder").exists()
