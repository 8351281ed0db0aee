"""Code blocks of README and docs run as written; only trainings are shortened (`tests.docs.snippets`)."""

import ast
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from PIL import Image

import detrkit
import detrkit.export.export as export_module
from detrkit.checkpoints.export_formats import EXPORT_FORMATS
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.native import Checkpoint, Preprocessing, Thresholds, save_checkpoint
from detrkit.cli import COMMANDS, build_app, main
from detrkit.cli.flags import flag
from detrkit.data.categories import Categories
from detrkit.data.formats.registry import FORMATS
from detrkit.models import build
from tests.api.shapes import SMALL_RUN
from tests.datasets import write_coco
from tests.docs.snippets import PAGES, ROOT, Block, blocks, is_command, name_of, reason_of, words

BLOCKS = {page: blocks(page) for page in PAGES}
RUNNABLE = [
    page
    for page, found in BLOCKS.items()
    if any(not one.reason and (one.is_python or any(not reason_of(line) for line in one.commands)) for one in found)
]
SIZE = 64
EXPORTED: dict[
    tuple[str, str, bool], tuple[Any, Path]
] = {}  # by format, precision, postprocessing: a result and its copy
SMALL: dict[str, Any] = {
    "encoder_layers": 1,
    "decoder_layers": 2,
    "hidden_dim": 64,
    "dim_feedforward": 32,
    "num_queries": 12,
}
# options of a training, of one value each, that are left out or replaced to make it short
LENGTHS = ("--epochs", "--minutes", "--steps", "--evaluate-every")
SIZES = ("--backbone", "--image-size", "--batch-size", "--workers", "--device")


def identifier(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# --- fast: every block is executed, marked, or of a kind that is never run


@cache
def options_of(command: str) -> frozenset[str]:
    """All options of a command, in all their spellings."""
    app: Any = build_app(command.split()[0])
    for word in command.split():
        app = app[word]
    return frozenset(name for one in app.assemble_argument_collection() for name in one.names) | {"--help"}


def unknown_options(line: str) -> list[str]:
    # keys of dict settings, such as --lr-overrides.heads, are matched by the name before the dot
    given = [word.partition("=")[0].partition(".")[0] for word in words(line) if re.match(r"--?[a-z]", word)]
    known = {one.partition(".")[0] for one in options_of(name_of(line))}
    return [option for option in given if option not in known]


def test_documented_commands_use_existing_options() -> None:
    pages = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md"))]
    lines = [(one.place, line) for page in pages for one in blocks(page) for line in one.commands if is_command(line)]
    assert len(lines) > 80
    assert not [(place, line, found) for place, line in lines if (found := unknown_options(line))]


def test_options_that_the_guides_mention_exist() -> None:
    known = {name for command in COMMANDS for name in options_of(command)} | options_of("describe data")
    others = {"--from", "--to", "--host", "--ntasks", "--nproc-per-node", "--extra", "--no-dev"}  # of other programs
    unknown = [
        (identifier(page), option)
        for page in PAGES
        if "decisions" not in page.parts
        for option in re.findall(r"`(?:detrkit [^`]*?)?(--[a-z][a-z0-9-]*)", page.read_text(encoding="utf-8"))
        if option not in known | others
    ]
    assert not unknown


def test_every_block_is_executed_or_says_why_not() -> None:
    unmarked = [
        one.place
        for found in BLOCKS.values()
        for one in found
        if not one.reason
        and not one.commands
        and any(re.search(rf"\bdetrkit ({'|'.join(COMMANDS)})\b", line) for line in one.code.splitlines())
        # comments of files, and programs that start detrkit in several processes or in another environment
        and not re.search(r"^(\s*#|torchrun|srun|pip install|command:|\s+command:)", one.code, re.MULTILINE)
        and not one.is_python
    ]
    assert not unmarked
    for found in BLOCKS.values():
        for one in found:
            assert one.output is None or not one.reason, f"{one.place}: its output is not compared"
            if one.is_python:
                compile(one.code, one.place, "exec")
            for line in one.commands:
                assert is_command(line), f"{one.place}: {line}"


# --- slow: execution


def train_for_a_step(folder: Path) -> None:
    """Write a run whose detector finds something in every image, and has thresholds."""
    detrkit.train("photos", model="detr-tiny", output=folder, steps=1, log_every=1, **{**SMALL_RUN, **SMALL})
    for weights in folder.glob("*/model.safetensors"):
        checkpoint = load_checkpoint(str(weights))
        checkpoint.state["heads.class_head.bias"][:3] += torch.tensor([7.0, 4.0, 2.0])
        save_checkpoint(weights, replace(checkpoint, thresholds=Thresholds(overall=0.4)))


def build_place(place: Path) -> None:
    """Write what the pages assume: datasets, images, and runs that were trained for a step."""
    photos = write_coco(place / "photos", num_train=6, num_val=4)
    write_coco(place / "more", num_train=1, num_val=3)
    shutil.copytree(place / "more" / "val2017", photos / "test2017")
    shutil.copy(place / "more/annotations/instances_val2017.json", photos / "annotations/instances_test2017.json")
    for name in ("aquarium", "coco-mini", "tables"):
        shutil.copytree(photos, place / name)
    shutil.rmtree(place / "more")
    annotations = photos / "annotations" / "instances_val2017.json"  # of photo.jpg, too
    document = json.loads(annotations.read_text())
    first = photos / "val2017" / document["images"][0]["file_name"]
    document["images"][0]["file_name"] = "photo.jpg"
    annotations.write_text(json.dumps(document))
    shutil.copy(first.rename(first.with_name("photo.jpg")), place / "photo.jpg")
    (place / "holiday" / "beach").mkdir(parents=True)
    names = ["another.jpg", "street.jpg", "aerial.png", "holiday/1.jpg", "holiday/beach/2.jpg"]
    for number, name in enumerate([*names, "coco-mini/train2017/000000030752.jpg"]):
        Image.new("RGB", (96, 64), (40 * number % 256, 90, 120)).save(place / name)
    torch.manual_seed(0)
    train_for_a_step(place / "runs" / "first")
    for name in ("demo", "eight"):
        shutil.copytree(place / "runs" / "first", place / "runs" / name)
    drawings = place / "runs" / "demo" / "drawings"
    coco = write_coco(place / "drawn", num_train=1, num_val=12, size=128)
    (coco / "val2017").rename(drawings)
    (coco / "annotations" / "instances_val2017.json").rename(drawings / "annotations.json")
    shutil.rmtree(coco)
    model = detrkit.build_model("detr-tiny", num_classes=3, mask_head=True, **SMALL)
    categories = Categories((1, 2, 3), ("person", "sky", "road"), (True, False, False))
    head = place / "runs" / "head" / "best" / "model.safetensors"
    save_checkpoint(head, Checkpoint(model.state_dict(), model.config, categories, Preprocessing(image_size=SIZE)))
    detrkit.evaluate(place / "runs" / "first", photos, workers=0, output=place / "results.json")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder, made once for all processes of the tests."""
    base = tmp_path_factory.getbasetemp()
    place = (base if worker_id == "master" else base.parent) / "place"
    with FileLock(f"{place}.lock"):
        if not (place / "results.json").is_file():
            place.mkdir(exist_ok=True)
            before = Path.cwd()
            os.chdir(place)
            try:
                build_place(place)
            finally:
                os.chdir(before)
    return place


@pytest.fixture
def place(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the folder, as working directory; extensions that a page registers are removed."""
    shutil.copytree(built, tmp_path / "place", copy_function=os.link)
    monkeypatch.chdir(tmp_path / "place")
    monkeypatch.syspath_prepend(str(tmp_path / "place"))
    monkeypatch.setattr(detrkit, "train", shortened(detrkit.train))
    monkeypatch.setattr(export_module, "export", once(export_module.export))
    for name in ("evaluate", "examine"):
        monkeypatch.setattr(detrkit, name, without_workers(getattr(detrkit, name)))
    tables: list[dict[str, Any]] = [FORMATS, EXPORT_FORMATS, build.ENCODERS]  # type: ignore[list-item]
    before, modules = [dict(table) for table in tables], set(sys.modules)
    yield tmp_path / "place"
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def shortened(train: Callable[..., detrkit.TrainResult]) -> Callable[..., detrkit.TrainResult]:
    """Train for one step with a small model from random weights, whatever the page says."""
    left_out = ("epochs", "minutes", "steps", "weights", "backbone", "encoder_layers", "num_feature_levels")

    def quick(*args: Any, **settings: Any) -> detrkit.TrainResult:
        kept = {name: value for name, value in settings.items() if name not in left_out}
        shutil.rmtree(kept.get("output", "runs/train"), ignore_errors=True)
        kept = {"model": "detr-tiny", **SMALL_RUN, **SMALL, **kept} if len(args) == 1 else {**SMALL_RUN, **kept}
        return train(*args, **kept, steps=1, log_every=1)

    return quick


def without_workers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Read images in this process."""
    return lambda *args, **options: function(*args, **{**options, "workers": 0})


def once(export: Callable[..., Any]) -> Callable[..., Any]:
    """Export the detector of the runs once for each kind of file, and copy it afterwards."""

    def copied(source: Any, format: str, *, output: Any = None, **options: Any) -> Any:
        kind = (format, options.get("precision", "float32"), options.get("postprocess", False))
        if kind not in EXPORTED:
            result = export(source, format, output=output, **options)
            if Path(source) in (Path("runs/demo"), Path("runs/first")):
                kept = Path(tempfile.mkdtemp(), result.path.name)
                shutil.copytree(result.path, kept) if result.path.is_dir() else shutil.copy(result.path, kept)
                EXPORTED[kind] = (result, kept)
            return result
        result, kept = EXPORTED[kind]
        path = Path(output or result.path.name)
        assert not path.exists(), f"{path}: the page exports to it twice"
        shutil.copytree(kept, path) if kept.is_dir() else shutil.copy(kept, path)
        return replace(result, path=path)

    return copied


def run_python(block: Block, namespace: dict[str, Any]) -> str:
    """Run code; return the value of its last line, as a notebook shows it."""
    if block.title:
        Path(block.title).write_text(block.code, encoding="utf-8")
    tree = ast.parse(block.code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, block.place, "exec"), namespace)
    if last is None:
        return ""
    assert isinstance(last, ast.Expr)
    value = eval(compile(ast.Expression(last.value), block.place, "eval"), namespace)
    return "" if value is None else repr(value)


def shorten(arguments: list[str]) -> list[str]:
    """Change a command so that it takes a moment: a training takes one step, from random weights."""
    if "--device" in arguments:
        arguments[arguments.index("--device") + 1] = "cpu"
    if arguments[0] == "export" and not {"-o", "--output"} & set(arguments):
        Path("model.onnx").unlink(missing_ok=True)  # of the same in Python, which the page also shows
    if arguments[0] in ("evaluate", "doctor"):
        return [*arguments, "--workers", "0"]
    if arguments[0] != "train" or "--resume" in arguments:
        return arguments
    kept: list[str] = []
    words_left = iter(pairwise([*arguments, ""]))
    for word, value in words_left:
        if word in (*LENGTHS, *SIZES) or (word, value) == ("--weights", "imagenet"):
            next(words_left)
        else:
            kept.append(word)
    output = next((value for option, value in pairwise(kept) if option in ("--output", "-o")), "runs/train")
    if "--dry-run" not in kept:
        shutil.rmtree(output, ignore_errors=True)
    sizes = ["--image-size", str(SIZE), "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    small = [] if "--model" in kept or "--config" in kept else ["--model", "detr-tiny"]
    if "--weights" not in kept:
        small += [f"{flag(name)}={value}" for name, value in SMALL.items() if flag(name) not in kept]
    return [*kept, "--steps", "1", *sizes, *small]


def run_command(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command; return what it prints."""
    arguments = shorten(words(line))
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    printed, errors = capsys.readouterr()
    allowed = (0, None, 1) if arguments[0] == "doctor" else (0, None)  # 1: the dataset has errors
    assert exit_info.value.code in allowed, f"{line}: {errors[-300:]}"
    return printed


@pytest.mark.slow
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("page", RUNNABLE, ids=identifier)
def test_code_runs_as_written(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in BLOCKS[page]:
        if block.reason:
            continue
        capsys.readouterr()
        shown = [run_command(line, capsys) for line in block.commands if not reason_of(line)]
        if block.is_python:
            value = run_python(block, namespace)
            shown = [capsys.readouterr().out, value]
        if block.output is not None:
            assert " ".join(shown).split() == block.output.split(), block.place


def test_every_public_function_is_in_the_table_of_the_python_api() -> None:
    text = (ROOT / "docs" / "guides" / "python-api.md").read_text(encoding="utf-8")
    functions = [name for name in detrkit.__all__ if name[0].islower()]
    hidden = {"load_official_state_dict", "state_dict_as_official"}
    assert not [name for name in functions if name not in hidden and f"{name}(" not in text]
