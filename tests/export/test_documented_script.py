"""The script in docs/guides/exporting.md gives detrkit's detections without detrkit."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.checkpoints.native import Checkpoint, save_checkpoint
from tests.export.models import CATEGORIES, PREPROCESSING, small_model

pytest.importorskip("onnxruntime")
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "exporting.md"


def documented_script() -> str:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    [script] = [block for block in blocks if "onnxruntime.InferenceSession" in block]
    assert not re.search(r"\b(torch|detrkit)\b", script)
    return script


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    model = small_model()
    with torch.no_grad():
        model.heads.class_head.bias[:3] += 30  # every query scores above 0.5 for one class or another
    save_checkpoint(
        folder / "model.safetensors", Checkpoint(model.state_dict(), model.config, CATEGORIES, PREPROCESSING)
    )
    detrkit.export(folder / "model.safetensors", "onnx", output=folder / "standalone.onnx", postprocess=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("size", [(128, 96), (97, 131), (300, 80), (64, 64)], ids=str)  # of which one is limited
def test_documented_script_gives_the_detections_of_detrkit(
    size: tuple[int, int], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rough = np.random.default_rng(0).integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
    Image.fromarray(rough).resize(size).save(folder / "photo.jpg")
    monkeypatch.chdir(folder)
    exec(compile(documented_script(), "exporting.md", "exec"), {})
    printed = [re.fullmatch(r"(.+) ([\d.]+) (\[.*\])", line) for line in capsys.readouterr().out.splitlines()]
    detections = detrkit.Detector.load("standalone.onnx").predict("photo.jpg", threshold=0.5)
    assert len(printed) == len(detections) > 0
    # pixels differ by at most one of 255 levels, which moves scores and boxes of this model much less than this
    found = sorted((match[1], float(match[2])) for match in printed if match)
    expected = sorted(zip(detections.class_names, detections.scores.tolist(), strict=True))
    for (name, score), (expected_name, expected_score) in zip(found, expected, strict=True):
        assert name == expected_name
        assert score == pytest.approx(expected_score, abs=0.02)
