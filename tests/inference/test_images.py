"""Images, classes and categories that `Detector.predict` takes; anything else is refused with one sentence."""

import io
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from detrkit import ConfigError, DatasetError, Detector, build_model
from detrkit.data.categories import Categories
from detrkit.inference.images import own_copy, read_image_input

PIXELS = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
GRAY = np.repeat(PIXELS[..., :1], 3, axis=2)
IMAGE = Image.fromarray(PIXELS)


def encoded(format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    IMAGE.save(buffer, format)
    return buffer.getvalue()


def array_file() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, PIXELS)
    return buffer.getvalue()


class Response:
    """An HTTP response, which can be read once and not rewound."""

    def read(self, size: int = -1, /) -> bytes:
        return encoded()


def at_end() -> io.BytesIO:
    file = io.BytesIO()
    file.write(encoded())
    return file


SAME: dict[str, Any] = {
    "bytes": encoded(),
    "bytearray": bytearray(encoded()),
    "memoryview": memoryview(encoded()),
    "BytesIO": io.BytesIO(encoded()),
    "BytesIO at its end": at_end(),
    "a response": Response(),
    "bytes of a .npy file": array_file(),
    "bytes of a BMP": encoded("BMP"),
    "an array": PIXELS,
    "in Fortran order": np.asfortranarray(PIXELS),
    "a read-only view": np.broadcast_to(PIXELS, PIXELS.shape),
    "a view of a larger array": np.pad(PIXELS, ((2, 2), (3, 3), (0, 0)))[2:-2, 3:-3],
    "a reversed view": np.ascontiguousarray(PIXELS[:, ::-1])[:, ::-1],
    "channels first": PIXELS.transpose(2, 0, 1),
    "with opaque alpha": np.dstack([PIXELS, np.full((6, 8), 255, np.uint8)]),
    "16 bits": PIXELS.astype(np.uint16) * 256,
    "16 bits of the other byte order": (PIXELS.astype(np.uint16) * 256).astype(">u2"),
    "floats from 0 to 1": PIXELS / 255,
    "float32": (PIXELS / 255).astype(np.float32),
    "a tensor": torch.from_numpy(PIXELS).permute(2, 0, 1),
    "a contiguous tensor": torch.from_numpy(PIXELS).permute(2, 0, 1).contiguous(),
    "a tensor with channels last": torch.from_numpy(PIXELS),
    "a float tensor": torch.from_numpy(PIXELS).permute(2, 0, 1) / 255,
    "a tensor that requires gradients": (torch.from_numpy(PIXELS).permute(2, 0, 1) / 255).requires_grad_(),
    "a Pillow image": IMAGE,
    "RGBA": IMAGE.convert("RGBA"),
    "RGBX": IMAGE.convert("RGBX"),
    "premultiplied": IMAGE.convert("RGBA").convert("RGBa"),
}


@pytest.mark.parametrize("name", SAME)
def test_images_of_every_kind_have_the_same_pixels(name: str) -> None:
    pixels = read_image_input(SAME[name], 3)
    assert pixels.shape == (3, 6, 8)
    assert torch.equal(pixels, torch.from_numpy(PIXELS).permute(2, 0, 1))


@pytest.mark.parametrize(
    "gray", [GRAY[..., 0], GRAY[..., :1], GRAY[None, ..., 0], torch.from_numpy(GRAY[..., 0].copy()), GRAY[..., 0] / 255]
)
def test_gray_images_are_read_as_gray(gray: Any) -> None:
    assert torch.equal(read_image_input(gray, 3), torch.from_numpy(GRAY).permute(2, 0, 1))


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "LA", "PA", "RGBX", "RGBa", "La", "I;16"]
)
def test_pillow_images_of_every_mode_are_read(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 256)
    elif mode in ("PA", "La"):
        image = IMAGE.convert("LA").convert(mode)
    else:
        image = IMAGE.convert("RGBA").convert(mode) if mode == "RGBa" else IMAGE.convert(mode)
    assert image.mode == mode
    assert read_image_input(image, 3).shape == (3, 6, 8)
    assert read_image_input(image, 1).shape == (1, 6, 8)


def test_paths_of_every_kind_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    IMAGE.save(path)

    class Location:
        def __fspath__(self) -> str:
            return str(path)

    with path.open("rb") as file, Image.open(path) as opened:
        for image in (path, str(path), np.str_(path), Location(), file, opened):
            assert torch.equal(read_image_input(image, 3), torch.from_numpy(PIXELS).permute(2, 0, 1))
        assert not file.closed


def closed_file() -> io.BytesIO:
    file = io.BytesIO(encoded())
    file.close()
    return file


def closed_image() -> Image.Image:
    opened = Image.open(io.BytesIO(encoded()))
    opened.close()
    return opened


REFUSED: dict[str, tuple[Any, str]] = {
    "None": (None, r"found None, expected a path, the bytes of an image file, an open binary file"),
    "0": (0, r"found 0 \(int\), expected a path"),
    "False": (False, r"found False \(bool\), expected a path"),
    "a float": (0.5, r"found 0.5 \(float\)"),
    "a dict": ({"image": IMAGE}, r"found .*\(dict\)"),
    "a set": ({"a.jpg"}, r"found .*\(set\)"),
    "an object": (types.SimpleNamespace(), r"\(SimpleNamespace\)"),
    "no bytes": (b"", "found no bytes"),
    "other bytes": (b"GIF or not", "cannot be read as an image"),
    "a truncated image": (encoded()[:60], "cannot be read as an image"),
    "a closed file": (closed_file(), "the file cannot be read .*; open it again"),
    "a text file": (io.StringIO("text"), "opened as text .* open it with mode 'rb'"),
    "a closed Pillow image": (closed_image(), "the Pillow image of mode RGB cannot be read"),
    "http": ("https://example.com/a.jpg?x=1", r"found a https URL \(https://example.com/a.jpg\?x=1\), .* download it"),
    "s3 as a Path": (Path("s3://bucket/a.jpg"), "found a s3 URL"),
    "a file URL": ("file:///tmp/a.jpg", "found a file URL"),
    "a data URL": ("data:image/png;base64,AAAA", "found a data URL"),
    "base64": ("iVBORw0KGgo" * 1000, "found text of 11000 characters .* decode base64"),
    "a null byte": ("a\0.jpg", "found text of 6 characters"),
    "an empty path": ("", "found an empty path"),
    "a folder": (".", "is a folder"),
    "a missing file": ("nowhere.jpg", "no such file"),
    "a video": ("clip.mp4", "is a video"),
    "an empty crop": (PIXELS[100:], r"found an image without pixels, of shape \(0, 8, 3\)"),
    "an empty Pillow image": (Image.new("RGB", (0, 10)), "without pixels"),
    "an empty tensor": (torch.zeros(3, 0, 8, dtype=torch.uint8), "without pixels"),
    "integers": (PIXELS.astype(np.int64), "type int64, expected uint8"),
    "a mask": (PIXELS[..., 0] > 0, "type bool, expected uint8"),
    "complex numbers": (PIXELS.astype(complex), "type complex128"),
    "normalised": ((PIXELS / 255 - 0.5) / 0.2, "with values from .* expected uint8, or floats from 0 to 1"),
    "floats up to 255": (PIXELS.astype(np.float32), "with values from 0 to 2[0-9]+"),
    "NaN": (np.full((6, 8, 3), np.nan), "with values that are not finite"),
    "two channels": (PIXELS[..., :2], r"shape \(6, 8, 2\)"),
    "five axes": (np.zeros((1, 1, 6, 8, 3), np.uint8), r"shape \(1, 1, 6, 8, 3\)"),
    "no axes": (np.array(3, np.uint8), r"shape \(\)"),
    "objects": (np.full((6, 8, 3), None), "type object|found None"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_refused_with_one_sentence(name: str, detector: Detector) -> None:
    image, message = REFUSED[name]
    for predict in (detector.predict, detector.attention):
        with pytest.raises(DatasetError, match=message) as raised:
            predict(image)
        assert len(str(raised.value)) < 500


@pytest.mark.parametrize(
    "several",
    [
        lambda: [PIXELS, PIXELS],
        lambda: (PIXELS, IMAGE),
        lambda: iter([PIXELS, PIXELS]),
        lambda: (one for one in (PIXELS, encoded())),
        lambda: map(np.asarray, [IMAGE, IMAGE]),
        lambda: np.stack([PIXELS, PIXELS]),
        lambda: torch.from_numpy(np.stack([PIXELS, PIXELS])).permute(0, 3, 1, 2),
        lambda: {1: PIXELS, 2: PIXELS}.values(),
    ],
)
def test_several_images_come_in_any_iterable(several: Callable[[], Any], detector: Detector) -> None:
    expected = detector.predict(PIXELS, 0.0)
    found = detector.predict(several(), 0.0)
    assert len(found) == 2
    for one in found:
        torch.testing.assert_close(one.scores, expected.scores, rtol=0, atol=1e-5)
    assert [len(one) for one in detector.stream(several(), 0.0)] == [len(expected)] * 2


@pytest.mark.parametrize(
    "nothing", [lambda: [], lambda: iter([]), lambda: (), lambda: np.zeros((0, 6, 8, 3), np.uint8)]
)
def test_no_images_have_no_detections(nothing: Callable[[], Any], detector: Detector) -> None:
    assert detector.predict(nothing()) == []
    assert list(detector.stream(nothing())) == []


def test_the_image_at_fault_is_named_by_its_position(detector: Detector) -> None:
    with pytest.raises(DatasetError, match=r"images\[1\]: found None"):
        detector.predict([PIXELS, None])


@pytest.mark.parametrize(
    "wrong", [None, b"x", 3, PIXELS[:0], "nowhere.jpg", io.StringIO("text"), [PIXELS], closed_file()]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_after_what_is_no_image(wrong: Any, workers: int, detector: Detector) -> None:
    faults: list[tuple[Any, DatasetError]] = []
    given = [PIXELS, wrong, IMAGE, wrong]
    results = list(detector.stream(given, 0.0, workers=workers, on_error=lambda *fault: faults.append(fault)))
    assert len(results) == 2
    assert [image is wrong for image, _ in faults] == [True, True]
    with pytest.raises(DatasetError):
        list(detector.stream(given, workers=workers))


def test_a_stream_reads_each_frame_before_its_source_goes_on(detector: Detector) -> None:
    """Cameras fill one array again and again; Pillow's iterator yields one object; files are closed behind the reader."""
    others = [np.full_like(PIXELS, value) for value in (0, 90, 180, 250)]

    def reused() -> Iterator[np.ndarray]:
        frame = np.empty_like(PIXELS)
        for other in others:
            frame[:] = other
            yield frame
        frame[:] = 7

    def files() -> Iterator[io.BytesIO]:
        for other in others:
            with io.BytesIO() as file:
                Image.fromarray(other).save(file, "PNG")
                yield file

    animation = io.BytesIO()
    first, *rest = (Image.fromarray(other) for other in others)
    first.save(animation, "TIFF", save_all=True, append_images=rest)
    for source in (reused(), files(), ImageSequence.Iterator(Image.open(animation))):
        found = [np.asarray(one.image)[0, 0, 0] for one in detector.stream(source, workers=2, batch_size=2)]
        assert found == [0, 90, 180, 250]
    kept = PIXELS.copy()
    detections = detector.predict(kept)
    kept[:] = 0
    assert np.array_equal(np.asarray(detections.image), PIXELS)
    assert own_copy("a.jpg") == "a.jpg"


def test_a_single_image_can_be_streamed(detector: Detector) -> None:
    assert len(list(detector.stream(PIXELS))) == 1
    assert len(list(detector.stream(PIXELS, tiling=64))) == 1
    with pytest.raises(DatasetError, match="images: found 3"):
        detector.stream(3)


@pytest.mark.parametrize("wrong", [None, "0.5", "high", True, [0.5], float("nan"), 1.01, np.float32(2)])
def test_wrong_thresholds_are_refused(wrong: Any, detector: Detector) -> None:
    with pytest.raises(ConfigError, match="is not a score; use a number between 0 and 1, or 'auto'"):
        detector.predict(PIXELS, wrong)


@pytest.mark.parametrize("threshold", [np.float32(0.25), np.float64(0.25), np.array(0.25).item(), 0, 1, np.int64(0)])
def test_thresholds_of_numpy_are_taken(threshold: Any, detector: Detector) -> None:
    assert (detector.predict(PIXELS, threshold).scores >= float(threshold)).all()


CATEGORIES = Categories((3, 7, 18), ("cat", "dog, large", "cat"))


@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        (None, None),
        ("cat", {0, 2}),
        ("dog, large", {1}),
        (["cat"], {0, 2}),
        (("dog, large", 3), {0, 1}),
        (iter(["cat"]), {0, 2}),
        ({"cat"}, {0, 2}),
        ([18, 7], {1, 2}),
        (7, {1}),
        (np.array([7]), {1}),
        (np.array(["cat"]), {0, 2}),
        (np.int64(3), {0}),
        (torch.tensor([3, 7]).tolist(), {0, 1}),
    ],
)
def test_classes_are_selected_by_names_and_ids(classes: Any, labels: set[int] | None) -> None:
    detector = Detector.from_model(build_model("detr-tiny", num_classes=3), CATEGORIES, image_size=64)
    assert detector.resolve_classes(classes) == labels


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("cta", "classes='cta' is not a class of this model; did you mean 'cat'"),
        ("cat,dog", "classes='dog' is not a class"),
        (0, "classes=0 is not a class of this model; its category ids are"),
        (True, "selects no classes"),
        ({"cat": 3}, "selects no classes"),
        (b"cat", "selects no classes"),
        (1.5, "selects no classes"),
        ([None], "is not a class of this model"),
        ([], "selects no class; omit it"),
        ("", "selects no class; omit it"),
        (iter([]), "selects no class; omit it"),
    ],
)
def test_unknown_classes_are_refused(classes: Any, message: str) -> None:
    detector = Detector.from_model(build_model("detr-tiny", num_classes=3), CATEGORIES, image_size=64)
    for run in (detector.predict, detector.stream):
        given = iter([]) if isinstance(classes, Iterator) else classes
        with pytest.raises(ConfigError, match=message):
            run([], classes=given)


def test_predict_returns_the_selected_classes_alone(detector: Detector) -> None:
    whole = detector.predict(PIXELS, 0.0)
    name = whole.class_names[0]
    some = detector.predict(PIXELS, 0.0, classes=name)
    assert set(some.class_names) == {name}
    assert len(some) == whole.class_names.count(name)
    assert torch.equal(some.scores, whole.filter(classes=name).scores)


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        ({0: "cat", 1: "dog"}, {0: "cat", 1: "dog"}),
        ({1: "dog", 0: "cat"}, {0: "cat", 1: "dog"}),
        ({"0": "cat", "1": "dog"}, {0: "cat", 1: "dog"}),
        ({18: "dog", 5: "cat"}, {5: "cat", 18: "dog"}),
        ({"cat": 0, "dog": 1}, {0: "cat", 1: "dog"}),
        ({1: "dog"}, {0: "class 0", 1: "dog"}),
        (types.MappingProxyType({0: "cat", 1: "dog"}), {0: "cat", 1: "dog"}),
        (["cat", "dog"], {0: "cat", 1: "dog"}),
        (iter(["cat", "dog"]), {0: "cat", 1: "dog"}),
        (np.array(["cat", "dog"]), {0: "cat", 1: "dog"}),
        ({0: "cat", 1: "dog"}.values(), {0: "cat", 1: "dog"}),
        ([{"id": 4, "name": "cat"}, {"id": 2, "name": "dog"}], {4: "cat", 2: "dog"}),
        (None, {0: "class 0", 1: "class 1"}),
    ],
)
def test_categories_are_taken_as_people_write_them(categories: Any, expected: dict[int, str]) -> None:
    detector = Detector.from_model(build_model("detr-tiny", num_classes=2), categories, image_size=64)
    assert dict(zip(detector.categories.ids, detector.categories.names, strict=True)) == expected


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ("ab", "categories='ab' are not the names of classes; expected one name per class in a list, or a dict"),
        ({"cat", "dog"}, "are not the names of classes"),
        ([0, 1], r"found 0 \(int\), expected one name per class"),
        (["cat", None], r"found None \(NoneType\)"),
        ({0: "cat", 1: None}, "found the entry 1: None"),
        ({0: "cat", 0.5: "dog"}, "found the entry 0.5: 'dog'"),
        ({True: "cat", 2: "dog"}, "found the entry True: 'cat'"),
        ({0: "cat", "0": "dog"}, "found the entry '0': 'dog'"),
        ({0: "cat", 7: "dog", 8: "bird"}, "found 3 categories for a model with 2 classes"),
        ({7: "dog"}, "found 1 categories"),
        (["cat"], "found 1 categories"),
        ([], "found 0 categories"),
        ([{"id": 1}, {"id": 2}], "expected categories with 'id' and 'name'"),
    ],
)
def test_categories_of_other_kinds_are_refused(categories: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Detector.from_model(build_model("detr-tiny", num_classes=2), categories)
