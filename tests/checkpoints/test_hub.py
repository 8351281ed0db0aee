"""Folders with model cards, uploads to the hub, and their one-sentence errors."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from detrkit import Detector, build_model
from detrkit.checkpoints import sources
from detrkit.cli import main
from detrkit.data.categories import Categories
from detrkit.errors import CheckpointError, ConfigError
from tests.models.vit_models import small_vit

ODD = Categories((3, 7), ("[dog](http://x)|`cat`", "<b>größer</b>\nthan"))


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    small = {"num_queries": 5, "encoder_layers": 1, "decoder_layers": 1, "dim_feedforward": 64}
    return Detector.from_model(build_model("detr-r18", num_classes=2, **small), ODD, image_size=96)


def assert_same(one: Detector, other: Detector) -> None:
    photo = torch.arange(3 * 40 * 60, dtype=torch.uint8).reshape(3, 40, 60)
    assert torch.equal(one.predict(photo, 0).boxes, other.predict(photo, 0).boxes)
    assert one.categories == other.categories
    assert one.preprocessing.image_size == other.preprocessing.image_size


def front_matter(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---")[1])


@pytest.mark.parametrize("format", ["detrkit", "huggingface", "huggingface-no-timm"])
def test_saved_folder_is_loaded_back(detector: Detector, format: str, tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    detector.save_pretrained(folder, format=format, metrics={"AP": 0.4321}, licence="mit")  # type: ignore[arg-type]
    assert_same(Detector.from_pretrained(folder), detector)
    assert (folder / "config.json").exists() == (format != "detrkit")
    card = (folder / "README.md").read_text(encoding="utf-8")
    facts = front_matter(card)
    assert facts["license"] == "mit"
    assert facts["pipeline_tag"] == "object-detection"
    assert facts["library_name"] == ("detrkit" if format == "detrkit" else "transformers")
    assert "| AP | 0.432 |" in card
    assert 'detrkit.Detector.from_pretrained("my model")' in card
    assert ("DetrForObjectDetection" in card) == (format != "detrkit")
    assert "shorter side to 96 pixels, longer side at most 160, bilinear" in card
    assert str(tmp_path) not in card


def test_transformers_loads_a_saved_folder(detector: Detector, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    detector.save_pretrained(tmp_path, format="huggingface-no-timm")
    theirs, info = transformers.DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert theirs.config.id2label[0] == ODD.names[0]


def test_card_without_licence_and_metrics_says_so(detector: Detector, tmp_path: Path) -> None:
    detector.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "license" not in front_matter(card)
    assert "# license:" in card
    assert "Not evaluated yet" in card
    assert "the owner fills in" in card


def test_card_names_the_licence_of_dinov2(detector: Detector, tmp_path: Path) -> None:
    notice = "DINOv2, are under the Apache License 2.0"
    for name, expected in (("detr", False), ("rfdetr", True)):
        one = Detector.from_model(small_vit()) if expected else detector
        one.save_pretrained(tmp_path / name, licence="apache-2.0")
        assert (notice in (tmp_path / name / "README.md").read_text(encoding="utf-8")) == expected


def test_class_names_in_the_card_are_escaped(detector: Detector, tmp_path: Path) -> None:
    detector.save_pretrained(tmp_path)
    rows = [
        line
        for line in (tmp_path / "README.md").read_text(encoding="utf-8").splitlines()
        if line[:4] in ("| 3 ", "| 7 ")
    ]
    assert rows == [r"| 3 | \[dog\](http://x)\|\`cat\` |", "| 7 | &lt;b&gt;größer&lt;/b&gt; than |"]


def test_edited_card_is_kept(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    detector.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


class FolderHub:
    """A stand-in for the hub that keeps repositories in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.token = ""
        self.private: bool | None = None

    def __call__(self, token: str) -> "FolderHub":
        self.token = token
        return self

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        self.private = private
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return f"https://hub/{repo_id}"

    def file_exists(self, repo_id: str, name: str) -> bool:
        return (self.root / repo_id / name).exists()

    def upload_folder(
        self, repo_id: str, folder_path: str, commit_message: str, ignore_patterns: list[str] | None
    ) -> None:
        for path in Path(folder_path).iterdir():
            if path.name not in (ignore_patterns or []):
                (self.root / repo_id / path.name).write_bytes(path.read_bytes())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderHub:
    hub = FolderHub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    monkeypatch.setattr("detrkit.checkpoints.load.hub_snapshot", lambda name, _revision: hub.root / name)
    return hub


def test_pushed_model_is_loaded_by_its_id_and_keeps_its_card(detector: Detector, hub: FolderHub) -> None:
    address = detector.push_to_hub("me/my-model", token="hf_mine", private=True, metrics={"AP": 0.5})
    assert address == "https://hub/me/my-model"
    assert (hub.token, hub.private) == ("hf_mine", True)
    assert_same(Detector.from_pretrained("me/my-model"), detector)
    card = hub.root / "me" / "my-model" / "README.md"
    assert 'from_pretrained("me/my-model")' in card.read_text(encoding="utf-8")
    assert "# my-model" in card.read_text(encoding="utf-8")
    card.write_text("mine")
    detector.push_to_hub("me/my-model", token="hf_mine", format="huggingface")
    assert card.read_text() == "mine"
    assert (hub.root / "me" / "my-model" / "config.json").exists()


def test_convert_pushes_with_the_metrics_of_the_run(
    detector: Detector,
    hub: FolderHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    detector.save_pretrained(tmp_path / "run" / "best")
    evaluations = [  # the best checkpoint may have been chosen by another metric than AP
        {"kind": "evaluation", "step": step, "epoch": step, "best": step < 3, "ap": ap, "ap50": 2 * ap}
        for step, ap in ((1, 0.2), (2, 0.3), (3, 0.4))
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in evaluations))
    command = ["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "huggingface", "--push", "me/it"]
    with pytest.raises(SystemExit) as exit:
        main(command)
    assert not exit.value.code
    assert "pushed to https://hub/me/it" in capsys.readouterr().out
    card = (hub.root / "me" / "it" / "README.md").read_text(encoding="utf-8")
    assert "| AP | 0.300 |" in card
    assert "| AP50 | 0.600 |" in card
    assert_same(Detector.from_pretrained("me/it"), detector)


def test_missing_token_is_reported_before_any_work(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="no token for the hub; run `hf auth login`"):
        detector.push_to_hub("me/my-model")
    with pytest.raises(ConfigError, match="expected OWNER/NAME"):
        detector.push_to_hub("../my-model/x")
    for output, format, message in (("a.safetensors", "detrkit", "no token"), ("a.pth", "official", "--push")):
        with pytest.raises(SystemExit) as exit:
            main(["convert", "detr-r50", str(tmp_path / output), "--push", "me/it", "--to", format])
        assert exit.value.code == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_push_without_network_fails_in_one_sentence(detector: Detector) -> None:
    """HF_HUB_OFFLINE is set in the tests."""
    with pytest.raises(CheckpointError, match=r"me/my-model: cannot be pushed to the hub \(.*offline") as error:
        detector.push_to_hub("me/my-model", token="hf_mine")
    assert "\n" not in str(error.value)


def test_local_file_prefers_the_best_checkpoint(tmp_path: Path) -> None:
    assert sources.local_file(tmp_path) is None
    for name in ("pytorch_model.bin", "model.safetensors", "last/model.safetensors", "best/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        assert sources.local_file(tmp_path) == tmp_path / name
        assert sources.local_file(tmp_path / name) == tmp_path / name
    assert sources.local_file("detr-r50") is None
