"""Process groups and collectives for processes started by detrkit, torchrun or Slurm's srun.

In a single process, every function returns its input.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torch._C._distributed_c10d import FileStore

from detrkit._internal.signals import StopSignal
from detrkit.distributed.rank import Rank

STORE_VARIABLE = "DETRKIT_STORE"  # environment variable: file in which the processes of one machine meet
_SYNC_INTERVAL = 10  # steps between exchanges of requests to stop
_SECONDS_TO_SETTLE = 0.3  # gloo sometimes aborts when a process ends right after the group
Value = TypeVar("Value")


@contextmanager
def process_group(process: Rank, device: torch.device) -> Iterator[None]:
    """Join the process group, and leave it after a barrier."""
    if process.world_size == 1:
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = None
    if STORE_VARIABLE in os.environ:
        store = FileStore(os.environ[STORE_VARIABLE], process.world_size)
    else:
        _set_address(process)
    distributed.init_process_group(backend, store=store, rank=process.rank, world_size=process.world_size)
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
    received, requested = max_over_processes(stop.received or 0), max_over_processes(stop.requested)
    # a signal that arrives during the exchange is kept, and answered at the next one: all processes must agree
    if received:
        stop.received = received
    if requested:
        stop.requested = True
    return bool(received or requested)


def is_sync_step(step: int) -> bool:
    """Return whether processes synchronise after this step; a single process may always."""
    return not distributed.is_initialized() or step % _SYNC_INTERVAL == 0


def max_over_processes(value: int) -> int:
    """Return the maximum over all processes."""
    if not distributed.is_initialized():
        return value
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    largest = torch.tensor(value, device=device)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    return int(largest.item())


def average_over_processes(values: Float[Tensor, "N"], count: int) -> tuple[Float[Tensor, "N"], int]:
    """Return the mean of values over processes, without NaN, and the sum of counts."""
    if not distributed.is_initialized():
        return values, count
    known = ~values.isnan()
    sums = torch.cat([values.nan_to_num(), known.float(), values.new_tensor([float(count)])])
    distributed.all_reduce(sums)
    total, numbers = sums[: len(values)], sums[len(values) : -1]
    return torch.where(numbers > 0, total / numbers, torch.nan), int(sums[-1])


def average_in_place(tensors: Sequence[Float[Tensor, "*_"]]) -> None:
    """Replace tensors of any shapes by their mean over processes."""
    if not distributed.is_initialized() or not tensors:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def gather(values: list[Value]) -> list[Value]:
    """Concatenate the lists of all processes, by rank."""
    if not distributed.is_initialized():
        return values
    lists: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(lists, values)
    return [value for one in lists for value in one]


def is_distributed() -> bool:
    """Return whether this process trains together with others."""
    return distributed.is_initialized()


def rank() -> int:
    """Return the rank of this process; 0 without a process group."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def broadcast_from_first(value: Value | None) -> Value:
    """Return the value of the first process; the others pass None."""
    if distributed.is_initialized():
        values = [value]
        distributed.broadcast_object_list(values)
        value = values[0]
    assert value is not None
    return value


def broadcast_numbers(values: Sequence[float]) -> list[float]:
    """Return the numbers of the first process; cheaper than `broadcast_from_first`, for use in the training loop."""
    if not distributed.is_initialized():
        return list(values)
    numbers = torch.tensor(values, dtype=torch.float64, device="cuda" if distributed.get_backend() == "nccl" else "cpu")
    distributed.broadcast(numbers, 0)
    return [float(number) for number in numbers.tolist()]


def environment_of_local_group(rank: int, world_size: int, store: Path) -> dict[str, str]:
    """Return the environment variables of a process whose group lives on this machine alone.

    A TCP store would listen on all interfaces, without authentication, for objects that are unpickled: the processes meet
    in a file, and talk over the loopback interface.

    Args:
        rank: of the process.
        world_size: number of processes.
        store: file in a folder of this user, which does not exist yet.
    """
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        STORE_VARIABLE: str(store),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
    }


def _set_address(process: Rank) -> None:
    """Set the address of the first process, if it is not set."""
    if "MASTER_ADDR" not in os.environ:
        nodes = os.environ.get("SLURM_JOB_NODELIST")
        os.environ["MASTER_ADDR"] = "127.0.0.1" if nodes is None else _first_node(nodes)
    if "MASTER_PORT" not in os.environ:
        # the same on all nodes of a job, different between jobs
        os.environ["MASTER_PORT"] = str(20_000 + int(os.environ.get("SLURM_JOB_ID", "0") or 0) % 20_000)


def _first_node(nodes: str) -> str:
    """Return the first node of a Slurm node list such as node[03-05,9]."""
    try:
        shown = subprocess.run(  # noqa: S603  (from Slurm's environment, without a shell)
            ["scontrol", "show", "hostnames", nodes],  # noqa: S607  (wherever Slurm is installed)
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
        )
        return shown.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        head, bracket, rest = nodes.partition("[")
        if not bracket:
            return nodes.split(",")[0]
        return head + rest.replace("]", ",").replace("-", ",").split(",")[0]
