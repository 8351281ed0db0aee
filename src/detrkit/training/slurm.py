"""Submission of a run to Slurm with submitit (extra `slurm`): requeued when preempted or out of time."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrkit.config.run import RunConfig
from detrkit.errors import ConfigError, arg, import_optional
from detrkit.training.callbacks import Callback
from detrkit.training.run_folder import STATE_FILE, refuse_dataset_folder, refuse_used_run_folder
from detrkit.training.train import resume, train_from_config

_EXAMPLE = "partition=NAME,nodes=2,gpus_per_node=4,timeout_min=600"
_SLURM_ONLY = ("partition", "account", "qos", "constraint", "array_parallelism")  # submitit: slurm_partition, ...


@dataclass(frozen=True)
class SlurmRun:
    """A task of the job: starts the run, or resumes it where the previous job ended."""

    config: RunConfig
    output: Path
    callbacks: tuple[Callback, ...] = ()

    def __call__(self) -> None:
        """Train."""
        if (self.output / STATE_FILE).is_file():
            resume(self.output, callbacks=self.callbacks)
        else:
            train_from_config(self.config, self.output, callbacks=self.callbacks)

    def checkpoint(self, *_: Any, **__: Any) -> Any:
        """Return what to submit when the time is up (called by submitit)."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(
    config: RunConfig, output: Path, options: str, cluster: str | None = None, callbacks: Sequence[Callback] = ()
) -> Any:
    """Submit a run.

    Args:
        config: of the run.
        output: run folder to create; the job's logs are in its ``slurm/``.
        options: NAME=VALUE, separated by commas, with submitit's names. `tasks_per_node` defaults to `gpus_per_node`.
        cluster: None for Slurm; "local" to run on this machine, as a test.
        callbacks: of the run, which are pickled.

    Returns:
        submitit's job.

    Raises:
        ConfigError: submitit is not installed, there is no Slurm on this machine, or an option is not valid.
    """
    submitit = import_optional("submitit", arg("slurm"), "detrkit[slurm]")
    if cluster is None and shutil.which("sbatch") is None:
        raise ConfigError(f"{arg('slurm')}: found no sbatch on this machine; submit from a login node of the cluster")
    refuse_used_run_folder(output)
    refuse_dataset_folder(output, config.data)
    parsed = parse_options(options)
    parsed.setdefault("tasks_per_node", parsed.get("gpus_per_node", 1))
    config = config.replace(data=str(Path(config.data).resolve()))
    executor = submitit.AutoExecutor(folder=output / "slurm", cluster=cluster or "slurm")
    try:
        executor.update_parameters(name=output.name, **parsed)
    except (NameError, TypeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0][:160]
        raise ConfigError(f"{arg('slurm', options)}: {reason}; for example {_EXAMPLE}") from None
    return executor.submit(SlurmRun(config, output.resolve(), tuple(callbacks)))


def parse_options(options: str) -> dict[str, Any]:
    """Parse NAME=VALUE,NAME=VALUE; names that only Slurm has, such as `partition`, get submitit's prefix.

    Raises:
        ConfigError: the options have another form.
    """
    parsed: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in options.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.isidentifier() or not value:
            raise ConfigError(f"{arg('slurm')}: found {part!r}, expected NAME=VALUE, for example {_EXAMPLE}")
        prefix = "slurm_" if name in _SLURM_ONLY else ""
        parsed[prefix + name] = int(value) if value.isdecimal() else value
    return parsed
