"""The page that explains DETR runs, stays a page, and reads the published demo weights' names."""

import runpy
from pathlib import Path

import pytest
import torch
from PIL import Image

PAGE = Path(__file__).parents[2] / "examples" / "minimal_detr.py"


def test_it_is_one_page() -> None:
    assert len(PAGE.read_text().splitlines()) <= 60


def test_names_and_shapes_are_those_of_the_published_demo_weights() -> None:
    with torch.device("meta"):  # no values
        state = runpy.run_path(str(PAGE))["MinimalDETR"]().state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert {name.split(".")[0] for name in shapes} == {
        "query_pos", "row_embed", "col_embed", "backbone", "conv", "transformer", "linear_class", "linear_bbox",
    }  # fmt: skip
    expected = {
        "query_pos": (100, 256),
        "row_embed": (50, 128),
        "col_embed": (50, 128),
        "backbone.conv1.weight": (64, 3, 7, 7),
        "backbone.layer4.2.bn3.running_var": (2048,),
        "conv.weight": (256, 2048, 1, 1),
        "transformer.encoder.layers.5.self_attn.in_proj_weight": (768, 256),
        "transformer.encoder.norm.weight": (256,),
        "transformer.decoder.layers.5.multihead_attn.out_proj.weight": (256, 256),
        "transformer.decoder.layers.0.linear1.weight": (2048, 256),
        "linear_class.weight": (92, 256),
        "linear_bbox.weight": (4, 256),
    }
    assert expected.items() <= shapes.items()
    assert not any(name.startswith("backbone.fc") for name in shapes)


@pytest.mark.slow
def test_it_prints_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = runpy.run_path(str(PAGE))
    torch.manual_seed(0)
    model = page["MinimalDETR"]()
    with torch.no_grad():
        model.linear_class.bias[17] = 20  # every query is sure of a cat
        model.linear_bbox.weight.zero_()
        model.linear_bbox.bias.zero_()
    torch.save(model.state_dict(), tmp_path / "demo.pth")
    Image.new("RGB", (80, 60), "green").save(tmp_path / "photo.jpg")
    page["main"](str(tmp_path / "photo.jpg"), str(tmp_path / "demo.pth"), threshold=0.9)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 100
    assert set(lines) == {"class 17 1.00 at x 0.50 y 0.50 size 0.50 x 0.50"}
