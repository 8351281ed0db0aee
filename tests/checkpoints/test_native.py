"""detrkit's checkpoint format: exact round trip, atomic writes, and one-sentence errors for damaged files."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from detrkit import build_model
from detrkit.checkpoints import native
from detrkit.checkpoints.files import read_safetensors
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import (
    Checkpoint,
    Preprocessing,
    Thresholds,
    save_checkpoint,
    store_thresholds,
)
from detrkit.data.categories import Categories
from detrkit.errors import CheckpointError, ConfigError
from detrkit.models.detr import DETR

CATEGORIES = Categories(ids=(7, 3), names=("blood cell", "plättchen"))


def tiny() -> DETR:
    torch.manual_seed(0)
    return build_model("detr-tiny", num_classes=2, encoder_layers=1, decoder_layers=1)


def checkpoint(model: DETR) -> Checkpoint:
    return Checkpoint(model.state_dict(), model.config, CATEGORIES, Preprocessing(image_size=96))


def test_checkpoint_is_read_back_exactly(tmp_path: Path) -> None:
    model = tiny()
    save_checkpoint(tmp_path / "a.safetensors", checkpoint(model))
    read = load_checkpoint(tmp_path / "a.safetensors")
    assert read.config == model.config
    assert read.categories == CATEGORIES
    assert read.preprocessing.image_size == 96
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, actual = model.eval()(images), read.build().eval()(images)
    assert torch.equal(expected.boxes, actual.boxes)
    assert torch.equal(expected.class_logits, actual.class_logits)


def test_run_folder_loads_its_best_checkpoint(tmp_path: Path) -> None:
    best, last = tiny(), tiny()
    with torch.no_grad():
        best.query_source.weight.fill_(0.5)
    for part, model in (("best", best), ("last", last)):
        (tmp_path / part).mkdir()
        save_checkpoint(tmp_path / part / "model.safetensors", checkpoint(model))
    assert (load_checkpoint(tmp_path).build().query_source.weight == 0.5).all()


def test_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, checkpoint(tiny()))
    before = path.read_bytes()

    def fail(_tensors: object, place: Path, **_options: object) -> None:
        place.write_bytes(before[:100])
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(ConfigError, match=r"a\.safetensors: cannot be written \(I/O error: No space.*free disk space"):
        save_checkpoint(path, checkpoint(tiny()))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_full_disk_is_reported_in_one_sentence(tmp_path: Path) -> None:
    """A real one: the safetensors writer raises errors of its own."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, checkpoint(tiny()))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
        with pytest.raises(ConfigError, match=r"a\.safetensors: cannot be written"):
            save_checkpoint(path, checkpoint(tiny()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "malformed"),
        ("[]", "malformed"),
        ('{"format": "detrkit-9"}', "detrkit-9"),
        ('{"format": "detrkit-1", "model": {}, "categories": [{"id": 1}]}', "malformed"),
        (
            json.dumps(
                {
                    "format": "detrkit-1",
                    "model": {"hidden_dim": -4},
                    "categories": [{"id": 1, "name": "a"}],
                    "preprocessing": {},
                }
            ),
            "malformed",
        ),
    ],
)
def test_malformed_header_is_rejected(tmp_path: Path, header: str, message: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"detrkit": header})
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, checkpoint(tiny()))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not readable as safetensors"):
        load_checkpoint(path)


def test_weights_of_another_shape_are_rejected_with_the_first_difference(tmp_path: Path) -> None:
    model = tiny()
    wrong = replace(checkpoint(model), config=model.config.model_copy(update={"num_queries": 7}))
    save_checkpoint(tmp_path / "a.safetensors", wrong)
    with pytest.raises(CheckpointError, match=r"query_source\.weight"):
        load_checkpoint(tmp_path / "a.safetensors").build()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_queries": 99_999}, r"query_source\.weight"),
        ({"num_queries": 10**13}, "malformed"),
        ({"decoder_layers": 90}, "entries missing"),
        ({"num_classes": 3}, "2 categories for 3 classes"),
    ],
)
def test_header_larger_than_the_weights_allocates_no_memory(
    tmp_path: Path, change: dict[str, int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    header = {
        "format": "detrkit-1",
        "model": {**model.config.model_dump(mode="json"), **change},
        "categories": CATEGORIES.to_json(),
        "preprocessing": {},
    }
    save_file(dict(model.state_dict()), tmp_path / "a.safetensors", metadata={"detrkit": json.dumps(header)})

    def build_on_meta_only(config: object) -> DETR:
        assert torch.empty(0).device.type == "meta"
        return original(config)  # type: ignore[arg-type]

    original = native.model_from_config
    monkeypatch.setattr(native, "model_from_config", build_on_meta_only)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "a.safetensors").build()


def test_thresholds_are_stored_and_files_without_them_load(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    before = checkpoint(tiny())
    save_checkpoint(path, before)
    _, header = read_safetensors(path)
    assert header is not None
    assert "thresholds" not in header
    assert load_checkpoint(path).thresholds is None
    thresholds = Thresholds(overall=0.25, per_class={CATEGORIES.ids[0]: 0.75})
    store_thresholds(path, thresholds)
    after = load_checkpoint(path)
    assert after.thresholds == thresholds
    assert thresholds.of(CATEGORIES.ids) == (0.75, *[0.25] * (len(CATEGORIES) - 1))
    assert (after.config, after.categories, after.preprocessing) == (
        before.config,
        before.categories,
        before.preprocessing,
    )
    assert all(torch.equal(after.state[name], tensor) for name, tensor in before.state.items())
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("given", [7, {"overall": 2.0}, {"overall": 0.5, "per_class": {"1": -1}}, {"per_class": {}}])
def test_malformed_thresholds_are_rejected(tmp_path: Path, given: object) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, checkpoint(tiny()))
    state, header = read_safetensors(path)
    save_file(state, path, metadata={"detrkit": json.dumps({**json.loads(header or ""), "thresholds": given})})
    with pytest.raises(CheckpointError, match="malformed"):
        load_checkpoint(path)
