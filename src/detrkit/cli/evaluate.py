"""`detrkit evaluate`."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from detrkit.errors import ConfigError


def evaluate(
    source: str,
    data: str | None = None,
    /,
    *,
    split: Literal["val", "train", "test"] = "val",
    format: Literal["coco", "panoptic", "yolo", "voc", "shards"] | None = None,
    predictions: Path | None = None,
    by_layer: Annotated[bool, Parameter(negative="")] = False,
    query_map: Annotated[bool, Parameter(negative="")] = False,
    counting: Annotated[bool, Parameter(negative="")] = False,
    store_thresholds: bool | None = None,
    batch_size: int = 1,
    device: str = "auto",
    workers: int = 2,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("evaluation"),
) -> None:
    """Score a model on a dataset: the 12 COCO numbers, thresholds, kinds of mistakes, and a report.

    Writes report.html, scores.json and detections.json. Photos without annotations (a folder, or a COCO image_info JSON)
    are predicted and not scored.

    Example: `detrkit evaluate runs/first coco --by-layer`, or `detrkit evaluate coco --predictions results.json`

    Parameters
    ----------
    source
        Run folder, weights file, exported file, Hugging Face folder or id, or preset. With --predictions, the dataset.
    data
        Dataset folder: COCO, COCO panoptic, YOLO or Pascal VOC, or shards; left out with --predictions.
    split
        Which part of the dataset.
    format
        How the dataset is written down; looked at when not given.
    predictions
        COCO results JSON of any model, to be scored in place of a model of ours: boxes, masks, or panoptic (a JSON, and its
        PNGs in a folder of the same name).
    by_layer
        AP after every decoder layer, with and without NMS (figure 4 of the paper).
    query_map
        Where each query predicts (figure 7).
    counting
        Objects found as their number grows (figure 12).
    store_thresholds
        Keep the best thresholds in the checkpoint, for `predict --threshold auto`. When not given: a run keeps those of
        its own validation photos.
    batch_size
        Photos at a time; does not change the numbers.
    device
        `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU if there is one.
    workers
        Processes that read photos.
    output
        Folder to write to; a name that ends in .json takes the detections alone, as COCO results.
    """
    if predictions is not None:
        asked = {"--by-layer": by_layer, "--query-map": query_map, "--counting": counting, "DATA": data}
        asked["--store-thresholds"] = store_thresholds
        if extra := [name for name, value in asked.items() if value]:
            raise ConfigError(
                f"--predictions: takes the dataset alone, detrkit evaluate DATA --predictions {predictions}; leave out "
                f"{', '.join(extra) if extra != ['DATA'] else 'the model'}"
            )
        from detrkit.evaluation.evaluate_files import evaluate_saved

        evaluate_saved(predictions, source, split, format=format, output=output)
        return
    if data is None:
        raise ConfigError(
            f"evaluate: found {source} alone, expected a model and a dataset, detrkit evaluate SOURCE DATA; or a dataset "
            "and saved results, detrkit evaluate DATA --predictions FILE"
        )
    from detrkit.evaluation.evaluate import Extras, evaluate_source

    evaluate_source(
        source,
        data,
        split,
        format=format,
        batch_size=batch_size,
        device=device,
        workers=workers,
        output=output,
        extras=Extras(by_layer, query_map, counting, store_thresholds),
    )
