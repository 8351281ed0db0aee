"""Training in two processes: steps, batch norm statistics and random state equal those of one process."""

import copy
import os
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from detrkit import build_model
from detrkit.config.training import TrainingConfig
from detrkit.data.batching import collate
from detrkit.data.dataset import SampleDataset
from detrkit.data.loaders import evaluation_loader
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.data.transforms.geometry import crop, resize
from detrkit.distributed.collectives import (
    average_over_processes,
    broadcast_from_first,
    environment_of_local_group,
    gather,
    max_over_processes,
    process_group,
)
from detrkit.distributed.rank import Rank
from detrkit.evaluation.coco import CocoMetrics
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.models.detr import DETR
from detrkit.models.presets import PRESETS
from detrkit.models.presets_foundation import FOUNDATION_PRESETS
from detrkit.models.presets_realtime import REALTIME_PRESETS
from detrkit.structures import Batch, Sample
from detrkit.training.budget import TimeBudget
from detrkit.training.build import build_criterion
from detrkit.training.train_step import TrainStep
from detrkit.training.trainer import Trainer
from tests.models.vit_models import SMALL as VIT
from tests.rounding import assert_equal_up_to_rounding

BATCH = 4
STEPS = 5


def images_of_several_sizes() -> list[Sample]:
    """Photos of several sizes; the first of each half of a batch has no object, or many."""
    samples = SyntheticShapes(BATCH * STEPS, 0, SyntheticStyle(size=64, max_objects=5)).draw_all()
    changed = []
    for number, sample in enumerate(samples):
        if number % BATCH == 0:
            sample = crop(sample, 0, 0, 1, 64)
            sample = resize(sample, (64, 48))
        elif number % 3 == 0:
            sample = resize(sample, (40, 72))
        changed.append(sample)
    return changed


OWN = {"cls_loss": "align", "look_forward_twice": True, "denoising": 3, "contrastive_denoising": True}
AUXILIARY = {"denoising": 2, "contrastive_denoising": 1, "query_groups": 2, "hybrid_queries": 8, "hybrid_repeats": 2}
# model, whether it has masks, training-only queries
CASES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "boxes": ("detr-tiny", False, {}),
    "masks": ("detr-tiny", True, {}),
    "auxiliary queries": ("detr-tiny", False, AUXILIARY),
    "two-stage": ("detrkit-s", False, OWN),
    "groups of queries": ("rfdetr-nano", False, {"cls_loss": "ia_bce", "cls_loss_coef": 1.0}),
}


def save_steps(process: Rank, file: Path, name: str, with_masks: bool, more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    changes: dict[str, Any] = {"num_classes": 3, "num_queries": 6, "decoder_layers": 2}
    if name == "detr-tiny":
        changes["encoder_layers"] = 1
    samples, share = images_of_several_sizes(), BATCH // process.world_size
    if name == "rfdetr-nano":
        changes |= VIT
        samples = [resize(sample, (64, 64)) for sample in samples]
    model = build_model(name, backbone_normalization="frozen", mask_head=with_masks, **changes)
    settings = TrainingConfig(ema_decay=0.9, **more)
    with process_group(process, torch.device("cpu")):
        train_step = TrainStep(model, build_criterion(model.config, settings), settings, torch.device("cpu"), STEPS)
        totals, gradients = [], {}
        for step in range(STEPS):
            first = step * BATCH + process.rank * share
            batch = collate(samples[first : first + share])
            report = train_step.step([batch])
            if not step:
                gradients = {
                    name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
                }
            # the first process has no object at all in some steps: its NaN class error must not spoil the average
            of_helpers = [report.losses[name] for name in sorted(report.losses) if "_dn" in name or "_hybrid" in name]
            named = [report.losses["loss_ce"], *of_helpers, report.losses["class_error"]]
            values = torch.stack([report.total.detach(), *named])
            means, photos = average_over_processes(values, len(batch.image_ids))
            assert photos == BATCH
            totals.append(means)
        assert gather([process.rank]) == list(range(process.world_size))
        assert broadcast_from_first("here" if process.is_first else None) == "here"
        if process.is_first:
            auxiliary = {} if train_step.auxiliary_queries is None else train_step.auxiliary_queries.state_dict()
            state = {**model.state_dict(), **auxiliary}
            torch.save({"model": state, "gradients": gradients, "totals": torch.stack(totals)}, file)


def run_cases(rank: int, folder: Path) -> None:
    """All that two processes are asked for, one after the other: to start them takes longer than what they do."""
    torch.set_num_threads(1)
    for case, settings in CASES.items():
        os.environ.update(environment_of_local_group(rank, 2, folder / f"{case}.store"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # users would see them
            save_steps(Rank(rank, 2, rank), folder / f"{case}.pt", *settings)
    os.environ.update(environment_of_local_group(rank, 2, folder / "statistics.store"))
    save_batch_norm_statistics(rank, folder / "statistics")
    os.environ.update(environment_of_local_group(rank, 2, folder / "fractions.store"))
    save_fractions(rank, folder / "fractions")


def save_fractions(rank: int, file: Path) -> None:
    """Follow a time limit in processes whose clocks differ; the first one's counts."""
    now = 0.0
    budget = TimeBudget(60.0, clock=lambda: now)
    fractions, due = [], []
    with process_group(Rank(rank, 2, rank), torch.device("cpu")):
        budget.start(0)
        for step in range(1, 1000):
            now += (0.3, 5.0)[rank]
            budget.advance(step)
            fractions.append(budget.fraction)
            if step % 10 == 0:
                due.append(budget.evaluates_after(step // 10))
                if due[-1]:
                    with budget.evaluating():
                        now += (0.4, 9.0)[rank]
            if budget.is_over_after(step):
                break
    torch.save({"fractions": torch.tensor(fractions), "due": torch.tensor(due)}, file.with_suffix(f".{rank}"))


class EmptyLoader:
    """One batch that is never read."""

    closing_from = None

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        return iter(())

    def start_at(self, epoch: int, first: int) -> None:
        pass

    def end_strong_augmentation(self) -> None:
        pass


class NoCheckpoints:
    """Writes nothing."""

    def save_weights(self, name: str, model: DETR) -> None: ...

    def save_state(self, state: dict[str, Any]) -> None: ...


def restore_random_state(process: Rank, train_step: TrainStep) -> None:
    """After a state is loaded, each process draws the numbers it drew after it was saved, which differ between ranks."""
    metrics = EvalMetrics(CocoMetrics({}, (), 1, 1))
    trainer = Trainer(train_step, EmptyLoader(), TrainingConfig(), lambda _: metrics, NoCheckpoints())
    torch.manual_seed(process.rank)
    state = trainer.state_dict()
    drawn = torch.rand(4)
    torch.manual_seed(99)
    trainer.load_state_dict(state)
    assert torch.equal(torch.rand(4), drawn)
    assert not torch.equal(*gather([drawn]))
    assert max_over_processes(process.rank * 7) == 7


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_processes")
    multiprocessing.start_processes(run_cases, (folder,), 2, start_method="spawn")
    return folder


def listening_addresses() -> set[str]:
    """Return the addresses, in hexadecimal, on which this process accepts TCP connections (Linux)."""
    links = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    inodes = {match[1] for link in links if (match := re.fullmatch(r"socket:\[(\d+)\]", str(link)))}
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in inodes}


def save_batch_norm_statistics(rank: int, file: Path) -> None:
    torch.manual_seed(0)
    model = build_model("detrkit-s", num_classes=3, num_queries=6, decoder_layers=1, backbone_normalization="batch")
    settings = TrainingConfig(ema_decay=0.5)
    with process_group(Rank(rank, 2, rank), torch.device("cpu")):
        train_step = TrainStep(model, build_criterion(model.config, settings), settings, torch.device("cpu"), 2)
        samples = images_of_several_sizes()[rank * 4 : rank * 4 + 4]
        photos = [replace(one, image=one.image // (1 + rank)) for one in samples]  # darker in the second process
        alone = copy.deepcopy(model)
        train_step.train()
        train_step.step([collate(photos)])
        restore_random_state(Rank(rank, 2, rank), train_step)
        batch = collate(photos)
        alone.padding_invariant = settings.padding_invariant
        alone.train()(batch.images, batch.padding_mask)
        file.with_suffix(f".addresses{rank}").write_text("\n".join(listening_addresses()))
    of_all = {
        "model": {name: buffer for name, buffer in model.named_buffers() if "running" in name},
        "average": {name: buffer for name, buffer in train_step.best_model.named_buffers() if "running" in name},
        "alone": {name: buffer for name, buffer in alone.named_buffers() if "running" in name},
    }
    torch.save(of_all, file.with_suffix(f".{rank}"))


@pytest.mark.slow
def test_batch_norm_statistics_are_averaged_over_processes(two_processes: Path) -> None:
    one, two = (torch.load(two_processes / f"statistics.{rank}", weights_only=True) for rank in range(2))
    for name, mean in one["model"].items():
        assert not torch.equal(one["alone"][name], two["alone"][name])
        assert torch.equal(mean, two["model"][name])
        assert torch.equal(mean, one["average"][name])
        assert torch.equal(mean, two["average"][name])
        torch.testing.assert_close(mean, (one["alone"][name] + two["alone"][name]) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_of_one_machine_listen_on_the_loopback_interface_alone(two_processes: Path) -> None:
    for rank in range(2):
        addresses = (two_processes / f"statistics.addresses{rank}").read_text().split()
        assert set(addresses) == {"0100007F"}  # 127.0.0.1; a TCP store listens on 0.0.0.0


@pytest.mark.slow
def test_processes_agree_on_the_elapsed_fraction_of_a_time_limit(two_processes: Path) -> None:
    one, two = (torch.load(two_processes / f"fractions.{rank}", weights_only=True) for rank in range(2))
    assert torch.equal(one["fractions"], two["fractions"])
    assert torch.equal(one["due"], two["due"])
    assert one["fractions"][-1] == 1
    assert one["due"].sum() > 3
    # of 0.3 s each on the first process, measured every third step; the evaluations took the rest
    assert len(one["fractions"]) * 0.3 + one["due"].sum() * 0.4 == pytest.approx(60, abs=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one_with_all_images(tmp_path: Path, two_processes: Path, case: str) -> None:
    save_steps(Rank(), tmp_path / "one.pt", *CASES[case])
    one, two = (torch.load(file, weights_only=True) for file in (tmp_path / "one.pt", two_processes / f"{case}.pt"))
    assert_equal_up_to_rounding(two["totals"][:, :-1], one["totals"][:, :-1])
    largest = max(gradient.abs().max().item() for gradient in one["gradients"].values())
    for weight, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][weight], gradient, rtol=1e-4, atol=1e-6 * largest, msg=weight)
    if case not in (
        "two-stage",
        "groups of queries",
    ):  # where a gradient is nothing but rounding, as some of theirs, Adam makes whole steps of it
        for weight, tensor in one["model"].items():
            torch.testing.assert_close(two["model"][weight], tensor, rtol=0, atol=1e-5, msg=weight)


SMALL = {"hidden_dim": 64, "dim_feedforward": 32, "num_queries": 12, "max_detections": 12, "num_classes": 3}


def without_gradient(model: DETR) -> list[str]:
    settings = TrainingConfig()
    TrainStep(model, build_criterion(model.config, settings), settings, torch.device("cpu"), 1).step(
        [collate(images_of_several_sizes()[:4])]
    )
    return [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]


# RT-DETR and its descendants have losses and denoising queries of their own; ViTs are no resnet-tiny: test_foundation.py
GENERAL = [name for name in PRESETS if name not in {*REALTIME_PRESETS, *FOUNDATION_PRESETS}]


@pytest.mark.parametrize("name", sorted({name.replace("-r101", "-r50").replace("-dc5", "") for name in GENERAL}))
def test_every_trainable_weight_has_a_gradient(name: str) -> None:
    # PyTorch's data parallelism waits for the gradient of each
    layers = {"encoder_layers": min(1, PRESETS[name].encoder_layers), "decoder_layers": 2}
    assert not without_gradient(build_model(name, backbone="resnet-tiny", **SMALL, **layers))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("conditional-detr-r50", {"encoder_layers": 1, "decoder_layers": 1}),
        ("dab-detr-r50", {"encoder_layers": 0, "decoder_layers": 2}),
    ],
)
def test_every_trainable_weight_has_a_gradient_with_fewer_layers(name: str, changes: dict[str, int]) -> None:
    assert not without_gradient(build_model(name, backbone="resnet-tiny", **SMALL, **changes))


def test_evaluation_batches_are_distributed_unchanged() -> None:
    samples = SampleDataset(SyntheticShapes(7, 0, SyntheticStyle(size=48)).draw_all())
    alone = [batch.image_ids for batch in evaluation_loader(samples, 2, 0)]
    shared = [[b.image_ids for b in evaluation_loader(samples, 2, 0, rank=Rank(rank, 3))] for rank in range(3)]
    assert shared == [[alone[0], alone[3]], [alone[1]], [alone[2]]]
