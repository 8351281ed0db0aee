"""The command line: one module per command, imported when the command runs.

A command parses its arguments, calls one public function and prints the result. User errors are one sentence and exit
code 2.
"""

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper

from cyclopts.exceptions import CycloptsError

from detrkit._internal.text import printable
from detrkit._version import __version__
from detrkit.checkpoints.hashes import DOWNLOADS
from detrkit.cli.completion import App
from detrkit.cli.console import WarningPrinter
from detrkit.cli.first_steps import first_steps
from detrkit.cli.user_errors import error_line, is_out_of_memory
from detrkit.errors import DetrkitError

COMMANDS = {
    "demo": "Train a small DETR on synthetic shapes, in minutes, and show its detections.",
    "train": "Train or fine-tune a detector on a dataset folder.",
    "evaluate": "Evaluate a model: COCO metrics, score thresholds, error types, a report.",
    "predict": "Detect objects in images and videos; write pictures, JSON, tables.",
    "explain": "Show the attention and matching behind a model's detections in an image.",
    "serve": "Serve a model over HTTP: a live page and a JSON API.",
    "doctor": "Check a dataset for errors before training on it.",
    "export": "Export a model to ONNX, torch.export or OpenVINO, and verify the result.",
    "convert": "Convert a checkpoint between detrkit, official and Hugging Face formats.",
    "convert-data": "Convert a dataset to COCO, YOLO or Pascal VOC format.",
    "shard": "Pack a dataset into tar shards with an index, for very large datasets.",
    "benchmark": "Benchmark models on this machine: latency, memory, GFLOPs, baselines.",
    "describe": "Show a model's layers and shapes; `describe data`: augmented samples.",
    "config": "List all settings of training with their meaning, as a file for --config.",
    "models": "List the models that can be used by name, with AP, licences and sources.",
}
INSTALL_COMPLETION = "--install-completion"


def build_app(chosen: str | None = None) -> App:
    """Build the application without importing any command.

    Args:
        chosen: the command about to run, whose own docstring is its help. The others show their line of `COMMANDS`,
            which does not import them.
    """
    app = App(
        name="detrkit",
        help="Detection transformers: train on your own images, evaluate, explain, export, serve.",
        help_epilogue="Start with `detrkit demo`. Each command has its own --help." if chosen not in COMMANDS else None,
        version=__version__,
        help_format="markdown",
        suppress_keyboard_interrupt=False,
    )
    for command, summary in COMMANDS.items():
        if command == chosen == "describe":
            from detrkit.cli.describe import build_describe

            app.command(build_describe())
            continue
        function = command.replace("-", "_")
        app.command(f"detrkit.cli.{function}:{function}", name=command, help=None if command == chosen else summary)
    app.command(
        "detrkit.cli.completion:install_completion",
        name=INSTALL_COMPLETION,
        group="Shell",
        help=None if chosen == INSTALL_COMPLETION else "Install completion of commands and options in your shell.",
    )
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and exit: 0 for success, 2 for a user error, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of files and classes may hold bytes that are not valid text
            stream.reconfigure(errors="backslashreplace")
    if not arguments:
        print(first_steps())  # noqa: T201  the command line prints
        sys.exit(0)
    try:
        with _warnings_on_stderr():
            build_app(arguments[0] if arguments else None)(arguments, print_error=False, exit_on_error=False)
    except (DetrkitError, CycloptsError) as error:
        _print_error(error_line(error, arguments, list(COMMANDS)), _notes(error))
        sys.exit(2)
    except KeyboardInterrupt:
        _print_error("stopped")
        sys.exit(130)
    except BrokenPipeError:
        # the reader of our output has closed it (`detrkit describe ... | head`); keep Python from complaining at exit
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:  # a full disk, missing permissions: whatever was not handled closer to its cause
        _print_error(
            f"{error.filename or 'a file'}: {error.strerror or error}; check the path, its permissions and the disk",
            _notes(error),
        )
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _print_error("out of memory; use smaller batches or images, or another device", _notes(error))
        sys.exit(2)


def _notes(error: Exception) -> list[str]:
    """Return commands to run next, which a command has added to an error."""
    return getattr(error, "__notes__", [])


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Print warnings and announcements of downloads that the library logs, while a command runs."""
    handler = WarningPrinter(logging.INFO)
    logger, downloads = logging.getLogger("detrkit"), logging.getLogger(DOWNLOADS)
    propagate, logger.propagate = logger.propagate, False
    level = downloads.level
    downloads.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        downloads.setLevel(level)
        logger.propagate = propagate


def _print_error(sentence: str, next_commands: Iterable[str] = ()) -> None:
    for line in (f"error: {sentence}", *next_commands):
        print(printable(line), file=sys.stderr)  # noqa: T201  the command line prints
