"""`detrkit train`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from detrkit.cli.exit_codes import exit_with
from detrkit.cli.flags import flag
from detrkit.cli.settings import RunSettings, given_settings
from detrkit.config.run import run_config
from detrkit.data.formats.registry import FormatName
from detrkit.errors import ConfigError


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
    minutes: float | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    slurm: str | None = None,
    settings: Annotated[RunSettings | None, Parameter(name="*")] = None,
) -> None:
    """Train a model on a dataset folder.

    The run folder holds config.yaml, categories.json, metrics.jsonl, tensorboard/, the checkpoints last/ and best/,
    predictions/ and report.html. Ctrl-C stops and keeps what was learned; `detrkit train --resume RUN` goes on.

    Example: `detrkit train coco --model detrkit-m --weights imagenet --output runs/first`

    Parameters
    ----------
    data
        Dataset folder: COCO (annotations/instances_train*.json, or a Roboflow export, or one JSON), YOLO (data.yaml),
        Pascal VOC (Annotations/*.xml) or shards. Without a validation split, a fifth of the photos is set aside.
    format
        How the dataset is written down; looked at when not given.
    model
        Preset. Our own, which learn soonest: detrkit-s (the default: small, from scratch, for CPUs too) and detrkit-m
        (ResNet-18, with --weights imagenet), with defaults of their own. As published: detr-r50 (the default of --recipe
        reference), detr-r50-dc5, detr-r101, detr-r101-dc5; conditional-detr-... and dab-detr-... with the same ResNets;
        deformable-detr-r50, -single-scale, -refine, -two-stage. Plain DETR, smaller: detr-r18, detr-tiny. With --weights
        of a checkpoint, the default is its architecture.
    recipe
        How settings that are not given are chosen: `auto` (the default) from the size of the set and the weights, saying
        why; `reference` as in the paper: 300 epochs, 64 photos per update, rates divided by ten after 200.
    output
        Run folder to create; runs/train when not given.
    weights
        What to start from: `imagenet` (the backbone, fetched once), or a checkpoint, adapted where its classes differ.
    backbone_weights
        File with weights of the backbone alone, of torchvision or timm, found by names or else by their order.
    config
        YAML file with the same settings; the command line wins over it.
    resume
        Run folder to go on with, where it was saved last; takes nothing else.
    minutes
        Time to train for, in place of --epochs or --steps: some steps are timed first, and as many planned as fit in. In
        one process alone, for its steps are timed alone.
    dry_run
        Say what would be done and how long it would take, after a few steps; write nothing.
    slurm
        Queue the run on a Slurm cluster instead, as NAME=VALUE,NAME=VALUE: partition=gpu,nodes=2,gpus_per_node=4,
        timeout_min=600. A job that is preempted or out of time is queued again and goes on.
    """
    from detrkit.training import train as training_train

    if resume is not None:
        beside = {
            "data": data,
            "--format": format,
            "--model": model,
            "--recipe": recipe,
            "--output": output,
            "--weights": weights,
            "--backbone-weights": backbone_weights,
            "--config": config,
            "--minutes": minutes,
            "--dry-run": dry_run,
            "--slurm": slurm,
        }
        given_here = [name for name, value in beside.items() if value is not None and value is not False]
        given_here += [flag(name) for name in given_settings(settings)]
        if given_here:
            raise ConfigError(f"--resume: goes on as the run's own config.yaml says; leave out {', '.join(given_here)}")
        exit_with(training_train.resume(resume).stopped_by)
        return
    given = {
        "data": data,
        "format": format,
        "model": model,
        "weights": weights,
        "recipe": recipe,
        "backbone_weights": None if backbone_weights is None else str(backbone_weights),
    }
    given = {name: value for name, value in given.items() if value is not None}
    loaded = run_config({**given, **given_settings(settings)}, config)
    output = output or Path("runs/train")
    if slurm is not None:
        from detrkit.training.slurm import submit

        if minutes is not None:
            raise ConfigError("--minutes: steps are timed here, and the job runs elsewhere; give --steps")
        if dry_run:
            raise ConfigError("--dry-run: steps are timed here, and the job runs elsewhere; leave out --slurm")
        submit(loaded, output, slurm)
        return
    exit_with(training_train.train(loaded, output, minutes=minutes, dry_run=dry_run).stopped_by)
