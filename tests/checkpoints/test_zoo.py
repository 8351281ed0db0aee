"""The list of models agrees with the presets, shows itself as a table, and needs no torch."""

import re
import subprocess
import sys

import pytest
import torch

import detrkit
from detrkit.checkpoints.hashes import FILE_SHA256, HUB_PINS
from detrkit.checkpoints.zoo import HUB_MODELS, IMAGENET_URLS, LATER_FILES, MODEL_NAMES, OFFICIAL_FILES
from detrkit.checkpoints.zoo_realtime import REALTIME_PAGES
from detrkit.cli import main
from detrkit.models.build import model_from_config
from detrkit.models.presets import PRESETS


@pytest.mark.slow
def test_parameters_of_every_preset_are_listed() -> None:
    assert set(MODEL_NAMES) == set(PRESETS)
    with torch.device("meta"):
        models = {name: model_from_config(config) for name, config in PRESETS.items()}
    counts = {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in models.items()}
    assert {model.name: model.parameters for model in detrkit.list_models()} == counts


def test_models_with_published_weights_have_ap_licence_and_source() -> None:
    models = {model.name: model for model in detrkit.list_models()}
    assert {name for name, model in models.items() if model.source} == {
        *OFFICIAL_FILES,
        *HUB_MODELS,
        *LATER_FILES,
        *REALTIME_PAGES,
    }
    assert models["detr-r50"].ap == 0.42
    assert models["detr-r50"].source == "https://dl.fbaipublicfiles.com/detr/detr-r50-e632da11.pth"
    assert models["deformable-detr-r50"].source == "https://huggingface.co/SenseTime/deformable-detr"
    rfdetr = {name for name in MODEL_NAMES if name.startswith("rfdetr-")}
    stated = {*OFFICIAL_FILES, *HUB_MODELS, *rfdetr}  # other files state none
    assert {models[name].weights_licence for name in stated} == {"Apache-2.0", "MIT"}
    assert {model.weights_licence for name, model in models.items() if name not in stated} == {None}
    families = {
        name: models[name].family for name in ("rtdetr-r18", "rtdetrv2-s", "dfine-n", "deim-dfine-n", "rtdetrv4-s")
    }
    assert list(families.values()) == ["RT-DETR", "RT-DETRv2", "D-FINE", "DEIM", "RT-DETRv4"]
    assert models["deim-rtdetrv2-s"].family == "DEIM"
    assert models["dfine-s"].source == "https://huggingface.co/ustc-community/dfine-small-coco"
    assert models["dfine-s-obj365"].ap is None  # not measured on COCO
    assert models["table-transformer-detection"].weights_licence == "MIT"
    assert (models["detrkit-s"].family, models["detrkit-s"].ap, models["detrkit-s"].source) == ("detrkit", None, None)
    assert models["detr-r18"].family == "DETR"


def test_list_says_how_downloads_are_checked() -> None:
    models = {model.name: model.checked_by for model in detrkit.list_models()}
    assert models["detr-r50"] == models["deformable-detr-r50"] == "SHA-256"
    assert models["detr-r50-panoptic"] == "8 digits of SHA-256"
    assert models["dab-detr-r50-dc5"] == models["lwdetr-tiny"] == "first download"
    assert models["rfdetr-nano"] == "MD5"
    assert models["detrkit-s"] is None
    assert "8 digits of SHA-256" in repr(detrkit.list_models())


def test_full_hashes_agree_with_the_names_of_the_files() -> None:
    names = {*OFFICIAL_FILES.values(), *(url.rsplit("/", 1)[1] for url in IMAGENET_URLS.values())}
    for name, digest in FILE_SHA256.items():
        assert name in names
        assert re.fullmatch("[0-9a-f]{64}", digest)
        assert f"-{digest[:8]}." in name
    assert set(HUB_PINS) <= set(HUB_MODELS.values())
    for pin in HUB_PINS.values():
        assert re.fullmatch("[0-9a-f]{40}", pin.revision)
        assert pin.sha256 is None or re.fullmatch("[0-9a-f]{64}", pin.sha256)


def test_list_shows_itself_as_a_table() -> None:
    models = detrkit.list_models()
    lines = repr(models).splitlines()
    assert len(lines) == 1 + len(models)
    assert lines[0].split() == ["name", "family", "parameters", "AP", "code", "weights", "checked", "by", "source"]
    assert "0.420" in lines[1]
    assert models._repr_html_().count("<tr>") == 1 + len(models)
    assert repr(models[:2]).splitlines()[1].split()[0] == models[0].name


def test_models_are_listed_without_torch() -> None:
    code = "import detrkit, sys; detrkit.list_models(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_models_command_prints_one_line_per_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["models"])
    assert not exit.value.code
    assert capsys.readouterr().out == f"{detrkit.list_models()!r}\n"
