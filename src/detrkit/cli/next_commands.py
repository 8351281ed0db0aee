"""Commands to run next, as text that can be copied into a shell."""

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from detrkit.cli.command_name import command_name
from detrkit.cli.flags import flag
from detrkit.cli.user_errors import is_out_of_memory
from detrkit.config.run import load_run_config
from detrkit.errors import DatasetError, NonFiniteError
from detrkit.training.run_folder import CONFIG_FILE, METRICS_FILE, STATE_FILE


def detrkit_command(*words: object) -> str:
    """Return a command of detrkit in the form in which this process was started."""
    return f"{command_name()} {shlex.join(map(str, words))}"


def train_command(*words: object) -> str:
    """Return a command that trains."""
    return detrkit_command("train", *words)


def resume_command(output: Path) -> str:
    """Return the command that continues a run, and what it is for."""
    return f"continue with: {train_command('--resume', output)}"


def unused_name(output: Path) -> Path:
    """Return the name of a run folder with a number after it that no folder has."""
    return next(path for number in count(2) if not (path := output.with_name(f"{output.name}-{number}")).exists())


@contextmanager
def names_the_next_command(output: Path, data: str | None) -> Iterator[None]:
    """Name the commands to run after a run that failed: as notes of its error; after a second Ctrl-C, on the console.

    Args:
        output: run folder.
        data: dataset folder; None for a run that is resumed on the dataset of its config.yaml.
    """
    before = _written_at(output)
    try:
        yield
    except KeyboardInterrupt:
        from detrkit.cli.training_console import print_resume_command

        print_resume_command(output)
        raise
    except Exception as error:
        if _written_at(output) != before:  # the run has started; before that, errors say themselves what to change
            for line in _next_commands(error, output, data):
                error.add_note(line)
        raise


def _written_at(output: Path) -> list[int]:
    """Return when the files of a run were written that change while it trains, or 0."""
    paths = [output / name for name in (CONFIG_FILE, METRICS_FILE, STATE_FILE)]
    return [path.stat().st_mtime_ns if path.is_file() else 0 for path in paths]


def _next_commands(error: Exception, output: Path, data: str | None) -> list[str]:
    config = load_run_config(output / CONFIG_FILE)
    if isinstance(error, NonFiniteError):
        rates = {name: getattr(config.training.optimizer, name) for name in ("lr", "backbone_lr")}
        return [_again(output, {name: f"{rate / 2:g}" for name, rate in rates.items() if rate})]
    if is_out_of_memory(error):
        batch, steps = config.training.batch_size, config.training.gradient_accumulation
        if batch == 1:
            return [_again(output, {"activation_checkpointing": ""})]
        return [_again(output, {"batch_size": batch // 2, "gradient_accumulation": 2 * steps})]
    lines = []
    if isinstance(error, DatasetError):
        lines.append(f"check the dataset with: {detrkit_command('doctor', data or config.data)}")
    if (output / STATE_FILE).is_file():
        lines.append(resume_command(output))
    return lines


def _again(output: Path, settings: Mapping[str, object]) -> str:
    """Return the command that repeats a run with other settings, in another folder."""
    options = [str(part) for name, value in settings.items() for part in (flag(name), value) if part != ""]
    folder = unused_name(output) if (output / STATE_FILE).is_file() else output
    return f"start again with: {train_command('--config', output / CONFIG_FILE, *options, '--output', folder)}"
