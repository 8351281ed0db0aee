"""The list of all settings is complete, and a valid file for --config."""

import re
from pathlib import Path

import pytest
import yaml

from detrkit.cli import main
from detrkit.cli.settings_document import settings_document
from detrkit.config.run import MODEL_SETTINGS, RUN_SETTINGS, run_config
from detrkit.config.training import SETTING_GROUPS
from detrkit.models.presets import PRESETS, preset_config

SETTING = re.compile(r"^( *)# ([a-z_0-9]+): (.*?)  # ", re.MULTILINE)


@pytest.mark.parametrize("preset", ["detrkit-s", "detr-r50", "deformable-detr-r50-two-stage", "dab-detr-r50"])
def test_document_lists_every_setting_with_the_values_of_the_preset(preset: str) -> None:
    document = settings_document(preset, preset_config(preset))
    values = {name: yaml.safe_load(value) for _, name, value in SETTING.findall(document)}
    assert values.keys() == {*RUN_SETTINGS, *MODEL_SETTINGS, *SETTING_GROUPS} - {"data", "model"}
    config = PRESETS[preset].model_dump(mode="json")
    assert {name: values[name] for name in MODEL_SETTINGS} == {name: config[name] for name in MODEL_SETTINGS}


@pytest.mark.parametrize("edited", [False, True])
def test_document_is_a_settings_file_as_it_is_and_with_every_setting_uncommented(edited: bool, tmp_path: Path) -> None:
    document = settings_document("detrkit-s", preset_config("detrkit-s"))
    path = tmp_path / "settings.yaml"
    path.write_text(SETTING.sub(r"\1\2: \3  # ", document) if edited else document)
    config = run_config({"data": "photos"}, path)
    assert config.model == "detrkit-s"
    assert bool(config.training.model_fields_set) == edited
    assert bool(config.model_overrides) == edited


def test_choices_are_named() -> None:
    document = settings_document("detrkit-s", preset_config("detrkit-s"))
    assert re.search(r"# precision: .*float32.*bfloat16", document)
    assert re.search(r"# queries: .*learned.*points.*anchors.*two_stage", document)


def test_command_prints_or_writes_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--output", str(tmp_path / "settings.yaml")]):
        with pytest.raises(SystemExit) as exit_info:
            main(["config", "--model", "detr-r50", *arguments])
        assert exit_info.value.code in (0, None)
    document = settings_document("detr-r50", preset_config("detr-r50"))
    out = capsys.readouterr().out
    assert out.startswith(document)
    assert (tmp_path / "settings.yaml").read_text() == document
