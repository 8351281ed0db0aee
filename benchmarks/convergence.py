r"""How soon does each architecture learn, and what is each ingredient of detrkit-s worth? Every row gets the same time.

    python -m benchmarks.convergence peers drawn --minutes 5 --seeds 1 2 3
    python -m benchmarks.convergence ingredients drawn --minutes 5 --seeds 1
    python -m benchmarks.convergence peers bccd-voc --minutes 40 --split test --num-queries 100 \
        --backbone-weights FILE --backbone timm:tf_efficientnet_lite0 --backbone-normalization frozen

`peers` are the architectures at the size of detrkit-s, `ingredients` are detrkit-s with one part taken out or put in. DATA
is a dataset folder, or `drawn`: 10,000 drawings of 128 px with 1 to 5 shapes of 3 classes to learn from, 500 others to be
judged by, after the last step. A folder is judged by its validation photos, or its best checkpoint by those of --split.

First the steps of all rows are timed in turns, reading included, and their number chosen so that all take the same time,
evaluations left out; so a run depends on its seed and that number alone (`budget.json`), not on what else the machine did.
Let it have the machine to itself until that is done; the same row came to 1,426 and to 1,541 steps in two tables.
Seeds are trained in turns. Runs that have ended are not trained again, one that was stopped goes on: give the same command.
Other options are settings of `detrkit train`, the same for all rows but for what a row changes; peers learn by the losses
they were published with, at the rates that suited them on other drawings. The table and a picture of the curves lie in
FOLDER; --write FILE puts them between `<!-- convergence NAME -->` and `<!-- end -->` in a document, the picture beside it.
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
from benchmarks.ablations import count_parameters, pairs

from detrkit._internal.files import atomic_write, make_folder, write_text
from detrkit.config.run import RunConfig, run_config
from detrkit.config.training import TrainingConfig
from detrkit.data.records import SplitName
from detrkit.data.synthetic import SyntheticStyle
from detrkit.data.transforms.augmentation import AugmentedDataset, StrongAugmentation
from detrkit.data.transforms.geometry import RandomOrientation
from detrkit.demo.run import synthetic_data
from detrkit.distributed.devices import device_of
from detrkit.distributed.rank import process_from_environment
from detrkit.errors import DetrkitError
from detrkit.evaluation.evaluate import evaluate
from detrkit.evaluation.metrics import metric_label
from detrkit.models.presets import preset_config
from detrkit.training.data import TrainingData
from detrkit.training.loggers.jsonl import read_metrics
from detrkit.training.planner import OWN, plan_model, plan_training
from detrkit.training.run import STATE_FILE, TrainingRun, run_training
from detrkit.training.train import prepare
from detrkit.visualization.charts import as_png, new_chart

DRAWN = "drawn"
NUM_TRAIN, NUM_TEST = 10_000, 500
STYLE = SyntheticStyle(size=128, max_objects=5)
# what suits drawings, for every row that does not say otherwise
OF_DRAWN = {
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
# folders are planned by `detrkit train`, which would give presets photos of other sizes
OF_PHOTOS = {name: OWN[name] for name in ("image_size", "train_scale", "batch_size", "clip_grad_norm")}
# decided by the row, the seed and the minutes; of drawings also by their style, as framing is for photos
DECIDED = ("seed", "steps", "epochs", "evaluate_every", "patience", "devices")
FRAMING = (
    "image_size", "train_scale", "augment", "horizontal_flip", "vertical_flip", "rotate90", "crop",
    "photometric", "scale_jitter",
)  # fmt: skip
COLUMNS = ("ap", "ap50", "ap_small", "ap_medium", "ap_large")
_TIMINGS = 7  # rounds, of other photos each, and of so many steps:
_TIMED_STEPS = 6
_COLOURS = 10  # of lines; further ones are dashed
_MAX_EVALUATIONS = 5  # of a run, which come after whole rounds through the photos
_RATES = ("lr", "backbone_lr")  # of rows, found on drawings: not meant for photos
_PRETRAINED_RATE = {"backbone_lr": 1e-4}  # of every row, above a backbone that can see


@dataclass(frozen=True)
class Row:
    """What one training is.

    Attributes:
        name: of its folder.
        what: for readers.
        model: preset.
        settings: fields of `ModelConfig` that make it what it is.
        training: fields of `TrainingConfig`.
        drawn, photos: further fields of `ModelConfig`, for drawings and for folders, which options may change.
    """

    name: str
    what: str
    model: str = "detrkit-s"
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    drawn: Mapping[str, Any] = field(default_factory=dict)
    photos: Mapping[str, Any] = field(default_factory=dict)


def _bare(
    name: str, what: str, settings: Mapping[str, Any] | None = None, training: Mapping[str, Any] | None = None
) -> Row:
    """A row of detrkit-s without denoising: its copies would hide what other helpers and parts are worth."""
    without = {"denoising": 0, "contrastive_denoising": False}
    return Row(name, what, settings=settings or {}, training={**without, **(training or {})})


_SIGMOID = {"class_scores": "sigmoid", "pre_norm": False}
_QUERIES = {"num_queries": 50}
_COARSE = {**_QUERIES, "dilation": False}  # a cell every 16 px, where DETR's 25 queries have one every 8
_SAMPLED = {"encoder": "deformable", "decoder": "deformable"}
_FIVE_E4 = {"lr": 5e-4, "backbone_lr": 5e-4}  # where 1e-3 was worse
TABLES: dict[str, tuple[Row, ...]] = {
    "peers": (
        Row("plain", "DETR (detr-tiny)", "detr-tiny", training=_FIVE_E4, photos=_QUERIES),
        Row(
            "conditional",
            "Conditional DETR",
            "detr-tiny",
            {**_SIGMOID, "queries": "points", "decoder": "conditional"},
            _FIVE_E4,
            drawn=_COARSE,
            photos=_QUERIES,
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
            _FIVE_E4,
            drawn=_COARSE,
            photos=_QUERIES,
        ),
        Row(
            "deformable",
            "Deformable DETR, two maps",
            "detr-tiny",
            {**_SIGMOID, **_SAMPLED, "queries": "points", "num_feature_levels": 2, "dilation": False},
            _FIVE_E4,
            drawn=_QUERIES,
            photos=_QUERIES,
        ),
        Row("detrkit-s", "detrkit-s"),
    ),
    "ingredients": (
        Row("detrkit-s", "detrkit-s"),
        _bare("no-denoising", "without denoising; and so are all below"),
        _bare(
            "no-proposals",
            "without proposals: learned anchors",
            settings={"queries": "anchors", "two_stage_content": "box"},
        ),
        _bare("no-content", "without what cells held", settings={"two_stage_content": "box"}),
        _bare(
            "no-refinement",
            "without proposals and refinement",
            settings={"queries": "points", "two_stage_content": "box", "with_box_refine": False},
            training={"look_forward_twice": False},
        ),
        _bare("one-map", "without the finer map", settings={"num_feature_levels": 1}),
        _bare("dense", "without sampling: all cells are looked at", settings={"decoder": "dense"}),
        _bare("shared-heads", "without heads for each layer", settings={"layerwise_heads": False}),
        _bare("two-layers", "without the third decoder layer", settings={"decoder_layers": 2}),
        _bare("not-iou-aware", "without scores that know the overlap", training={"iou_aware": False}),
        _bare("not-twice", "without looking forward twice", training={"look_forward_twice": False}),
        _bare("no-average", "without averaged weights", training={"ema_decay": 0.0}),
        _bare("encoder", "with an encoder layer (sampled)", settings={"encoder_layers": 1}),
        _bare("dropout", "with dropout 0.1", settings={"dropout": 0.1}),
        _bare("groups", "with 3 query groups", training={"query_groups": 3}),
        _bare("hybrid", "with 100 hybrid queries", training={"hybrid_queries": 100}),
        _bare("mosaic", "with mosaic for half of the photos", training={"mosaic": 0.5, "strong_aug_until": 0.7}),
    ),
}


@dataclass(frozen=True)
class Bench:
    """A table to be trained: on what, for how long, with what in common."""

    table: str
    common: RunConfig
    minutes: float
    seeds: Sequence[int]
    rows: Sequence[Row]
    split: SplitName | None
    output: Path

    def folder(self, row: Row, seed: int) -> Path:
        """Of one run."""
        return self.output / f"{row.name}-{seed}"

    def open(self, row: Row, seed: int, steps: int | None = None) -> tuple[RunConfig, TrainingData]:
        """Plan a run and open its data."""
        is_drawn = self.common.data == DRAWN
        given = self.common.training.explicit
        own = {name: value for name, value in row.training.items() if is_drawn or name not in _RATES}
        usual: Mapping[str, Any] = OF_DRAWN if is_drawn else OF_PHOTOS
        if not is_drawn and self.common.backbone_weights:
            usual = {**usual, **_PRETRAINED_RATE}
        training = {**usual, **given, **own, "seed": seed}
        if steps is not None:
            training["steps"] = steps
        config = self.common.model_copy(
            update={
                "model": row.model,
                "model_overrides": self.fields_of(row),
                "training": TrainingConfig(**training),
            }
        )
        if not is_drawn:
            plan, data = prepare(config)
            return plan.config, data
        config = plan_training(plan_model(config), set(training), NUM_TRAIN).config
        settings, drawn = config.training, drawings()
        strong = StrongAugmentation(STYLE.size, mosaic=settings.augmentation.mosaic)
        photos = AugmentedDataset(drawn.train.images, RandomOrientation(), seed=seed, strong=strong)
        return config, replace(drawn, train=photos)

    def fields_of(self, row: Row) -> dict[str, Any]:
        """What a row's model has other than its preset."""
        usual = row.drawn if self.common.data == DRAWN else row.photos
        return {**usual, **self.common.model_overrides, **row.settings}

    def run(self, row: Row, seed: int, steps: int | None = None) -> TrainingRun:
        """Put a run together, in this process."""
        config, data = self.open(row, seed, steps)
        process = process_from_environment()
        device = device_of(config.training.hardware.device, process)
        return TrainingRun(config, data, self.folder(row, seed), process, device)


@cache
def drawings() -> TrainingData:
    """Draw what every run learns from, and what it is judged by."""
    print(f"drawing {NUM_TRAIN} photos, and {NUM_TEST} to be judged by")
    return synthetic_data(NUM_TRAIN, NUM_TEST, seed=42, style=STYLE, image_size=STYLE.size)


def steps_of_rows(bench: Bench) -> dict[str, int]:
    """Time the rows in turns, and tell how many steps each has time for; what was measured once stays.

    Raises:
        SystemExit: the folder's runs had another budget, or other settings.
    """
    path = bench.output / "budget.json"
    # what was given: settings that come later, with values of their own, leave the runs what they are
    asked = {"minutes": bench.minutes, **bench.common.model_dump(mode="json", exclude_unset=True)}
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"asked": asked, "seconds": {}}
    if others := [name for name in {**known["asked"], **asked} if known["asked"].get(name) != asked.get(name)]:
        raise SystemExit(
            f"{path}: found runs with other {' and '.join(others)}, expected {known['asked']}; give those, or choose "
            "another --output"
        )
    missing = [row for row in bench.rows if row.name not in known["seconds"]]
    times: dict[str, list[float]] = {row.name: [] for row in missing}
    for turn in range(1, _TIMINGS + 1):
        for row in missing:  # in the first rounds of an endless run, where all that it does is on
            times[row.name].append(seconds_per_step(bench.run(row, bench.seeds[0], steps=10**6), turn))
    for name, measured in times.items():
        known["seconds"][name] = median(measured)
    steps = {name: max(1, round(60 * bench.minutes / each)) for name, each in known["seconds"].items()}
    for name in times:
        print(f"{name}: {known['seconds'][name]:.3f} s a step, {steps[name]} steps")
    write_text(path, json.dumps(known, indent=1))
    return steps


def seconds_per_step(run: TrainingRun, epoch: int) -> float:
    """Take some steps of a round through the photos; tell how long one took, reading included."""
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


def trained(bench: Bench, row: Row, seed: int, steps: int) -> dict[str, float]:
    """Train one row with one seed, go on with it, or read it; tell what it scored."""
    folder = bench.folder(row, seed)
    if not has_ended(folder, steps):
        config, data = bench.open(row, seed, steps)
        settings = config.training
        epochs = -(-steps * settings.batch_size * settings.gradient_accumulation // max(1, len(data.train)))
        often = settings.replace(evaluate_every=-(-epochs // _MAX_EVALUATIONS))
        config = config.model_copy(update={"training": often})
        resumes = (folder / STATE_FILE).is_file()
        print(f"{folder.name}: {'going on' if resumes else 'training'}, {steps} steps")
        if not run_training(config, data, folder, resume=resumes).is_complete:
            raise SystemExit(f"{folder.name}: stopped; the same command goes on")
    last = evaluations_of(folder)[-1]
    if bench.split is not None:
        found = folder / f"on-{bench.split}"
        if not (found / "scores.json").is_file():
            evaluate(folder, bench.common.data, split=bench.split, output=found)
        last = json.loads((found / "scores.json").read_text())["metrics"]
    scores = {name: -1.0 if last[name] is None else float(str(last[name])) for name in COLUMNS}
    return {**scores, "parameters": float(count_parameters(folder))}


def evaluations_of(folder: Path) -> list[dict[str, object]]:
    """What a run scored, first evaluation first; one that was stopped behind an evaluation has it twice."""
    return list({entry["step"]: entry for entry in read_metrics(folder) if entry["kind"] == "evaluation"}.values())


def has_ended(folder: Path, steps: int) -> bool:
    """Whether a run was judged after its last step; a run that was stopped has a report, too."""
    found = evaluations_of(folder)
    return bool(found) and int(str(found[-1]["step"])) >= steps


def table_of(bench: Bench, results: Mapping[str, Sequence[Mapping[str, float]]], steps: Mapping[str, int]) -> str:
    """The results as Markdown: means of the seeds that there are."""
    lines = [
        "| | " + " | ".join([*map(metric_label, COLUMNS), "AP of each seed", "steps", "cells, px", "parameters"]) + " |"
    ]
    lines.append("|---" * (len(COLUMNS) + 5) + "|")
    for row in bench.rows:
        seeds = results.get(row.name, [])
        if seeds:
            known = [[one[name] for one in seeds if one[name] >= 0] for name in COLUMNS]
            means = [mean(values) if values else -1.0 for values in known]
            cells = [row.what, *("-" if value < 0 else f"{value:.3f}" for value in means)]
            cells.append(", ".join(f"{one['ap']:.3f}" for one in seeds))
            strides = preset_config(row.model, **bench.fields_of(row)).strides
            cells += [str(steps[row.name]), ", ".join(map(str, strides)), f"{seeds[0]['parameters'] / 1e6:.1f} M"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_curves(bench: Bench, results: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """AP over the minutes that steps took when they were timed, a line for each row: the mean of its seeds."""
    figure, axes = new_chart("minutes of training", "AP")
    ends = []
    for number, row in enumerate(bench.rows):
        if row.name not in results:
            continue
        curves = []
        for seed in bench.seeds[: len(results[row.name])]:
            points = evaluations_of(bench.folder(row, seed))
            curves.append([(float(str(one["step"])), float(str(one["ap"] or 0))) for one in points])
        share = bench.minutes / curves[0][-1][0]
        heights = [mean(each) for each in zip(*([ap for _, ap in one] for one in curves), strict=True)]
        places = [step * share for step, _ in curves[0]]
        ends.append(heights[-1])
        axes.plot(
            [0.0, *places], [0.0, *heights], marker=".", label=row.what, linestyle="-" if number < _COLOURS else "--"
        )
    # from where the worst ends, for what is of interest is how the ends differ
    axes.set(xlim=(0, None), ylim=(max(0.0, math.floor(10 * min(ends) - 1) / 10), min(1.0, max(ends) + 0.05)))
    figure.set_size_inches(6.4, 3.4 + 0.1 * len(bench.rows))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return as_png(figure)


def write_into(document: Path, name: str, table: str | None, curves: bytes = b"") -> None:
    """Put a table and its curves between their marks in a document; None only looks for those.

    Raises:
        SystemExit: there are no such marks.
    """
    text = document.read_text(encoding="utf-8")
    marks = re.compile(rf"(<!-- convergence {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    found = marks.search(text)
    if found is None:
        raise SystemExit(
            f"{document}: found no <!-- convergence {name} --> ... <!-- end -->, expected a place for the table"
        )
    if table is not None:
        picture = Path("pictures") / f"{name}.png"
        make_folder((document.parent / picture).parent)
        with atomic_write(document.parent / picture) as temporary:
            temporary.write_bytes(curves)
        shown = f"\n![AP over the minutes of training]({picture.as_posix()})\n"
        write_text(document, f"{text[: found.end(1)]}{table}\n{shown}{text[found.start(2) :]}")


def run_bench(bench: Bench) -> str:
    """Train all that is missing, seeds in turns; tell the table, and leave it and the curves in the folder."""
    steps = steps_of_rows(bench)
    results: dict[str, list[dict[str, float]]] = {}
    text = ""
    for seed in bench.seeds:
        for row in bench.rows:
            results.setdefault(row.name, []).append(trained(bench, row, seed, steps[row.name]))
            text = table_of(bench, results, steps)
            write_text(bench.output / f"{bench.table}.md", text + "\n")  # whatever is known by now
    with atomic_write(bench.output / f"{bench.table}.png") as temporary:
        temporary.write_bytes(draw_curves(bench, results))
    return text


def parsed(arguments: Sequence[str] | None) -> tuple[Bench, Path | None]:
    """Read the command line: options that are not known here are settings of the run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("data", help="dataset folder, or `drawn`")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training, for every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", nargs="+", help="names of some rows; all when not given")
    parser.add_argument("--split", choices=["train", "val", "test"], help="judge the best checkpoint by these photos")
    parser.add_argument("--backbone-weights", help="file, as in detrkit train")
    parser.add_argument("--output", type=Path, default=Path("runs/convergence"))
    parser.add_argument("--write", type=Path, metavar="FILE", help="document with a place for the table")
    known, others = parser.parse_known_args(arguments)
    rows = [row for row in TABLES[known.table] if known.rows is None or row.name in known.rows]
    if unknown := set(known.rows or ()) - {row.name for row in rows}:
        names = ", ".join(row.name for row in TABLES[known.table])
        raise SystemExit(f"--rows: found {', '.join(sorted(unknown))}, expected some of {names}")
    if known.split and known.data == DRAWN:
        raise SystemExit("--split: drawings are judged by 500 that nobody learns from; leave it out")
    if known.minutes <= 0:
        raise SystemExit(f"--minutes: found {known.minutes:g}, expected more than 0")
    settings = {name.removeprefix("--").replace("-", "_"): yaml.safe_load(value) for name, value in pairs(others)}
    refuse_decided(settings, known.data)
    given = {
        "data": known.data if known.data == DRAWN else str(Path(known.data).resolve()),
        **({"backbone_weights": known.backbone_weights} if known.backbone_weights else {}),
    }
    name = known.data if known.data == DRAWN else Path(known.data).resolve().name
    bench = Bench(
        table=known.table,
        common=run_config({**given, **settings}),
        minutes=known.minutes,
        seeds=known.seeds,
        rows=rows,
        split=known.split,
        output=known.output / f"{known.table}-{name}",
    )
    return bench, known.write


def refuse_decided(training: Mapping[str, Any], data: str) -> None:
    """Settings that would change nothing, or take the rows' equal time away.

    Raises:
        SystemExit: one was given.
    """
    for name in training:
        if name in DECIDED:
            raise SystemExit(f"--{name.replace('_', '-')}: every run's is decided by its row, --seeds and --minutes")
        if data == DRAWN and name in FRAMING:
            raise SystemExit(f"--{name.replace('_', '-')}: drawings are shown as they are; leave it out")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and print a table."""
    try:
        bench, document = parsed(arguments)
        for row in bench.rows:
            preset_config(row.model, **bench.fields_of(row))  # says now, not after hours, what is wrong with it
        if document is not None:
            write_into(document, bench.output.name, None)  # nor that there is no place for the table
        text = run_bench(bench)
        if document is not None:
            write_into(document, bench.output.name, text, (bench.output / f"{bench.table}.png").read_bytes())
    except (DetrkitError, OSError) as error:
        raise SystemExit(str(error)) from None
    print(text)


if __name__ == "__main__":
    main()
