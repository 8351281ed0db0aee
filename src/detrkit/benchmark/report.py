"""Results of a benchmark: as a table, HTML page, plot, JSON or DataFrame."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from detrkit._internal.files import atomic_write, write_text
from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit._internal.text import plural
from detrkit.benchmark.cases import BenchmarkConfig
from detrkit.errors import import_optional

_FORMAT = "detrkit-benchmark-2"
HEADINGS = ("model", "ms", "speedup", "images/s", "M params", "GFLOPs", "MiB")


@dataclass(frozen=True)
class BenchmarkResult:
    """Measurements of one case.

    Attributes:
        name: name of the case.
        batch_size: images per batch.
        seconds: duration of every measured batch.
        stage_seconds: duration of every part of the model in one further batch; empty for other engines and baselines.
        num_parameters: number of parameters; None if unknown.
        gflops: billions of floating-point operations per batch, attention included; None if unknown.
        peak_memory: peak memory of the process (CPU) or of the GPU in MiB; None if unknown.
        error: why the case could not be measured; None if it was.
    """

    name: str
    batch_size: int
    seconds: tuple[float, ...] = ()
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    num_parameters: int | None = None
    gflops: float | None = None
    peak_memory: float | None = None
    error: str | None = None

    @property
    def median_seconds(self) -> float:
        """Median duration of a batch; NaN if the case could not be measured."""
        return statistics.median(self.seconds) if self.seconds else float("nan")

    @property
    def images_per_second(self) -> float:
        """Throughput at the median duration; NaN if the case could not be measured."""
        return self.batch_size / self.median_seconds


@dataclass(frozen=True, repr=False)
class BenchmarkReport:
    """Results of all cases of a benchmark; iterable and indexable.

    Attributes:
        config: settings shared by all cases.
        results: one per case.
    """

    config: BenchmarkConfig
    results: tuple[BenchmarkResult, ...]

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[BenchmarkResult]:
        return iter(self.results)

    def __getitem__(self, index: int) -> BenchmarkResult:
        return self.results[index]

    def __repr__(self) -> str:
        rows = [HEADINGS, *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
            )
            for row in rows
        ]
        return "\n".join([f"BenchmarkReport: {self.title}", *lines, *self.errors()])

    def _repr_html_(self) -> str:
        from detrkit.visualization.page import render_template

        return render_template("detrkit.benchmark", "table.html", report=self, headings=HEADINGS)

    @property
    def title(self) -> str:
        """Description of the workload."""
        config = self.config
        threads = f", {plural(config.num_threads, 'thread')}" if config.num_threads and config.device == "cpu" else ""
        height, width = config.size
        return f"{plural(config.batch_size, 'image')} of {height} x {width} px on {config.device}{threads}"

    @property
    def measured(self) -> tuple[BenchmarkResult, ...]:
        """Results of the cases that could be measured."""
        return tuple(result for result in self.results if result.seconds)

    def rows(self) -> list[tuple[str, ...]]:
        """Return the cells of the table, see `HEADINGS`; the speedup is relative to the slowest case."""
        slowest = max((result.median_seconds for result in self.measured), default=0.0)
        return [
            (
                result.name,
                f"{1000 * result.median_seconds:.0f}",
                f"{slowest / result.median_seconds:.2f}",
                f"{result.images_per_second:.2f}",
                "-" if result.num_parameters is None else f"{result.num_parameters / 1e6:.1f}",
                "-" if result.gflops is None else f"{result.gflops:.0f}",
                "-" if result.peak_memory is None else f"{result.peak_memory:.0f}",
            )
            for result in self.measured
        ]

    def errors(self) -> list[str]:
        """Return why cases could not be measured, one line each."""
        return [f"{result.name}: not measured: {result.error}" for result in self.results if result.error]

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values."""
        return {
            "format": _FORMAT,
            "config": asdict(self.config),
            "results": [asdict(result) for result in self.results],
        }

    def to_pandas(self) -> Any:
        """Convert to a DataFrame with one row per case; requires pandas."""
        pandas = import_optional("pandas", "BenchmarkReport.to_pandas", "pandas")
        columns = ("name", "median_seconds", "images_per_second", "num_parameters", "gflops", "peak_memory", "error")
        return pandas.DataFrame([{name: getattr(result, name) for name in columns} for result in self.results])

    def to_html(self, path: Path | str) -> None:
        """Write one HTML page with bars, the table and the durations of the stages.

        Raises:
            ConfigError: the file was not written by detrkit and would be overwritten.
        """
        from detrkit.visualization.page import render_template

        refuse_foreign_overwrite(Path(path))
        slowest = max((result.median_seconds for result in self.measured), default=0.0)
        with_stages = [result for result in self.measured if result.stage_seconds]
        names = list(with_stages[0].stage_seconds) if with_stages else []
        page = render_template(
            "detrkit.benchmark",
            "benchmark.html",
            title="Speed",
            report=self,
            headings=HEADINGS,
            bars=[_bar(result, slowest) for result in self.measured],
            stage_headings=("", *(result.name for result in with_stages)),
            stages=[(name, *(f"{1000 * result.stage_seconds[name]:.0f}" for result in with_stages)) for name in names],
        )
        write_text(Path(path), page)

    def save_plot(self, path: Path | str) -> None:
        """Write a plot of throughput and memory as PNG.

        Raises:
            ConfigError: the file was not written by detrkit and would be overwritten.
        """
        from detrkit.visualization.charts import draw_throughput

        refuse_foreign_overwrite(Path(path))
        bars = [(result.name, result.images_per_second, result.peak_memory) for result in self.measured]
        with atomic_write(Path(path)) as temporary:
            temporary.write_bytes(draw_throughput(bars))


def _bar(result: BenchmarkResult, slowest: float) -> dict[str, Any]:
    """Return a bar whose width is the duration of a batch, divided into stages if they were measured."""
    total = result.median_seconds
    stages = result.stage_seconds or {"all": total}
    scale = 100 * total / slowest / sum(stages.values())
    return {
        "name": result.name,
        "milliseconds": f"{1000 * total:.0f}",
        "stages": [(name, f"{1000 * seconds:.0f}", scale * seconds) for name, seconds in stages.items()],
    }
