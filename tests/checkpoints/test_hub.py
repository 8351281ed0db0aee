"""Models out to the hub and back: a folder, a card, an upload; and one sentence when it cannot be."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from detrkit import Detector, build_model
from detrkit.checkpoints import load as source
from detrkit.cli import main
from detrkit.data.categories import Categories
from detrkit.errors import CheckpointError, ConfigError

ODD = Categories((3, 7), ("[dog](http://x)|`cat`", "<b>größer</b>\nthan"))


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    small = {"num_queries": 5, "encoder_layers": 1, "decoder_layers": 1, "dim_feedforward": 64}
    return Detector.from_model(build_model("detr-r18", num_classes=2, **small), ODD, image_size=96)


def same(one: Detector, other: Detector) -> None:
    photo = torch.arange(3 * 40 * 60, dtype=torch.uint8).reshape(3, 40, 60)
    assert torch.equal(one.predict(photo, 0).boxes, other.predict(photo, 0).boxes)
    assert one.categories == other.categories
    assert one.preprocessing.image_size == other.preprocessing.image_size


def front_matter(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---")[1])


@pytest.mark.parametrize("format", ["detrkit", "huggingface", "huggingface-no-timm"])
def test_a_saved_folder_is_loaded_again(detector: Detector, format: str, tmp_path: Path) -> None:
    folder = tmp_path / "my model"
    detector.save_pretrained(folder, format=format, scores={"AP": 0.4321}, licence="mit")  # type: ignore[arg-type]
    same(Detector.from_pretrained(folder), detector)
    assert (folder / "config.json").exists() == (format != "detrkit")
    card = (folder / "README.md").read_text(encoding="utf-8")
    facts = front_matter(card)
    assert facts["license"] == "mit"
    assert facts["pipeline_tag"] == "object-detection"
    assert facts["library_name"] == ("detrkit" if format == "detrkit" else "transformers")
    assert "| AP | 0.432 |" in card
    assert 'detrkit.Detector.from_pretrained("my model")' in card
    assert ("DetrForObjectDetection" in card) == (format != "detrkit")
    assert "shorter side of 96 pixels (the longer at most 160)" in card
    assert str(tmp_path) not in card


def test_transformers_loads_what_is_pushed_for_it(detector: Detector, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    detector.save_pretrained(tmp_path, format="huggingface-no-timm")
    theirs, info = transformers.DetrForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert theirs.config.id2label[0] == ODD.names[0]


def test_a_card_leaves_the_licence_and_unknown_scores_to_the_owner(detector: Detector, tmp_path: Path) -> None:
    detector.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "license" not in front_matter(card)
    assert "# license:" in card
    assert "Not measured yet" in card
    assert "its owner fills in" in card


def test_names_of_classes_are_no_markup(detector: Detector, tmp_path: Path) -> None:
    detector.save_pretrained(tmp_path)
    rows = [
        line
        for line in (tmp_path / "README.md").read_text(encoding="utf-8").splitlines()
        if line[:4] in ("| 3 ", "| 7 ")
    ]
    assert rows == [r"| 3 | \[dog\](http://x)\|\`cat\` |", "| 7 | &lt;b&gt;größer&lt;/b&gt; than |"]


def test_a_card_that_was_edited_stays(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    detector.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


class Hub:
    """A hub in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.token = ""
        self.private: bool | None = None

    def __call__(self, token: str) -> "Hub":
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
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    there = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", there)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(there.root / name))
    return there


def test_pushed_and_loaded_again_by_its_id(detector: Detector, hub: Hub) -> None:
    address = detector.push_to_hub("me/my-model", token="hf_mine", private=True, scores={"AP": 0.5})
    assert address == "https://hub/me/my-model"
    assert (hub.token, hub.private) == ("hf_mine", True)
    same(Detector.from_pretrained("me/my-model"), detector)
    card = hub.root / "me" / "my-model" / "README.md"
    assert 'from_pretrained("me/my-model")' in card.read_text(encoding="utf-8")
    assert "# my-model" in card.read_text(encoding="utf-8")
    # the owner writes a licence; the next weights do not take it away
    card.write_text("mine")
    detector.push_to_hub("me/my-model", token="hf_mine", format="huggingface")
    assert card.read_text() == "mine"
    assert (hub.root / "me" / "my-model" / "config.json").exists()


def test_convert_pushes_with_the_scores_of_the_run(
    detector: Detector, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    detector.save_pretrained(tmp_path / "run" / "best")
    evaluations = [  # PQ or photos that were learned from may have chosen another than the highest AP
        {"kind": "evaluation", "step": step, "best": step < 3, "ap": ap, "ap50": 2 * ap}
        for step, ap in ((1, 0.2), (2, 0.3), (3, 0.4))
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in evaluations))
    command = ["convert", str(tmp_path / "run"), str(tmp_path / "out"), "--to", "huggingface", "--push", "me/it"]
    with pytest.raises(SystemExit) as left:
        main(command)
    assert not left.value.code
    assert "pushed to https://hub/me/it" in capsys.readouterr().out
    card = (hub.root / "me" / "it" / "README.md").read_text(encoding="utf-8")
    assert "| AP | 0.300 |" in card
    assert "| AP50 | 0.600 |" in card
    same(Detector.from_pretrained("me/it"), detector)


def test_without_a_token_nothing_is_tried(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ConfigError, match="found no token for the hub; run `hf auth login`"):
        detector.push_to_hub("me/my-model")
    with pytest.raises(ConfigError, match="expected OWNER/NAME"):
        detector.push_to_hub("../my-model/x")
    for output, format, says in (("a.safetensors", "detrkit", "found no token"), ("a.pth", "official", "--push")):
        with pytest.raises(SystemExit) as left:
            main(["convert", "detr-r50", str(tmp_path / output), "--push", "me/it", "--to", format])
        assert left.value.code == 2
        assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_a_network_it_is_one_sentence(detector: Detector) -> None:
    """The tests run with the hub's own switch for being offline."""
    with pytest.raises(CheckpointError, match=r"me/my-model: cannot be pushed to the hub \(.*offline") as caught:
        detector.push_to_hub("me/my-model", token="hf_mine")
    assert "\n" not in str(caught.value)


def test_the_file_that_is_read_of_a_folder(tmp_path: Path) -> None:
    assert source.local_file(tmp_path) is None
    for name in ("pytorch_model.bin", "model.safetensors", "last/model.safetensors", "best/model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        assert source.local_file(tmp_path) == tmp_path / name
        assert source.local_file(tmp_path / name) == tmp_path / name
    assert source.local_file("detr-r50") is None
