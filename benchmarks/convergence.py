r"""Convergence of the architectures, and the effect of each ingredient of detrkit-s, at equal training time.

    python -m benchmarks.convergence peers drawn --minutes 5 --seeds 1 2 3
    python -m benchmarks.convergence ingredients drawn --minutes 5 --seeds 1
    python -m benchmarks.convergence peers bccd-voc --minutes 40 --split test --num-queries 100 \
        --backbone-weights FILE --backbone timm:tf_efficientnet_lite0 --backbone-normalization frozen

`peers` are the architectures at the size of detrkit-s; `ingredients` are detrkit-s with one part removed or added. DATA is
a dataset folder, or `drawn`: 10,000 synthetic images of 128 px with 1 to 5 shapes of 3 classes for training, and 500 for
the evaluation of the last step. With a folder, the validation split is evaluated, or --split with the best checkpoint.

First, the steps of all rows are timed in turns, including data loading, and the number of steps is chosen so that all rows
take the same time, evaluations excluded. A run then depends on its seed and that number only (`budget.json`), not on the
load of the machine; only the timing needs an idle machine (the same row got 1,426 and 1,541 steps in two tables).
Seeds are trained in turns. Complete runs are not repeated, and stopped runs are resumed by the same command. Other options
are settings of `detrkit train`, equal for all rows except for what a row changes; peers use the losses they were published
with, and learning rates tuned on other synthetic images. The table and a plot of the curves are written to FOLDER; --write
FILE inserts them between `<!-- convergence NAME -->` and `<!-- end -->` in a document, with the plot next to it.
"""

import argparse
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain, islice, repeat
from pathlib import Path
from statistics import mean, median
from typing import Any

import yaml
from benchmarks.ablations import count_parameters, option_pairs

from detrkit._internal.files import atomic_write, make_folder, write_text
from detrkit.config.run import RunConfig, run_config
from detrkit.config.training import TrainingConfig
from detrkit.data.records import SplitName
from detrkit.data.synthetic import SyntheticStyle
from detrkit.data.transforms.augmentation import AugmentedDataset, StrongAugmentation
from detrkit.data.transforms.geometry import RandomOrientation
from detrkit.demo.run import synthetic_data
from detrkit.distributed.devices import choose_rank_device
from detrkit.distributed.rank import rank_from_environment
from detrkit.errors import DetrkitError
from detrkit.evaluation.evaluate import evaluate
from detrkit.evaluation.metrics import metric_label
from detrkit.models.presets import preset_config
from detrkit.training.data import TrainingData
from detrkit.training.loggers.jsonl import read_metrics
from detrkit.training.planner import OWN, plan_model, plan_training
from detrkit.training.run import TrainingRun, run_training
from detrkit.training.run_folder import STATE_FILE
from detrkit.training.train import prepare
from detrkit.visualization.charts import as_png, new_chart

DRAWN = "drawn"
NUM_TRAIN, NUM_VAL = 10_000, 500
STYLE = SyntheticStyle(size=128, max_objects=5)
# defaults for synthetic images
DRAWN_SETTINGS = {
    "image_size": STYLE.size,
    "batch_size": 32,
    "lr": 1e-3,
    "backbone_lr": 1e-3,
    "warmup_steps": 50,
    "clip_grad_norm": 1.0,
    "cls_loss_coef": 2.0,
    "ema_decay": 0.99,
    "workers": 0,
}
# defaults for folders; `detrkit train` would choose other image sizes for other presets
FOLDER_SETTINGS = {name: OWN[name][0] for name in ("image_size", "train_scale", "batch_size", "clip_grad_norm")}
# settings that follow from the row, the seed and the minutes; for synthetic images also those of the augmentation
FIXED = ("seed", "steps", "epochs", "evaluate_every", "patience", "devices")
AUGMENTATION = (
    "image_size", "train_scale", "augment", "horizontal_flip", "vertical_flip", "rotate90", "crop",
    "photometric", "scale_jitter",
)  # fmt: skip
COLUMNS = ("ap", "ap50", "ap_small", "ap_medium", "ap_large")
_NUM_TIMINGS = 7  # per row, each with other images
_TIMED_STEPS = 6
_NUM_COLORS = 10  # further lines are dashed
_MAX_EVALUATIONS = 5  # per run, after whole epochs
_LEARNING_RATES = ("lr", "backbone_lr")  # of rows, tuned on synthetic images: not used for folders
_PRETRAINED = {"backbone_lr": 1e-4}  # of every row with a pretrained backbone


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: name of its folder.
        description: shown in the table.
        model: preset.
        settings: fields of `ModelConfig` that define the row.
        training: fields of `TrainingConfig`.
        drawn_overrides: further fields of `ModelConfig` for synthetic images, which options may change.
        folder_overrides: the same for dataset folders.
    """

    name: str
    description: str
    model: str = "detrkit-s"
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    drawn_overrides: Mapping[str, Any] = field(default_factory=dict)
    folder_overrides: Mapping[str, Any] = field(default_factory=dict)


def _without_denoising(
    name: str, description: str, settings: Mapping[str, Any] | None = None, training: Mapping[str, Any] | None = None
) -> Row:
    """Create a row of detrkit-s without denoising, which would hide the effect of other parts."""
    base = {"denoising": 0, "contrastive_denoising": False}
    return Row(name, description, settings=settings or {}, training={**base, **(training or {})})


_SIGMOID = {"class_scores": "sigmoid", "pre_norm": False}
_QUERIES = {"num_queries": 50}
_COARSE = {**_QUERIES, "dilation": False}  # stride 16; DETR with 25 queries has stride 8
_DEFORMABLE = {"encoder": "deformable", "decoder": "deformable"}
_LR_5E_4 = {"lr": 5e-4, "backbone_lr": 5e-4}  # for rows that are worse with 1e-3
TABLES: dict[str, tuple[Row, ...]] = {
    "peers": (
        Row("plain", "DETR (detr-tiny)", "detr-tiny", training=_LR_5E_4, folder_overrides=_QUERIES),
        Row(
            "conditional",
            "Conditional DETR",
            "detr-tiny",
            {**_SIGMOID, "queries": "points", "decoder": "conditional"},
            _LR_5E_4,
            drawn_overrides=_COARSE,
            folder_overrides=_QUERIES,
        ),
        Row(
            "dab",
            "DAB-DETR",
            "detr-tiny",
            {
                **_SIGMOID,
                "queries": "anchors",
                "decoder": "conditional",
                "with_box_refine": True,
                "position_temperature": 20.0,
            },
            _LR_5E_4,
            drawn_overrides=_COARSE,
            folder_overrides=_QUERIES,
        ),
        Row(
            "deformable",
            "Deformable DETR, two levels",
            "detr-tiny",
            {**_SIGMOID, **_DEFORMABLE, "queries": "points", "num_feature_levels": 2, "dilation": False},
            _LR_5E_4,
            drawn_overrides=_QUERIES,
            folder_overrides=_QUERIES,
        ),
        Row("detrkit-s", "detrkit-s"),
    ),
    "ingredients": (
        Row("detrkit-s", "detrkit-s"),
        _without_denoising("no-denoising", "without denoising, as all below"),
        _without_denoising(
            "no-proposals",
            "without two-stage queries: learned anchors",
            settings={"queries": "anchors", "two_stage_content": "box"},
        ),
        _without_denoising("no-content", "without memory in the query content", settings={"two_stage_content": "box"}),
        _without_denoising(
            "no-refinement",
            "without two-stage queries and box refinement",
            settings={"queries": "points", "two_stage_content": "box", "with_box_refine": False},
            training={"look_forward_twice": False},
        ),
        _without_denoising("one-map", "without the finer feature level", settings={"num_feature_levels": 1}),
        _without_denoising("dense", "dense instead of deformable attention", settings={"decoder": "dense"}),
        _without_denoising("shared-heads", "without layerwise heads", settings={"layerwise_heads": False}),
        _without_denoising("two-layers", "without the third decoder layer", settings={"decoder_layers": 2}),
        _without_denoising("not-iou-aware", "without IoU-aware classification", training={"cls_loss": "default"}),
        _without_denoising("not-twice", "without looking forward twice", training={"look_forward_twice": False}),
        _without_denoising("no-average", "without EMA", training={"ema_decay": 0.0}),
        _without_denoising("encoder", "with a deformable encoder layer", settings={"encoder_layers": 1}),
        _without_denoising("dropout", "with dropout 0.1", settings={"dropout": 0.1}),
        _without_denoising("groups", "with 3 query groups", training={"query_groups": 3}),
        _without_denoising("hybrid", "with 100 hybrid queries", training={"hybrid_queries": 100}),
        _without_denoising(
            "mosaic", "with mosaic for half of the images", training={"mosaic": 0.5, "strong_aug_until": 0.7}
        ),
    ),
}


@dataclass(frozen=True)
class Experiment:
    """All runs of a table.

    Attributes:
        table: name of the table.
        common: settings shared by all rows.
        minutes: training time per run.
        seeds: one run per row and seed.
        rows: of the table.
        split: split to evaluate; None for the last evaluation of the run.
        output: folder of the runs.
    """

    table: str
    common: RunConfig
    minutes: float
    seeds: Sequence[int]
    rows: Sequence[Row]
    split: SplitName | None
    output: Path

    def folder(self, row: Row, seed: int) -> Path:
        """Return the folder of one run."""
        return self.output / f"{row.name}-{seed}"

    def open(self, row: Row, seed: int, steps: int | None = None) -> tuple[RunConfig, TrainingData]:
        """Plan a run and load its data."""
        is_drawn = self.common.data == DRAWN
        given = self.common.training.explicit
        row_settings = {name: value for name, value in row.training.items() if is_drawn or name not in _LEARNING_RATES}
        defaults: Mapping[str, Any] = DRAWN_SETTINGS if is_drawn else FOLDER_SETTINGS
        if not is_drawn and self.common.backbone_weights:
            defaults = {**defaults, **_PRETRAINED}
        training = {**defaults, **given, **row_settings, "seed": seed}
        if steps is not None:
            training["steps"] = steps
        config = self.common.model_copy(
            update={
                "model": row.model,
                "model_overrides": self.model_overrides(row),
                "training": TrainingConfig(**training),
            }
        )
        if not is_drawn:
            plan, data = prepare(config)
            return plan.config, data
        config = plan_training(plan_model(config), set(training), NUM_TRAIN).config
        settings, drawn = config.training, drawn_data()
        strong = StrongAugmentation(STYLE.size, mosaic=settings.augmentation.mosaic)
        train = AugmentedDataset(drawn.train.images, RandomOrientation(), seed=seed, strong=strong)
        return config, replace(drawn, train=train)

    def model_overrides(self, row: Row) -> dict[str, Any]:
        """Return the fields of a row's model that differ from its preset."""
        defaults = row.drawn_overrides if self.common.data == DRAWN else row.folder_overrides
        return {**defaults, **self.common.model_overrides, **row.settings}

    def run(self, row: Row, seed: int, steps: int | None = None) -> TrainingRun:
        """Build a run in this process."""
        config, data = self.open(row, seed, steps)
        process = rank_from_environment()
        device = choose_rank_device(config.training.hardware.device, process)
        return TrainingRun(config, data, self.folder(row, seed), process, device)


@cache
def drawn_data() -> TrainingData:
    """Draw the training and validation images of all runs."""
    print(f"drawing {NUM_TRAIN} training and {NUM_VAL} validation images")
    return synthetic_data(NUM_TRAIN, NUM_VAL, seed=42, style=STYLE, image_size=STYLE.size)


def choose_steps(experiment: Experiment) -> dict[str, int]:
    """Time the rows in turns, and return the number of steps of each; earlier timings are kept.

    Raises:
        SystemExit: the runs in the folder have other settings.
    """
    path = experiment.output / "budget.json"
    # explicit settings only, so that settings added in later versions do not invalidate the runs
    requested = {"minutes": experiment.minutes, **experiment.common.model_dump(mode="json", exclude_unset=True)}
    budget: dict[str, Any] = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"requested": requested, "seconds": {}}
    )
    before = budget["requested"]
    if changed := [name for name in {**before, **requested} if before.get(name) != requested.get(name)]:
        raise SystemExit(
            f"{path}: the runs there have other {' and '.join(changed)}: {before}. Pass the same settings, or choose "
            "another --output."
        )
    missing = [row for row in experiment.rows if row.name not in budget["seconds"]]
    times: dict[str, list[float]] = {row.name: [] for row in missing}
    for epoch in range(1, _NUM_TIMINGS + 1):
        for row in missing:  # many steps, so that everything that ends late in a run is active
            times[row.name].append(seconds_per_step(experiment.run(row, experiment.seeds[0], steps=10**6), epoch))
    for name, measured in times.items():
        budget["seconds"][name] = median(measured)
    steps = {name: max(1, round(60 * experiment.minutes / each)) for name, each in budget["seconds"].items()}
    for name in times:
        print(f"{name}: {budget['seconds'][name]:.3f} s per step, {steps[name]} steps")
    write_text(path, json.dumps(budget, indent=1))
    return steps


def seconds_per_step(run: TrainingRun, epoch: int) -> float:
    """Run some steps of an epoch, and return the time of one, including data loading."""
    run.train_step.train()
    run.loader.start_at(epoch, 0)
    gradient_accumulation = run.config.training.gradient_accumulation
    batches = chain.from_iterable(repeat(run.loader))
    start = 0.0
    for number in range(_TIMED_STEPS + 1):
        run.train_step.step([batch.to(run.device) for batch in islice(batches, gradient_accumulation)])
        run.train_step.finish()
        if number == 0:
            start = time.perf_counter()
    return (time.perf_counter() - start) / _TIMED_STEPS


def run_row(experiment: Experiment, row: Row, seed: int, steps: int) -> dict[str, float]:
    """Train or resume one row with one seed if it is not complete, and return its metrics."""
    folder = experiment.folder(row, seed)
    if not is_complete(folder, steps):
        config, data = experiment.open(row, seed, steps)
        settings = config.training
        epochs = -(-steps * settings.batch_size * settings.gradient_accumulation // max(1, len(data.train)))
        settings = settings.replace(evaluate_every=-(-epochs // _MAX_EVALUATIONS))
        config = config.model_copy(update={"training": settings})
        is_started = (folder / STATE_FILE).is_file()
        print(f"{folder.name}: {'resuming' if is_started else 'training'}, {steps} steps")
        if not run_training(config, data, folder, resume=is_started).is_complete:
            raise SystemExit(f"{folder.name}: stopped; resume with the same command")
    metrics = read_evaluations(folder)[-1]
    if experiment.split is not None:
        output = folder / f"on-{experiment.split}"
        if not (output / "scores.json").is_file():
            evaluate(folder, experiment.common.data, split=experiment.split, output=output)
        metrics = json.loads((output / "scores.json").read_text(encoding="utf-8"))["metrics"]
    scores = {name: -1.0 if metrics[name] is None else float(str(metrics[name])) for name in COLUMNS}
    return {**scores, "parameters": float(count_parameters(folder))}


def read_evaluations(folder: Path) -> list[dict[str, object]]:
    """Read the evaluations of a run in order; a run that was stopped after one has written it twice."""
    return list({entry["step"]: entry for entry in read_metrics(folder) if entry["kind"] == "evaluation"}.values())


def is_complete(folder: Path, steps: int) -> bool:
    """Return whether a run was evaluated after its last step; a stopped run has a report, too."""
    evaluations = read_evaluations(folder)
    return bool(evaluations) and int(str(evaluations[-1]["step"])) >= steps


def format_table(
    experiment: Experiment, results: Mapping[str, Sequence[Mapping[str, float]]], steps: Mapping[str, int]
) -> str:
    """Format the results as Markdown: means of the completed seeds."""
    lines = [
        "| | " + " | ".join([*map(metric_label, COLUMNS), "AP of each seed", "steps", "strides", "parameters"]) + " |"
    ]
    lines.append("|---" * (len(COLUMNS) + 5) + "|")
    for row in experiment.rows:
        seeds = results.get(row.name, [])
        if seeds:
            values = [[scores[name] for scores in seeds if scores[name] >= 0] for name in COLUMNS]
            means = [mean(of_seeds) if of_seeds else -1.0 for of_seeds in values]
            cells = [row.description, *("-" if value < 0 else f"{value:.3f}" for value in means)]
            cells.append(", ".join(f"{scores['ap']:.3f}" for scores in seeds))
            strides = preset_config(row.model, **experiment.model_overrides(row)).strides
            cells += [str(steps[row.name]), ", ".join(map(str, strides)), f"{seeds[0]['parameters'] / 1e6:.1f} M"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_curves(experiment: Experiment, results: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """Plot the AP over the timed minutes, one line per row: the mean of its seeds."""
    figure, axes = new_chart("minutes of training", "AP")
    ends = []
    for index, row in enumerate(experiment.rows):
        if row.name not in results:
            continue
        curves = []
        for seed in experiment.seeds[: len(results[row.name])]:
            evaluations = read_evaluations(experiment.folder(row, seed))
            curves.append([(float(str(entry["step"])), float(str(entry["ap"] or 0))) for entry in evaluations])
        minutes_per_step = experiment.minutes / curves[0][-1][0]
        ap = [mean(values) for values in zip(*([value for _, value in curve] for curve in curves), strict=True)]
        minutes = [step * minutes_per_step for step, _ in curves[0]]
        ends.append(ap[-1])
        axes.plot(
            [0.0, *minutes],
            [0.0, *ap],
            marker=".",
            label=row.description,
            linestyle="-" if index < _NUM_COLORS else "--",
        )
    # the axis starts below the lowest final AP, to show the differences between the final values
    axes.set(xlim=(0, None), ylim=(max(0.0, math.floor(10 * min(ends) - 1) / 10), min(1.0, max(ends) + 0.05)))
    figure.set_size_inches(6.4, 3.4 + 0.1 * len(experiment.rows))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return as_png(figure)


def insert_into(document: Path, name: str, table: str | None, curves: bytes = b"") -> None:
    """Insert a table and its plot between their marks in a document; with None, only check the marks.

    Raises:
        SystemExit: the document has no such marks.
    """
    text = document.read_text(encoding="utf-8")
    marks = re.compile(rf"(<!-- convergence {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    match = marks.search(text)
    if match is None:
        raise SystemExit(f"{document} has no <!-- convergence {name} --> ... <!-- end --> to insert the table")
    if table is not None:
        plot = Path("pictures") / f"{name}.png"
        make_folder((document.parent / plot).parent)
        with atomic_write(document.parent / plot) as temporary:
            temporary.write_bytes(curves)
        image = f"\n![AP over the minutes of training]({plot.as_posix()})\n"
        write_text(document, f"{text[: match.end(1)]}{table}\n{image}{text[match.start(2) :]}")


def run_experiment(experiment: Experiment) -> str:
    """Train all missing runs, seed by seed; write the table and the plot to the folder, and return the table."""
    steps = choose_steps(experiment)
    results: dict[str, list[dict[str, float]]] = {}
    text = ""
    for seed in experiment.seeds:
        for row in experiment.rows:
            results.setdefault(row.name, []).append(run_row(experiment, row, seed, steps[row.name]))
            text = format_table(experiment, results, steps)
            write_text(experiment.output / f"{experiment.table}.md", text + "\n")  # the completed runs
    with atomic_write(experiment.output / f"{experiment.table}.png") as temporary:
        temporary.write_bytes(draw_curves(experiment, results))
    return text


def parse(arguments: Sequence[str] | None) -> tuple[Experiment, Path | None]:
    """Parse the command line; unknown options are settings of the runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("data", help="dataset folder, or `drawn`")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", nargs="+", help="names of rows to train; default: all")
    parser.add_argument("--split", choices=["train", "val", "test"], help="split to evaluate the best checkpoint on")
    parser.add_argument("--backbone-weights", help="file, as in detrkit train")
    parser.add_argument("--output", type=Path, default=Path("runs/convergence"))
    parser.add_argument("--write", type=Path, metavar="FILE", help="document to insert the table into")
    options, others = parser.parse_known_args(arguments)
    rows = [row for row in TABLES[options.table] if options.rows is None or row.name in options.rows]
    if unknown := set(options.rows or ()) - {row.name for row in rows}:
        names = ", ".join(row.name for row in TABLES[options.table])
        raise SystemExit(f"--rows {' '.join(sorted(unknown))}: no such rows; expected some of {names}")
    if options.split and options.data == DRAWN:
        raise SystemExit("--split: synthetic images have a validation split only; omit it")
    if options.minutes <= 0:
        raise SystemExit(f"--minutes {options.minutes:g}: expected more than 0")
    settings = {
        name.removeprefix("--").replace("-", "_"): yaml.safe_load(value) for name, value in option_pairs(others)
    }
    check_settings(settings, options.data)
    given = {
        "data": options.data if options.data == DRAWN else str(Path(options.data).resolve()),
        **({"backbone_weights": options.backbone_weights} if options.backbone_weights else {}),
    }
    name = options.data if options.data == DRAWN else Path(options.data).resolve().name
    experiment = Experiment(
        table=options.table,
        common=run_config({**given, **settings}),
        minutes=options.minutes,
        seeds=options.seeds,
        rows=rows,
        split=options.split,
        output=options.output / f"{options.table}-{name}",
    )
    return experiment, options.write


def check_settings(training: Mapping[str, Any], data: str) -> None:
    """Reject settings that would have no effect, or break the equal training time.

    Raises:
        SystemExit: one of them is given.
    """
    for name in training:
        if name in FIXED:
            raise SystemExit(f"--{name.replace('_', '-')} is determined by the row, --seeds and --minutes; omit it")
        if data == DRAWN and name in AUGMENTATION:
            raise SystemExit(f"--{name.replace('_', '-')} has no effect on synthetic images; omit it")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the runs of a table and print it."""
    try:
        experiment, document = parse(arguments)
        for row in experiment.rows:
            preset_config(row.model, **experiment.model_overrides(row))  # fails before training if a field is wrong
        if document is not None:
            insert_into(document, experiment.output.name, None)  # likewise if the document has no place for the table
        text = run_experiment(experiment)
        if document is not None:
            insert_into(
                document, experiment.output.name, text, (experiment.output / f"{experiment.table}.png").read_bytes()
            )
    except (DetrkitError, OSError) as error:
        raise SystemExit(str(error)) from None
    print(text)


if __name__ == "__main__":
    main()
