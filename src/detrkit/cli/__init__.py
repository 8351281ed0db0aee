"""The command line: one small file a verb, loaded when it is used. A user's mistake is one sentence and exit code 2."""

import sys
from io import TextIOWrapper

from cyclopts import App
from cyclopts.exceptions import CycloptsError
from pydantic import ValidationError

from detrkit._internal.text import printable
from detrkit._version import __version__
from detrkit.cli.flags import flag, flag_style
from detrkit.errors import DetrkitError

VERBS = {
    "demo": "Train a small DETR on drawn shapes, in minutes, and show what it found.",
    "train": "Train a model on a dataset folder.",
    "evaluate": "Score a model on a dataset: COCO numbers, thresholds, kinds of mistakes, a report.",
    "predict": "Find objects in photos and videos; write pictures, JSON, tables.",
    "explain": "Show what a model saw in a photo, and why it missed what it missed.",
    "serve": "Answer photos over HTTP: a live page to explore them, and JSON.",
    "doctor": "Find what is wrong with a dataset, before anything is learned from it.",
    "export": "Write a model for ONNX Runtime, torch.export or OpenVINO, and compare it.",
    "convert": "Rewrite weights under other names: detrkit, official or Hugging Face.",
    "convert-data": "Rewrite a dataset in another form: COCO, YOLO or Pascal VOC.",
    "shard": "Pack a dataset into tar files with an index, for sets beyond one disk.",
    "benchmark": "Measure models on this machine: speed, memory, GFLOPs, beside others.",
    "describe": "Show a model's parts and shapes; `describe data`: photos as training sees them.",
}


def build_app(chosen: str | None = None) -> App:
    """Put the verbs together, without loading any.

    Args:
        chosen: the verb about to run, whose own docstring is its help. The others show their line of `VERBS`, which
            does not load them.
    """
    app = App(
        name="detrkit",
        help="DETR that anyone can train on their own photos, trust to the last digit, look inside, and ship.",
        help_epilogue="Start with `detrkit demo`. Each verb has its own --help.",
        version=__version__,
        help_format="markdown",
        suppress_keyboard_interrupt=False,
    )
    for verb, summary in VERBS.items():
        if verb == chosen == "describe":
            from detrkit.cli.describe import build_describe

            app.command(build_describe())
            continue
        function = verb.replace("-", "_")
        app.command(f"detrkit.cli.{function}:{function}", name=verb, help=None if verb == chosen else summary)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and exit: 0 for success, 2 for a mistake of the user's, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # names of files and classes may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    try:
        build_app(arguments[0] if arguments else None)(arguments, print_error=False, exit_on_error=False)
    except (DetrkitError, CycloptsError) as error:
        _say(_sentence(error))
        sys.exit(2)
    except KeyboardInterrupt:
        _say("stopped")
        sys.exit(130)
    except BrokenPipeError:
        # whoever read our output has gone (`detrkit describe ... | head`); keep Python from complaining at exit
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:  # a full disk, a folder of somebody else's: whatever nobody closer to it understood
        _say(f"{error.filename or 'a file'}: {error.strerror or error}; check the path, its permissions and the disk")
        sys.exit(2)


def _sentence(error: Exception) -> str:
    """Return a one-line message; for a setting that fails validation, its flag and the reason, not pydantic's report."""
    if isinstance(error.__cause__, ValidationError):
        first = error.__cause__.errors()[0]
        name = flag(".".join(str(part) for part in first["loc"] if not isinstance(part, int)))
        return f"{name}: found {first['input']}; {first['msg'].lower()}"
    text = error.render(flag_style) if isinstance(error, DetrkitError) else str(error)
    return " ".join(text.split())


def _say(sentence: str) -> None:
    print(f"detrkit: {printable(sentence)}", file=sys.stderr)  # noqa: T201  (the command line's own voice)
