"""The training loop: groups and rates by hand, what it writes, and what is left when it is stopped."""

import io
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from detrkit import build_model
from detrkit._internal.signals import StopSignal
from detrkit.config.training import PARTS, TrainingConfig
from detrkit.data.dataset import SampleDataset
from detrkit.data.loaders import Loader, train_loader
from detrkit.data.samplers import BatchGrouping
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.data.transforms.augmentation import AugmentedDataset
from detrkit.data.transforms.geometry import EvalTransform
from detrkit.errors import ConfigError, DetrkitError
from detrkit.evaluation.coco import CocoMetrics
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.losses.criterion import LossOutput, SetCriterion
from detrkit.models.detr import DETR
from detrkit.structures import Batch
from detrkit.training.build import loss_for
from detrkit.training.loggers.run_log import NoLog, RunLog, read_metrics
from detrkit.training.optimizer import build_optimizer
from detrkit.training.schedule import rate_factor
from detrkit.training.train_step import TrainStep
from detrkit.training.trainer import RunHooks, Trainer, strong_epochs

SETTINGS = TrainingConfig(epochs=2, batch_size=2, image_size=64, workers=0, log_every=1, lr=1e-3)


def tiny(**changes: Any) -> DETR:
    torch.manual_seed(0)
    small = {"num_classes": 4, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 8, "dropout": 0.1}
    return build_model("detr-tiny", **{**small, **changes})


def drawn(settings: TrainingConfig, count: int = 6) -> Loader:
    samples = SyntheticShapes(count, seed=0, style=SyntheticStyle(size=64)).draw_all()
    photos = AugmentedDataset(SampleDataset(samples), EvalTransform(64), seed=settings.seed)
    return train_loader(photos, BatchGrouping.ungrouped(count), settings, torch.device("cpu"))


@dataclass
class Script:
    """Scores to hand out, and a record of what was saved."""

    scores: list[float]
    saved: list[str] = field(default_factory=list)
    states: list[dict[str, Any]] = field(default_factory=list)

    def evaluate(self, _model: DETR) -> EvalMetrics:
        ap = self.scores.pop(0)
        return EvalMetrics(CocoMetrics({"ap": ap, "ap50": ap}, (), 1, 1))

    def save_state(self, state: dict[str, Any]) -> None:
        """As a file would: a copy, of what may be read safely."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        self.states.append(torch.load(buffer, weights_only=True))

    def hooks(self) -> RunHooks:
        return RunHooks(self.evaluate, lambda name, _model: self.saved.append(name), self.save_state)


def stepper(settings: TrainingConfig = SETTINGS, num_steps: int = 6, **model: Any) -> TrainStep:
    return TrainStep(tiny(**model), SetCriterion(4), settings, torch.device("cpu"), num_steps)


def trainer(folder: Path, script: Script, settings: TrainingConfig = SETTINGS) -> tuple[Trainer, RunLog]:
    loader = drawn(settings)
    log = RunLog(folder, settings.epochs * len(loader), Console(file=io.StringIO()))
    return Trainer(stepper(settings), loader, settings, script.hooks(), log), log


def test_groups_of_the_optimizer() -> None:
    model = build_model("detr-r18", num_classes=2)
    settings = TrainingConfig(lr=3e-4, backbone_lr=2e-5, weight_decay=0.01)
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

    only = build_optimizer(build_model("detr-r18"), TrainingConfig(backbone_lr=0))
    assert len(only.param_groups) == 1


def test_what_says_where_to_look_learns_at_a_rate_of_its_own() -> None:
    settings = {
        "backbone": "resnet-tiny",
        "num_feature_levels": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "hidden_dim": 64,
    }
    model = build_model("deformable-detr-r50", num_classes=2, **settings)
    optimizer = build_optimizer(model, TrainingConfig(lr=2e-4, offset_lr_factor=0.1))
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    slow = {name for name, one in model.named_parameters() if rates.get(id(one)) == pytest.approx(2e-5)}
    assert slow == {
        f"{place}.{kind}"
        for place in (
            "encoder.layers.0.self_attention.offset_projection",
            "decoder.layers.0.cross_attention.offset_projection",
            "query_source.point_head",
        )
        for kind in ("weight", "bias")
    }


def test_rates_by_hand() -> None:
    step = TrainingConfig(lr_scheduler="step", lr_drop=0.5)
    assert [rate_factor(s, 4, step) for s in range(4)] == [1, 1, 0.1, 0.1]
    cosine = TrainingConfig(lr_scheduler="cosine", warmup_steps=3)
    assert [rate_factor(s, 100, cosine) for s in range(3)] == [0.25, 0.5, 0.75]
    assert rate_factor(50, 100, cosine) == pytest.approx(0.5)
    assert rate_factor(100, 100, cosine) == pytest.approx(0)
    assert rate_factor(7, 0, cosine) >= 0


def test_best_and_last_are_saved_and_metrics_written(tmp_path: Path) -> None:
    script = Script([0.2, 0.1])
    loop, log = trainer(tmp_path, script)
    with log:
        result = loop.fit()
    assert script.saved == ["last", "best", "last", "last", "last"]  # before an evaluation, and after it
    assert result.scores is not None
    assert result.scores.ap == 0.2
    assert (result.epochs, result.interrupted) == (2, False)
    entries = read_metrics(tmp_path)
    losses = [entry for entry in entries if entry["kind"] == "train"]
    assert [entry["step"] for entry in losses] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "loss_ce", "loss_bbox", "loss_giou", "loss_ce_0", "lr", "images_per_second"} <= set(losses[0])
    assert [entry["ap"] for entry in entries if entry["kind"] == "evaluation"] == [0.2, 0.1]
    assert list((tmp_path / "tensorboard").iterdir())


def test_photos_that_are_learned_from_choose_no_checkpoint(tmp_path: Path) -> None:
    script = Script([0.2, 0.1])
    loop, log = trainer(tmp_path, script, SETTINGS.replace(train_on_val=True))
    with log:
        result = loop.fit()
    assert script.saved == ["last", "best", "last"] * 2
    assert result.scores is not None
    assert result.scores.ap == 0.1


def test_an_evaluation_that_fails_costs_nothing_and_comes_again(tmp_path: Path) -> None:
    def fail(_model: DETR) -> EvalMetrics:
        raise DetrkitError("a photo is broken")

    script = Script([])
    loop, log = trainer(tmp_path, script)
    loop.hooks = replace(loop.hooks, evaluate=fail)
    with log, pytest.raises(DetrkitError, match="broken"):
        loop.fit()
    again = Script([0.2, 0.1])
    other, log = trainer(tmp_path, again)
    other.load_state_dict(script.states[-1])
    assert other.stepper.step_number == 3
    with log:
        result = other.fit()
    assert not again.scores, "the first evaluation, too"
    assert (other.stepper.step_number, result.epochs) == (6, 2)


def test_a_worse_start_than_nothing_is_still_saved(tmp_path: Path) -> None:
    script = Script([-1.0, -1.0])
    loop, log = trainer(tmp_path, script)
    with log:
        loop.fit()
    assert script.saved == ["last", "best", "last"] * 2


def test_where_nothing_is_found_the_last_is_the_best_but_patience_ends(tmp_path: Path) -> None:
    script = Script([0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0])
    loop, log = trainer(tmp_path, script, SETTINGS.replace(epochs=7, patience=4))
    with log:
        loop.fit()
    assert loop.position.waited == 2
    # the fifth was better, the sixth and seventh are not
    assert script.saved == ["last", "best", "last"] * 5 + ["last", "last"] * 2
    impatient = Script([0.0, 0.0, 0.0])
    loop, log = trainer(tmp_path / "other", impatient, SETTINGS.replace(epochs=7, patience=2))
    with log:
        assert loop.fit().epochs == 3


def test_a_run_killed_in_its_last_evaluation_takes_no_step_more(tmp_path: Path) -> None:
    def killed(_model: DETR) -> EvalMetrics:
        raise KeyboardInterrupt

    settings = SETTINGS.replace(epochs=1, steps=2)
    script = Script([])
    loop, log = trainer(tmp_path, script, settings)
    loop.hooks = replace(loop.hooks, evaluate=killed)
    with log, pytest.raises(KeyboardInterrupt):
        loop.fit()
    weights = [weight.clone() for weight in loop.stepper.model.parameters()]
    again = Script([0.3])
    other, log = trainer(tmp_path, again, settings)
    other.load_state_dict(script.states[-1])
    with log:
        assert other.fit().epochs == 1
    assert other.stepper.step_number == 2
    assert all(torch.equal(*pair) for pair in zip(other.stepper.model.parameters(), weights, strict=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_end_and_saves(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script([0.5, 0.6])
    loop, log = trainer(tmp_path, script)
    original = loop.stepper.step

    def stop_at_fifth(batches: Sequence[Batch]) -> LossOutput:
        if loop.stepper.step_number == 4:
            os.kill(os.getpid(), number)
        return original(batches)

    monkeypatch.setattr(loop.stepper, "step", stop_at_fifth)
    before = signal.getsignal(number)
    with log, StopSignal() as stop:
        result = loop.fit(stop)
    assert signal.getsignal(number) is before
    assert result.stopped_by == number
    assert (result.epochs, loop.stepper.step_number) == (1, 5)
    assert script.saved == ["last", "best", "last", "last"]
    assert script.states[-1]["position"]["batch"] == 2


def test_steps_that_are_not_finite_are_left_out_and_too_many_stop_the_run(tmp_path: Path) -> None:
    settings = SETTINGS.replace(max_nonfinite_steps=3)
    loop, log = trainer(tmp_path, Script([0.0, 0.0]), settings)
    with torch.no_grad():
        loop.stepper.model.heads.class_head.weight.fill_(float("inf"))
    before = {name: tensor.clone() for name, tensor in loop.stepper.model.state_dict().items()}
    with log, pytest.raises(DetrkitError, match=r"last 3 steps were not finite \(step 3 left out: loss_ce"):
        loop.fit()
    for name, parameter in loop.stepper.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_single_bad_batch_is_passed_over() -> None:
    loop = stepper(SETTINGS.replace(ema_decay=0.9), backbone_normalization="batch")
    batches = list(drawn(SETTINGS))
    broken = replace(batches[1], images=batches[1].images * float("nan"))
    loop.train()
    loop.step([batches[0]])
    before = [p.clone() for p in loop.model.parameters()]
    loop.step([broken])
    assert all(torch.equal(p, q) for p, q in zip(loop.model.parameters(), before, strict=True))
    for model in (loop.model, loop.best_model):
        assert all(value.isfinite().all() for value in model.state_dict().values())
    assert not loop.left_out
    report = loop.step([batches[2]])
    assert report.total.isfinite()
    assert len(loop.left_out) == 1
    assert f"photos {broken.image_ids[0]}" in loop.left_out[0]


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    losses = []
    for name in ("a", "b"):
        loop, log = trainer(tmp_path / name, Script([0.1, 0.2]))
        with log:
            loop.fit()
        losses.append([entry["loss"] for entry in read_metrics(tmp_path / name) if entry["kind"] == "train"])
    assert losses[0] == losses[1]


def test_clipping_bounds_the_update() -> None:
    settings = SETTINGS.replace(clip_grad_norm=1e-3)
    loop = stepper(settings)
    loop.step([next(iter(drawn(settings)))])
    gradients = [p.grad for p in loop.model.parameters() if p.grad is not None]
    norm = torch.stack([g.norm() for g in gradients]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_float16_gradients_that_are_never_finite_stop_the_run() -> None:
    loop = stepper(SETTINGS.replace(precision="float16", max_nonfinite_steps=3))
    batch = next(iter(drawn(SETTINGS)))
    first = next(p for p in loop.model.decoder.parameters())
    first.register_hook(lambda gradient: gradient * float("nan"))
    before = [p.clone() for p in loop.model.parameters()]
    for _ in range(16):  # in which its scale falls to 1, as it may
        loop.step([batch])
    assert not loop.left_out
    for _ in range(3):
        loop.step([batch])
    with pytest.raises(DetrkitError, match=r"the last 3 steps were not finite \(step 19 left out: the gradient"):
        loop.finish()
    assert all(torch.equal(p, q) for p, q in zip(loop.model.parameters(), before, strict=True))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_keeps_weights_and_losses_in_float32(precision: str) -> None:
    loop = stepper(SETTINGS.replace(precision=precision))
    before = [p.clone() for p in loop.model.parameters()]
    for batch in drawn(SETTINGS):
        report = loop.step([batch])
    assert report.total.dtype == torch.float32
    assert {p.dtype for p in loop.model.parameters()} == {torch.float32}
    assert any(not torch.equal(p, q) for p, q in zip(loop.model.parameters(), before, strict=True))


def test_accumulated_batches_are_one_large_batch() -> None:
    """Exact padding, no dropout and frozen norms: a photo's gradient does not depend on its batch."""
    changes = {"dropout": 0.0, "backbone_normalization": "frozen"}
    settings = SETTINGS.replace(batch_size=6)
    apart, together = stepper(**changes), stepper(**changes)
    for epoch in (1, 2):
        loaders = drawn(SETTINGS), drawn(settings)
        for loader in loaders:
            loader.start_at(epoch, 0)
        batches, (whole,) = list(loaders[0]), list(loaders[1])
        assert sorted(i for batch in batches for i in batch.image_ids) == sorted(whole.image_ids)
        reports = apart.step(batches), together.step([whole])
        torch.testing.assert_close(reports[0].total, reports[1].total)
        for name in ("loss_ce", "loss_bbox_0", "loss_giou", "cardinality_error"):
            torch.testing.assert_close(reports[0].losses[name], reports[1].losses[name])
    for one, other in zip(apart.model.parameters(), together.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_running_average_by_hand() -> None:
    loop = stepper(SETTINGS.replace(ema_decay=0.5))
    weight = "heads.class_head.bias"
    seen = []
    for batch in drawn(SETTINGS):
        loop.step([batch])
        seen.append(loop.model.state_dict()[weight].clone())
    # the first update copies; the next weigh the average by min(0.5, (1 + n) / (10 + n)) = 2/11, 3/12
    expected = seen[0]
    for count, current in enumerate(seen[1:], start=1):
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * current
    torch.testing.assert_close(loop.best_model.state_dict()[weight], expected)
    assert loop.best_model is not loop.model
    assert not any(p.requires_grad for p in loop.best_model.parameters())


def test_compiling_is_refused_where_it_does_not_pay_off() -> None:
    with pytest.raises(ConfigError, match="--compile: on a CPU, compiled steps were no quicker"):
        stepper(TrainingConfig(compile=True))


def test_recomputing_gives_the_same_gradients() -> None:
    gradients = []
    for activation_checkpointing in (False, True):
        loop = stepper(
            SETTINGS.replace(activation_checkpointing=activation_checkpointing),
            backbone_normalization="frozen",
        )
        torch.manual_seed(5)
        loop.step([next(iter(drawn(SETTINGS)))])
        gradients.append([p.grad for p in loop.model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other)


def test_recomputing_does_not_count_photos_twice() -> None:
    statistics = []
    for activation_checkpointing in (False, True):
        loop = stepper(SETTINGS.replace(activation_checkpointing=activation_checkpointing))
        loop.step([next(iter(drawn(SETTINGS)))])
        statistics.append([b.clone() for n, b in loop.model.named_buffers() if n.endswith("running_mean")])
    for one, other in zip(*statistics, strict=True):
        torch.testing.assert_close(one, other)


def test_parts_are_frozen_or_have_rates_of_their_own() -> None:
    settings = TrainingConfig(
        freeze=["backbone", "encoder"], lr_overrides={"heads": 1e-3, "query_source": 0}, decay_norms=False
    )
    loop = stepper(settings)
    loop.train()
    trained = {name.partition(".")[0] for name, p in loop.model.named_parameters() if p.requires_grad}
    assert trained == {"neck.projection", "decoder", "heads"}
    assert not loop.model.backbone.training
    assert not any(module.training for module in loop.model.encoder.modules())
    assert loop.model.decoder.training
    rates = {(group["lr"], group["weight_decay"]) for group in loop.optimizer.param_groups}
    assert rates == {(1e-4, 1e-4), (1e-4, 0.0), (1e-3, 1e-4), (1e-3, 0.0)}
    with pytest.raises(ConfigError, match="nothing is left to train"):
        stepper(TrainingConfig(freeze=PARTS))


def test_norms_of_frozen_stages_keep_their_statistics() -> None:
    loop = stepper(SETTINGS, frozen_backbone_stages=2)  # ordinary batch norm
    before = {name: buffer.clone() for name, buffer in loop.model.backbone.body.named_buffers() if "mean" in name}
    loop.train()
    loop.step(list(drawn(SETTINGS))[:1])
    moved = {name for name, buffer in loop.model.backbone.body.named_buffers() if "mean" in name}
    moved -= {name for name in moved if torch.equal(before[name], loop.model.backbone.body.get_buffer(name))}
    assert moved
    assert all(name.startswith(("layer2", "layer3")) for name in moved)


@pytest.mark.parametrize(("share", "epochs", "strong"), [(0.9, 4, 3), (0.7, 4, 3), (1, 4, 4), (0.9, 1, 1), (0, 4, 0)])
def test_the_last_epoch_is_plain_unless_all_are_to_be_strong(share: float, epochs: int, strong: int) -> None:
    assert strong_epochs(5, TrainingConfig(epochs=epochs, strong_aug_until=share)) == strong


def test_a_run_ends_after_its_steps_or_when_nothing_gets_better(tmp_path: Path) -> None:
    loop, log = trainer(tmp_path / "a", Script([0.1, 0.2]), SETTINGS.replace(steps=4))
    with log:
        assert loop.fit().epochs == 2
    assert loop.stepper.step_number == 4
    patient = SETTINGS.replace(epochs=9, patience=2)
    loop, log = trainer(tmp_path / "b", Script([0.1, 0.3, 0.3, 0.2]), patient)
    with log:
        result = loop.fit()
    assert result.epochs == 4
    assert loop.has_ended


SHAKEN = {
    "epochs": 3,
    "ema_decay": 0.9,
    "gradient_accumulation": 2,
    "lr_scheduler": "cosine",
    "warmup_steps": 3,
    "workers": 0,
}


HELPED = {"denoising": 2, "contrastive_denoising": True, "query_groups": 2, "hybrid_queries": 12}


@pytest.mark.parametrize(("stop_at", "helpers"), [(1, {}), (2, {}), (3, {}), (5, {}), (2, HELPED)])
def test_stopped_and_gone_on_is_never_stopped_bit_for_bit(
    stop_at: int, helpers: dict[str, Any], tmp_path: Path
) -> None:
    settings = SETTINGS.replace(**SHAKEN, **helpers)
    whole, log = trainer(tmp_path / "whole", Script([0.1, 0.3, 0.2]), settings)
    with log:
        whole.fit()

    script = Script([0.1, 0.3, 0.2])
    first, log = trainer(tmp_path / "parts", script, settings)
    stop = StopSignal()

    class AtStep(NoLog):
        def advance(self) -> None:
            if first.stepper.step_number == stop_at:
                stop.received = signal.SIGTERM

    first.log = AtStep()
    with log:
        assert first.fit(stop).stopped_by == signal.SIGTERM
    torch.manual_seed(123)  # another process starts with another state
    second, log = trainer(tmp_path / "rest", script, settings)
    torch.manual_seed(321)
    second.load_state_dict(script.states[-1])
    with log:
        result = second.fit()
    assert result.scores is not None
    assert result.scores.ap == 0.3
    assert second.stepper.step_number == whole.stepper.step_number
    for ours, theirs in (
        (second.stepper.model, whole.stepper.model),
        (second.stepper.best_model, whole.stepper.best_model),
        (second.stepper.helpers or nn.Module(), whole.stepper.helpers or nn.Module()),
    ):
        for (name, one), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(one, other), name


def test_an_evaluation_that_was_not_saved_is_told_once(tmp_path: Path) -> None:
    script = Script([0.1, 0.3])
    loop, log = trainer(tmp_path, script, SETTINGS.replace(epochs=1))
    with log:
        loop.fit()
    saved_before_it = script.states[-2]  # as by a process that was killed right after it
    again = Script([0.1])
    other, _ = trainer(tmp_path / "other", again, SETTINGS.replace(epochs=1))
    other.load_state_dict(saved_before_it)
    other.log = RunLog(tmp_path, 3, done=3, epoch=other.position.epoch)
    with other.log:
        other.fit()
    assert [entry["kind"] for entry in read_metrics(tmp_path)] == ["train"] * 3 + ["evaluation"]


def test_metrics_survive_a_cut_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + '\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1}]


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", "bfloat16"),
        pytest.param("cuda", "float32", marks=pytest.mark.gpu),
        pytest.param("cuda", "bfloat16", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize(("name", "small"), [("detr-tiny", {"encoder_layers": 1}), ("detrkit-s", {"hidden_dim": 64})])
def test_steps_on_a_gpu_follow_the_cpu(name: str, small: dict[str, int], precision: str, device: str) -> None:
    """With a running average, and a bad step in between; on the CPU, bfloat16 is held against float32."""

    def totals(device: str, precision: str) -> list[float]:
        settings = SETTINGS.replace(precision=precision, ema_decay=0.9)
        torch.manual_seed(0)
        model = build_model(
            name, num_classes=4, decoder_layers=2, num_queries=8, max_detections=8, dropout=0.0, **small
        )
        loop = TrainStep(model, loss_for(model.config, settings), settings, torch.device(device), 6)
        batches = [batch.to(loop.device) for batch in drawn(settings)]
        bad = replace(batches[1], images=batches[1].images * float("nan"))
        loop.train()
        losses = [loop.step([batch]).total.item() for batch in (batches[0], bad, batches[2])]
        loop.finish()
        assert len(loop.left_out) == 1
        assert all(value.isfinite().all() for value in loop.best_model.state_dict().values())
        return [losses[0], losses[2]]

    expected = totals("cpu", "float32")
    assert totals(device, precision) == pytest.approx(expected, rel=1e-3 if precision == "float32" else 0.05)
