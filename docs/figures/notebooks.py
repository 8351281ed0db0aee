"""Executes the notebooks in examples/ in full and keeps a picture of each for docs/guides/notebooks.md.

    python docs/figures/notebooks.py [FOLDER]

It takes about 12 minutes of processor time. FOLDER gets the executed notebooks; without it they are not kept. Needs
jupytext, nbclient and ipykernel, which the group test installs, and the extra export.
"""

import base64
import io
import sys
import tempfile
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
PLACE = Path(__file__).parents[1] / "guides" / "pictures"
KEPT = {"quickstart": 1, "own_dataset": -1, "look_inside": 1}  # index of the picture among those of the notebook


def main(folder: Path) -> None:
    """Execute all notebooks."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, index in KEPT.items():
        notebook = jupytext.read(EXAMPLES / f"{name}.py")
        client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
        client.execute()
        jupytext.write(notebook, folder / f"{name}.ipynb")
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", ())]
        image = Image.open(io.BytesIO(base64.b64decode(pictures[index]))).convert("RGB")
        image.quantize(128, Image.Quantize.MEDIANCUT).save(PLACE / f"notebook-{name}.png", optimize=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
