"""Scoring a model on a dataset folder."""

import json
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import track

from detrkit.checkpoints.source import read_checkpoint
from detrkit.data.categories import Categories
from detrkit.data.dataset import PhotoDataset
from detrkit.data.formats.folder import Form, read_dataset
from detrkit.data.transforms import TestTransform
from detrkit.errors import ConfigError, DataError
from detrkit.evaluation.coco import BoxScores, annotations_of_split, evaluate_boxes
from detrkit.evaluation.collect import collect_results
from detrkit.evaluation.table import print_scores
from detrkit.files import write_text
from detrkit.recipes.loaders import choose_device, evaluation_loader
from detrkit.terminal import plain_console


def evaluate_source(
    source: str,
    data: str,
    split: Literal["val", "train", "test"] = "val",
    *,
    form: Form | None = None,
    batch_size: int = 1,
    device: str = "auto",
    workers: int = 2,
    output: Path | None = None,
) -> BoxScores:
    """Score a model, print the scores, and write the detections if asked.

    Raises:
        DetrkitError: the model or the data cannot be read, or do not belong together.
    """
    console = plain_console()
    if output is not None and output.is_dir():
        raise ConfigError(f"{output}: is a folder, expected the name of a JSON file for the detections")
    chosen_device = choose_device(device)
    folder = read_dataset(data, form)
    records = {"train": folder.train, "val": folder.val, "test": folder.test}[split]
    if records is None:
        raise DataError(f"{data}: found no test split, expected one; use --split val")
    for note in folder.notes:
        console.print(note)
    checkpoint = read_checkpoint(source)
    check_categories(checkpoint.categories, records.categories, records.source)

    model = checkpoint.build().to(chosen_device)
    dataset = PhotoDataset(records, TestTransform(checkpoint.preprocessing.image_size), checkpoint.config.in_channels)
    batches = evaluation_loader(dataset, batch_size, workers)
    steps = track(batches, "evaluating", console=Console(stderr=True), transient=True)
    exact_padding = checkpoint.preprocessing.exact_padding
    results = collect_results(model, steps, checkpoint.categories, chosen_device, exact_padding)
    for fault in batches.skipped:
        console.print(f"left out: {fault}", soft_wrap=True)
    if output is not None:
        write_text(output, json.dumps(results))
    image_ids = records.records.image_ids
    scores = evaluate_boxes(annotations_of_split(records), results, image_ids)
    print_scores(scores, console)
    return scores


def check_categories(of_model: Categories, of_data: Categories, source: Path, verb: str = "evaluate") -> None:
    """See that a category id means the same to the model and to the data.

    Raises:
        DataError: it does not.
    """
    known = dict(zip(of_model.ids, of_model.names, strict=True))
    for number, name in zip(of_data.ids, of_data.names, strict=True):
        if number not in known:
            raise DataError(
                f"{source}: category {number} ({name}) is unknown to the model, which knows {len(known)} categories; "
                f"{verb} on data with the categories that it was trained on"
            )
        if known[number] != name and not known[number].startswith("class "):
            raise DataError(
                f"{source}: category {number} is {name!r} here and {known[number]!r} to the model; "
                f"{verb} on data with the categories that it was trained on"
            )
