"""A run handed to Slurm by submitit (extra `slurm`): queued, and queued again when it is preempted or out of time."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detrkit._internal.text import plain_console
from detrkit.config.run import RunConfig
from detrkit.errors import ConfigError
from detrkit.training.run import STATE_FILE
from detrkit.training.train import refuse_dataset_folder, refuse_used_run_folder, resume, train

_EXAMPLE = "partition=NAME,nodes=2,gpus_per_node=4,timeout_min=600"


@dataclass(frozen=True)
class SlurmRun:
    """What each task of the job does: begin, or go on where the last job was cut."""

    config: RunConfig
    output: Path

    def __call__(self) -> None:
        """Train."""
        if (self.output / STATE_FILE).is_file():
            resume(self.output)
        else:
            train(self.config, self.output)

    def checkpoint(self, *_: Any, **__: Any) -> Any:
        """Say what to queue when time is up (called by submitit)."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(config: RunConfig, output: Path, options: str, cluster: str | None = None) -> Any:
    """Queue a run.

    Args:
        config: of the run.
        output: folder to create; the job's own logs go into `slurm/` in it.
        options: NAME=VALUE, with commas; names as in submitit, those of Slurm alone with `slurm_` before them.
            `tasks_per_node` is the number of GPUs per node where it is not given.
        cluster: None for Slurm; "local" runs it here, as a test.

    Returns:
        submitit's job.

    Raises:
        ConfigError: submitit is not installed, there is no Slurm here, or an option is not understood.
    """
    try:
        import submitit
    except ImportError:
        raise ConfigError("--slurm: needs submitit; pip install 'detrkit[slurm]'") from None
    if cluster is None and shutil.which("sbatch") is None:
        raise ConfigError("--slurm: found no sbatch on this machine; submit from a login node of the cluster")
    refuse_used_run_folder(output)
    refuse_dataset_folder(output, config.data)
    parsed = parse_options(options)
    parsed.setdefault("tasks_per_node", parsed.get("gpus_per_node", 1))
    config = config.model_copy(update={"data": str(Path(config.data).resolve())})
    executor = submitit.AutoExecutor(folder=output / "slurm", cluster=cluster or "slurm")
    try:
        executor.update_parameters(name=output.name, **parsed)
    except (NameError, TypeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0][:160]
        raise ConfigError(f"--slurm {options}: {reason}; for example {_EXAMPLE}") from None
    job = executor.submit(SlurmRun(config, output.resolve()))
    plain_console().print(f"job {job.job_id} is queued; its logs are in {output / 'slurm'}", soft_wrap=True)
    return job


def parse_options(options: str) -> dict[str, Any]:
    """Read NAME=VALUE,NAME=VALUE; `partition` and the like are Slurm's own.

    Raises:
        ConfigError: it is something else.
    """
    parsed: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in options.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.isidentifier() or not value:
            raise ConfigError(f"--slurm: found {part!r}, expected NAME=VALUE, for example {_EXAMPLE}")
        own = "slurm_" if name in ("partition", "account", "qos", "constraint", "array_parallelism") else ""
        parsed[own + name] = int(value) if value.isdecimal() else value
    return parsed
