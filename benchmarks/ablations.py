"""The ablations of the paper (tables 2, 3 and 4) on any dataset.

    python -m benchmarks.ablations encoder DATA [--output FOLDER] [settings ...]
    python -m benchmarks.ablations positions coco --weights imagenet --device cuda --devices 8

`encoder` changes the number of encoder layers (table 2), `positions` the position encodings and where they are added (table
3), `losses` the losses and matching costs (table 4). Rows are trained with the paper's recipe, 300 epochs, or with --recipe
auto. Every row is a run in its own folder below FOLDER, with the settings of `detrkit train`; they are equal for all rows
except for what the row changes. Complete runs are not repeated, and stopped runs are resumed by the same command. The table
is printed and written to FOLDER. The last row is the paper's model; differences are relative to it.
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
from detrkit.training.run_folder import STATE_FILE
from detrkit.training.train import resume, train_from_config

COLUMNS = ("ap", "ap50", "ap_small", "ap_medium", "ap_large")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: name of its folder.
        cells: first cells of the row.
        published: AP in the paper.
        model: changed fields of `ModelConfig`.
        training: changed fields of `TrainingConfig`.
    """

    name: str
    cells: tuple[str, ...]
    published: float
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def positions(encoding: str, encoder: str, decoder: str, queries: str, published: float) -> Row:
    """Create a row of table 3."""
    fields = {"encoder_positions": encoder, "decoder_positions": decoder, "query_positions": queries}
    named = {target: "none" if target == "none" else f"{encoding} at {target}" for target in (encoder, decoder)}
    cells = (named[encoder], named[decoder], f"learned at {queries}")
    model = {"position_embedding": encoding if {encoder, decoder} != {"none"} else "none", **fields}
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
    """Train the rows that are not complete, and return the table as Markdown."""
    results = [row_scores(row, config, output / row.name) for row in TABLES[table]]
    base = results[-1]["ap"]
    headings = [*HEADINGS[table], "parameters", *map(metric_label, COLUMNS), "difference", "paper's AP"]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for row, scores in zip(TABLES[table], results, strict=True):
        numbers = ["-" if scores[name] < 0 else f"{100 * scores[name]:.1f}" for name in COLUMNS]
        difference = f"{100 * (scores['ap'] - base):+.1f}"
        cells = [*row.cells, f"{scores['parameters'] / 1e6:.1f} M", *numbers, difference, str(row.published)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _number(value: object) -> float:
    return -1.0 if value is None else float(str(value))  # no objects of this size


def row_scores(row: Row, config: RunConfig, folder: Path) -> dict[str, float]:
    """Train or resume one row if it is not complete; return the metrics of its best checkpoint and its parameters."""
    row_config = config.model_copy(
        update={
            "model_overrides": {**config.model_overrides, **row.model},
            "training": type(config.training)(**{**config.training.explicit, **row.training}),
        }
    )
    preset_config(row_config.model, **row_config.model_overrides)  # fails before training if a field is wrong
    file = folder / "row.json"  # marks a complete row; a stopped one has checkpoints and a report, too
    if file.is_file():
        return {name: float(value) for name, value in json.loads(file.read_text(encoding="utf-8")).items()}
    is_started = (folder / STATE_FILE).is_file()
    print(f"{row.name}: {'resuming' if is_started else 'training'}")
    result = resume(folder) if is_started else train_from_config(row_config, folder)
    if not result.is_complete:
        raise SystemExit(f"{row.name}: stopped; resume with the same command")
    evaluations = [entry for entry in read_metrics(folder) if entry["kind"] == "evaluation"]
    best = max(evaluations, key=lambda entry: _number(entry["ap"]))
    scores = {name: _number(best[name]) for name in COLUMNS}
    scores["parameters"] = float(count_parameters(folder))
    write_text(file, json.dumps(scores))
    return scores


def count_parameters(folder: Path) -> int:
    """Count the parameters of the trained model."""
    from detrkit.checkpoints.load import load_checkpoint

    return sum(parameter.numel() for parameter in load_checkpoint(folder).build().parameters())


def parse(arguments: Sequence[str] | None) -> tuple[str, RunConfig, Path]:
    """Parse the command line; unknown options are settings of the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("data", help="dataset folder")
    parser.add_argument("--model", default="detr-r50", help="preset")
    parser.add_argument("--weights", help="initial weights of every row, as in detrkit train")
    parser.add_argument("--recipe", choices=("reference", "auto"), default="reference", help="as in detrkit train")
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"))
    options, others = parser.parse_known_args(arguments)
    settings = {
        name.removeprefix("--").replace("-", "_"): yaml.safe_load(value) for name, value in option_pairs(others)
    }
    given = {
        "data": options.data,
        "model": options.model,
        **({"weights": options.weights} if options.weights else {}),
        "recipe": options.recipe,
    }
    return options.table, run_config({**given, **settings}), options.output / options.table


def option_pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """Parse options that each have a value.

    Raises:
        SystemExit: one has none.
    """
    if len(words) % 2 or not all(word.startswith("--") for word in words[::2]):
        raise SystemExit(f"{' '.join(words)}: expected settings as --name value")
    return list(zip(words[::2], words[1::2], strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and print a table."""
    table, config, output = parse(arguments)
    text = run_table(table, config, output)
    write_text(output / f"{table}.md", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
