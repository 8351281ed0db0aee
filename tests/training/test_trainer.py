"""The training loop: groups and rates by hand, what it writes, and what is left when it is stopped."""

import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from rich.console import Console

from detrkit import build_model
from detrkit.data.augmentation import TrainingPhotos
from detrkit.data.dataset import SampleDataset
from detrkit.data.sampling import Arrangement
from detrkit.data.synthetic import DrawingStyle, DrawnShapes
from detrkit.data.transforms import TestTransform
from detrkit.errors import DetrkitError
from detrkit.evaluation.coco import BoxScores
from detrkit.losses.set_loss import SetLoss
from detrkit.models.detr import DETR
from detrkit.recipes.loaders import Loader, train_loader
from detrkit.structures import Batch
from detrkit.training.optimizer import build_optimizer
from detrkit.training.run_log import RunLog, read_metrics
from detrkit.training.schedule import rate_factor
from detrkit.training.settings import TrainingSettings
from detrkit.training.trainer import RunHooks, Trainer

SETTINGS = TrainingSettings(epochs=2, batch_size=2, image_size=64, workers=0, log_every=1, learning_rate=1e-3)


def tiny() -> DETR:
    torch.manual_seed(0)
    return build_model("detr-tiny", num_classes=4, encoder_layers=1, decoder_layers=2, num_queries=8)


def drawn(settings: TrainingSettings, count: int = 6) -> Loader:
    samples = DrawnShapes(count, seed=0, style=DrawingStyle(size=64)).draw_all()
    photos = TrainingPhotos(SampleDataset(samples), TestTransform(64), seed=settings.seed)
    return train_loader(photos, Arrangement.anything(count), settings, torch.device("cpu"))


@dataclass
class Script:
    """Scores to hand out, and a record of what was saved."""

    scores: list[float]
    saved: list[str] = field(default_factory=list)

    def evaluate(self, _model: DETR) -> BoxScores:
        ap = self.scores.pop(0)
        return BoxScores({"AP": ap, "AP50": ap}, (), 1, 1)

    def hooks(self) -> RunHooks:
        return RunHooks(self.evaluate, self.saved.append)


def trainer(folder: Path, script: Script, settings: TrainingSettings = SETTINGS) -> tuple[Trainer, RunLog]:
    loader = drawn(settings)
    log = RunLog(folder, settings.epochs * len(loader), Console(file=io.StringIO()))
    return Trainer(tiny(), SetLoss(4), loader, settings, torch.device("cpu"), script.hooks(), log), log


def test_groups_of_the_optimizer() -> None:
    model = build_model("detr-r18", num_classes=2)
    settings = TrainingSettings(learning_rate=3e-4, backbone_learning_rate=2e-5, weight_decay=0.01)
    others, backbone = build_optimizer(model, settings).param_groups
    assert (others["lr"], backbone["lr"]) == (3e-4, 2e-5)
    assert others["weight_decay"] == backbone["weight_decay"] == 0.01
    named = {id(p): name for name, p in model.named_parameters()}
    assert all(named[id(p)].startswith("backbone.") for p in backbone["params"])
    assert not any(named[id(p)].startswith("backbone.") for p in others["params"])
    total = len(others["params"]) + len(backbone["params"])
    assert total == sum(p.requires_grad for p in model.parameters())
    # the stem and layer1 are frozen
    assert not any("conv1.weight" in named[id(p)] and "layer" not in named[id(p)] for p in backbone["params"])

    only = build_optimizer(build_model("detr-r18"), TrainingSettings(backbone_learning_rate=0))
    assert len(only.param_groups) == 1


def test_rates_by_hand() -> None:
    step = TrainingSettings(schedule="step", drop_at=0.5)
    assert [rate_factor(s, 4, step) for s in range(4)] == [1, 1, 0.1, 0.1]
    cosine = TrainingSettings(schedule="cosine", warmup_steps=3)
    assert [rate_factor(s, 100, cosine) for s in range(3)] == [0.25, 0.5, 0.75]
    assert rate_factor(50, 100, cosine) == pytest.approx(0.5)
    assert rate_factor(100, 100, cosine) == pytest.approx(0)
    assert rate_factor(7, 0, cosine) >= 0


def test_best_and_last_are_saved_and_metrics_written(tmp_path: Path) -> None:
    script = Script([0.2, 0.1])
    loop, log = trainer(tmp_path, script)
    with log:
        result = loop.fit()
    assert script.saved == ["last", "best", "last"]
    assert result.scores is not None
    assert result.scores.ap == 0.2
    assert (result.epochs, result.interrupted) == (2, False)
    entries = read_metrics(tmp_path)
    losses = [entry for entry in entries if entry["kind"] == "train"]
    assert [entry["step"] for entry in losses] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "loss_ce", "loss_bbox", "loss_giou", "loss_ce_0", "learning_rate", "photos_per_second"} <= set(
        losses[0]
    )
    assert [entry["AP"] for entry in entries if entry["kind"] == "evaluation"] == [0.2, 0.1]
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_worse_start_than_nothing_is_still_saved(tmp_path: Path) -> None:
    script = Script([-1.0, -1.0])
    loop, log = trainer(tmp_path, script)
    with log:
        loop.fit()
    assert script.saved == ["last", "best", "last"]


def test_ctrl_c_saves_what_was_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script([0.5, 0.6])
    loop, log = trainer(tmp_path, script)
    original = loop.train_step

    def stop_at_fifth(batch: Batch) -> object:
        if loop.step == 4:
            raise KeyboardInterrupt
        return original(batch)

    monkeypatch.setattr(loop, "train_step", stop_at_fifth)
    with log:
        result = loop.fit()
    assert result.interrupted
    assert result.epochs == 1
    assert script.saved == ["last", "best", "last"]


def test_a_loss_that_is_not_finite_stops_with_a_sentence(tmp_path: Path) -> None:
    loop, log = trainer(tmp_path, Script([]))
    with torch.no_grad():
        loop.model.heads.class_head.weight.fill_(float("inf"))
    with log, pytest.raises(DetrkitError, match="not finite"):
        loop.fit()


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    losses = []
    for name in ("a", "b"):
        loop, log = trainer(tmp_path / name, Script([0.1, 0.2]))
        with log:
            loop.fit()
        losses.append([entry["loss"] for entry in read_metrics(tmp_path / name) if entry["kind"] == "train"])
    assert losses[0] == losses[1]


def test_clipping_bounds_the_update(tmp_path: Path) -> None:
    loop, log = trainer(tmp_path, Script([]), SETTINGS.model_copy(update={"clip_norm": 1e-3}))
    with log:
        loop.train_step(next(iter(loop.loader)))
    gradients = [p.grad for p in loop.model.parameters() if p.grad is not None]
    norm = torch.stack([g.norm() for g in gradients]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_bfloat16_keeps_weights_and_losses_in_float32(tmp_path: Path) -> None:
    loop, log = trainer(tmp_path, Script([]), SETTINGS.model_copy(update={"precision": "bfloat16"}))
    with log:
        report = loop.train_step(next(iter(loop.loader)))
    assert report.total.dtype == torch.float32
    assert {p.dtype for p in loop.model.parameters()} == {torch.float32}


def test_metrics_survive_a_cut_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1}]


@pytest.mark.gpu
def test_a_step_on_a_gpu_follows_the_cpu(tmp_path: Path) -> None:
    totals = []
    for device in ("cpu", "cuda"):
        loop, log = trainer(tmp_path / device, Script([]))
        loop.device = torch.device(device)
        loop.model.to(device)
        with log:
            totals.append(float(loop.train_step(next(iter(loop.loader)).to(loop.device)).total))
    assert totals[0] == pytest.approx(totals[1], rel=1e-3)
