"""Several processes that train together (DistributedDataParallel), started here, by torchrun or by Slurm's srun.

Every function works in a single process as well, where it changes nothing.
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, distributed

from detrkit._internal.signals import StopSignal
from detrkit.distributed.rank import Process

_STEPS_BETWEEN_QUESTIONS = 10  # after which processes ask each other whether a signal came
_SECONDS_TO_SETTLE = 0.3  # gloo sometimes aborts when a process ends right after the group
Value = TypeVar("Value")


@contextmanager
def process_group(process: Process, device: torch.device) -> Iterator[None]:
    """Join the others, and part from them in order."""
    if process.world == 1:
        yield
        return
    _set_address(process)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, rank=process.rank, world_size=process.world)
    try:
        yield
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
        time.sleep(_SECONDS_TO_SETTLE)


def stop_on_any_rank(stop: StopSignal) -> bool:
    """Return whether any process was asked to stop; to be called by all processes at the same step.

    Args:
        stop: of this process; what other processes received is added to it.
    """
    stop.received = max_over_processes(stop.received or 0) or None
    stop.requested = bool(max_over_processes(stop.requested))
    return stop.is_set


def is_sync_step(step: int) -> bool:
    """Whether processes ask each other something after that step; one alone need not wait."""
    return not distributed.is_initialized() or step % _STEPS_BETWEEN_QUESTIONS == 0


def max_over_processes(value: int) -> int:
    """The largest of the numbers that the processes have."""
    if not distributed.is_initialized():
        return value
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    largest = torch.tensor(value, device=device)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return int(largest.item())


def average_over_processes(values: Float[Tensor, "N"], count: int) -> tuple[Float[Tensor, "N"], int]:
    """Average values, and add up counts; what is NaN in one process does not count."""
    if not distributed.is_initialized():
        return values, count
    known = ~values.isnan()
    sums = torch.cat([values.nan_to_num(), known.float(), values.new_tensor([float(count)])])
    distributed.all_reduce(sums)
    total, numbers = sums[: len(values)], sums[len(values) : -1]
    return torch.where(numbers > 0, total / numbers, torch.nan), int(sums[-1])


def average_in_place(tensors: Sequence[Float[Tensor, "*_"]]) -> None:
    """Give all processes the mean of what they have, in tensors of any shapes."""
    if not distributed.is_initialized() or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def gather(values: list[Value]) -> list[Value]:
    """Join the lists of all processes, in their order."""
    if not distributed.is_initialized():
        return values
    lists: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(lists, values)
    return [value for one in lists for value in one]


def rank() -> int:
    """This process's number among those that train together."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def broadcast_from_first(value: Value | None) -> Value:
    """Hand over what the first process has; the others pass None."""
    if distributed.is_initialized():
        held = [value]
        distributed.broadcast_object_list(held)
        value = held[0]
    assert value is not None
    return value


def free_port() -> int:
    """Find a port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _set_address(process: Process) -> None:
    """Say where the first process listens, where nobody has."""
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ.get("SLURM_JOB_NODELIST")
        os.environ["MASTER_ADDR"] = "127.0.0.1" if nodes is None else _first_node(nodes)
    if "MASTER_PORT" not in os.environ:
        # alike on all nodes of a job, and unlike that of another job
        os.environ["MASTER_PORT"] = str(20_000 + int(os.environ.get("SLURM_JOB_ID", "0") or 0) % 20_000)


def _first_node(nodes: str) -> str:
    """Name the first node of a Slurm list such as node[03-05,9]."""
    try:
        shown = subprocess.run(  # noqa: S603  (Slurm's own words, and no shell)
            ["scontrol", "show", "hostnames", nodes],  # noqa: S607  (wherever Slurm is installed)
            capture_output=True,
            text=True,
            check=True,
        )
        return shown.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        head, bracket, rest = nodes.partition("[")
        if not bracket:
            return nodes.split(",")[0]
        return head + rest.replace("]", ",").replace("-", ",").split(",")[0]
