"""Settings that come with weights build nothing large: they are bounded, and compared with the weights first."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from detrkit.checkpoints.conversion.labels import read_categories
from detrkit.checkpoints.conversion.preprocessor import preprocessing_from_settings, read_preprocessing
from detrkit.checkpoints.files import HEADER_KEY, read_safetensors
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Preprocessing, save_checkpoint
from detrkit.errors import CheckpointError
from tests.checkpoints.models import checkpoint_of, small_model

HUGE = 10**12


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": 4097},
        {"image_size": HUGE},
        {"image_size": 4096, "max_size": 9000},
        {"resize": "stretch", "size": (9000, 9000)},
        {"resize": "fit", "size": (10_001, 8)},
    ],
    ids=str,
)
def test_images_are_not_resized_to_more_than_the_limit(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Preprocessing(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": 4096},
        {"image_size": 800, "max_size": 1333},
        {"image_size": 800, "max_size": 10_000},
        {"resize": "stretch", "size": (4096, 4096), "image_size": 4096},
    ],
    ids=str,
)
def test_sizes_in_use_are_within_the_limit(settings: dict[str, Any]) -> None:
    Preprocessing(**settings)


@pytest.mark.parametrize(
    "size",
    [
        {"shortest_edge": 5000, "longest_edge": 6000},
        {"shortest_edge": 5000, "longest_edge": 100},
        {"height": 9000, "width": 9000},
        {"max_height": 9000, "max_width": 4000},
        {"longest_edge": 8000},
        HUGE,
        {"height": HUGE, "width": 1},
        {"height": 10**400, "width": 1},
    ],
    ids=lambda size: str(size)[:40],
)
def test_size_of_an_image_processor_is_bounded(size: object) -> None:
    with pytest.raises(CheckpointError, match=r"here: size is .*; expected ") as error:
        preprocessing_from_settings({"size": size}, "here")
    assert len(str(error.value)) < 300


def header_with(path: Path, section: str, **changes: object) -> Path:
    """Write a checkpoint with other settings than its weights'."""
    from safetensors.torch import save_file

    save_checkpoint(path, checkpoint_of(small_model()))
    tensors, header = read_safetensors(path)
    content = json.loads(header or "")
    content[section] |= changes
    save_file(tensors, path, {HEADER_KEY: json.dumps(content)})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_queries": 100_000}, "has shape .* the model expects"),
        ({"num_queries": HUGE}, "its description is malformed"),
        ({"hidden_dim": 16_384}, "has shape|does not fit"),
        ({"dim_feedforward": 100_000}, "has shape"),
        ({"encoder_layers": 100, "decoder_layers": 100}, "entries for 200 layers|entries missing"),
        ({"decoder_layers": HUGE}, "its description is malformed"),
        ({"num_classes": 100_000}, "has 3 categories for 100000 classes"),
        ({"max_position_embeddings": 10_000, "position_embedding": "learned"}, "entries missing"),
    ],
    ids=str,
)
def test_model_settings_are_compared_with_the_weights(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = header_with(tmp_path / "a.safetensors", "model", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path).build()


def test_more_layers_than_entries_are_refused_before_any_module_is_built(tmp_path: Path) -> None:
    path = header_with(tmp_path / "a.safetensors", "model", encoder_layers=100, decoder_layers=100)
    checkpoint = load_checkpoint(path)
    few = dict(list(checkpoint.state.items())[:150])
    with pytest.raises(CheckpointError, match="has 150 entries for 200 layers"):
        type(checkpoint)(few, checkpoint.config, checkpoint.categories, checkpoint.preprocessing).build()


@pytest.mark.parametrize("changes", [{"image_size": 10_000}, {"resize": "stretch", "size": [10_000, 10_000]}], ids=str)
def test_preprocessing_of_a_header_is_bounded(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="its description is malformed") as error:
        load_checkpoint(header_with(tmp_path / "a.safetensors", "preprocessing", **changes))
    assert "\n" not in str(error.value)


def test_names_of_many_classes_are_read_in_linear_time() -> None:
    content = {"id2label": {str(number): f"class {number % 7}" for number in range(100_000)}}
    categories, notes = read_categories(content, 100_000, "here")
    assert categories is not None
    assert len(categories) == 100_000
    assert len(notes) == 1


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_large_json_file_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detrkit.checkpoints.json_files.MAX_JSON", 100)
    (tmp_path / name).write_text(json.dumps({"size": 64, "comment": "x" * 100}))
    with pytest.raises(CheckpointError, match=r"has \d+ bytes, expected at most 100"):
        read_preprocessing(tmp_path)
