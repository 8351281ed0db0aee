"""Several processes learn what one would; what they say, and how they end."""

import copy
import os
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
from detrkit.data.samplers import Rank
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.data.transforms.geometry import crop, resize
from detrkit.distributed.collectives import (
    average_over_processes,
    broadcast_from_first,
    free_port,
    gather,
    max_over_processes,
    process_group,
)
from detrkit.distributed.rank import Process, process_from_environment
from detrkit.errors import ConfigError
from detrkit.evaluation.coco import CocoMetrics
from detrkit.evaluation.metrics import EvalMetrics
from detrkit.models.detr import DETR
from detrkit.models.presets import PRESETS
from detrkit.structures import Batch, Sample
from detrkit.training.build import loss_for
from detrkit.training.loggers.run_log import NoLog
from detrkit.training.train_step import TrainStep
from detrkit.training.trainer import RunHooks, Trainer

BATCH = 4
STEPS = 5


def uneven_photos() -> list[Sample]:
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


OWN = {"iou_aware": True, "look_forward_twice": True, "denoising": 3, "contrastive_denoising": True}
HELPERS = {"denoising": 2, "contrastive_denoising": 1, "query_groups": 2, "hybrid_queries": 8, "hybrid_repeats": 2}
# model, whether it has masks, training-only helpers
LESSONS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "boxes": ("detr-tiny", False, {}),
    "masks": ("detr-tiny", True, {}),
    "helpers": ("detr-tiny", False, HELPERS),
    "two stages": ("detrkit-s", False, OWN),
}


def take_steps(process: Process, file: Path, name: str, with_masks: bool, more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    changes: dict[str, Any] = {"num_classes": 3, "num_queries": 6, "decoder_layers": 2}
    if name == "detr-tiny":
        changes["encoder_layers"] = 1
    model = build_model(name, backbone_normalization="frozen", mask_head=with_masks, **changes)
    settings = TrainingConfig(ema_decay=0.9, **more)
    samples, share = uneven_photos(), BATCH // process.world
    with process_group(process, torch.device("cpu")):
        stepper = TrainStep(model, loss_for(model.config, settings), settings, torch.device("cpu"), STEPS)
        totals, gradients = [], {}
        for step in range(STEPS):
            first = step * BATCH + process.rank * share
            batch = collate(samples[first : first + share])
            report = stepper.step([batch])
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
        assert gather([process.rank]) == list(range(process.world))
        assert broadcast_from_first("here" if process.is_first else None) == "here"
        if process.is_first:
            beside = {} if stepper.helpers is None else stepper.helpers.state_dict()
            state = {**model.state_dict(), **beside}
            torch.save({"model": state, "gradients": gradients, "totals": torch.stack(totals)}, file)


def work(rank: int, ports: list[int], folder: Path) -> None:
    """All that two processes are asked for, one after the other: to start them takes longer than what they do."""
    torch.set_num_threads(1)
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    for port, (lesson, settings) in zip(ports[1:], LESSONS.items(), strict=True):
        os.environ["MASTER_PORT"] = str(port)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # users would see them
            take_steps(Process(rank, 2, rank), folder / f"{lesson}.pt", *settings)
    os.environ["MASTER_PORT"] = str(ports[0])
    count_statistics(rank, folder / "statistics")


class OneBatch:
    """A loader that nobody reads."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Batch]:
        return iter(())

    def start_at(self, epoch: int, first: int) -> None:
        pass


def go_back(process: Process, stepper: TrainStep) -> None:
    """Each process draws again what it drew after the state was taken, which is not what the other draws."""
    hooks = RunHooks(lambda _: EvalMetrics(CocoMetrics({}, (), 1, 1)), lambda *_: None, lambda _: None)
    trainer = Trainer(stepper, OneBatch(), TrainingConfig(), hooks, NoLog())
    torch.manual_seed(process.rank)
    state = trainer.state_dict()
    drawn = torch.rand(4)
    torch.manual_seed(99)
    trainer.load_state_dict(state)
    assert torch.equal(torch.rand(4), drawn)
    assert not torch.equal(*gather([drawn]))
    assert max_over_processes(process.rank * 7) == 7


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("of_two")
    ports = [free_port() for _ in range(1 + len(LESSONS))]
    multiprocessing.start_processes(work, (ports, folder), 2, start_method="spawn")
    return folder


def count_statistics(rank: int, file: Path) -> None:
    torch.manual_seed(0)
    model = build_model("detrkit-s", num_classes=3, num_queries=6, decoder_layers=1, backbone_normalization="batch")
    settings = TrainingConfig(ema_decay=0.5)
    with process_group(Process(rank, 2, rank), torch.device("cpu")):
        stepper = TrainStep(model, loss_for(model.config, settings), settings, torch.device("cpu"), 2)
        samples = uneven_photos()[rank * 4 : rank * 4 + 4]
        photos = [replace(one, image=one.image // (1 + rank)) for one in samples]  # darker in the second process
        alone = copy.deepcopy(model)
        stepper.train()
        stepper.step([collate(photos)])
        go_back(Process(rank, 2, rank), stepper)
        batch = collate(photos)
        alone.padding_invariant = settings.padding_invariant
        alone.train()(batch.images, batch.padding_mask)
    of_all = {
        "model": {name: buffer for name, buffer in model.named_buffers() if "running" in name},
        "average": {name: buffer for name, buffer in stepper.best_model.named_buffers() if "running" in name},
        "alone": {name: buffer for name, buffer in alone.named_buffers() if "running" in name},
    }
    torch.save(of_all, file.with_suffix(f".{rank}"))


def test_statistics_of_batch_norm_are_those_of_all_processes(of_two: Path) -> None:
    one, two = (torch.load(of_two / f"statistics.{rank}", weights_only=True) for rank in range(2))
    for name, mean in one["model"].items():
        assert not torch.equal(one["alone"][name], two["alone"][name])
        assert torch.equal(mean, two["model"][name])
        assert torch.equal(mean, one["average"][name])
        assert torch.equal(mean, two["average"][name])
        torch.testing.assert_close(mean, (one["alone"][name] + two["alone"][name]) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lesson", LESSONS)
def test_two_processes_learn_what_one_does_with_all_photos(tmp_path: Path, of_two: Path, lesson: str) -> None:
    take_steps(Process(), tmp_path / "one.pt", *LESSONS[lesson])
    one, two = (torch.load(file, weights_only=True) for file in (tmp_path / "one.pt", of_two / f"{lesson}.pt"))
    torch.testing.assert_close(two["totals"][:, :-1], one["totals"][:, :-1], rtol=1e-5, atol=1e-5)
    largest = max(gradient.abs().max().item() for gradient in one["gradients"].values())
    for weight, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][weight], gradient, rtol=1e-4, atol=1e-6 * largest, msg=weight)
    if (
        lesson != "two stages"
    ):  # where a gradient is nothing but rounding, as some of theirs, Adam makes whole steps of it
        for weight, tensor in one["model"].items():
            torch.testing.assert_close(two["model"][weight], tensor, rtol=0, atol=1e-5, msg=weight)


SMALL = {"hidden_dim": 64, "dim_feedforward": 32, "num_queries": 12, "max_detections": 12, "num_classes": 3}


def without_gradient(model: DETR) -> list[str]:
    settings = TrainingConfig()
    TrainStep(model, loss_for(model.config, settings), settings, torch.device("cpu"), 1).step(
        [collate(uneven_photos()[:4])]
    )
    return [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]


@pytest.mark.parametrize("name", sorted({name.replace("-r101", "-r50").replace("-dc5", "") for name in PRESETS}))
def test_every_weight_that_learns_has_a_part_in_the_losses(name: str) -> None:
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
def test_nor_do_fewer_layers_leave_weights_without_one(name: str, changes: dict[str, int]) -> None:
    assert not without_gradient(build_model(name, backbone="resnet-tiny", **SMALL, **changes))


def test_evaluation_is_shared_out_in_the_same_batches() -> None:
    samples = SampleDataset(SyntheticShapes(7, 0, SyntheticStyle(size=48)).draw_all())
    alone = [batch.image_ids for batch in evaluation_loader(samples, 2, 0)]
    shared = [[b.image_ids for b in evaluation_loader(samples, 2, 0, rank=Rank(rank, 3))] for rank in range(3)]
    assert shared == [[alone[0], alone[3]], [alone[1]], [alone[2]]]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Process()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Process(3, 8, 1)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, Process(2, 4, 0)),
        ({"SLURM_NTASKS": "4"}, Process()),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, Process()),
    ],
)
def test_who_this_process_is(environment: dict[str, str], expected: Process) -> None:
    assert process_from_environment(environment) == expected


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "x"}],
)
def test_an_odd_environment_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="environment"):
        process_from_environment(environment)


def test_the_first_node_of_a_slurm_list(monkeypatch: pytest.MonkeyPatch) -> None:
    from detrkit.distributed import collectives as processes

    monkeypatch.setenv("PATH", "")
    for nodes, first in {"node7": "node7", "a[03-05,9]": "a03", "x1,x2": "x1", "n[4]": "n4"}.items():
        assert processes._first_node(nodes) == first
