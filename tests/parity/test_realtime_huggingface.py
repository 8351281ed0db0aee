"""Parity with transformers' RTDetr, RTDetrV2, DFine and Deimv2 on random weights, converted in both directions."""

from pathlib import Path

import pytest
import torch
from benchmarks.modern import CLASSES, build_transformers, draw_image, randomize, settings_of

from detrkit import DETR, Detector, build_model
from detrkit.checkpoints.conversion.huggingface import huggingface_to_detrkit, write_huggingface_folder
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Checkpoint, default_preprocessing
from detrkit.checkpoints.state_dict import load_state_dict
from detrkit.data.batching import collate
from detrkit.data.categories import contiguous_coco_categories
from detrkit.errors import CheckpointError

pytestmark = pytest.mark.slow
transformers = pytest.importorskip("transformers")


def compare(model: DETR, other: torch.nn.Module, size: tuple[int, int]) -> None:
    """Compare predictions query by query; queries of equally good cells may be swapped."""
    images = draw_image(size)
    with torch.inference_mode():
        detrkit_output, reference = model(images), other(images)
    assert detrkit_output.proposals is not None
    rows = torch.cdist(reference.enc_topk_bboxes[0], detrkit_output.proposals.boxes[0]).argmin(1)
    assert len(rows.unique()) == len(rows)
    torch.testing.assert_close(detrkit_output.class_logits[:, rows], reference.logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(detrkit_output.boxes[:, rows], reference.pred_boxes, rtol=0, atol=1e-4)


@pytest.mark.parametrize("preset", CLASSES)
def test_weights_of_transformers_give_the_same_predictions(preset: str) -> None:
    other = build_transformers(preset)
    model = build_model(preset, **settings_of(preset)).eval()
    load_state_dict(model, huggingface_to_detrkit(other.state_dict()))
    # transformers corrected the order of the positions on maps that are not square; so does a padding-invariant model
    model.padding_invariant = True
    side = default_preprocessing(model.config).image_size
    for size in ((side, side), (320, 448)):
        compare(model, other, size)


@pytest.mark.parametrize("preset", ["rtdetr-r18", "rtdetrv2-s", "dfine-n", "deimv2-atto", "deimv2-n"])
def test_written_folders_are_read_by_transformers_and_back(preset: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(preset, **settings_of(preset)).eval()
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


@pytest.mark.parametrize("preset", ["deim-dfine-n", "deim-rtdetrv2-s", "rtdetrv4-s", "rtdetr-r50-m", "deimv2-atto"])
def test_models_that_transformers_cannot_compute_are_not_written(preset: str, tmp_path: Path) -> None:
    model = build_model(preset)
    checkpoint = Checkpoint(
        model.state_dict(), model.config, contiguous_coco_categories(), default_preprocessing(model.config)
    )
    with pytest.raises(CheckpointError, match="does not support; use to='official'"):
        write_huggingface_folder(tmp_path / "folder", checkpoint)
    assert not (tmp_path / "folder").exists()
