"""Metadata and files of exported networks may be untrusted: they are validated, or rejected in one sentence."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detrkit import Detector
from detrkit.checkpoints.export_formats import is_exported
from detrkit.checkpoints.native import Preprocessing
from detrkit.errors import CheckpointError, ConfigError
from detrkit.inference.engines.exported import ExportedEngine, scores_to_logits
from detrkit.inference.engines.metadata import ExportMetadata
from tests.export.models import metadata_of, noise_batch, small_model

GOOD = metadata_of(small_model(), Preprocessing(image_size=123, padding_invariant=False), "int8", postprocess=True)


def test_metadata_are_read_back() -> None:
    assert ExportMetadata.from_text(GOOD.to_text(), "here") == GOOD


def changed(**changes: object) -> str:
    return json.dumps({**json.loads(GOOD.to_text()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no metadata by detrkit"),
        ("", "malformed"),
        ("[]", "malformed"),
        ("{", "malformed"),
        ("[" * 100_000, "malformed"),
        (changed(format="detrkit-export-9"), "update detrkit"),
        (changed(surprise=1), "surprise"),
        (changed(precision="int1"), "precision"),
        (changed(categories=[{"id": 1, "name": "a"}]), "1 categories for 3 classes"),
        (changed(categories=[{"id": 1, "name": "a"}] * 3), "occurs twice"),
        (changed(categories=[{"id": "one", "name": "a"}] * 3), "categories.0.id"),
        (changed(preprocessing={"image_size": 10**9}), "image_size"),
        (changed(model={"num_queries": 10**9}), "num_queries"),
        (" " * 10_000_001, "longer than"),
    ],
    ids=str,
)
def test_malformed_metadata_are_rejected_in_one_sentence(text: str | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=r"^here: ") as error:
        ExportMetadata.from_text(text, "here")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


class FixedSession:
    def __init__(self, outputs: Mapping[str, Tensor]) -> None:
        self.outputs = outputs

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return self.outputs


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "'scores' has shape None"),
        ({"scores": torch.zeros(1, 9), "labels": torch.zeros(1, 10), "boxes": torch.zeros(1, 10, 4)}, "(1, 9)"),
        ({"scores": torch.zeros(1, 10), "labels": torch.full((1, 10), 7), "boxes": torch.zeros(1, 10, 4)}, "0 .. 2"),
    ],
    ids=["nothing", "too few queries", "unknown labels"],
)
def test_network_with_unexpected_outputs_is_rejected(outputs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        ExportedEngine(FixedSession(outputs), GOOD, "here").predict(noise_batch([(64, 64)]))
    assert message in str(error.value)


def test_scores_and_labels_are_converted_to_equivalent_logits() -> None:
    scores, labels = torch.tensor([[0.25, 0.0, 1.0]]), torch.tensor([[1, 0, 2]])
    probabilities = scores_to_logits(scores, labels, 3).softmax(-1)
    torch.testing.assert_close(probabilities, torch.tensor([[[0, 0.25, 0, 0.75], [0, 0, 0, 1], [0, 0, 1, 0.0]]]))


@pytest.mark.parametrize("name", ["cut.onnx", "text.onnx", "cut.pt2", "text.pt2"])
def test_broken_file_is_rejected_in_one_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"hello" if name.startswith("text") else b"PK\x03\x04\x08\x01")
    with pytest.raises(CheckpointError, match=f"{name}: not readable as") as error:
        Detector.load(path)
    assert "\n" not in str(error.value)


def test_broken_folder_is_rejected_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text("<net")
    assert is_exported(tmp_path)
    with pytest.raises(CheckpointError, match=r"detrkit\.json: not readable"):
        Detector.load(tmp_path)
    (tmp_path / "detrkit.json").write_text(GOOD.to_text())
    with pytest.raises(CheckpointError, match=r"model\.bin: missing"):
        Detector.load(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="not readable as OpenVINO") as error:
        Detector.load(tmp_path)
    assert "\n" not in str(error.value)


def test_exported_file_on_a_gpu_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ConfigError, match="predict on the CPU"):
        Detector.load(tmp_path / "model.onnx", device="cuda")
