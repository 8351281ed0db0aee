"""The paper's ablations as trainings of your own (tables 2, 3 and 4): what is each part worth on this dataset?

    python -m benchmarks.ablations encoder DATA [--output FOLDER] [settings ...]
    python -m benchmarks.ablations positions coco --weights imagenet --device cuda --devices 8

`encoder` changes the number of encoder layers (table 2), `positions` how and where positions are added (table 3), `losses`
which losses boxes and classes learn from, and are matched by (table 4). Rows are trained by the paper's recipe, 300
epochs, or by --recipe auto. Every row is an ordinary run in a folder of its own below FOLDER, with the settings of
`detrkit train`, the same for all rows but for what the row changes. Rows that have ended are not trained again, and a row
that was stopped goes on: give the same command. The table is printed and written beside the runs. The last row is the
paper's own model, and the differences are from it.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from detrkit._internal.files import write_text
from detrkit.config.run import RunConfig, run_config
from detrkit.evaluation.metrics import metric_label
from detrkit.models.presets import preset_config
from detrkit.training.loggers.jsonl import read_metrics
from detrkit.training.run import STATE_FILE
from detrkit.training.train import resume, train_from_config

COLUMNS = ("ap", "ap50", "ap_small", "ap_medium", "ap_large")


@dataclass(frozen=True)
class Row:
    """What one training changes.

    Attributes:
        name: of its folder.
        cells: of the table, on the left.
        model: fields of `ModelConfig`.
        training: fields of `TrainingConfig`.
        published: AP in the paper.
    """

    name: str
    cells: tuple[str, ...]
    published: float
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def positions(encoding: str, encoder: str, decoder: str, queries: str, published: float) -> Row:
    """A row of table 3."""
    places = {"encoder_positions": encoder, "decoder_positions": decoder, "query_positions": queries}
    named = {place: "none" if place == "none" else f"{encoding} at {place}" for place in (encoder, decoder)}
    cells = (named[encoder], named[decoder], f"learned at {queries}")
    model = {"position_embedding": encoding if {encoder, decoder} != {"none"} else "none", **places}
    return Row(f"{encoding}-{encoder}-{decoder}-{queries}", cells, published, model)


HEADINGS = {
    "encoder": ("encoder layers",),
    "positions": ("positions, encoder", "positions, decoder", "queries"),
    "losses": ("class", "L1", "GIoU"),
}
TABLES: dict[str, tuple[Row, ...]] = {
    "encoder": tuple(
        Row(f"encoder-{count}", (str(count),), published, {"encoder_layers": count})
        for count, published in ((0, 36.7), (3, 40.1), (12, 41.6), (6, 40.6))
    ),
    "positions": (
        positions("sine", "none", "none", "input", 32.8),
        positions("sine", "input", "input", "input", 39.2),
        positions("learned", "attention", "attention", "attention", 39.6),
        positions("sine", "none", "attention", "attention", 39.3),
        positions("sine", "attention", "attention", "attention", 40.6),
    ),
    "losses": (
        Row("class-l1", ("yes", "yes", ""), 35.8, training={"giou_loss_coef": 0.0}),
        Row("class-giou", ("yes", "", "yes"), 39.9, training={"bbox_loss_coef": 0.0}),
        Row("class-l1-giou", ("yes", "yes", "yes"), 40.6),
    ),
}


def run_table(table: str, config: RunConfig, output: Path) -> str:
    """Train the rows, or read what they gave; tell the table, as Markdown."""
    scores = [row_scores(row, config, output / row.name) for row in TABLES[table]]
    base = scores[-1]["ap"]
    heads = [*HEADINGS[table], "parameters", *map(metric_label, COLUMNS), "difference", "paper's AP"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row, one in zip(TABLES[table], scores, strict=True):
        numbers = ["-" if one[name] < 0 else f"{100 * one[name]:.1f}" for name in COLUMNS]
        difference = f"{100 * (one['ap'] - base):+.1f}"
        cells = [*row.cells, f"{one['parameters'] / 1e6:.1f} M", *numbers, difference, str(row.published)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: object) -> float:
    return -1.0 if value is None else float(str(value))  # nothing there to be scored


def row_scores(row: Row, config: RunConfig, folder: Path) -> dict[str, float]:
    """Train one row, go on with it, or read it; tell the scores of its best checkpoint, and its size."""
    own = config.model_copy(
        update={
            "model_overrides": {**config.model_overrides, **row.model},
            "training": type(config.training)(**{**config.training.explicit, **row.training}),
        }
    )
    preset_config(own.model, **own.model_overrides)  # says now what is wrong with it
    known = folder / "row.json"  # of a row that has ended: one that was stopped has checkpoints and a report, too
    if known.is_file():
        return {name: float(value) for name, value in json.loads(known.read_text()).items()}
    goes_on = (folder / STATE_FILE).is_file()
    print(f"{row.name}: {'going on' if goes_on else 'training'}")
    result = resume(folder) if goes_on else train_from_config(own, folder)
    if not result.is_complete:
        raise SystemExit(f"{row.name}: stopped; the same command goes on")
    evaluations = [entry for entry in read_metrics(folder) if entry["kind"] == "evaluation"]
    best = max(evaluations, key=lambda entry: _number(entry["ap"]))
    scores = {name: _number(best[name]) for name in COLUMNS}
    scores["parameters"] = float(count_parameters(folder))
    write_text(known, json.dumps(scores))
    return scores


def count_parameters(folder: Path) -> int:
    """Parameters of the trained model."""
    from detrkit.checkpoints.load import load_checkpoint

    return sum(parameter.numel() for parameter in load_checkpoint(folder).build().parameters())


def parsed(arguments: Sequence[str] | None) -> tuple[str, RunConfig, Path]:
    """Read the command line: options that are not known here are settings of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("data", help="dataset folder")
    parser.add_argument("--model", default="detr-r50", help="preset")
    parser.add_argument("--weights", help="what every row starts from, as in detrkit train")
    parser.add_argument("--recipe", choices=("reference", "auto"), default="reference", help="as in detrkit train")
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"))
    known, others = parser.parse_known_args(arguments)
    settings = {name.removeprefix("--").replace("-", "_"): yaml.safe_load(value) for name, value in pairs(others)}
    given = {
        "data": known.data,
        "model": known.model,
        **({"weights": known.weights} if known.weights else {}),
        "recipe": known.recipe,
    }
    return known.table, run_config({**given, **settings}), known.output / known.table


def pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """Read options that each have a value.

    Raises:
        SystemExit: they do not.
    """
    if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
        raise SystemExit(f"found {' '.join(words)}, expected training settings as --name value")
    return list(zip(words[::2], words[1::2], strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and print a table."""
    table, config, output = parsed(arguments)
    text = run_table(table, config, output)
    write_text(output / f"{table}.md", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
