"""Preprocessors of Hugging Face: the pixels of transformers, or one sentence that names the setting."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detrkit.checkpoints.conversion.preprocessor import (
    preprocessing_from_settings,
    preprocessor_settings,
    read_preprocessing,
)
from detrkit.checkpoints.native import Preprocessing
from detrkit.data.batching import IMAGENET_MEAN, IMAGENET_STD, collate
from detrkit.data.dataset import unannotated
from detrkit.data.images import image_to_tensor
from detrkit.errors import CheckpointError

transformers = pytest.importorskip("transformers")
CLASSES = ("DetrImageProcessor", "ConditionalDetrImageProcessor", "DeformableDetrImageProcessor")


def random_image(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels_of_transformers(folder: Path, image: Image.Image) -> torch.Tensor:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    return processor(images=image, return_tensors="pt")["pixel_values"].float()


def pixels_of_detrkit(preprocessing: Preprocessing, image: Image.Image) -> torch.Tensor:
    return collate([preprocessing.transform()(unannotated(image_to_tensor(image)))]).images


def write(folder: Path, content: dict[str, Any], name: str = "preprocessor_config.json") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


def check_same_pixels(folder: Path, image: Image.Image) -> None:
    actual = pixels_of_detrkit(read_preprocessing(folder), image)
    expected = pixels_of_transformers(folder, image)
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= 1e-5


def to_float32(values: tuple[float, ...]) -> list[float]:
    return [float(np.float32(value)) for value in values]


@pytest.mark.parametrize(
    "content",
    [
        {"size": {"shortest_edge": 64, "longest_edge": 106}},
        {"size": {"shortest_edge": 64, "longest_edge": 70}},
        {"size": {"height": 40, "width": 72}},
        {"size": {"max_height": 50, "max_width": 48}},
        {"size": [40, 72]},
        {"size": 64, "max_size": 70, "feature_extractor_type": "DetrFeatureExtractor"},
        {"size": 64},
        {"do_resize": False},
        {"size": 64, "do_rescale": False},
        {"size": 64, "do_normalize": False},
        {"size": 64, "do_normalize": False, "rescale_factor": 1 / 127.5},
        {"size": 64, "do_rescale": False, "do_normalize": False},
        {"size": 64, "rescale_factor": 1 / 127.5},
        {"size": 64, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5]},
        {"size": 64, "image_mean": 0.5, "image_std": 0.25},
        {"size": 64, "image_mean": to_float32(IMAGENET_MEAN), "image_std": to_float32(IMAGENET_STD)},
        {"size": 64, "resample": 0},
        {"size": 64, "resample": 1},
        {"size": 64, "resample": 3},
        {"size": 64, "do_pad": False, "pad_size": {"height": 9, "width": 9}},
        {"size": 64, "do_convert_annotations": False, "format": "coco_panoptic", "do_pad": None},
    ],
    ids=str,
)
def test_pixels_are_those_of_transformers(content: dict[str, Any], tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"image_processor_type": "DetrImageProcessor", **content})
    check_same_pixels(folder, random_image(45, 60))


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the settings of an image processor, each left out half of the time."""
    side = st.integers(20, 90)
    sizes = st.one_of(
        side,
        st.fixed_dictionaries({"shortest_edge": side, "longest_edge": side}),
        st.fixed_dictionaries({"height": side, "width": side}),
        st.fixed_dictionaries({"max_height": side, "max_width": side}),
    )
    number = st.floats(0.05, 2, allow_subnormal=False)
    channels = st.one_of(number, st.lists(number, min_size=3, max_size=3))
    optional = {
        "image_processor_type": st.sampled_from([name + kind for name in CLASSES for kind in ("", "Fast")]),
        "max_size": side,
        "do_resize": st.booleans(),
        "do_rescale": st.booleans(),
        "do_normalize": st.booleans(),
        "do_pad": st.booleans(),
        "do_convert_annotations": st.booleans(),
        "do_convert_rgb": st.booleans(),
        "rescale_factor": st.sampled_from([1 / 255, 1 / 127.5, 1.0, float(np.float32(1 / 255)), -0.5, 0.01]),
        "resample": st.integers(0, 3),
        "image_mean": channels,
        "image_std": channels,
        "format": st.sampled_from(["coco_detection", "coco_panoptic"]),
    }
    # without a size, images would be enlarged to 800 pixels
    return draw(st.fixed_dictionaries({"size": sizes}, optional=optional))


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=configurations(), height=st.integers(8, 90), width=st.integers(8, 90))
def test_pixels_of_random_configurations_are_those_of_transformers(
    content: dict[str, Any], height: int, width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = write(tmp_path_factory.mktemp("a"), {"image_processor_type": CLASSES[0], **content})
    check_same_pixels(folder, random_image(height, width))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", {}),
        ("size", {"shortest_edge": 64}),
        ("size", {"shortest_edge": 64, "height": 3}),
        ("size", {"min_pixels": 100, "max_pixels": 1000}),
        ("size", {"height": 0, "width": 3}),
        ("size", "64"),
        ("resample", 4),
        ("resample", 5),
        ("resample", "bicubic"),
        ("pad_size", {"height": 1000, "width": 1000}),
        ("do_center_crop", True),
        ("rescale_factor", 0),
        ("rescale_factor", "1/255"),
        ("image_mean", [0.5, 0.5]),
        ("image_std", [0.5, 0.0, 0.5]),
        ("do_resize", "yes"),
        ("image_processor_type", "YolosImageProcessor"),
        ("feature_extractor_type", "ViTFeatureExtractor"),
    ],
    ids=str,
)
def test_setting_that_is_not_supported_is_named(name: str, value: object, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"size": 64, name: value})
    with pytest.raises(CheckpointError, match=rf"preprocessor_config\.json: {name} is .*; expected ") as error:
        read_preprocessing(folder)
    assert "\n" not in str(error.value)


def test_longest_edge_alone_fits_images_into_a_square() -> None:
    preprocessing = preprocessing_from_settings({"size": {"longest_edge": 80}}, "here")
    assert pixels_of_detrkit(preprocessing, random_image(30, 40)).shape[2:] == (60, 80)
    assert pixels_of_detrkit(preprocessing, random_image(200, 100)).shape[2:] == (80, 40)


def test_lengths_that_older_versions_left_empty_are_ignored() -> None:
    size = {"shortest_edge": 64, "longest_edge": 90, "height": None, "width": None, "max_height": None}
    preprocessing = preprocessing_from_settings({"size": size, "crop_size": None, "do_normalize": None}, "here")
    assert (preprocessing.image_size, preprocessing.longest_side, preprocessing.normalize) == (64, 90, True)


def test_processor_config_of_a_combined_processor_wins(tmp_path: Path) -> None:
    write(tmp_path, {"size": 64})
    write(tmp_path, {"image_processor": {"size": {"height": 50, "width": 60}}}, "processor_config.json")
    assert read_preprocessing(tmp_path).size == (50, 60)
    write(tmp_path, {"processor_class": "X"}, "processor_config.json")  # without settings of images
    assert read_preprocessing(tmp_path).image_size == 64


def test_folder_without_the_file_gets_the_published_settings(tmp_path: Path) -> None:
    preprocessing = read_preprocessing(tmp_path)
    assert (preprocessing.image_size, preprocessing.longest_side) == (800, 1333)


@pytest.mark.parametrize("text", ["{", "[]", '"size"', "[" * 100_000])
def test_malformed_file_is_rejected(text: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: "):
        read_preprocessing(tmp_path)


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(image_size=64),
        Preprocessing(image_size=64, max_size=70, interpolation="bicubic", rounding="transformers"),
        Preprocessing(resize="fit", size=(50, 48), image_size=48, scale=1.0),
        Preprocessing(resize="stretch", size=(50, 48), image_size=48, normalize=False, scale=1 / 127.5),
        Preprocessing(resize="none", mean=(0.5,), std=(0.5, 0.25, 0.5)),
    ],
    ids=str,
)
def test_written_settings_give_the_same_pixels_in_transformers(preprocessing: Preprocessing, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", preprocessor_settings(preprocessing, CLASSES[0]))
    image = random_image(45, 60)
    assert torch.allclose(pixels_of_detrkit(preprocessing, image), pixels_of_transformers(folder, image), atol=1e-5)
    read = read_preprocessing(folder)
    assert read == preprocessing.model_copy(update={"rounding": "transformers"})


def test_contradicting_fields_are_rejected() -> None:
    with pytest.raises(ValueError, match="contradict"):
        Preprocessing(resize="fit")
    with pytest.raises(ValueError, match="contradict"):
        Preprocessing(size=(3, 4))
    with pytest.raises(ValueError, match="must not be 0"):
        Preprocessing(std=(0.0,))
