"""Training from a config: begun, or gone on with; in this process, or in several."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from detrkit._internal.provenance import is_written_by_detrkit, refuse_foreign_overwrite
from detrkit._internal.text import plain_console, plural
from detrkit.checkpoints.sources import WEIGHTS_FILE
from detrkit.config.run import RunConfig, load_run_config
from detrkit.config.validation import check_minutes
from detrkit.data.suffixes import IMAGE_SUFFIXES
from detrkit.distributed.devices import choose_rank_device
from detrkit.distributed.rank import process_from_environment
from detrkit.errors import ConfigError
from detrkit.training.build import with_architecture_of_weights
from detrkit.training.data import TrainingData, open_data
from detrkit.training.launch import launch
from detrkit.training.loggers.run_log import METRICS_FILE
from detrkit.training.planner import plan_model, plan_training, plan_within
from detrkit.training.run import STATE_FILE, Run, run_training
from detrkit.training.trainer import TrainingResult

_FILES = ("config.yaml", "categories.json", METRICS_FILE, "scores.json", "report.html")


def train(
    config: RunConfig,
    output: Path,
    console: Console | None = None,
    *,
    minutes: float | None = None,
    dry_run: bool = False,
) -> TrainingResult:
    """Train as the config says, and leave a run folder.

    Args:
        config: what was given; the rest is planned.
        output: folder to create.
        console: where to speak.
        minutes: plan as many steps as this machine takes in them, evaluations included.
        dry_run: only say what would be done and how long it would take, and write nothing.

    Raises:
        DetrkitError: of one kind or another, before anything is written.
    """
    if not dry_run:
        refuse_used_run_folder(output)
        refuse_dataset_folder(output, config.data)
    config = config.model_copy(update={"data": str(Path(config.data).resolve())})  # so that it can be gone on with
    console = console or plain_console()
    config, data = open_and_plan(config, console, minutes)
    if dry_run:
        print_time_estimate(config, data, console)
        return TrainingResult(None, 0)
    return _start(config, output, resume=False, data=data, console=console)


def open_and_plan(config: RunConfig, console: Console, minutes: float | None = None) -> tuple[RunConfig, TrainingData]:
    """Open the data, plan what nobody gave, or what the minutes allow, and say what was noted and chosen.

    Raises:
        DetrkitError: the data or the settings do not fit.
    """
    if minutes is not None:
        check_minutes(
            minutes, config.training.explicit, max(config.training.hardware.devices, process_from_environment().world)
        )
    with_model = with_architecture_of_weights(config)
    given = set(with_model.training.explicit)
    planned = plan_model(with_model)
    data = open_data(planned)
    plan = plan_training(planned, given, len(data.train), process_from_environment().world)
    if minutes is not None:
        pace = _put_together(plan.config, data).measure_pace()
        plan = plan_within(60 * minutes, pace, planned, given, len(data.train))
        console.print(
            f"{plural(plan.config.training.steps or 0, 'update')} in {minutes:g} min: {pace.step:.2f} s each, "
            f"{pace.evaluation:.1f} s an evaluation",
            soft_wrap=True,
        )
    if process_from_environment().is_first:
        if with_model is not config:
            size = with_model.training.image_size
            console.print(
                f"model {with_model.model}, {size} px: the weights' own, for no --model was given", soft_wrap=True
            )
        for note in data.notes:
            console.print(note)
        if config.origin == "scratch" and not config.training.overfit:
            console.print(
                "no --weights: all is learned from scratch; --model detrkit-m --weights imagenet needs fewer photos"
            )
        for choice in plan.choices:
            console.print(f"  {choice}", soft_wrap=True)
    return plan.config, data


def print_time_estimate(config: RunConfig, data: TrainingData, console: Console) -> None:
    """Take some steps, and tell how long all of them would take."""
    run = _put_together(config, data)
    pace = run.measure_pace()
    hours, minutes = divmod(round(pace.seconds(len(run.loader), config.training) / 60), 60)
    world = run.process.world
    alone = f", one of {world} processes timed alone" if world > 1 else ""
    console.print(
        f"{plural(run.num_steps, 'update')} of {pace.step:.2f} s each, and evaluations: about {hours} h {minutes} min on "
        f"this machine{alone}; nothing was written",
        soft_wrap=True,
    )


def _put_together(config: RunConfig, data: TrainingData) -> Run:
    """A run, or the first process's share of one, that is only to be timed."""
    process = process_from_environment()
    if process.world == 1:
        process = replace(process, world=config.training.hardware.devices)
    device = choose_rank_device(config.training.hardware.device, process)
    return Run(config, data, Path(), Console(quiet=True), process, device)


def resume(folder: Path, console: Console | None = None) -> TrainingResult:
    """Go on with a run where it was saved last; everything is read from its folder.

    Raises:
        DetrkitError: it holds no run, or its dataset is not what it was.
    """
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"--resume {folder}: found no config.yaml, expected the folder of a run")
    if not (folder / STATE_FILE).is_file():
        raise ConfigError(f"--resume {folder}: found no {STATE_FILE}; the run was not saved yet, start it again")
    config = load_run_config(folder / "config.yaml")
    return _start(config, folder, resume=True, data=None, console=console)


def _start(
    config: RunConfig, output: Path, *, resume: bool, data: TrainingData | None, console: Console | None
) -> TrainingResult:
    """Train in this process, or in several that are started for it."""
    if config.training.hardware.devices > 1 and process_from_environment().world == 1:
        return TrainingResult(None, 0, launch(config, output, resume))
    return run_training(config, data or open_data(config), output, console, resume=resume)


def refuse_used_run_folder(output: Path) -> None:
    """See that no run is overwritten, nor what somebody else wrote; a run that has no weights yet may be begun anew.

    Raises:
        ConfigError: the folder holds one of them.
    """
    if any((output / name / WEIGHTS_FILE).exists() for name in ("last", "best")):
        raise ConfigError(f"{output}: holds a run already; choose another folder with --output, or remove this one")
    if is_written_by_detrkit(output / "config.yaml"):
        return
    for path in (*(output / name for name in _FILES), *(output / "predictions").glob("*.png")):
        refuse_foreign_overwrite(path)


def refuse_dataset_folder(output: Path, data: str) -> None:
    """See that a run does not lie in a dataset, or among its photos, where readers would take its files for others.

    Raises:
        ConfigError: it would.
    """
    dataset, place = Path(data).resolve(), output.resolve()
    dataset = dataset.parent if dataset.is_file() else dataset
    if dataset != place and dataset not in place.parents:
        return
    around = [folder for folder in (place, *place.parents) if dataset in folder.parents and folder.is_dir()]
    if place == dataset or any(one.suffix.lower() in IMAGE_SUFFIXES for folder in around for one in folder.iterdir()):
        raise ConfigError(
            f"{output}: lies in the dataset {data}, whose files a run's would be taken for; choose another folder with "
            "--output"
        )
