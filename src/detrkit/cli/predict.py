"""`detrkit predict`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def predict(
    source: str,
    /,
    *photos: Path,
    threshold: float = 0.5,
    device: str = "auto",
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("predictions"),
) -> None:
    """Find objects in photos; write annotated pictures and JSON.

    For each photo, NAME.png shows the objects, and NAME.json lists them: name, category_id, score, box (left, top,
    right, bottom in pixels of the photo).

    Example: `detrkit predict runs/first holiday/*.jpg --threshold 0.7`

    Parameters
    ----------
    source
        Run folder, weights file, exported file, Hugging Face folder or id, or preset.
    photos
        Photos, or folders of photos.
    threshold
        Least score of an object, 0 to 1.
    device
        `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU if there is one.
    output
        Folder for pictures and JSON.
    """
    from detrkit.recipes.predict import predict_files

    predict_files(source, photos, threshold=threshold, device=device, output=output)
