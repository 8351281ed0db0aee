"""A new export format is one module and one entry of `EXPORT_FORMATS`."""

from pathlib import Path

import numpy as np
import pytest

import detrkit
from detrkit.checkpoints.export_formats import EXPORT_FORMATS, ExportFormat, is_exported
from detrkit.checkpoints.native import Checkpoint, save_checkpoint
from detrkit.errors import CheckpointError
from detrkit.models.detr import DETR
from tests.export.models import CATEGORIES, PREPROCESSING

TOY = ExportFormat(
    "one .npz file", ".npz", "model.npz", "tests.export.toy_format:write_toy", "tests.export.toy_format:read_toy"
)


@pytest.mark.slow
def test_format_from_outside_is_exported_verified_and_loaded(
    model: DETR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXPORT_FORMATS, "toy", TOY)
    save_checkpoint(
        tmp_path / "model.safetensors", Checkpoint(model.state_dict(), model.config, CATEGORIES, PREPROCESSING)
    )
    result = detrkit.export(tmp_path / "model.safetensors", "toy", output=tmp_path / "a.npz", max_images=1)
    assert result.max_difference < 1e-4
    assert is_exported(tmp_path / "a.npz")
    image = np.random.default_rng(0).integers(0, 255, (80, 90, 3), np.uint8)
    exported, original = (detrkit.Detector.load(tmp_path / name) for name in ("a.npz", "model.safetensors"))
    np.testing.assert_allclose(exported.predict(image, 0.0).scores, original.predict(image, 0.0).scores, atol=1e-4)
    with pytest.raises(CheckpointError, match="is an exported network"):
        detrkit.convert(tmp_path / "a.npz", tmp_path / "b.safetensors")
