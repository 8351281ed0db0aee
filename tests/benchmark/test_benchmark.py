"""Benchmarks side by side: every measurement is there, and a case that fails does not affect the others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import detrkit
from detrkit import ConfigError, build_model
from detrkit.benchmark import worker
from detrkit.benchmark.benchmark import list_cases
from detrkit.benchmark.cases import BenchmarkCase, BenchmarkConfig, CasePrecision
from detrkit.benchmark.report import BenchmarkReport, BenchmarkResult
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.cli import main
from detrkit.data.synthetic import SHAPES

CONFIG = BenchmarkConfig((64, 96), batch_size=2, device="cpu", num_threads=1, rounds=3)


@pytest.fixture
def report() -> BenchmarkReport:
    slow = BenchmarkResult("slow", 2, (0.4, 0.5, 9.0), {"encoder": 0.1}, 2_500_000, 3.21, 100.0)
    fast = BenchmarkResult("fast", 2, (0.1,))
    broken = BenchmarkResult("broken <b>", 2, error="no such file")
    return BenchmarkReport(CONFIG, (slow, fast, broken))


def test_rows_show_medians_and_the_speedup_over_the_slowest(report: BenchmarkReport) -> None:
    assert report.rows() == [
        ("slow", "500", "1.00", "4.00", "2.5", "3", "100"),
        ("fast", "100", "5.00", "20.00", "-", "-", "-"),
    ]
    assert report[1].images_per_second == pytest.approx(20)
    assert [result.name for result in report] == ["slow", "fast", "broken <b>"]


def test_page_shows_bars_and_errors(report: BenchmarkReport, tmp_path: Path) -> None:
    report.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert 'title="encoder 100 ms" style="width:100.0%"' in page  # the slowest case has the full width
    assert 'title="all 100 ms" style="width:20.0%"' in page
    assert "broken &lt;b&gt;: not measured: no such file" in page


def test_report_as_text_html_json_and_table(report: BenchmarkReport) -> None:
    lines = repr(report).splitlines()
    assert lines[0] == "BenchmarkReport: 2 images of 64 x 96 px on cpu, 1 thread"
    assert lines[2].split() == ["slow", "500", "1.00", "4.00", "2.5", "3", "100"]
    assert lines[-1] == "broken <b>: not measured: no such file"
    assert "<td>20.00</td>" in report._repr_html_()
    assert "broken &lt;b&gt;" in report._repr_html_()
    content = json.loads(json.dumps(report.to_json()))
    assert content["config"]["size"] == [64, 96]
    assert content["results"][0]["seconds"] == [0.4, 0.5, 9.0]
    table = report.to_pandas()
    assert list(table["name"]) == ["slow", "fast", "broken <b>"]
    assert table["images_per_second"][0] == pytest.approx(4)


def test_cases_are_precisions_and_baselines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("detrkit.benchmark.benchmark.has_fast_bfloat16", lambda device: False)
    (tmp_path / "model.xml").touch()
    exported = str(tmp_path)
    cases = list_cases(["detr-r18", exported], ("float32", "bfloat16"), True, torch.device("cpu"))
    assert cases == [
        BenchmarkCase("detrkit", "detr-r18"),
        BenchmarkCase("transformers", "detr-r18"),
        BenchmarkCase("detrkit", exported),
        BenchmarkCase("faster-rcnn", ""),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "atol"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_transformers_baseline_computes_the_same_predictions(
    precision: CasePrecision, atol: float, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(1)
    model = build_model("detr-r18", num_classes=3, encoder_layers=1, decoder_layers=1).eval()
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing()))
    scores, boxes = worker.build_case(BenchmarkCase("transformers", str(path), precision), CONFIG).predict()
    torch.manual_seed(worker._SEED)
    with torch.inference_mode():
        expected = model(torch.randn(2, 3, *CONFIG.size))
    torch.testing.assert_close(boxes, expected.boxes, rtol=0, atol=atol)
    torch.testing.assert_close(scores, expected.probabilities.max(-1).values, rtol=0, atol=atol)
    assert worker.build_case(BenchmarkCase("detrkit", str(path), precision), CONFIG).predict()


@pytest.mark.slow
def test_command_measures_the_other_models_if_one_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, broken = tmp_path / "speed", tmp_path / "broken.safetensors"
    broken.write_text("not a checkpoint")
    arguments = ["detr-tiny", str(broken), "--size", "64x96", "--rounds", "1"]
    arguments += ["--no-baselines", "--precisions", "float32", "--num-threads", "1", "--output", str(output)]
    with pytest.raises(SystemExit) as stopped:
        main(["benchmark", *arguments])
    assert not stopped.value.code
    assert "broken.safetensors float32: not measured: " in capsys.readouterr().out
    measured, failed = json.loads((output / "benchmark.json").read_text())["results"]
    assert measured["num_parameters"] > 100_000
    assert measured["gflops"] > 0.01
    assert len(measured["seconds"]) == 1
    assert sum(measured["stage_seconds"].values()) > 0
    assert set(measured["stage_seconds"]) == {*worker._STAGES, "other"}
    assert failed["seconds"] == []
    assert (output / "benchmark.png").read_bytes()[1:4] == b"PNG"
    assert "images/s" in (output / "benchmark.html").read_text()


@pytest.mark.parametrize("argument", [{"rounds": 0}, {"batch_size": 0}, {"size": (0, 64)}])
def test_arguments_out_of_range_are_rejected(argument: dict[str, object]) -> None:
    (name,) = argument
    with pytest.raises(ConfigError, match=f"{name}=.* is too small"):
        detrkit.benchmark("detr-tiny", **argument)


def test_unmeasured_result_has_no_speed(report: BenchmarkReport) -> None:
    failed = replace(report[0], seconds=())
    assert failed.images_per_second != failed.images_per_second  # NaN
