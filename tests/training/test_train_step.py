"""Optimizer steps: parameter groups, schedule, precision, accumulation, skipped steps, moving average."""

from dataclasses import replace

import pytest
import torch

from detrkit import build_model
from detrkit.config.setting_groups import PARTS
from detrkit.config.training import TrainingConfig
from detrkit.data.batching import collate
from detrkit.data.dataset import SampleDataset
from detrkit.data.samplers import SampleKey
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.errors import ConfigError, DetrkitError
from detrkit.training.build import build_criterion
from detrkit.training.data import training_dataset
from detrkit.training.duration import strong_epochs
from detrkit.training.optimizer import build_optimizer
from detrkit.training.schedule import lr_factor
from detrkit.training.train_step import TrainStep
from tests.rounding import assert_equal_up_to_rounding
from tests.training.steps import SETTINGS, drawn, make_train_step


def test_optimizer_groups_parameters_by_learning_rate() -> None:
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


def test_sampling_offsets_and_reference_points_have_their_own_learning_rate() -> None:
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


def test_learning_rate_factors_computed_by_hand() -> None:
    step = TrainingConfig(lr_scheduler="step", lr_drop=0.5)
    assert [lr_factor(s, s / 4, step) for s in range(4)] == [1, 1, 0.1, 0.1]
    cosine = TrainingConfig(lr_scheduler="cosine", warmup_steps=3)
    assert [lr_factor(s, s / 100, cosine) for s in range(3)] == [0.25, 0.5, 0.75]
    assert lr_factor(50, 0.5, cosine) == pytest.approx(0.5)
    assert lr_factor(100, 1.0, cosine) == pytest.approx(0)


def test_warm_up_ends_after_its_steps_or_its_fraction_of_the_run() -> None:
    settings = TrainingConfig(warmup_steps=99, warmup_until=0.05)
    assert lr_factor(0, 0.0, settings) == 0.01
    assert lr_factor(9, 0.001, settings) == 0.1  # a fast machine: the steps lead
    assert lr_factor(1, 0.025, settings) == 0.5  # a slow one: the clock leads
    assert lr_factor(2, 0.05, settings) == 1
    assert lr_factor(99, 0.01, settings) == 1


def test_batch_with_nan_is_skipped_and_changes_nothing() -> None:
    train_step = make_train_step(SETTINGS.replace(ema_decay=0.9), backbone_normalization="batch")
    batches = list(drawn(SETTINGS))
    broken = replace(batches[1], images=batches[1].images * float("nan"))
    train_step.train()
    train_step.step([batches[0]])
    before = [p.clone() for p in train_step.model.parameters()]
    train_step.step([broken])
    assert all(torch.equal(p, q) for p, q in zip(train_step.model.parameters(), before, strict=True))
    for model in (train_step.model, train_step.best_model):
        assert all(value.isfinite().all() for value in model.state_dict().values())
    assert not train_step.skipped_steps
    output = train_step.step([batches[2]])
    assert output.total.isfinite()
    assert len(train_step.skipped_steps) == 1
    assert f"images {broken.image_ids[0]}" in train_step.skipped_steps[0]


def test_gradient_norm_is_clipped() -> None:
    settings = SETTINGS.replace(clip_grad_norm=1e-3)
    train_step = make_train_step(settings)
    train_step.step([next(iter(drawn(settings)))])
    gradients = [p.grad for p in train_step.model.parameters() if p.grad is not None]
    norm = torch.stack([g.norm() for g in gradients]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.slow
def test_float16_gradients_that_stay_non_finite_end_the_run() -> None:
    train_step = make_train_step(SETTINGS.replace(precision="float16", max_nonfinite_steps=3))
    batch = next(iter(drawn(SETTINGS)))
    first = next(p for p in train_step.model.decoder.parameters())
    first.register_hook(lambda gradient: gradient * float("nan"))
    before = [p.clone() for p in train_step.model.parameters()]
    for _ in range(16):  # in which its scale falls to 1, as it may
        train_step.step([batch])
    assert not train_step.skipped_steps
    for _ in range(3):
        train_step.step([batch])
    with pytest.raises(DetrkitError, match=r"the last 3 steps were not finite \(step 19 skipped: the gradient"):
        train_step.finish()
    assert all(torch.equal(p, q) for p, q in zip(train_step.model.parameters(), before, strict=True))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_keeps_weights_and_losses_in_float32(precision: str) -> None:
    train_step = make_train_step(SETTINGS.replace(precision=precision))
    before = [p.clone() for p in train_step.model.parameters()]
    for batch in drawn(SETTINGS):
        output = train_step.step([batch])
    assert output.total.dtype == torch.float32
    assert {p.dtype for p in train_step.model.parameters()} == {torch.float32}
    assert any(not torch.equal(p, q) for p, q in zip(train_step.model.parameters(), before, strict=True))


def test_accumulated_batches_equal_one_large_batch() -> None:
    """Exact padding, no dropout and frozen norms: a photo's gradient does not depend on its batch."""
    changes = {"dropout": 0.0, "backbone_normalization": "frozen"}
    settings = SETTINGS.replace(batch_size=6)
    apart, together = make_train_step(**changes), make_train_step(**changes)
    for epoch in (1, 2):
        loaders = drawn(SETTINGS), drawn(settings)
        for loader in loaders:
            loader.start_at(epoch, 0)
        batches, (whole,) = list(loaders[0]), list(loaders[1])
        assert sorted(i for batch in batches for i in batch.image_ids) == sorted(whole.image_ids)
        outputs = apart.step(batches), together.step([whole])
        assert_equal_up_to_rounding(outputs[0].total, outputs[1].total)
        for name in ("loss_ce", "loss_bbox_0", "loss_giou", "cardinality_error"):
            assert_equal_up_to_rounding(outputs[0].losses[name], outputs[1].losses[name])
    for one, other in zip(apart.model.parameters(), together.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_moving_average_computed_by_hand() -> None:
    train_step = make_train_step(SETTINGS.replace(ema_decay=0.5))
    weight = "heads.class_head.bias"
    seen = []
    for batch in drawn(SETTINGS):
        train_step.step([batch])
        seen.append(train_step.model.state_dict()[weight].clone())
    # the first update copies; the next weigh the average by min(0.5, (1 + n) / (10 + n)) = 2/11, 3/12
    expected = seen[0]
    for count, current in enumerate(seen[1:], start=1):
        decay = min(0.5, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * current
    torch.testing.assert_close(train_step.best_model.state_dict()[weight], expected)
    assert train_step.best_model is not train_step.model
    assert not any(p.requires_grad for p in train_step.best_model.parameters())


def test_compile_is_rejected_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match=r"^compile=True is for GPUs"):
        make_train_step(TrainingConfig(compile=True))


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for activation_checkpointing in (False, True):
        train_step = make_train_step(
            SETTINGS.replace(activation_checkpointing=activation_checkpointing),
            backbone_normalization="frozen",
        )
        torch.manual_seed(5)
        train_step.step([next(iter(drawn(SETTINGS)))])
        gradients.append([p.grad for p in train_step.model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other)


def test_activation_checkpointing_updates_batch_norm_once() -> None:
    statistics = []
    for activation_checkpointing in (False, True):
        train_step = make_train_step(SETTINGS.replace(activation_checkpointing=activation_checkpointing))
        train_step.step([next(iter(drawn(SETTINGS)))])
        statistics.append([b.clone() for n, b in train_step.model.named_buffers() if n.endswith("running_mean")])
    for one, other in zip(*statistics, strict=True):
        torch.testing.assert_close(one, other)


def test_parts_are_frozen_or_have_their_own_learning_rate() -> None:
    settings = TrainingConfig(
        freeze=["backbone", "encoder"], lr_overrides={"heads": 1e-3, "query_source": 0}, decay_norms=False
    )
    train_step = make_train_step(settings)
    train_step.train()
    trained = {name.partition(".")[0] for name, p in train_step.model.named_parameters() if p.requires_grad}
    assert trained == {"neck", "decoder", "heads"}
    assert not train_step.model.backbone.training
    assert not any(module.training for module in train_step.model.encoder.modules())
    assert train_step.model.decoder.training
    rates = {(group["lr"], group["weight_decay"]) for group in train_step.optimizer.param_groups}
    assert rates == {(1e-4, 1e-4), (1e-4, 0.0), (1e-3, 1e-4), (1e-3, 0.0)}
    with pytest.raises(ConfigError, match="nothing is left to train"):
        make_train_step(TrainingConfig(freeze=PARTS))


def test_batch_norm_of_frozen_stages_keeps_its_statistics() -> None:
    train_step = make_train_step(SETTINGS, frozen_backbone_stages=2)  # ordinary batch norm
    before = {name: buffer.clone() for name, buffer in train_step.model.backbone.body.named_buffers() if "mean" in name}
    train_step.train()
    train_step.step(list(drawn(SETTINGS))[:1])
    moved = {name for name, buffer in train_step.model.backbone.body.named_buffers() if "mean" in name}
    moved -= {name for name in moved if torch.equal(before[name], train_step.model.backbone.body.get_buffer(name))}
    assert moved
    assert all(name.startswith(("layer2", "layer3")) for name in moved)


def test_batch_with_nan_leaves_the_statistics_of_an_encoder_behind_a_frozen_backbone() -> None:
    """RT-DETR-R50 has frozen norms in its backbone, and ordinary ones in its encoder."""
    torch.manual_seed(0)
    few = {"backbone": "resnet-tiny", "hidden_dim": 64, "num_queries": 20, "num_classes": 4, "decoder_layers": 1}
    model = build_model("rtdetr-r18", backbone_normalization="frozen", **few)
    settings = SETTINGS.replace(cls_loss="vfl", cls_loss_coef=1.0)
    train_step = TrainStep(model, build_criterion(model.config, settings), settings, torch.device("cpu"), 6)
    train_step.train()
    batch = next(iter(drawn(settings)))

    def statistics() -> dict[str, torch.Tensor]:
        return {name: one.clone() for name, one in model.encoder.named_buffers() if "running" in name}

    initial = statistics()
    train_step.step([batch])
    before = statistics()
    assert any(not torch.equal(before[name], one) for name, one in initial.items())
    train_step.step([replace(batch, images=batch.images * float("nan"))])
    train_step.finish()
    assert len(train_step.skipped_steps) == 1
    for name, one in statistics().items():
        assert torch.equal(one, before[name]), name


@pytest.mark.parametrize(("share", "epochs", "strong"), [(0.9, 4, 3), (0.7, 4, 3), (1, 4, 4), (0.9, 1, 1), (0, 4, 0)])
def test_last_epoch_has_no_strong_augmentation_unless_all_have_it(share: float, epochs: int, strong: int) -> None:
    assert strong_epochs(5, TrainingConfig(epochs=epochs, strong_aug_until=share))[0] == range(1, strong + 1)


def test_batches_are_resized_in_the_epochs_with_strong_augmentation() -> None:
    settings = SETTINGS.replace(
        augment=True, keep_aspect_ratio=False, image_size=128, multi_scale=1, epochs=10, strong_aug_from=0.2,
        strong_aug_until=0.5,
    )  # fmt: skip
    samples = SyntheticShapes(2, seed=0, style=SyntheticStyle(size=64)).draw_all()
    images = training_dataset(SampleDataset(samples), settings)
    images.strong_epochs, images.mosaic_epochs = strong_epochs(3, settings)
    train_step = make_train_step(settings, length=30)
    resized = set()
    for epoch in range(1, 11):
        for train_step.step_number in range(3 * epoch - 3, 3 * epoch):
            batch = collate([images[SampleKey(index, epoch)] for index in range(2)])
            if train_step._rescaled(batch)[0].shape[2] != 128:
                resized.add(epoch)
    assert resized == {3, 4, 5}


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", "bfloat16"),
        pytest.param("cuda", "float32", marks=pytest.mark.gpu),
        pytest.param("cuda", "bfloat16", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.parametrize(("name", "small"), [("detr-tiny", {"encoder_layers": 1}), ("detrkit-s", {"hidden_dim": 64})])
def test_gpu_steps_match_cpu_steps(name: str, small: dict[str, int], precision: str, device: str) -> None:
    """With a running average, and a bad step in between; on the CPU, bfloat16 is held against float32."""

    def totals(device: str, precision: str) -> list[float]:
        settings = SETTINGS.replace(precision=precision, ema_decay=0.9)
        torch.manual_seed(0)
        model = build_model(
            name, num_classes=4, decoder_layers=2, num_queries=8, max_detections=8, dropout=0.0, **small
        )
        train_step = TrainStep(model, build_criterion(model.config, settings), settings, torch.device(device), 6)
        batches = [batch.to(train_step.device) for batch in drawn(settings)]
        bad = replace(batches[1], images=batches[1].images * float("nan"))
        train_step.train()
        losses = [train_step.step([batch]).total.item() for batch in (batches[0], bad, batches[2])]
        train_step.finish()
        assert len(train_step.skipped_steps) == 1
        assert all(value.isfinite().all() for value in train_step.best_model.state_dict().values())
        return [losses[0], losses[2]]

    expected = totals("cpu", "float32")
    assert totals(device, precision) == pytest.approx(expected, rel=1e-3 if precision == "float32" else 0.05)
