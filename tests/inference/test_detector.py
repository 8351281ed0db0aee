"""`Detector`: input types, independence of the batch, thresholds, labels, errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit import Detector, build_model
from detrkit.data.batching import collate
from detrkit.data.categories import Categories
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.errors import ConfigError, DatasetError
from detrkit.evaluation.inference_loop import run_inference
from detrkit.inference.images import read_image_input
from tests.rounding import assert_equal_up_to_rounding, rounding_error


def shape_image(seed: int, width: int, height: int) -> Image.Image:
    pixels = SyntheticShapes(1, seed, SyntheticStyle(size=96))[0].image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize((width, height))


def test_detections_do_not_depend_on_the_batch(detector: Detector) -> None:
    images = [shape_image(0, 120, 80), shape_image(1, 64, 96), shape_image(2, 200, 50)]
    together = detector.predict(images, threshold=0)
    for one, batched in zip(images, together, strict=True):
        alone = detector.predict(one, threshold=0)
        assert_equal_up_to_rounding(alone.scores, batched.scores)
        assert_equal_up_to_rounding(alone.boxes, batched.boxes, size=max(one.size))
        assert torch.equal(alone.labels, batched.labels)


def test_detections_do_not_depend_on_the_batch_if_the_backbone_is_not_padding_invariant() -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    changes = {"backbone": "timm:tf_efficientnet_lite0", "num_classes": 3, "num_queries": 5, "decoder_layers": 1}
    detector = Detector.from_model(build_model("detrkit-s", **changes), image_size=96)
    images = [shape_image(0, 120, 80), shape_image(1, 64, 96), shape_image(2, 120, 80), shape_image(3, 200, 50)]
    assert detector.max_padding == 0
    together = detector.predict(images, threshold=0)
    for one, batched in zip(images, together, strict=True):
        alone = detector.predict(one, threshold=0)
        assert_equal_up_to_rounding(alone.scores, batched.scores)
        assert_equal_up_to_rounding(alone.boxes, batched.boxes, size=max(one.size))
    batch = collate([detector.preprocess(read_image_input(one, 3)) for one in images])
    categories = detector.categories
    detections = [
        run_inference(detector.model, batches, categories)[0]
        for batches in ([batch], batch.one_by_one(), batch.unpadded())
    ]
    for other in detections[1:]:
        assert sorted(other.scores.tolist()) == pytest.approx(
            sorted(detections[0].scores.tolist()), abs=rounding_error()
        )


def test_paths_arrays_tensors_and_pillow_images_give_the_same_detections(detector: Detector, tmp_path: Path) -> None:
    image = shape_image(3, 90, 70)
    path = tmp_path / "image.png"
    image.save(path)
    pixels = np.asarray(image)
    inputs = [
        path,
        str(path),
        image,
        pixels,
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        image.convert("RGBA"),
    ]
    expected = detector.predict(path, threshold=0)
    assert len(expected) == detector.model.config.num_queries
    for given in inputs:
        detections = detector.predict(given, threshold=0)
        assert torch.equal(detections.boxes, expected.boxes)
        assert torch.equal(detections.scores, expected.scores)


def test_boxes_are_in_pixels_of_the_upright_image(detector: Detector, tmp_path: Path) -> None:
    """An image stored sideways (EXIF orientation 6) has the boxes of the upright one."""
    upright = shape_image(4, 60, 100)
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "sideways.png", exif=exif)
    expected = detector.predict(tmp_path / "upright.png", threshold=0)
    assert torch.equal(detector.predict(tmp_path / "sideways.png", threshold=0).boxes, expected.boxes)


def test_detections_above_the_threshold_come_best_first(detector: Detector) -> None:
    all_detections = detector.predict(shape_image(5, 80, 80), threshold=0)
    assert (all_detections.scores.diff() <= 0).all()
    middle = float(all_detections.scores.median())
    some = detector.predict(shape_image(5, 80, 80), threshold=middle)
    assert 0 < len(some) < len(all_detections)
    assert (some.scores >= middle).all()
    assert len(detector.predict(shape_image(5, 80, 80), threshold=1.0)) == 0
    assert detector.predict([]) == []


def test_category_ids_are_those_of_the_dataset() -> None:
    torch.manual_seed(0)
    categories = Categories(ids=(18, 44), names=("dog", "bottle"))
    detector = Detector.from_model(build_model("detr-tiny", num_classes=2), categories, image_size=64)
    detections = detector.predict(shape_image(0, 64, 64), threshold=0)
    assert set(detections.category_ids.tolist()) <= {18, 44}
    assert {18: "dog", 44: "bottle"}[int(detections.category_ids[0])] == detections.class_names[0]
    assert detections.category_ids.tolist() == [(18, 44)[label] for label in detections.labels.tolist()]
    json.dumps(detections.to_json())
    assert {entry["category_id"] for entry in detections.to_coco(5)} <= {18, 44}


def test_invalid_inputs_are_rejected(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "no_image.jpg").write_text("hello")
    with pytest.raises(DatasetError, match=r"no_image\.jpg"):
        detector.predict(tmp_path / "no_image.jpg")
    with pytest.raises(DatasetError, match=r"missing\.jpg"):
        detector.predict(tmp_path / "missing.jpg")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        detector.predict(shape_image(0, 64, 64), threshold=50)
    with pytest.raises(ConfigError, match="2 categories for a model with 3 classes"):
        Detector.from_model(detector.model, ["a", "b"])


@pytest.mark.gpu
def test_gpu_and_cpu_detections_agree(detector: Detector) -> None:
    image = shape_image(6, 96, 64)
    expected = detector.predict(image, threshold=0)
    torch.manual_seed(0)
    on_gpu = Detector.from_model(build_model("detr-tiny", num_classes=3), detector.categories, 64, device="cuda")
    on_gpu.model.load_state_dict(detector.model.state_dict())
    detections = on_gpu.predict(image, threshold=0)
    torch.testing.assert_close(detections.scores.cpu(), expected.scores, rtol=0, atol=1e-3)
    torch.testing.assert_close(detections.boxes.cpu(), expected.boxes, rtol=0, atol=0.1)


def test_transparent_images_get_a_white_background(detector: Detector, tmp_path: Path) -> None:
    image = shape_image(7, 64, 64).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((64, 64)))
    image.save(tmp_path / "a.png")
    by_path = detector.predict(tmp_path / "a.png", threshold=0)
    assert torch.equal(by_path.boxes, detector.predict(image, threshold=0).boxes)
    assert by_path.image is not None
    assert min(by_path.image.getpixel((5, 0))) > 250  # type: ignore[arg-type]


def test_repr_is_one_line(detector: Detector) -> None:
    assert repr(detector) == (
        "Detector(TorchEngine(device='cpu', precision='float32'), 3 classes: circle, square, star, image_size=64)"
    )
