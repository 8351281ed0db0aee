"""Wrong command lines and --help are answered before anything heavy is imported, which takes seconds."""

import json
import subprocess
import sys

import pytest
from benchmarks.startup import MISTAKES, write_place

from detrkit.cli import COMMANDS

HEAVY = (
    "torch",
    "torchvision",
    "matplotlib",
    "scipy",
    "numpy",
    "transformers",
    "timm",
    "onnxruntime",
    "openvino",
    "fastapi",
)
# runs command lines in one process; an import of a heavy package is noted, and fails
SCRIPT = """
import contextlib, importlib.abc, io, json, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in heavy:
            raise RuntimeError(f"imports {name}")

heavy, command_lines = json.load(sys.stdin)
sys.meta_path.insert(0, Refuse())
from detrkit.cli import main
answers = []
for arguments in command_lines:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as error:
            code = error.code
        except BaseException as error:
            code = repr(error)
    answers.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""
CASES = [(command, kind) for command, kinds in MISTAKES.items() for kind in kinds]
Answers = dict[tuple[str, str], tuple[object, str, str]]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    place = tmp_path_factory.mktemp("place")
    write_place(place)
    helps = [(command, "--help") for command in COMMANDS]
    lines = [[*command.split(), *MISTAKES[command][kind]] for command, kind in CASES] + [list(one) for one in helps]
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([HEAVY, lines]),
        capture_output=True,
        text=True,
        check=True,
        cwd=place,
    )
    return dict(zip([*CASES, *helps], json.loads(result.stdout), strict=True))


@pytest.mark.parametrize(("command", "kind"), CASES)
def test_mistake_is_answered_in_one_sentence_without_heavy_imports(command: str, kind: str, answers: Answers) -> None:
    code, out, err = answers[command, kind]
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_shown_without_heavy_imports(command: str, answers: Answers) -> None:
    code, out, err = answers[command, "--help"]
    assert code in (0, None)
    assert f"detrkit {command}" in out
    assert not err


@pytest.mark.parametrize("command", ["evaluate", "predict", "explain", "convert", "convert-data", "shard"])
def test_swapped_arguments_are_said_to_be_swapped(command: str, answers: Answers) -> None:
    assert "they are swapped; pass the" in answers[command, "swapped"][2]


def test_every_command_is_timed() -> None:
    assert {command.split()[0] for command in MISTAKES if command} == set(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "typo"), f"tran is not a command; did you mean 'train'? All commands: {', '.join(COMMANDS)}"),
        (("evaluate", "missing"), "DATA is missing; usage: detrkit evaluate SOURCE DATA"),
        (("convert", "typo"), "--to is missing, found --too; usage: detrkit convert SOURCE OUTPUT --to TO"),
        (("models", "too many"), "models: unexpected detr-r50; usage: detrkit models"),
        (("models", "typo"), "Unknown option: --all. detrkit models --help lists all."),
        (("train", "swapped"), "DATA run is a model, expected a dataset folder"),
        (("describe", "swapped"), "SOURCE photos is a dataset, expected a model; for its images: describe data photos"),
        (
            ("convert", "swapped"),
            "SOURCE out.pth does not exist and OUTPUT run is a model: they are swapped",
        ),
    ],
)
def test_message_says_what_to_do(arguments: tuple[str, str], message: str, answers: Answers) -> None:
    assert message in answers[arguments][2]
