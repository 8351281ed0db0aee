"""Settings of a run: flat names in Python and on the command line, groups in YAML, and which of them wins."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from detrkit.config.model import ModelConfig
from detrkit.config.run import MODEL_SETTINGS, RUN_SETTINGS, RunConfig, load_run_config, run_config, write_config
from detrkit.config.training import GROUPS, SETTING_GROUPS, TrainingConfig
from detrkit.errors import ConfigError

FILE = """
data: shapes
model: {name: detr-tiny, hidden_dim: 64, num_queries: 12}
epochs: 7
optimizer: {lr: 0.002}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(FILE)
    return path


def test_names_of_settings_are_unique_over_all_groups() -> None:
    names = [name for group in GROUPS.values() for name in group.model_fields]
    names += [*TrainingConfig.model_fields, *RUN_SETTINGS, *MODEL_SETTINGS]
    assert [name for name, count in Counter(names).items() if count > 1] == []


def test_given_settings_win_over_the_file_one_by_one(file: Path) -> None:
    config = run_config({"num_queries": 50, "epochs": 9}, file)
    assert (config.data, config.model) == ("shapes", "detr-tiny")
    assert config.model_overrides == {"hidden_dim": 64, "num_queries": 50}
    assert (config.training.epochs, config.training.optimizer.lr) == (9, 0.002)


@pytest.mark.parametrize("given", [{"epochs": 5}, {"steps": 5}, {"minutes": 5.0}])
@pytest.mark.parametrize("written", ["epochs: 300\nsteps: 7", "epochs: 300\nminutes: 7"])
def test_length_that_is_given_replaces_that_of_the_file(given: dict[str, Any], written: str, tmp_path: Path) -> None:
    file = tmp_path / "length.yaml"
    file.write_text(f"data: images\n{written}\n")
    training = run_config(given, file).training
    lengths = {"epochs": 300, "steps": None, "minutes": None} | given
    assert {name: training[name] for name in lengths} == lengths
    kept = run_config({"batch_size": 3}, file).training
    assert {kept.steps, kept.minutes} == {7, None}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 5, "steps": 7}, "^epochs and steps exclude each other"),
        ({"epochs": 5, "minutes": 7}, "^epochs and minutes exclude each other"),
        ({"steps": 5, "minutes": 7}, "^steps and minutes exclude each other"),
        ({"minutes": 0}, "^minutes=0: input should be greater than 0"),
        ({"minutes": float("nan")}, "^minutes=nan: "),
        ({"minutes": float("inf")}, "^minutes=inf: "),
        ({"minutes": "long"}, "^minutes='long': input should be a valid number"),
    ],
)
def test_length_that_is_no_length_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config({"data": "images", **given})


def test_another_model_does_not_inherit_overrides_of_the_file(file: Path) -> None:
    config = run_config({"model": "detr-r18", "num_queries": 5}, file)
    assert config.model_overrides == {"num_queries": 5}


def test_a_written_config_reads_back_unchanged(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "freeze": ["backbone", "encoder"], "lr_overrides": {"heads": 1e-3}, "lr_scheduler": "cosine", "mosaic": 0.5
    }  # fmt: skip
    config = run_config({"data": "images", "model": "detr-r50", "num_queries": 30, **settings})
    model = ModelConfig(num_queries=30, num_classes=3)
    write_config(tmp_path / "config.yaml", config, model.model_dump(mode="json"))
    read = load_run_config(tmp_path / "config.yaml")
    assert read.training == config.training
    assert (read.data, read.model, read.model_overrides["num_queries"]) == ("images", "detr-r50", 30)
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert content["model"]["name"] == "detr-r50"
    assert content["optimizer"]["freeze"] == ["backbone", "encoder"]
    assert content["schedule"]["lr_scheduler"] == "cosine"


def test_flat_and_grouped_settings_are_the_same_config() -> None:
    flat = TrainingConfig(lr=1e-3, epochs=3, mosaic=0.5)
    grouped = TrainingConfig.model_validate({"epochs": 3, "optimizer": {"lr": 1e-3}, "augmentation": {"mosaic": 0.5}})
    assert flat == grouped
    assert flat.explicit == grouped.explicit == {"epochs": 3, "lr": 1e-3, "mosaic": 0.5}
    changed = flat.replace(lr=2e-3, ema_decay=0.9)
    assert (changed["lr"], changed.ema.ema_decay, changed.epochs) == (2e-3, 0.9, 3)
    assert set(changed.flat()) == set(SETTING_GROUPS)
    with pytest.raises(ValidationError, match="greater than 0"):
        flat.replace(lr=-1)


def test_learning_rates_of_parts_follow_overrides_and_frozen_parts() -> None:
    settings = TrainingConfig(lr=1.0, backbone_lr=0.5, lr_overrides={"heads": 2.0, "query_source": 0}, freeze="encoder")
    rates = settings.optimizer.lr_of_parts()
    assert (rates["backbone"], rates["heads"], rates["query_source"], rates["encoder"]) == (0.5, 2.0, 0.0, 0.0)
    assert rates["decoder"] == 1.0
    only_masks = TrainingConfig(freeze=["boxes"]).optimizer
    assert {part for part, rate in only_masks.lr_of_parts().items() if rate} == {"mask_head"}
    assert only_masks.trains_masks_only(ModelConfig(mask_head=True))
    assert not only_masks.trains_masks_only(ModelConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 5}, "^setting 'epoch' does not exist; did you mean 'epochs'"),
        ({"num_querys": 5}, "^setting 'num_querys' does not exist; did you mean 'num_queries'"),
        ({"num_classes": 5}, "^num_classes=5 cannot be set: the number of classes comes from the dataset"),
        ({"lr": -1.0}, r"^lr=-1\.0: input should be greater than 0"),
        ({"freeze": ["nose"]}, "^freeze='nose': input should be 'backbone'"),
        ({"lr_overrides": {"nose": 1.0}}, "^lr_overrides: 'nose' is no part of a model"),
        ({"lr_overrides": {"heads": -1.0}}, r"^lr_overrides=-1\.0: input should be greater"),
        ({"recipe": "best"}, "^recipe='best': input should be 'auto' or 'reference'"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config({"data": "images", **settings})


def test_a_config_without_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="no dataset was given, expected a folder as data"):
        run_config({"epochs": 3})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data: x\noptimizer: 5", "optimizer: found 5, expected settings"),
        ("- a", "found a list"),
        ("data: x\nepoch: 5", "epoch: no such setting; did you mean 'epochs'"),
        ("data: x\nloss: {lr: 5}", "loss.lr: no such setting"),
        ("data: x\nmodel: {name: detr-r50, num_querys: 5}", "model.num_querys: no such setting"),
        ("data: x\noptimizer: {lr: fast}", "lr: found 'fast'"),
        ("data: x\nimage_size: 8", "image_size: found 8"),
    ],
)
def test_a_wrong_setting_in_a_file_is_named_with_the_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        load_run_config(path)
    assert str(path) in str(error.value)


def test_default_model_depends_on_recipe_and_weights() -> None:
    assert RunConfig(data="x").model == "detrkit-s"
    assert RunConfig(data="x", recipe="reference").model == "detr-r50"
    assert RunConfig(data="x", recipe="reference", model="detrkit-m").model == "detrkit-m"
    assert RunConfig(data="x", weights="imagenet").model == "detrkit-m", "its backbone has such weights"
    assert RunConfig(data="x", weights="imagenet", model_overrides={"backbone": "timm:x"}).model == "detrkit-s"


def test_origin_of_the_first_weights() -> None:
    assert RunConfig(data="x").origin == "scratch"
    assert RunConfig(data="x", weights="imagenet").origin == "imagenet"
    assert RunConfig(data="x", backbone_weights="a.pth").origin == "imagenet"
    assert RunConfig(data="x", weights="runs/first").origin == "detector"
