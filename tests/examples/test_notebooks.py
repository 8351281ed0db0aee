"""The notebooks in examples/, with few images and one epoch: they run without warnings and show pictures."""

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NUM_PICTURES = {"quickstart": 3, "own_dataset": 4, "look_inside": 8}
GUIDE = (EXAMPLES.parent / "docs" / "guides" / "notebooks.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", NUM_PICTURES)
def test_notebook_runs_and_shows_pictures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "needs jupytext, nbclient and ipykernel, which the group test installs"
    jupytext = pytest.importorskip("jupytext", reason=reason)
    nbclient = pytest.importorskip("nbclient", reason=reason)
    nbformat = pytest.importorskip("nbformat", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    if name == "quickstart":
        pytest.importorskip("onnxruntime", reason="needs the extra export")
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("DETRKIT_SHORT", "1")

    built = tmp_path / f"{name}.ipynb"
    jupytext.write(jupytext.read(EXAMPLES / f"{name}.py"), built)
    notebook = nbformat.read(built, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    pictures = [output for output in outputs if "image/png" in output.get("data", ())]
    assert len(pictures) == NUM_PICTURES[name]


def test_guide_names_all_notebooks_and_nothing_else() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} - {"minimal_detr"} == set(NUM_PICTURES)
    assert all(f"(../../examples/{name}.py)" in GUIDE for name in NUM_PICTURES)
