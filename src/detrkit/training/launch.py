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

from detrkit._internal.signals import StopSignal, hold_interrupts, release_interrupts
from detrkit.config.run import RunConfig
from detrkit.data.dataset import DatasetSplits
from detrkit.distributed.collectives import environment_of_local_group
from detrkit.errors import ConfigError, DetrkitError, arg
from detrkit.training.result import TrainResult

_RESULT, _STORE = "result", "store"
_INCOMPLETE = "incomplete"
_USER_ERROR, _FAILURE = "0-", "1-"  # names of messages: errors that the user can correct come first
_STOPPED = (-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT)  # exit codes of processes


def launch(config: RunConfig, output: Path, *, dataset: DatasetSplits | None, resume: bool, **run: Any) -> TrainResult:
    """Train in the processes of `devices`.

    SIGTERM is passed on to them, and Ctrl-C reaches them from the terminal; they save the run and end. Those that have not
    started to train have nothing to save and end at once.

    Args:
        config: all settings.
        output: run folder.
        dataset: of the run; None if every process reads the folder.
        resume: continue from the saved state.
        run: further arguments of `run_training`.

    Raises:
        DetrkitError: one process failed; the others were stopped.
        KeyboardInterrupt: Ctrl-C, before training started.
        SystemExit: SIGTERM, likewise; with code 143.
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
        with hold_interrupts():
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
                ended_by_stop = any(process.exitcode in _STOPPED for process in context.processes)
                raise _failure(messages, str(error), stop.received if ended_by_stop else None) from None
            if stop.received == signal.SIGTERM and not is_forwarded:
                is_forwarded = True
                for process in context.processes:
                    process.terminate()


def _work(rank: int, world_size: int, arguments: dict[str, Any], messages: Path) -> None:
    """Train in one of the processes."""
    try:
        release_interrupts()
        from detrkit.training.data import open_data
        from detrkit.training.run import run_training

        os.environ.update(environment_of_local_group(rank, world_size, messages / _STORE))
        torch.set_num_threads(max(1, torch.get_num_threads() // world_size))
        data = open_data(arguments["config"], arguments.pop("dataset"))
        result = run_training(data=data, **arguments)
    except DetrkitError as error:
        incomplete = messages / f"{_INCOMPLETE}{rank}"  # this process may be terminated while it writes
        incomplete.write_bytes(pickle.dumps(error))
        incomplete.rename(messages / f"{_USER_ERROR}{rank}")
        sys.exit(2)
    except Exception:
        (messages / f"{_FAILURE}{rank}").write_text(traceback.format_exc(), encoding="utf-8")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    if rank == 0:
        (messages / _RESULT).write_bytes(pickle.dumps(result))


def _failure(folder: Path, otherwise: str, stopped_by: int | None = None) -> BaseException:
    """Return the error of the process that failed first: its sentence, or its stack trace if it is not a user's mistake.

    Args:
        folder: of the processes' messages.
        otherwise: what is known without a message.
        stopped_by: number of the signal that ended processes which had not started to train, and thereby others. It ends
            this process as it would have, had it trained by itself.
    """
    messages = sorted(path for path in folder.iterdir() if path.name.startswith((_USER_ERROR, _FAILURE)))
    if messages and messages[0].name.startswith(_USER_ERROR):
        error: DetrkitError = pickle.loads(messages[0].read_bytes())  # noqa: S301  (our own)
        return error
    text = messages[0].read_text(encoding="utf-8") if messages else ""
    if stopped_by is not None:
        return KeyboardInterrupt() if stopped_by == signal.SIGINT else SystemExit(128 + stopped_by)
    return RuntimeError(f"training process:\n{text}") if messages else DetrkitError(f"{arg('devices')}: {otherwise}")
