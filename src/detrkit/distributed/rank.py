"""Rank and world size of this process, from the environment of torchrun or Slurm's srun."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from detrkit.errors import ConfigError


@dataclass(frozen=True)
class Rank:
    """Rank of this process among those of a run.

    Attributes:
        rank: 0 .. world_size - 1; the first process writes files.
        world_size: number of processes.
        local_rank: rank among the processes of this machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Return whether this is the process that writes files and runs callbacks."""
        return self.rank == 0


def rank_from_environment(environment: Mapping[str, str] | None = None) -> Rank:
    """Read the environment variables of torchrun or srun.

    Raises:
        ConfigError: their values are invalid.
    """
    environment = os.environ if environment is None else environment
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    # the shell of sbatch, before srun, has SLURM_NTASKS but is not a task
    if "WORLD_SIZE" not in environment and "SLURM_PROCID" in environment and "SLURM_NTASKS" in environment:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    try:
        rank, world_size, local_rank = (
            int(environment.get(name, default)) for name, default in zip(names, "010", strict=True)
        )
    except ValueError:
        found = {name: environment.get(name) for name in names}
        raise ConfigError(f"environment: found {found}, expected numbers, as torchrun and srun set them") from None
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"environment: found process {rank} of {world_size}; unset RANK and WORLD_SIZE, or use torchrun"
        )
    return Rank(rank, world_size, local_rank)
