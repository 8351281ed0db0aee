"""Set up before detrkit is imported: shape checks on every call, and no network."""

import os
import tempfile
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
for name in list(os.environ):  # of a cluster's shell, which would make these processes parts of its job
    if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") or name.startswith(("MASTER_", "SLURM_")):
        del os.environ[name]
os.environ.pop("UV_RUN_RECURSION_DEPTH", None)  # of `uv run pytest`: commands are printed as started without uv
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # tests remember nothing from run to run

from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  the hook finds the checker as an attribute of the package

# every jaxtyping signature is checked while the tests run
install_import_hook("detrkit", "tests.typecheck.check")

import torch

torch.set_num_threads(1)  # the tests run in two processes on two cores

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the golden numbers and photos, which is not part of the project."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared, which is not part of the project")
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` without a CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests recorded as `summary`, also in processes of their own."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "summary":
                terminalreporter.write_line(str(text))
