"""Several training processes on this machine, started and watched."""

import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import torch
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from detrkit._internal.signals import StopSignal
from detrkit.config.run import RunConfig
from detrkit.distributed.collectives import free_port
from detrkit.errors import DetrkitError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def launch(config: RunConfig, output: Path, resume: bool) -> int | None:
    """Train in several processes.

    Returns:
        The signal that ended them, or None.

    Raises:
        DetrkitError: one of them failed; the others were ended.
    """
    world = config.training.hardware.devices
    if torch.cuda.is_available() and world > torch.cuda.device_count() and config.training.hardware.device != "cpu":
        raise DetrkitError(f"--devices {world}: found {torch.cuda.device_count()} GPUs, expected one per process")
    with tempfile.TemporaryDirectory() as folder, StopSignal() as stop:
        context = start_processes(
            _work, (world, free_port(), config, output, resume, Path(folder)), world, join=False, start_method="spawn"
        )
        forwarded = False
        while True:
            try:
                if context.join(timeout=0.5, grace_period=10):
                    return stop.received
            except (ProcessExitedException, ProcessRaisedException) as error:
                code = getattr(error, "exit_code", 1)
                if code - 128 in _SIGNALS and not any(Path(folder).iterdir()):
                    for process in context.processes:
                        process.join()
                    return code - 128
                raise _failure(Path(folder), str(error)) from None
            if stop.received == signal.SIGTERM and not forwarded:  # Ctrl-C reaches them by itself
                forwarded = True
                for process in context.processes:
                    process.terminate()


def _work(rank: int, world: int, port: int, config: RunConfig, output: Path, resume: bool, messages: Path) -> None:
    """Be one of the processes."""
    from detrkit.training.data import open_data
    from detrkit.training.run import run_training

    os.environ.update(
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    )
    torch.set_num_threads(max(1, torch.get_num_threads() // world))
    try:
        result = run_training(config, open_data(config), output, resume=resume)
    except DetrkitError as error:
        (messages / f"0-{rank}").write_text(str(error), encoding="utf-8")
        sys.exit(2)
    except Exception:
        (messages / f"1-{rank}").write_text(traceback.format_exc(), encoding="utf-8")
        sys.exit(1)
    if result.stopped_by is not None:
        sys.exit(128 + result.stopped_by)


def _failure(folder: Path, otherwise: str) -> DetrkitError | RuntimeError:
    """What a process said when it failed: sentences before traces, for one failure makes others.

    A trace is a fault of ours, or of the machine, and shown as one.
    """
    messages = sorted(folder.iterdir())
    if not messages:
        return DetrkitError(f"--devices: {otherwise}")
    said = messages[0].read_text(encoding="utf-8")
    return DetrkitError(said) if messages[0].name.startswith("0") else RuntimeError(f"in a training process:\n{said}")
