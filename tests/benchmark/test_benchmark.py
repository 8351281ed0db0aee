"""Contenders side by side: every figure is there, and one that fails hurts nobody else."""

import json
from pathlib import Path

import pytest
import torch

from detrkit import build_model
from detrkit.benchmark import cases as contenders
from detrkit.benchmark.cases import BenchmarkCase, BenchmarkConfig, BenchmarkResult
from detrkit.benchmark.run import list_benchmark_cases, page_of, rows_of
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.cli import main
from detrkit.data.synthetic import SHAPES
from detrkit.inference.options import Precision

WORK = BenchmarkConfig((64, 96), 2, "cpu")


def test_figures_by_hand() -> None:
    slow = BenchmarkResult("slow", 2_500_000, 3.21, [0.4, 0.5, 9.0], {"encoder": 0.1}, 100.0)
    quick = BenchmarkResult("quick", None, None, [0.1], {}, None)
    broken = BenchmarkResult("broken <b>", not_run="no such file")
    assert rows_of([slow, quick, broken], WORK) == [
        ("slow", "500", "1.00", "4.00", "2.5", "3", "100"),
        ("quick", "100", "5.00", "20.00", "-", "-", "-"),
    ]
    page = page_of([slow, quick, broken], WORK)
    assert 'title="encoder 100 ms" style="width:100.0%"' in page  # the slowest fills the line
    assert 'title="all 100 ms" style="width:20.0%"' in page
    assert "broken &lt;b&gt;: not run: no such file" in page


def test_who_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("detrkit.benchmark.run.has_fast_bfloat16", lambda device: False)
    (tmp_path / "model.xml").touch()
    exported = str(tmp_path)
    found = list_benchmark_cases(["detr-r18", exported], ("float32", "bfloat16"), True, torch.device("cpu"))
    assert found == [
        BenchmarkCase("detrkit", "detr-r18"),
        BenchmarkCase("transformers", "detr-r18"),
        BenchmarkCase("detrkit", exported),
        BenchmarkCase("faster r-cnn", ""),
    ]


@pytest.mark.parametrize(("precision", "within"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_the_rival_computes_what_we_do(precision: Precision, within: float, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(1)
    model = build_model("detr-r18", num_classes=3, encoder_layers=1, decoder_layers=1).eval()
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing()))
    scores, boxes = contenders._build(BenchmarkCase("transformers", str(path), precision), WORK).predict()
    torch.manual_seed(contenders._SEED)
    with torch.inference_mode():
        ours = model(torch.randn(2, 3, *WORK.size))
    torch.testing.assert_close(boxes, ours.boxes, rtol=0, atol=within)
    torch.testing.assert_close(scores, ours.probabilities.max(-1).values, rtol=0, atol=within)
    assert contenders._build(BenchmarkCase("detrkit", str(path), precision), WORK).predict()


def test_a_measurement_with_one_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "speed"
    arguments = ["detr-tiny", str(tmp_path / "nothing.safetensors"), "--size", "64x96", "--rounds", "1", "--no-rivals"]
    with pytest.raises(SystemExit) as left:
        main(["benchmark", *arguments, "--precision", "float32", "--threads", "1", "--output", str(output)])
    assert not left.value.code
    assert "nothing.safetensors float32: not run: " in capsys.readouterr().out
    first, second = json.loads((output / "benchmark.json").read_text())["measured"]
    assert first["parameters"] > 100_000
    assert first["gigaflops"] > 0.01
    assert len(first["seconds"]) == 1
    assert sum(first["stages"].values()) > 0
    assert set(first["stages"]) == {"backbone", "input_projection", "encoder", "decoder", "heads", "the rest"}
    assert second["seconds"] == []
    assert (output / "benchmark.png").read_bytes()[1:4] == b"PNG"
    assert "photos/s" in (output / "benchmark.html").read_text()
