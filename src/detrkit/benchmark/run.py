"""How fast are models on this machine? Contenders in processes of their own take turns, round by round."""

import html
import json
import multiprocessing
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from detrkit._internal.files import atomic_write, write_text
from detrkit._internal.provenance import refuse_foreign_overwrite
from detrkit._internal.text import plain_console, plural
from detrkit.benchmark.cases import BenchmarkCase, BenchmarkConfig, BenchmarkResult, run_benchmark_case
from detrkit.checkpoints.exported import is_exported
from detrkit.errors import ConfigError, DetrkitError
from detrkit.inference.engines.torch import has_fast_bfloat16
from detrkit.inference.options import Precision
from detrkit.visualization.charts import draw_throughput
from detrkit.visualization.page import html_page

NUM_WARM_UPS = 2
_FORMAT = "detrkit-benchmark-1"
EXPORTED: tuple[Precision, ...] = ("float32",)  # what an exported file is asked for; its own precision stays


def benchmark(
    sources: Sequence[str],
    work: BenchmarkConfig,
    *,
    rounds: int,
    precisions: Sequence[Precision],
    rivals: bool,
    output: Path | None,
) -> list[BenchmarkResult]:
    """Measure, print a table, and write page, plot and JSON if asked.

    Raises:
        DetrkitError: nothing could be measured.
    """
    if rounds < 1 or work.batch_size < 1:
        raise ConfigError(f"benchmark: found {rounds} rounds of {work.batch_size} photos, expected at least 1 of each")
    if output is not None:
        for suffix in ("json", "png", "html"):
            refuse_foreign_overwrite(output / f"benchmark.{suffix}")
    console = plain_console()
    contenders = list_benchmark_cases(sources, precisions, rivals, torch.device(work.device))
    measured = measure(contenders, work, rounds)
    if all(one.not_run for one in measured):
        raise DetrkitError(measured[0].not_run or "benchmark: nothing to measure")
    print_table(measured, work, console)
    if output is not None:
        content = {"format": _FORMAT, "work": asdict(work), "measured": [asdict(m) for m in measured]}
        write_text(output / "benchmark.json", json.dumps(content))
        with atomic_write(output / "benchmark.png") as temporary:
            temporary.write_bytes(draw_throughput(bars_of(measured, work)))
        write_text(output / "benchmark.html", page_of(measured, work))
        console.print(f"page, plot and JSON are in {output}", soft_wrap=True)
    return measured


def list_benchmark_cases(
    sources: Sequence[str], precisions: Sequence[Precision], rivals: bool, device: torch.device
) -> list[BenchmarkCase]:
    """Every source at every precision that the device has; exported files, whose precision is their own, once."""
    contenders: list[BenchmarkCase] = []
    for source in sources:
        is_torch = not is_exported(source)
        wanted = [one for one in precisions if one == "float32" or has_fast_bfloat16(device)]
        contenders += [BenchmarkCase("detrkit", source, precision) for precision in (wanted if is_torch else EXPORTED)]
        if is_torch and rivals:
            contenders += [BenchmarkCase("transformers", source, precision) for precision in wanted]
    if rivals:
        contenders.append(BenchmarkCase("faster r-cnn", ""))
    return contenders


def measure(contenders: Sequence[BenchmarkCase], work: BenchmarkConfig, rounds: int) -> list[BenchmarkResult]:
    """Let the contenders take turns; one that fails is told of, and the others go on."""
    asked = [_Asked(BenchmarkResult(contender.name)) for contender in contenders]
    with ExitStack() as stack, Progress(console=Console(stderr=True), transient=True) as progress:
        building = progress.add_task("building", total=len(contenders))
        for one, contender in zip(asked, contenders, strict=True):
            one.start(contender, work, stack)
            progress.advance(building)
        running = progress.add_task("rounds", total=rounds + NUM_WARM_UPS)
        for number in range(rounds + NUM_WARM_UPS):
            for one in asked:
                seconds = one.ask("round")
                if seconds is not None and number >= NUM_WARM_UPS:
                    one.measured.seconds.append(seconds)
            progress.advance(running)
        for one in asked:  # memory first: counting takes more than predicting
            one.measured.mebibytes = one.ask("memory")
            one.measured.stages = one.ask("stages") or {}
            one.measured.parameters, one.measured.gigaflops = one.ask("size") or (None, None)
    return [one.measured for one in asked]


class _Asked:
    """The near end of a contender's process."""

    def __init__(self, measured: BenchmarkResult) -> None:
        self.measured = measured
        self._connection: Connection | None = None

    def start(self, contender: BenchmarkCase, work: BenchmarkConfig, stack: ExitStack) -> None:
        """Start the process, and wait until it is built."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        process = context.Process(target=run_benchmark_case, args=(contender, work, theirs), daemon=True)
        process.start()
        theirs.close()
        stack.callback(process.join, 5)
        stack.callback(self._connection.close)
        self._hear()

    def ask(self, what: str) -> Any:
        """Ask for something; None from one that failed, then or before."""
        if self._connection is None:
            return None
        self._connection.send(what)
        return self._hear()

    def _hear(self) -> Any:
        assert self._connection is not None
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            answer = DetrkitError("its process ended, perhaps for want of memory")
        if isinstance(answer, DetrkitError):
            self.measured.not_run = str(answer)
            self._connection = None
            return None
        return answer


def print_table(measured: Sequence[BenchmarkResult], work: BenchmarkConfig, console: Console) -> None:
    """Print speeds side by side, the slowest as 1, and where the time goes."""
    table = Table(title=_title(work), title_justify="left")
    for heading in ("", "ms", "times", "photos/s", "M par.", "GFLOPs", "MiB"):
        table.add_column(heading, justify="left" if not heading else "right", overflow="fold")
    for row in rows_of(measured, work):
        table.add_row(*row)
    console.print(table)
    for one in measured:
        if one.stages:
            parts = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in one.stages.items())
            console.print(f"{one.name}, ms by stage: {parts}")
        if one.not_run:
            console.print(f"{one.name}: not run: {one.not_run}")


def rows_of(measured: Sequence[BenchmarkResult], work: BenchmarkConfig) -> list[tuple[str, ...]]:
    """The table's cells: name, milliseconds, times as fast as the slowest, photos/s, parameters, GFLOPs, memory."""
    ran = [one for one in measured if one.seconds]
    slowest = max(statistics.median(one.seconds) for one in ran)
    rows: list[tuple[str, ...]] = []
    for one in ran:
        seconds = statistics.median(one.seconds)
        rows.append(
            (
                one.name,
                f"{1000 * seconds:.0f}",
                f"{slowest / seconds:.2f}",
                f"{work.batch_size / seconds:.2f}",
                "-" if one.parameters is None else f"{one.parameters / 1e6:.1f}",
                "-" if one.gigaflops is None else f"{one.gigaflops:.0f}",
                "-" if one.mebibytes is None else f"{one.mebibytes:.0f}",
            )
        )
    return rows


def bars_of(measured: Sequence[BenchmarkResult], work: BenchmarkConfig) -> list[tuple[str, float, float | None]]:
    """Name, photos per second and memory of each."""
    return [
        (one.name, work.batch_size / statistics.median(one.seconds), one.mebibytes) for one in measured if one.seconds
    ]


def page_of(measured: Sequence[BenchmarkResult], work: BenchmarkConfig) -> str:
    """The same on one page, with bars that show the stages."""
    ran = [one for one in measured if one.seconds]
    slowest = max(statistics.median(one.seconds) for one in ran)
    headings = ("model", "ms", "times as fast", "photos/s", "M parameters", "GFLOPs", "MiB")
    with_stages = [one for one in ran if one.stages]
    stages = [
        (name, *(f"{1000 * one.stages[name]:.0f}" for one in with_stages))
        for name in (with_stages[0].stages if with_stages else ())
    ]
    body = [
        f"<h1>Speed</h1><p>{html.escape(_title(work))}. The middle of the rounds; memory is the process's largest.</p>",
        *(_bar(one, slowest) for one in ran),
        "<h2>Figures</h2>",
        _table(headings, rows_of(measured, work)),
        *(
            ("<h2>Milliseconds by stage</h2>", _table(("", *(one.name for one in with_stages)), stages))
            if stages
            else ()
        ),
        *(f"<p>{html.escape(one.name)}: not run: {html.escape(one.not_run)}</p>" for one in measured if one.not_run),
    ]
    return html_page("Speed", body)


def _bar(one: BenchmarkResult, slowest: float) -> str:
    """A bar as long as a batch takes, cut into its stages where they are known."""
    total = statistics.median(one.seconds)
    stages = one.stages or {"all": total}
    parts = "".join(
        f'<span title="{html.escape(name)} {1000 * seconds:.0f} ms" '
        f'style="width:{100 * total / slowest * seconds / sum(stages.values()):.1f}%"></span>'
        for name, seconds in stages.items()
    )
    return f'<div class="speed">{html.escape(one.name)}: {1000 * total:.0f} ms<div>{parts}</div></div>'


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    cells = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{cells}</table></div>'


def _title(work: BenchmarkConfig) -> str:
    threads = "" if work.device != "cpu" else f", {plural(work.num_threads or torch.get_num_threads(), 'thread')}"
    return f"{plural(work.batch_size, 'photo')} of {work.size[0]} x {work.size[1]} px on {work.device}{threads}"
