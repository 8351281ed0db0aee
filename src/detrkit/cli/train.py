"""`detrkit train`."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from detrkit._internal.process import seconds_since_start
from detrkit.checkpoints.path_kinds import DATASET, MODEL, check_kinds
from detrkit.checkpoints.sources import check_source
from detrkit.cli.exit_codes import exit_with
from detrkit.cli.flags import flag
from detrkit.cli.next_commands import detrkit_command, names_the_next_command
from detrkit.cli.settings import RunSettings, given_settings
from detrkit.config.run import RunConfig, run_config
from detrkit.data.formats.registry import FormatName, check_dataset_path
from detrkit.errors import ConfigError, arg
from detrkit.models.presets import preset_config
from detrkit.training.run_folder import check_resumable, refuse_dataset_folder, refuse_used_run_folder


def train(
    data: str | None = None,
    /,
    *,
    format: FormatName | None = None,
    model: str | None = None,
    recipe: Literal["auto", "reference"] | None = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    weights: str | None = None,
    backbone_weights: Path | None = None,
    config: Path | None = None,
    resume: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    slurm: str | None = None,
    loggers: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    settings: Annotated[RunSettings | None, Parameter(name="*")] = None,
) -> None:
    """Train or fine-tune a detector on a dataset folder.

    The run folder contains config.yaml, categories.json, metrics.jsonl, tensorboard/, the checkpoints last/ and best/,
    predictions/ and report.html. Ctrl-C ends the run after the current step, saves it and prints the command that
    continues it.

    Example: `detrkit train coco --model detrkit-m --weights imagenet --output runs/first`

    Parameters
    ----------
    data
        Dataset folder: COCO (annotations/instances_train*.json, a Roboflow export, or one JSON), YOLO (data.yaml), Pascal
        VOC (Annotations/*.xml) or shards. Without a validation split, a fifth of the images is set aside.
    format
        Annotation format; detected from the folder if omitted.
    model
        Preset. detrkit's own, which train fastest: detrkit-s (the default: small, from scratch, for CPUs too) and
        detrkit-m (ResNet-18, with --weights imagenet). Published: detr-r50 (the default of --recipe reference),
        detr-r50-dc5, detr-r101, detr-r101-dc5; conditional-detr-... and dab-detr-... with the same ResNets;
        deformable-detr-r50, -single-scale, -refine, -two-stage; table-transformer-detection, -structure-recognition. Plain
        DETR, smaller: detr-r18, detr-tiny. Published models with --weights can be saved as transformers folders,
        detrkit's own cannot; the hub takes both. With --weights of a checkpoint, the default is its architecture.
    recipe
        How unset settings are chosen: `auto` (the default) from model, weights and size of the dataset; `reference` as in
        the paper: 300 epochs, 64 images per step, learning rates divided by 10 after 200 epochs.
    output
        Run folder to create; default: runs/train.
    weights
        Initial weights: `imagenet` (backbone, downloaded once), or a checkpoint, adapted where its classes differ.
    backbone_weights
        File with weights of the backbone from torchvision or timm, matched by names or else by order.
    config
        YAML file with settings; those of the command line win.
    resume
        Run folder to continue from its last saved state, on DATA if its dataset has moved; no other option but --loggers
        applies.
    dry_run
        Show the settings and an estimate of the time, from steps that are timed after a warm-up; write nothing. Not all
        images are read: `detrkit doctor` reads them.
    slurm
        Submit the run to Slurm, as NAME=VALUE,NAME=VALUE: partition=gpu,nodes=2,gpus_per_node=4,timeout_min=600. A job
        that is preempted or out of time is requeued and resumes.
    loggers
        Where to log in addition to metrics.jsonl: `tensorboard` (the default), or `jsonl` for nothing else.
    """
    started = time.monotonic()
    if sys.argv[1:2] == ["train"]:  # the process is this command: starting Python counts for a time limit, too
        started -= seconds_since_start()
    given: dict[str, Any] = {
        "data": data,
        "format": format,
        "model": model,
        "weights": weights,
        "recipe": recipe,
        "backbone_weights": None if backbone_weights is None else str(backbone_weights),
        **given_settings(settings),
    }
    given = {name: value for name, value in given.items() if value is not None}
    names = ["tensorboard"] if loggers is None else loggers
    if resume is not None:
        others = {"output": output, "config": config, "dry_run": dry_run or None, "slurm": slurm}
        given.pop("data", None)
        _resume(resume, data, [*given, *(name for name, value in others.items() if value is not None)], names)
        return
    resolved, output = run_config(given, config), output or Path("runs/train")
    check_kinds({"data": (resolved.data, DATASET)})
    check_dataset_path(resolved.data)
    _check_model(resolved)
    if not dry_run:
        refuse_used_run_folder(output)
        refuse_dataset_folder(output, resolved.data)
    if slurm is not None:
        _submit(resolved, output, slurm, dry_run=dry_run)
    elif dry_run:
        _estimate(resolved)
    else:
        _train(resolved, output, names, started)


def _check_model(config: RunConfig) -> None:
    """Check the names of preset and weights, before torch is imported."""
    check_kinds({"weights": (config.weights, MODEL)})
    if config.origin == "detector" and config.weights is not None:
        check_source(config.weights)
        preset_config(config.model)
    else:
        preset_config(config.model, **config.model_overrides)


def _train(config: RunConfig, output: Path, loggers: list[str], started: float) -> None:
    from detrkit.cli.training_console import ConsoleProgress, print_result
    from detrkit.training.train import train_from_config

    with names_the_next_command(output, config.data):
        result = train_from_config(config, output, callbacks=[ConsoleProgress()], loggers=loggers, started=started)
    print_result(result)
    exit_with(result.stopped_by)


def _resume(folder: Path, data: str | None, given: list[str], loggers: list[str]) -> None:
    if given:
        raise ConfigError(
            f"{arg('resume')} continues with the settings in the run's config.yaml; leave out {', '.join(map(flag, given))}"
        )
    check_resumable(folder)
    if data is not None:
        check_dataset_path(data)
    from detrkit.cli.training_console import ConsoleProgress, print_result
    from detrkit.training.train import resume

    with names_the_next_command(folder, data):
        result = resume(folder, data=data, callbacks=[ConsoleProgress()], loggers=loggers)
    print_result(result)
    exit_with(result.stopped_by)


def _estimate(config: RunConfig) -> None:
    from detrkit._internal.text import duration, plural
    from detrkit.cli.console import get_console
    from detrkit.cli.training_console import print_plan
    from detrkit.training.train import estimate_time

    plan, estimate = estimate_time(config)
    print_plan(plan)
    throughput = estimate.throughput
    processes = f", one of {estimate.num_processes} processes timed" if estimate.num_processes > 1 else ""
    work = (
        f"{plural(estimate.num_steps, 'step')} of {throughput.step:.2f} s and "
        f"{plural(estimate.num_evaluations, 'evaluation')} of {throughput.evaluation:.1f} s"
    )
    is_timed = plan.config.training.minutes is not None
    total = f"fit into {duration(estimate.seconds)}" if is_timed else f"take about {duration(estimate.seconds)}"
    console = get_console()
    console.print(f"{work} {total} on this machine{processes}; nothing was written", soft_wrap=True)
    console.print(
        f"To train, repeat the command without --dry-run. To check the images first: "
        f"{detrkit_command('doctor', config.data)}",
        soft_wrap=True,
    )


def _submit(config: RunConfig, output: Path, options: str, *, dry_run: bool) -> None:
    if dry_run:
        raise ConfigError(
            f"{arg('dry_run', True)} times steps on this machine, but the job runs elsewhere; leave it out"
        )
    from detrkit.cli.console import get_console
    from detrkit.cli.training_console import ConsoleProgress
    from detrkit.training.slurm import submit

    job = submit(config, output, options, callbacks=[ConsoleProgress()])
    get_console().print(f"submitted job {job.job_id}; its logs are in {output / 'slurm'}", soft_wrap=True)
