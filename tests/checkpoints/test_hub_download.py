"""Models of the hub: one revision, announced, checked by hash; names that look like paths stay here."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

import detrkit
from detrkit.checkpoints import download, hashes, hub_download
from detrkit.checkpoints.backbones import load_imagenet_backbone
from detrkit.checkpoints.hashes import DOWNLOADS, HubPin, sha256_of
from detrkit.checkpoints.hub_download import hub_snapshot
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import save_checkpoint
from detrkit.checkpoints.sources import HubSource, hub_source, is_hub_id
from detrkit.cli import main
from detrkit.errors import CheckpointError
from tests.checkpoints.models import checkpoint_of, small_model

COMMIT, NEWER = "a" * 40, "b" * 40
REPO = "me/it"


@dataclass
class FakeHub:
    """A hub with one repository, that downloads into the cache as the hub's client does."""

    cache: Path
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branch: str = COMMIT
    is_online: bool = True
    asked: list[str | None] = field(default_factory=list)
    downloaded: list[tuple[str, list[str]]] = field(default_factory=list)
    said_sha256: str | None = None

    def model_info(self, repo_id: str, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata
        if not self.is_online:
            raise ConnectionError("no network")
        self.asked.append(revision)
        commit = self.branch if revision in (None, "main") else revision
        assert commit is not None
        siblings = [
            SimpleNamespace(
                rfilename=name, size=len(data), lfs=self.said_sha256 and SimpleNamespace(sha256=self.said_sha256)
            )
            for name, data in self.commits[commit].items()
        ]
        return SimpleNamespace(sha=commit, siblings=siblings)

    def folder(self, repo_id: str, commit: str) -> Path:
        return self.cache / f"models--{repo_id.replace('/', '--')}" / "snapshots" / commit

    def snapshot_download(
        self, repo_id: str, revision: str | None, allow_patterns: Any = None, local_files_only: bool = False
    ) -> str:
        folder = self.folder(repo_id, revision or self.branch)
        if local_files_only:
            if not folder.is_dir():
                raise FileNotFoundError("not in the cache")
            return str(folder)
        assert revision is not None
        self.downloaded.append((revision, list(allow_patterns)))
        folder.mkdir(parents=True, exist_ok=True)
        for name in allow_patterns:
            (folder / name).write_bytes(self.commits[revision][name])
        return str(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    hub = FakeHub(tmp_path / "cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub.cache))
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda repo_id, name, revision: str(path) if (path := hub.folder(repo_id, revision) / name).is_file() else None,
    )
    save_checkpoint(tmp_path / "model.safetensors", checkpoint_of(small_model()))
    weights = (tmp_path / "model.safetensors").read_bytes()
    hub.commits[COMMIT] = {"model.safetensors": weights, "pytorch_model.bin": b"x", "README.md": b"#"}
    hub.commits[NEWER] = {"model.safetensors": weights + b"newer"}
    return hub


def test_model_is_announced_downloaded_once_and_recorded(hub: FakeHub, caplog: pytest.LogCaptureFixture) -> None:
    size = len(hub.commits[COMMIT]["model.safetensors"]) / 1e6
    with caplog.at_level(logging.INFO, logger=DOWNLOADS):
        folder = hub_snapshot(REPO)
        assert hub_snapshot(REPO) == folder
    assert [record.message for record in caplog.records] == [
        f"downloading me/it (revision aaaaaaa, {size:.1f} MB) from the Hugging Face Hub"
    ]
    assert hub.downloaded == [(COMMIT, ["model.safetensors"])]  # not the same weights twice
    recorded = json.loads((hub.cache / hashes.RECORD).read_text())
    digest = sha256_of(folder / "model.safetensors")
    assert recorded == {"me/it@": {"commit": COMMIT, "files": {"model.safetensors": digest}}}


def test_command_line_prints_the_announcement(hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["describe", "hf:me/it"])
    assert not exit.value.code
    error = capsys.readouterr().err
    assert error.startswith("downloading me/it (revision aaaaaaa, ")
    assert error.endswith("from the Hugging Face Hub\n")


def test_first_download_pins_the_revision_and_a_branch_asks_again(hub: FakeHub) -> None:
    hub_snapshot(REPO)
    hub.branch = NEWER
    assert hub_snapshot(REPO).name == COMMIT
    assert hub.asked == [None]
    assert hub_snapshot(REPO, "main").name == NEWER
    assert hub_snapshot(REPO, COMMIT).name == COMMIT
    hub.is_online = False
    assert hub_snapshot(REPO, COMMIT).name == COMMIT


def test_changed_file_in_the_cache_is_refused(hub: FakeHub) -> None:
    folder = hub_snapshot(REPO)
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: its SHA-256 is [0-9a-f]{64}, expected .*remove the"
    ):
        hub_snapshot(REPO)


def test_download_is_compared_with_what_the_hub_says(hub: FakeHub) -> None:
    hub.said_sha256 = "0" * 64
    with pytest.raises(CheckpointError, match=r"expected 0{64}"):
        hub_snapshot(REPO)
    assert not (hub.cache / hashes.RECORD).exists()


def test_known_model_is_taken_at_its_revision_with_its_hash(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.branch = NEWER
    monkeypatch.setitem(hashes.HUB_PINS, REPO, HubPin(COMMIT, "0" * 64))
    with pytest.raises(CheckpointError, match=r"expected 0{64}"):
        hub_snapshot(REPO)
    monkeypatch.setitem(hashes.HUB_PINS, REPO, HubPin(COMMIT))
    assert hub_snapshot(REPO).name == COMMIT
    assert hub.asked == [COMMIT, COMMIT]


def test_size_is_checked_before_the_download(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MAX_DOWNLOAD", 1000)
    with pytest.raises(CheckpointError, match="has more than 1,000 bytes"):
        hub_snapshot(REPO)
    assert not hub.downloaded


def test_repository_without_weights_is_one_sentence(hub: FakeHub) -> None:
    hub.commits[COMMIT] = {"README.md": b"#", "config.json": b"{}"}
    with pytest.raises(CheckpointError, match=r"contains no model\.safetensors; check the name"):
        hub_snapshot(REPO)


def test_what_the_cache_holds_is_used_without_the_network(hub: FakeHub) -> None:
    hub.is_online = False
    with pytest.raises(CheckpointError, match=r"me/it: cannot be downloaded from the Hugging Face Hub \(no network\)"):
        hub_snapshot(REPO)
    folder = hub.folder(REPO, COMMIT)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(hub.commits[COMMIT]["model.safetensors"])
    assert hub_snapshot(REPO) == folder
    assert "me/it@" in (hub.cache / hashes.RECORD).read_text()


@pytest.mark.parametrize(
    "entry", [3, {"commit": 3}, {"commit": COMMIT, "files": {}}, {"commit": COMMIT, "files": {"../x": ""}}]
)
def test_malformed_record_is_one_sentence(entry: object, hub: FakeHub) -> None:
    hub.cache.mkdir()
    (hub.cache / hashes.RECORD).write_text(json.dumps({"me/it@": entry}))
    with pytest.raises(CheckpointError, match="its entry 'me/it@' is malformed"):
        hub_snapshot(REPO)


def test_checkpoint_and_detector_take_a_revision(hub: FakeHub) -> None:
    assert load_checkpoint("hf:me/it").config.num_queries == 5
    assert detrkit.Detector.load(f"hf:me/it@{COMMIT}").model.config.num_queries == 5
    assert load_checkpoint("me/it").config.num_queries == 5
    assert hub.asked == [None, COMMIT]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("runs/first", "'runs' is a usual name of folders"),
        ("Outputs/first", "'Outputs' is a usual name of folders"),
        ("checkpoints/mine", "is a usual name of folders"),
        ("work_dirs/mine", "is a usual name of folders"),
        ("mine/best", "'best' is a usual name in run folders"),
        ("mine/checkpoint-500", "is a usual name in run folders"),
        ("mine/exp3", "is a usual name in run folders"),
        ("mine/model.PTH", r"it ends in \.pth"),
        ("mine/model.onnx", r"it ends in \.onnx"),
        ("mine/config.yaml", r"it ends in \.yaml"),
        ("existing/first", "the folder 'existing' exists here"),
    ],
)
def test_name_that_looks_local_stays_local(name: str, reason: str, here: Path, hub: FakeHub) -> None:
    (here / "existing").mkdir()
    assert not is_hub_id(name)
    with pytest.raises(CheckpointError, match=f"{reason}; check the path, or write hf:{name} for a model") as error:
        load_checkpoint(name)
    assert str(error.value).startswith(f"{name}: no such file or folder, and not looked for on the Hugging Face Hub")
    assert not hub.asked
    assert is_hub_id(f"hf:{name}")


@pytest.mark.parametrize(
    "name",
    ["./me/it", "../it", "~/it", "/me/it", "a/b/c", "C:/it", "me\\it", "me/it/", "me//it", "-me/it", "me/.it", "mé/it"],
)
@pytest.mark.usefixtures("here")
def test_path_is_not_a_name_of_the_hub(name: str, hub: FakeHub) -> None:
    assert hub_source(name) is None
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_checkpoint(name)
    assert not hub.asked


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("facebook/detr-resnet-50", HubSource("facebook/detr-resnet-50")),
        ("hf:facebook/detr-resnet-50", HubSource("facebook/detr-resnet-50")),
        ("hf:runs/first", HubSource("runs/first")),
        ("hf:me/it@main", HubSource("me/it", "main")),
        (f"hf:me/it@{COMMIT}", HubSource("me/it", COMMIT)),
        ("hf:me/it@refs/pr/1", HubSource("me/it", "refs/pr/1")),
    ],
)
@pytest.mark.usefixtures("here")
def test_name_of_the_hub(name: str, expected: HubSource) -> None:
    assert hub_source(name) == expected


@pytest.mark.parametrize(
    "name", ["hf:", "hf:me", "hf:me/it@", "hf:../it", "hf:me/it/x", "hf:me/it@a b", "hf:/etc/passwd"]
)
def test_malformed_name_of_the_hub_is_one_sentence(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        CheckpointError, match="not a model of the hub, expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
    ):
        load_checkpoint(name)
    with pytest.raises(SystemExit) as exit:
        main(["describe", name])
    assert exit.value.code == 2
    assert "expected hf:OWNER/NAME" in capsys.readouterr().err


def test_folder_of_this_name_is_read(here: Path, hub: FakeHub) -> None:
    save_checkpoint(here / "me" / "it" / "model.safetensors", checkpoint_of(small_model(num_queries=7)))
    assert load_checkpoint("me/it").config.num_queries == 7
    assert not hub.asked


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_of_timm_are_downloaded_and_checked_like_all_others(file: str, hub: FakeHub, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1)
    state = timm.create_model("resnet10t").state_dict()
    (save_file if file == "model.safetensors" else torch.save)(state, tmp_path / file)
    hub.commits[COMMIT] = {file: (tmp_path / file).read_bytes(), "config.json": b"{}"}
    model = small_model(backbone="timm:resnet10t")
    load_imagenet_backbone(model)
    assert torch.equal(model.state_dict()["backbone.body.layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])
    (recorded,) = json.loads((hub.cache / hashes.RECORD).read_text())
    assert recorded == f"{timm.models.get_pretrained_cfg('resnet10t').hf_hub_id}@"
    hub.is_online = False
    load_imagenet_backbone(model)


def test_weights_of_timm_without_network_are_one_sentence(hub: FakeHub) -> None:
    pytest.importorskip("timm")
    hub.is_online = False
    with pytest.raises(
        CheckpointError, match=r"backbone timm:resnet10t: .*no network.*pass a file as backbone_weights"
    ):
        load_imagenet_backbone(small_model(backbone="timm:resnet10t"))


def test_first_kind_of_weights_is_chosen() -> None:
    names = dict.fromkeys(
        ("pytorch_model.bin", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "a.py")
    )
    assert hub_download._chosen(names) == ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    assert hub_download._chosen({"pytorch_model.bin": 1, "config.json": 1}) == ["config.json", "pytorch_model.bin"]
