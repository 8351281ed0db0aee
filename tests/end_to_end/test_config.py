"""Settings from a file and from the command line: the command line wins, one by one."""

from pathlib import Path

import pytest

from detrkit.config.run import load_run_config
from detrkit.errors import ConfigError

FILE = """
data: shapes
model: detr-tiny
model_settings: {hidden_dim: 64, num_queries: 12}
training: {epochs: 7, learning_rate: 0.002}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(FILE)
    return path


def test_the_command_line_wins_setting_by_setting(file: Path) -> None:
    given = {"data": None, "model": None, "model_settings": {"num_queries": 50}}
    config = load_run_config(file, given, {"epochs": 9})
    assert config.data == "shapes"
    assert config.model_settings == {"hidden_dim": 64, "num_queries": 50}
    assert (config.training.epochs, config.training.lr) == (9, 0.002)


def test_epochs_on_the_command_line_win_over_steps_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "steps.yaml"
    file.write_text("data: photos\ntraining: {epochs: 300, steps: 7}\n")
    training = load_run_config(file, {}, {"epochs": 5}).training
    assert (training.epochs, training.steps) == (5, None)
    assert load_run_config(file, {}, {"batch_size": 3}).training.steps == 7
    with pytest.raises(ConfigError, match="--epochs: found --steps as well, expected one of the two"):
        load_run_config(None, {"data": "photos"}, {"epochs": 5, "steps": 7})


def test_another_model_does_not_inherit_the_files_model_settings(file: Path) -> None:
    config = load_run_config(file, {"model": "detr-r18", "model_settings": {"num_queries": 5}}, {})
    assert config.model_settings == {"num_queries": 5}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("training: 5", "training: found 5"),
        ("data: x\nmodel_settings: 5", "model_settings: found 5"),
        ("- a", "found a list"),
        ("data: x\nepochs: 5", "'epochs' does not exist"),
        ("data: x\ntraining: {learning_rate: fast}", "training.learning_rate: found 'fast'"),
        ("data: x\ntraining: {image_size: 8}", "training.image_size: found 8"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=says) as refused:
        load_run_config(path, {}, {})
    assert str(path) in str(refused.value)
