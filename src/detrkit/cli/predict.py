"""`detrkit predict`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def predict(
    source: str,
    /,
    *photos: str,
    threshold: float | Literal["auto"] = 0.5,
    classes: str | None = None,
    tile: int | None = None,
    overlap: float = 0.2,
    batch_size: int = 1,
    workers: int = 2,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str = "auto",
    recursive: Annotated[bool, Parameter(negative="")] = False,
    frames: int | None = None,
    shard: str | None = None,
    write: str | None = None,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("predictions"),
) -> None:
    """Find objects in photos and videos; write annotated pictures, JSON, tables.

    For each photo, NAME.png shows the objects, and NAME.json lists them: name, category_id, score, box (left, top,
    right, bottom in pixels of the photo), and mask (COCO run lengths) where the model draws masks. For each video,
    NAME.mp4 and NAME.jsonl, a line per frame. With `--write jsonl`, all photos share a file predictions.jsonl, which the
    same command goes on with if it was stopped.

    Example: `detrkit predict runs/first holiday/*.jpg --threshold 0.7`

    Parameters
    ----------
    source
        Run folder, weights file, exported file, Hugging Face folder or id, or preset.
    photos
        Photos, videos, folders of photos, patterns such as `'a/**/*.jpg'`, .txt lists of paths; `camera:0`.
    threshold
        Least score of an object, 0 to 1; `auto` takes what `detrkit evaluate` found best for each class and stored.
    classes
        Only objects of these classes: names, with commas between them.
    tile
        Also look at large photos tile by tile, each this many pixels a side.
    overlap
        What neighbouring tiles have in common: share of a tile's side, 0 to 0.5.
    batch_size
        Photos or tiles at a time; those of like shapes are put together.
    workers
        Threads that open photos ahead.
    precision
        Of the model; `auto` takes bfloat16 where the processor has it and the first photos' objects stay the same.
    device
        `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU if there is one.
    recursive
        Look into the folders of folders, too.
    frames
        At most so many frames of each video or camera.
    shard
        I/N: only the I-th of N shares, counted from 0; torchrun and srun say it themselves.
    write
        Of `pictures`, `json`, `jsonl`, `parquet`, `segments` (NAME.segments.png, COCO's panoptic form, of models that know
        stuff), with commas between them. [default: pictures,json; for videos
        pictures,jsonl]
    output
        Folder for all that is written.
    """
    from detrkit.cli.exit_codes import exit_with
    from detrkit.inference.predict import predict_files
    from detrkit.inference.prediction import PredictOptions

    options = PredictOptions(
        threshold=threshold,
        classes=classes,
        tile=tile,
        overlap=overlap,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        device=device,
        recursive=recursive,
        frames=frames,
        shard=shard,
        write=write,
        output=output,
    )
    exit_with(predict_files(source, photos, options))
