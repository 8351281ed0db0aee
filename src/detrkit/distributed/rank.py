"""Which of several processes this one is, as torchrun or Slurm's srun tell it: they train together, or share photos out."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from detrkit.errors import ConfigError


@dataclass(frozen=True)
class Process:
    """This process among those that share a task.

    Attributes:
        rank: 0 .. world - 1; the first one writes and speaks.
        world: how many there are.
        local_rank: among those of this machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether it writes and speaks."""
        return self.rank == 0


def process_from_environment(environment: Mapping[str, str] | None = None) -> Process:
    """Read what torchrun or srun say of this process.

    Raises:
        ConfigError: what they say makes no sense.
    """
    environment = os.environ if environment is None else environment
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    # sbatch's own shell, before any srun, has tasks but is none of them
    if "WORLD_SIZE" not in environment and "SLURM_PROCID" in environment and "SLURM_NTASKS" in environment:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    try:
        rank, world, local_rank = (
            int(environment.get(name, default)) for name, default in zip(names, "010", strict=True)
        )
    except ValueError:
        found = {name: environment.get(name) for name in names}
        raise ConfigError(f"environment: found {found}, expected numbers, as torchrun and srun set them") from None
    if not 0 <= rank < world:
        raise ConfigError(f"environment: found process {rank} of {world}; unset RANK and WORLD_SIZE, or use torchrun")
    return Process(rank, world, local_rank)
