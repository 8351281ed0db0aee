"""Rank and world size from the environment of torchrun and Slurm."""

import pytest

from detrkit.distributed.rank import Rank, rank_from_environment
from detrkit.errors import ConfigError


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Rank()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Rank(3, 8, 1)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, Rank(2, 4, 0)),
        ({"SLURM_NTASKS": "4"}, Rank()),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, Rank()),
    ],
)
def test_rank_is_read_from_the_environment(environment: dict[str, str], expected: Rank) -> None:
    assert rank_from_environment(environment) == expected


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "x"}],
)
def test_invalid_environment_is_rejected(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="environment"):
        rank_from_environment(environment)


def test_first_node_of_a_slurm_node_list(monkeypatch: pytest.MonkeyPatch) -> None:
    from detrkit.distributed import collectives as processes

    monkeypatch.setenv("PATH", "")
    for nodes, first in {"node7": "node7", "a[03-05,9]": "a03", "x1,x2": "x1", "n[4]": "n4"}.items():
        assert processes._first_node(nodes) == first
