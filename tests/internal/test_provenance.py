"""Own outputs are replaced, other files are never overwritten, by any command."""

import json
import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from detrkit._internal.files import write_json_rows, write_text
from detrkit._internal.provenance import is_written_by_detrkit, provenance_mark, refuse_foreign_overwrite
from detrkit.cli import main
from detrkit.config.run import RunConfig, write_config
from detrkit.errors import ConfigError
from detrkit.inference.writers.parquet import write_parquet
from detrkit.visualization.charts import as_png
from detrkit.visualization.figures import save_figure
from detrkit.visualization.page import html_page
from tests.datasets import write_whole_photos


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(one) for one in arguments])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, `data`, and a model, `whole.safetensors`."""
    root = tmp_path_factory.mktemp("place")
    write_whole_photos(root)
    return root


def write_all_kinds(folder: Path) -> list[Path]:
    """Write a file of every kind that detrkit writes."""
    names = ("a.json", "b.json", "c.json", "d.jsonl", "e.html", "f.png", "g.png", "h.svg", "i.pdf", "j.png", "k.yaml")
    paths = [folder / name for name in names]
    write_text(paths[0], json.dumps({"image": "a.jpg", "objects": []}, indent=2))
    write_text(paths[1], json.dumps({"format": "detrkit-findings-1", "findings": []}, indent=1))
    write_json_rows(paths[2], [{"image_id": 1, "score": 0.5}, {"image_id": 2, "score": 0.5}])
    write_text(paths[3], '{"image": "a.jpg", "objects": []}\n' * 2000)
    write_text(paths[4], html_page("doctor", ["<p>fine</p>"]))
    Image.new("RGB", (9, 9)).save(paths[5], pnginfo=provenance_mark())
    paths[6].write_bytes(as_png(Figure()))
    for path in paths[7:10]:
        save_figure(Figure(), path)
    write_config(paths[10], RunConfig(data="photos"), {})
    write_parquet(paths[3], folder / "l.parquet")
    return [*paths, folder / "l.parquet"]


def test_all_kinds_of_own_files_are_recognised(tmp_path: Path) -> None:
    for path in write_all_kinds(tmp_path):
        assert is_written_by_detrkit(path), path.name
        refuse_foreign_overwrite(path)


def test_json_rows_are_read_back(tmp_path: Path) -> None:
    rows = [{"image_id": 1, "name": "é"}, {"image_id": 2, "name": "\n"}]
    for content in (rows, []):
        write_json_rows(tmp_path / "rows.json", content)
        assert json.loads((tmp_path / "rows.json").read_text("utf-8")) == content


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("instances_val.json", '{"images": [], "annotations": [], "categories": []}'),
        ("labelme.json", '{"version": "5.0.1", "shapes": []}'),
        ("results.json", json.dumps([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}])),
        ("times.jsonl", '{"time": 0}\n'),
        ("page.html", "<!doctype html><title>detrkit</title>"),
        ("data.yaml", "train: images\nnames: [detrkit]\n"),
        ("figure.svg", "<svg><title>detrkit</title></svg>"),
        ("paper.pdf", "%PDF-1.4\n/Creator (LaTeX)"),
    ],
)
def test_foreign_files_are_not_overwritten(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"{name}: was not written by detrkit and would be overwritten; .* html"):
        refuse_foreign_overwrite(path, "html")
    path.write_text("")
    refuse_foreign_overwrite(path)  # an empty file may be replaced
    path.unlink()
    refuse_foreign_overwrite(path)
    with pytest.raises(ConfigError, match=r"output=.* is a folder; pass the name of a file"):
        refuse_foreign_overwrite(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "victim"),
    [
        (["evaluate", "whole.safetensors", "photos", "-o", "photos/annotations/instances_val2017.json"], None),
        (["evaluate", "whole.safetensors", "photos", "-o", "reports"], "reports/scores.json"),
        (["evaluate", "whole.safetensors", "photos", "-o", "reports"], "reports/by_layer.png"),
        (["doctor", "photos", "--json", "photos/annotations/instances_train2017.json"], None),
        (["doctor", "photos", "--html", "photos/val2017/0.png"], None),
        (["describe", "detr-tiny", "--size", "64x64", "-o", "photos/val2017/0.png"], None),
        (["describe", "data", "photos", "-o", "photos/val2017/0.png"], None),
        (
            ["explain", "whole.safetensors", "0.png", "--figure", "decoder", "-o", "photos/val2017/0.png"],
            None,
        ),
        (["explain", "whole.safetensors", "0.png", "-o", "index.html"], "index.html"),
        (["benchmark", "detr-tiny", "-o", "speed"], "speed/benchmark.html"),
        (["train", "photos", "--model", "detr-tiny", "-o", "mine"], "mine/config.yaml"),
        (["train", "photos", "--model", "detr-tiny", "-o", "mine"], "mine/predictions/0.png"),
        (["demo", "-o", "mine"], "mine/report.html"),
        (["predict", "whole.safetensors", "0.png", "--write", "parquet", "-o", "out"], "out/predictions.parquet"),
        (["predict", "whole.safetensors", "0.png", "--write", "jsonl", "-o", "out"], "out/predictions.settings.json"),
        (["export", "whole.safetensors", "--format", "onnx", "-o", "model.onnx"], "model.onnx"),
        (["convert", "whole.safetensors", "other.safetensors", "--to", "detrkit"], "other.safetensors"),
    ],
)
def test_commands_do_not_overwrite_foreign_files(
    arguments: list[str],
    victim: str | None,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "place"
    shutil.copytree(place, root)
    monkeypatch.chdir(root)
    if victim is not None:
        Path(victim).parent.mkdir(parents=True, exist_ok=True)
        Path(victim).write_text("mine")
    shutil.copy(next(Path("photos/val2017").iterdir()), "0.png")
    shutil.copy("0.png", "photos/val2017/0.png")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert run(*arguments) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert Path(victim or arguments[-1]).name in message
    assert "overwritten" in message or "exists already" in message
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


@pytest.mark.slow
def test_commands_replace_their_own_outputs(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    photo = next(Path("photos/val2017").iterdir())
    for arguments in (
        ["evaluate", "whole.safetensors", "photos", "--workers", "0", "--by-layer", "-o", tmp_path / "reports"],
        ["evaluate", "whole.safetensors", "photos", "--workers", "0", "-o", tmp_path / "results.json"],
        ["doctor", "photos", "--json", tmp_path / "findings.json", "--html", tmp_path / "findings.html"],
        ["describe", "detr-tiny", "--size", "64x64", "-o", tmp_path / "shapes.pdf"],
        ["describe", "data", "photos", "--model", "detr-tiny", "-o", tmp_path / "samples.png"],
        ["explain", "whole.safetensors", photo, "-o", tmp_path / "page.html"],
        ["predict", "whole.safetensors", photo, "--write", "images,json", "-o", tmp_path / "found"],
        ["predict", "whole.safetensors", photo, "--write", "parquet", "-o", tmp_path / "table"],
    ):
        assert [run(*arguments), run(*arguments)] == [0, 0], arguments
