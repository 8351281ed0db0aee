"""Runs submitted with submitit, which runs them on this machine for the tests."""

from pathlib import Path

import pytest

from detrkit.config.run import RunConfig, run_config
from detrkit.errors import ConfigError
from detrkit.training.loggers.jsonl import read_metrics
from detrkit.training.slurm import SlurmRun, parse_options, submit
from tests.datasets import write_coco


def config_of(folder: Path) -> RunConfig:
    training = {"epochs": 2, "batch_size": 2, "image_size": 64, "workers": 0}
    return run_config({"data": str(folder), "model": "detr-tiny", **training})


def test_options_are_parsed() -> None:
    assert parse_options("partition=gpu, nodes=2,gpus_per_node=4,timeout_min=600,mem_gb=8") == {
        "slurm_partition": "gpu", "nodes": 2, "gpus_per_node": 4, "timeout_min": 600, "mem_gb": 8,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="found 'gpu', expected NAME=VALUE"):
        parse_options("gpu")


@pytest.mark.slow
def test_job_trains_and_a_requeued_job_resumes(tmp_path: Path) -> None:
    config = config_of(write_coco(tmp_path / "shapes", num_train=4, num_val=2))
    output = tmp_path / "run"
    job = submit(config, output, "timeout_min=5", cluster="local")
    job.result()
    assert (output / "best" / "model.safetensors").is_file()
    assert any((output / "slurm").iterdir())
    steps = [entry["step"] for entry in read_metrics(output)]
    again = SlurmRun(config, output)
    assert again.checkpoint().function is again
    with pytest.raises(ConfigError, match="the run has ended, after 2 epochs"):
        again()
    assert [entry["step"] for entry in read_metrics(output)] == steps


def test_option_unknown_to_submitit_is_rejected(tmp_path: Path) -> None:
    config = config_of(write_coco(tmp_path / "shapes", num_train=4, num_val=2))
    with pytest.raises(ConfigError, match=r"^slurm='cores=4': .*cores"):
        submit(config, tmp_path / "run", "cores=4", cluster="local")
