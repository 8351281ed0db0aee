"""Windows and macOS, rehearsed: what their file systems do differently is simulated."""

import ast
import errno
import os
import pickle
import subprocess
import sys
import types
import unicodedata
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest
import torch
from PIL import Image

from detrkit._internal import system
from detrkit._internal.files import staged_folder, write_text
from detrkit.config.run import RunConfig
from detrkit.config.training import TrainingConfig
from detrkit.data.checks.decode_cache import _decode
from detrkit.data.convert import convert_dataset, shard_dataset
from detrkit.data.formats.locate import path_parts
from detrkit.data.formats.lookup import find_record
from detrkit.data.loaders import evaluation_loader, train_loader
from detrkit.data.splits import load_dataset
from detrkit.errors import ConfigError
from detrkit.training.data import open_data
from tests.data.layouts import SIZE, put_coco, put_images, put_labels, put_text, put_xml
from tests.datasets import write_coco

SOURCES = sorted((Path(__file__).parents[2] / "src").rglob("*.py"))
POSIX_ONLY = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog", "curses"}
SIGNALS = {"SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGALRM", "SIGCHLD", "SIGPIPE", "SIGSTOP", "SIGCONT"}
ACCENT = "caf\u00e9"  # NFC; macOS may keep the NFD form


class BusyFile:
    """Makes `Path.replace` fail as on Windows while another program has the target open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_failures: int) -> None:
        self.left, self.pauses = num_failures, 0
        real = Path.replace

        def replace(source: Path, target: Path) -> Path:
            if self.left:
                self.left -= 1
                raise PermissionError(errno.EACCES, "The process cannot access the file", str(target))
            return real(source, target)

        def sleep(_seconds: float) -> None:
            self.pauses += 1

        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr(system.time, "sleep", sleep)


def test_windows_waits_for_programs_that_have_the_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "IS_WINDOWS", True)
    busy = BusyFile(monkeypatch, 5)
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "new"
    assert busy.pauses == 5
    busy.left = 3
    with staged_folder(tmp_path / "copy") as staging:
        write_text(staging / "b.txt", "new")
    assert (tmp_path / "copy" / "b.txt").is_file()


@pytest.mark.parametrize("is_windows", [True, False])
def test_files_that_stay_open_are_one_sentence_and_keep_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_windows: bool
) -> None:
    (tmp_path / "a.txt").write_text("old", encoding="utf-8")
    monkeypatch.setattr(system, "IS_WINDOWS", is_windows)
    busy = BusyFile(monkeypatch, 1000)
    with pytest.raises(ConfigError, match=r"a\.txt: cannot be written"):
        write_text(tmp_path / "a.txt", "new")
    assert (busy.pauses > 0) == is_windows  # elsewhere, waiting does not help
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"


def test_files_are_flushed_through_handles_that_are_open_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl as real

    modes = []
    windows_fsync = os.fsync

    def fsync(handle: int) -> None:
        if not Path(f"/proc/self/fd/{handle}").resolve().is_dir():  # of folders, which Windows cannot open
            modes.append(real.fcntl(handle, real.F_GETFL) & os.O_ACCMODE)
        windows_fsync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a.txt", "new")
    assert modes == [os.O_RDWR]


@pytest.mark.parametrize("is_known", [True, False])
def test_macos_flushes_the_disk_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool) -> None:
    calls: list[Any] = []

    def fcntl(handle: int, command: int) -> None:
        calls.append(command)
        if not is_known:
            raise OSError(errno.ENOTSUP, "not supported by a network share")

    monkeypatch.setitem(sys.modules, "fcntl", types.SimpleNamespace(F_FULLFSYNC=51, fcntl=fcntl))
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle))[1])
    with (tmp_path / "a").open("wb") as file:
        system.sync(file.fileno())
    assert calls == ([51] if is_known else [51, "fsync"])
    monkeypatch.setitem(sys.modules, "fcntl", None)  # Windows
    with (tmp_path / "a").open("wb") as file:
        system.sync(file.fileno())
    assert calls[-1] == "fsync"


@pytest.mark.parametrize(
    ("stem", "usable"),
    [
        ("CON", "_CON"), ("nul", "_nul"), ("com1", "_com1"), ("lpt9.tar", "_lpt9.tar"), ("aux ", "_aux"),
        ("console", "console"), ("a.", "a"), ("a. .", "a"), ("...", "_"), ("12:30?", "12_30_"), ("a\\b", "a_b"),
        ("tab\t", "tab_"), ("caf\u00e9", "caf\u00e9"), ("a|b<c>", "a_b_c_"),
    ],
)  # fmt: skip
def test_names_of_devices_are_no_names_of_files_on_windows(
    monkeypatch: pytest.MonkeyPatch, stem: str, usable: str
) -> None:
    assert system.usable_stem(stem) == stem
    monkeypatch.setattr(system, "IS_WINDOWS", True)
    assert system.usable_stem(stem) == usable
    name = PureWindowsPath(usable + ".jpg")
    assert name.name == str(name)
    if hasattr(os.path, "isreserved"):  # Python 3.13 on Windows
        assert not os.path.isreserved(str(name))


def test_copies_on_windows_have_names_that_exist_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, names = tmp_path / "set", ["aux.png", "12:30.png", "12?30.png", "end..png"]
    put_images(folder / "images", names)
    put_coco(folder / "annotations" / "instances_train.json", names)
    monkeypatch.setattr(system, "IS_WINDOWS", True)
    convert_dataset(folder, tmp_path / "copy", "coco")
    copied = {path.name for path in (tmp_path / "copy").rglob("*.png")}
    assert copied == {"_aux.png", "12_30.png", "12_30_2.png", "end.png"}
    assert sum(len(split) for split in load_dataset(tmp_path / "copy").splits.values()) == len(names)


def test_names_that_are_one_on_macos_or_windows_do_not_overwrite_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    names = [
        f"{unicodedata.normalize('NFC', ACCENT)}.png",
        f"{unicodedata.normalize('NFD', ACCENT)}.png",
        "CAF\u00c9.png",
    ]
    put_images(folder / "images", names)
    put_coco(folder / "annotations" / "instances_train.json", names)
    convert_dataset(folder, tmp_path / "copy", "coco")
    copied = [path.name for path in (tmp_path / "copy").rglob("*.png")]
    assert len({unicodedata.normalize("NFC", name).casefold() for name in copied}) == len(names)


@pytest.mark.parametrize("written", ["NFC", "NFD"])
@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("format", ["coco", "yolo", "yolo list", "voc", "voc list"])
def test_accents_may_be_written_in_either_form(tmp_path: Path, format: str, on_disk: str, written: str) -> None:
    folder = tmp_path / "set"
    disk, name = (f"{unicodedata.normalize(form, ACCENT)}.png" for form in (on_disk, written))  # type: ignore[arg-type]
    put_images(folder / "images", [disk, "b.png"])
    if format == "coco":
        put_coco(folder / "annotations" / "instances_train.json", [name, "b.png"])
    elif format.startswith("yolo"):
        put_labels(folder / "labels", [name, "b.png"])
        put_text(folder / "data.yaml", f"train: {'list.txt' if 'list' in format else 'images'}\nnames: [fish]\n")
        put_text(folder / "list.txt", f"images/{name}\nimages/b.png\n")
    else:
        for one in (name, "b.png"):
            put_xml((folder / "Annotations" / one).with_suffix(".xml"), one)
        if "list" in format:
            put_text(folder / "ImageSets" / "Main" / "train.txt", f"{Path(disk).stem}\nb\n")
    splits = load_dataset(folder).splits.values()
    assert sum(len(record.labels) for split in splits for record in split.records) == 2
    found = find_record(folder / "images" / disk, folder)
    assert len(found.records[0].labels) == 1


def test_shards_do_not_depend_on_the_system(tmp_path: Path) -> None:
    put_images(tmp_path / "set" / "images", ["a.png", "b.png"])
    put_coco(tmp_path / "set" / "annotations" / "instances_train.json", ["a.png", "b.png"])
    shard_dataset(tmp_path / "set", tmp_path / "shards")
    for split in load_dataset(tmp_path / "shards").splits.values():
        stored = bytes(split.records.arrays.path_bytes.numpy())
        assert b"\\" not in stored
        assert b"train-00000.tar/" in stored or b"val-00000.tar/" in stored


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("C:\\photos\\a.jpg", ("photos", "a.jpg")),
        ("c:/photos/a.jpg", ("photos", "a.jpg")),
        ("\\\\server\\share\\a.jpg", ("server", "share", "a.jpg")),
        ("..\\..\\a.jpg", ("a.jpg",)),
        ("images\\train\\a.jpg", ("images", "train", "a.jpg")),
        (".\\a.jpg", ("a.jpg",)),
        ("C:", ()),
    ],
)
def test_paths_of_windows_are_understood(name: str, parts: tuple[str, ...]) -> None:
    assert path_parts(name) == parts


def test_annotations_written_on_windows_are_read(tmp_path: Path) -> None:
    put_images(tmp_path / "images" / "train", ["a.png", "b.png"])
    put_coco(tmp_path / "annotations" / "instances_train.json", ["D:\\work\\images\\train\\A.PNG", "train\\b.png"])
    assert sum(len(split) for split in load_dataset(tmp_path).splits.values()) == 2


def test_paths_longer_than_a_system_allows_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from detrkit.cli import main

    Image.new("RGB", SIZE).save(tmp_path / "a.png")
    put_coco(tmp_path / "instances_train.json", ["a.png"])
    with pytest.raises(SystemExit) as left:
        main(["convert-data", str(tmp_path), str(tmp_path / ("x" * 300)), "--to", "coco"])
    assert left.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("augmentation", [{}, {"mosaic": 0.5, "mixup": 0.5, "scale_jitter": 0.5, "photometric": 1.0}])
def test_what_spawned_workers_read_and_return_can_be_pickled(tmp_path: Path, augmentation: dict[str, float]) -> None:
    """Windows and macOS spawn processes: they get copies of all that they work with."""
    config = TrainingConfig(image_size=64, batch_size=2, workers=0, **augmentation)  # type: ignore[arg-type]
    data = open_data(RunConfig(data=str(write_coco(tmp_path / "photos")), model="detr-tiny", training=config))
    loaders = [
        train_loader(data.train, data.grouping, config, torch.device("cpu")),
        evaluation_loader(data.val, 2, 0),
    ]
    for loader in loaders:
        inner = loader._loader
        keys = next(iter(inner.batch_sampler))  # type: ignore[call-overload]
        dataset, collate_fn = pickle.loads(pickle.dumps((inner.dataset, inner.collate_fn)))
        batch = pickle.loads(pickle.dumps(collate_fn([dataset[key] for key in pickle.loads(pickle.dumps(keys))])))
        assert len(batch.batch.images) == 2
    records = list(load_dataset(tmp_path / "photos").train.records)
    assert pickle.loads(pickle.dumps(_decode))(pickle.loads(pickle.dumps(records[0]))).error is None


def posix_only(tree: ast.Module) -> list[int]:
    """Return the lines of imports of modules, and uses of signals, that Windows has not."""
    found = []
    for node in tree.body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if POSIX_ONLY & {name.split(".")[0] for name in names}:
            found.append(node.lineno)
    for node in ast.walk(tree):
        is_signal = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "signal"
        if is_signal and isinstance(node, ast.Attribute) and node.attr in SIGNALS:
            found.append(node.lineno)
    return found


def test_no_module_needs_what_windows_lacks_to_be_imported() -> None:
    assert posix_only(ast.parse("import fcntl\nsignal.SIGHUP\ntry:\n    import fcntl\nexcept ImportError: pass")) == [
        1,
        2,
    ]
    found = [f"{path.name}:{line}" for path in SOURCES for line in posix_only(ast.parse(path.read_text("utf-8")))]
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "cp437:strict"},
        {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_consoles_without_unicode_show_every_name(tmp_path: Path, environment: dict[str, str]) -> None:
    folder, names = tmp_path / "set", ["\u662f.png", "b.png", "c.png"]
    put_images(folder / "images", names)
    put_labels(folder / "labels", names)
    put_text(folder / "data.yaml", "train: images\nnames: ['\u662f \u05e9\u05dc\u05d5\u05dd']\n")
    command = [sys.executable, "-m", "detrkit", "doctor", str(folder), "--workers", "0"]
    command += [
        "--html",
        str(tmp_path / "page.html"),
        "--json",
        str(tmp_path / "findings.json"),
        "--fix",
        str(tmp_path / "fixed"),
    ]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"\\u662f" in done.stdout
    assert b"Traceback" not in done.stderr
    assert "\u662f" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "\u662f" in (tmp_path / "fixed" / "data.yaml").read_text(encoding="utf-8")
