"""Launch several training processes on this machine, and wait for them."""

import os
import pickle
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from detrkit._internal.signals import StopSignal
from detrkit.config.run import RunConfig
from detrkit.data.dataset import DatasetSplits
from detrkit.distributed.collectives import environment_of_local_group
from detrkit.errors import ConfigError, DetrkitError, arg
from detrkit.training.result import TrainResult

_RESULT, _STORE = "result", "store"
_USER_ERROR, _FAILURE = "0-", "1-"  # names of messages: errors that the user can correct come first


def launch(config: RunConfig, output: Path, *, dataset: DatasetSplits | None, resume: bool, **run: Any) -> TrainResult:
    """Train in the processes of `devices`.

    SIGTERM is passed on to them, and Ctrl-C reaches them from the terminal; they save the run and end.

    Args:
        config: all settings.
        output: run folder.
        dataset: of the run; None if every process reads the folder.
        resume: continue from the saved state.
        run: further arguments of `run_training`.

    Raises:
        DetrkitError: one process failed; the others were stopped.
    """
    world_size = config.training.hardware.devices
    if (
        torch.cuda.is_available()
        and world_size > torch.cuda.device_count()
        and config.training.hardware.device != "cpu"
    ):
        raise ConfigError(
            f"{arg('devices', world_size)}: found {torch.cuda.device_count()} GPUs, expected one per process"
        )
    arguments = {"config": config, "output": output, "dataset": dataset, "resume": resume, **run}
    try:
        pickle.dumps(arguments)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"{arg('devices', world_size)} starts processes, to which data, callbacks and loggers are pickled: {error}. "
            "Define them in a module."
        ) from None
    with tempfile.TemporaryDirectory() as folder, StopSignal() as stop:
        messages = Path(folder)
        context = start_processes(
            _work, (world_size, arguments, messages), world_size, join=False, start_method="spawn"
        )
        is_forwarded = False
        while True:
            try:
                if context.join(timeout=0.5, grace_period=10):
                    result: TrainResult = pickle.loads((messages / _RESULT).read_bytes())  # noqa: S301  (our own)
                    return result
            except (ProcessExitedException, ProcessRaisedException) as error:
                raise _failure(messages, str(error)) from None
            if stop.received == signal.SIGTERM and not is_forwarded:
                is_forwarded = True
                for process in context.processes:
                    process.terminate()


def _work(rank: int, world_size: int, arguments: dict[str, Any], messages: Path) -> None:
    """Train in one of the processes."""
    from detrkit.training.data import open_data
    from detrkit.training.run import run_training

    os.environ.update(environment_of_local_group(rank, world_size, messages / _STORE))
    torch.set_num_threads(max(1, torch.get_num_threads() // world_size))
    try:
        data = open_data(arguments["config"], arguments.pop("dataset"))
        result = run_training(data=data, **arguments)
    except DetrkitError as error:
        (messages / f"{_USER_ERROR}{rank}").write_text(error.message, encoding="utf-8")
        sys.exit(2)
    except Exception:
        (messages / f"{_FAILURE}{rank}").write_text(traceback.format_exc(), encoding="utf-8")
        sys.exit(1)
    if rank == 0:
        (messages / _RESULT).write_bytes(pickle.dumps(result))


def _failure(folder: Path, otherwise: str) -> DetrkitError | RuntimeError:
    """Return the error of the process that failed first: its sentence, or its stack trace if it is not a user's mistake."""
    messages = sorted(path for path in folder.iterdir() if path.name not in (_RESULT, _STORE))
    if not messages:
        return DetrkitError(f"{arg('devices')}: {otherwise}")
    text = messages[0].read_text(encoding="utf-8")
    return (
        DetrkitError(text) if messages[0].name.startswith(_USER_ERROR) else RuntimeError(f"training process:\n{text}")
    )
