"""The detector: every kind of photo, the same result alone and in a batch, and refusals in one sentence."""

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
from detrkit.evaluation.inference_loop import collect
from detrkit.inference.images import read_image_input


def photo(seed: int, width: int, height: int) -> Image.Image:
    pixels = SyntheticShapes(1, seed, SyntheticStyle(size=96))[0].image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize((width, height))


def test_alone_and_in_a_batch(detector: Detector) -> None:
    photos = [photo(0, 120, 80), photo(1, 64, 96), photo(2, 200, 50)]
    together = detector.predict(photos, threshold=0)
    for one, batched in zip(photos, together, strict=True):
        alone = detector.predict(one, threshold=0)
        torch.testing.assert_close(alone.scores, batched.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(alone.boxes, batched.boxes, rtol=0, atol=1e-4 * max(one.size))
        assert torch.equal(alone.labels, batched.labels)


def test_alone_and_in_a_batch_with_a_backbone_that_lets_padding_in() -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    changes = {"backbone": "timm:tf_efficientnet_lite0", "num_classes": 3, "num_queries": 5, "decoder_layers": 1}
    detector = Detector.from_model(build_model("detrkit-s", **changes), image_size=96)
    photos = [photo(0, 120, 80), photo(1, 64, 96), photo(2, 120, 80), photo(3, 200, 50)]
    assert detector.max_padding == 0
    together = detector.predict(photos, threshold=0)
    for one, batched in zip(photos, together, strict=True):
        alone = detector.predict(one, threshold=0)
        torch.testing.assert_close(alone.scores, batched.scores, rtol=0, atol=1e-6)
        torch.testing.assert_close(alone.boxes, batched.boxes, rtol=0, atol=1e-3)
    batch = collate([detector.preprocess(read_image_input(one, 3)) for one in photos])
    categories = detector.categories
    found = [
        collect(detector.model, batches, categories)[0] for batches in ([batch], batch.one_by_one(), batch.unpadded())
    ]
    for other in found[1:]:
        assert sorted(other.scores.tolist()) == pytest.approx(sorted(found[0].scores.tolist()), abs=1e-6)


def test_every_kind_of_photo_gives_the_same(detector: Detector, tmp_path: Path) -> None:
    picture = photo(3, 90, 70)
    path = tmp_path / "photo.png"
    picture.save(path)
    pixels = np.asarray(picture)
    kinds = [
        path,
        str(path),
        picture,
        pixels,
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        picture.convert("RGBA"),
    ]
    expected = detector.predict(path, threshold=0)
    assert len(expected) == detector.model.config.num_queries
    for kind in kinds:
        found = detector.predict(kind, threshold=0)
        assert torch.equal(found.boxes, expected.boxes)
        assert torch.equal(found.scores, expected.scores)


def test_boxes_are_in_pixels_of_the_photo_as_people_see_it(detector: Detector, tmp_path: Path) -> None:
    """A photo stored sideways (EXIF orientation 6) has the boxes of the upright one."""
    upright = photo(4, 60, 100)
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "sideways.png", exif=exif)
    expected = detector.predict(tmp_path / "upright.png", threshold=0)
    assert torch.equal(detector.predict(tmp_path / "sideways.png", threshold=0).boxes, expected.boxes)


def test_threshold_and_order(detector: Detector) -> None:
    everything = detector.predict(photo(5, 80, 80), threshold=0)
    assert (everything.scores.diff() <= 0).all()
    middle = float(everything.scores.median())
    some = detector.predict(photo(5, 80, 80), threshold=middle)
    assert 0 < len(some) < len(everything)
    assert (some.scores >= middle).all()
    assert len(detector.predict(photo(5, 80, 80), threshold=1.0)) == 0
    assert detector.predict([]) == []


def test_category_ids_are_those_of_the_dataset() -> None:
    torch.manual_seed(0)
    categories = Categories(ids=(18, 44), names=("dog", "bottle"))
    detector = Detector.from_model(build_model("detr-tiny", num_classes=2), categories, image_size=64)
    found = detector.predict(photo(0, 64, 64), threshold=0)
    assert set(found.category_ids.tolist()) <= {18, 44}
    assert {18: "dog", 44: "bottle"}[int(found.category_ids[0])] == found.class_names[0]
    assert found.category_ids.tolist() == [(18, 44)[label] for label in found.labels.tolist()]
    json.dumps(found.to_json())
    assert {entry["category_id"] for entry in found.to_coco(5)} <= {18, 44}


def test_refusals(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "no_image.jpg").write_text("hello")
    with pytest.raises(DatasetError, match=r"no_image\.jpg"):
        detector.predict(tmp_path / "no_image.jpg")
    with pytest.raises(DatasetError, match=r"missing\.jpg"):
        detector.predict(tmp_path / "missing.jpg")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        detector.predict(photo(0, 64, 64), threshold=50)
    with pytest.raises(DatasetError, match=r"expected uint8, \(H, W, 3\)"):
        detector.predict(np.zeros((8, 8), np.float32))
    with pytest.raises(ConfigError, match="2 categories and a model with 3 classes"):
        Detector.from_model(detector.model, ["a", "b"])


@pytest.mark.gpu
def test_on_a_gpu(detector: Detector) -> None:
    picture = photo(6, 96, 64)
    expected = detector.predict(picture, threshold=0)
    torch.manual_seed(0)
    there = Detector.from_model(build_model("detr-tiny", num_classes=3), detector.categories, 64, device="cuda")
    there.model.load_state_dict(detector.model.state_dict())
    found = there.predict(picture, threshold=0)
    torch.testing.assert_close(found.scores.cpu(), expected.scores, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.boxes.cpu(), expected.boxes, rtol=0, atol=0.1)


def test_a_transparent_photo_has_white_behind_it_by_path_and_in_memory(detector: Detector, tmp_path: Path) -> None:
    picture = photo(7, 64, 64).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize((64, 64)))
    picture.save(tmp_path / "a.png")
    by_path = detector.predict(tmp_path / "a.png", threshold=0)
    assert torch.equal(by_path.boxes, detector.predict(picture, threshold=0).boxes)
    assert by_path.image is not None
    assert min(by_path.image.getpixel((5, 0))) > 250  # type: ignore[arg-type]
