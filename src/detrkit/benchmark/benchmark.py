"""Benchmark models: every case in its own process, measured in turns."""

import multiprocessing
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from detrkit.benchmark.cases import BenchmarkCase, BenchmarkConfig, CasePrecision
from detrkit.benchmark.image_size import usual_size_of
from detrkit.benchmark.report import BenchmarkReport, BenchmarkResult
from detrkit.benchmark.worker import run_worker
from detrkit.checkpoints.export_formats import is_exported
from detrkit.distributed.devices import choose_device
from detrkit.errors import DetrkitError, check_minimum
from detrkit.inference.engines.torch import has_fast_bfloat16

NUM_WARM_UPS = 2
_JOIN_SECONDS = 5


def benchmark(
    sources: str | Path | Sequence[str | Path] = "detr-r50",
    *,
    size: tuple[int, int] | None = None,
    batch_size: int = 1,
    rounds: int = 10,
    precisions: Sequence[CasePrecision] = ("float32", "bfloat16"),
    baselines: bool = True,
    device: str = "auto",
    num_threads: int | None = None,
    model: str | Path | None = None,
    state_dict_key: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> BenchmarkReport:
    """Measure speed, memory, parameters and FLOPs of models side by side.

    Every model runs in its own process. They take turns, one batch each per round, so that other load on the machine
    affects all alike. The processes are spawned: a script must call this under ``if __name__ == "__main__":``.

    Args:
        sources: presets (with random weights), run folders, weights files or exported files.
        size: (height, width) of the images in pixels, as the models see them. Default: of the squares to which the first
            model stretches images, or (800, 1066).
        batch_size: images per batch.
        rounds: measured batches per model, after two warm-up rounds.
        precisions: of models in PyTorch; bfloat16 is skipped if the device computes it slowly. Exported files run in their
            own precision.
        baselines: also measure the same models in transformers, if it is installed, and torchvision's Faster R-CNN.
        device: "cpu", "cuda", "cuda:1", or "auto" for a GPU if there is one.
        num_threads: CPU threads. Default: all cores.
        model: preset, or ``config.yaml`` of a run, of weights files that do not describe their model.
        state_dict_key: entry of `.pth` files that holds the weights.
        progress: called with the number of finished and of all steps.

    Returns:
        Latency, images per second, memory, parameters and GFLOPs of every model; it prints as a table.

    Raises:
        ConfigError: an argument is out of range.
        DetrkitError: no model could be measured.
    """
    for name, value in (("rounds", rounds), ("batch_size", batch_size), ("size", min(size or (1,)))):
        check_minimum(name, value, 1)
    chosen = choose_device(device)
    if chosen.type == "cpu":
        num_threads = num_threads or torch.get_num_threads()
    sources = [sources] if isinstance(sources, str | Path) else sources
    if size is None and sources:
        size = usual_size_of(str(sources[0]), model, state_dict_key)
    config = BenchmarkConfig(size or BenchmarkConfig.size, batch_size, str(chosen), num_threads, rounds)
    cases = [
        replace(case, model=None if model is None else str(model), state_dict_key=state_dict_key)
        if Path(case.source).is_file() and not is_exported(case.source)
        else case
        for case in list_cases([str(source) for source in sources], precisions, baselines, chosen)
    ]
    report = BenchmarkReport(config, tuple(_measure(cases, config, progress or (lambda done, total: None))))
    if not report.measured:
        raise DetrkitError(report.results[0].error or "No model could be measured.")
    return report


def list_cases(
    sources: Sequence[str], precisions: Sequence[CasePrecision], baselines: bool, device: torch.device
) -> list[BenchmarkCase]:
    """List the cases of a benchmark: every source in every precision, exported files once, and the baselines."""
    supported = [precision for precision in precisions if precision == "float32" or has_fast_bfloat16(device)]
    cases: list[BenchmarkCase] = []
    for source in sources:
        if is_exported(source):
            cases.append(BenchmarkCase("detrkit", source))
            continue
        cases += [BenchmarkCase("detrkit", source, precision) for precision in supported]
        if baselines:
            cases += [BenchmarkCase("transformers", source, precision) for precision in supported]
    if baselines:
        cases.append(BenchmarkCase("faster-rcnn", ""))
    return cases


def _measure(
    cases: Sequence[BenchmarkCase], config: BenchmarkConfig, progress: Callable[[int, int], None]
) -> list[BenchmarkResult]:
    """Run the cases in turns; a case that fails does not affect the others."""
    total = len(cases) + NUM_WARM_UPS + config.rounds
    workers = [_Worker(case, config) for case in cases]
    with ExitStack() as stack:
        for done, worker in enumerate(workers, start=1):
            worker.start(stack)
            progress(done, total)
        for number in range(NUM_WARM_UPS + config.rounds):
            for worker in workers:
                worker.run_round(is_warm_up=number < NUM_WARM_UPS)
            progress(len(cases) + number + 1, total)
        return [worker.result() for worker in workers]


class _Worker:
    """Runs a case in a process of its own."""

    def __init__(self, case: BenchmarkCase, config: BenchmarkConfig) -> None:
        self._case = case
        self._config = config
        self._seconds: list[float] = []
        self._error: str | None = None
        self._connection: Connection | None = None

    def start(self, stack: ExitStack) -> None:
        """Start the process and wait until the model is built."""
        context = multiprocessing.get_context("spawn")
        self._connection, other_end = context.Pipe()
        process = context.Process(target=run_worker, args=(self._case, self._config, other_end), daemon=True)
        process.start()
        other_end.close()
        stack.callback(process.join, _JOIN_SECONDS)
        stack.callback(self._connection.close)
        self._receive()

    def run_round(self, *, is_warm_up: bool) -> None:
        """Run one batch."""
        seconds = self._request("round")
        if seconds is not None and not is_warm_up:
            self._seconds.append(seconds)

    def result(self) -> BenchmarkResult:
        """Measure what needs no rounds, and return all measurements."""
        peak_memory = self._request("memory")  # first: counting FLOPs takes more memory than predicting
        stage_seconds = self._request("stages") or {}
        num_parameters, gflops = self._request("count") or (None, None)
        return BenchmarkResult(
            self._case.name,
            self._config.batch_size,
            tuple(self._seconds),
            stage_seconds,
            num_parameters,
            gflops,
            peak_memory,
            self._error,
        )

    def _request(self, name: str) -> Any:
        """Request a measurement; None if the process has failed."""
        if self._connection is None:
            return None
        self._connection.send(name)
        return self._receive()

    def _receive(self) -> Any:
        assert self._connection is not None, "the process was started"
        try:
            reply = self._connection.recv()
        except (EOFError, ConnectionError):
            reply = DetrkitError("its process ended, perhaps because of too little memory")
        if isinstance(reply, DetrkitError):
            self._error = str(reply)
            self._connection = None
            return None
        return reply
