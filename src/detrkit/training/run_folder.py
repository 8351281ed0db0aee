"""Files of a run folder, and checks before one is written or resumed. Importing this module does not import torch."""

from pathlib import Path

from detrkit._internal.provenance import is_written_by_detrkit, refuse_foreign_overwrite
from detrkit.checkpoints.sources import WEIGHTS_FILE
from detrkit.data.suffixes import IMAGE_SUFFIXES
from detrkit.errors import ConfigError, arg

CONFIG_FILE = "config.yaml"
CATEGORIES_FILE = "categories.json"
METRICS_FILE = "metrics.jsonl"
SCORES_FILE = "scores.json"
REPORT_FILE = "report.html"
STATE_FILE = "last/state.pt"
IN_MEMORY = "(torch dataset)"  # `data` of a run that was not trained on a folder


def refuse_used_run_folder(output: Path) -> None:
    """Refuse to overwrite a run with weights, or files that detrkit did not write.

    Raises:
        ConfigError: the folder holds one of them.
    """
    if any((output / name / WEIGHTS_FILE).exists() for name in ("last", "best")):
        raise ConfigError(f"{output}: holds a run already; choose another {arg('output')}, or remove this folder")
    if is_written_by_detrkit(output / CONFIG_FILE):
        return
    files = (CONFIG_FILE, CATEGORIES_FILE, METRICS_FILE, SCORES_FILE, REPORT_FILE)
    for path in (*(output / name for name in files), *(output / "predictions").glob("*.png")):
        refuse_foreign_overwrite(path)


def refuse_dataset_folder(output: Path, data: str) -> None:
    """Refuse a run folder inside the dataset, whose readers would take its files for images of the dataset.

    Raises:
        ConfigError: the run folder is, or lies among the images of, the dataset.
    """
    dataset, place = Path(data).resolve(), output.resolve()
    dataset = dataset.parent if dataset.is_file() else dataset
    if dataset != place and dataset not in place.parents:
        return
    between = [folder for folder in (place, *place.parents) if dataset in folder.parents and folder.is_dir()]
    if place == dataset or any(one.suffix.lower() in IMAGE_SUFFIXES for folder in between for one in folder.iterdir()):
        raise ConfigError(
            f"{output}: lies inside the dataset {data}, which would then contain the run's images; choose another "
            f"{arg('output')}"
        )


def check_resumable(folder: Path) -> None:
    """Check that a folder holds a run that was saved.

    Raises:
        ConfigError: it does not.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"{folder}: there is no {CONFIG_FILE}, expected a run folder to resume")
    if not (folder / STATE_FILE).is_file():
        raise ConfigError(f"{folder}: there is no {STATE_FILE}; the run was not saved yet, start it again")
