"""Types that training scripts store next to weights are read as inert values, or named; nothing is executed."""

import argparse
import datetime
import decimal
import enum
import pickle
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from detrkit import state_dict_as_official
from detrkit.checkpoints.inert_types import Inert
from detrkit.checkpoints.load import load_checkpoint
from detrkit.checkpoints.safe_load import load_torch_file
from detrkit.errors import CheckpointError
from tests.checkpoints.models import small_model


class Metric(enum.Enum):
    AP = 1


@dataclass
class Settings:
    lr: float = 1e-4


def loaded(value: object, path: Path, **options: Any) -> Any:
    torch.save({"weights": torch.ones(2), "value": value}, path, **options)
    content = load_torch_file(path)
    assert torch.equal(content["weights"], torch.ones(2))
    return content["value"]


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float64(0.5), 0.5),
        (np.float32(0.25), 0.25),
        (np.float16(2), 2.0),
        (np.int64(-3), -3),
        (np.uint8(200), 200),
        (np.bool_(True), True),
        (np.dtype(">f4").type(0.5), 0.5),
        (PurePosixPath("runs/a"), "runs/a"),
        (PureWindowsPath("C:/runs/a"), "C:\\runs\\a"),
        (Path("runs"), str(Path("runs"))),
        (argparse.Namespace(lr=np.float32(0.5), output_dir=Path("a")), argparse.Namespace(lr=0.5, output_dir="a")),
        (SimpleNamespace(nheads=4), argparse.Namespace(nheads=4)),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (defaultdict(float, a=np.float64(1)), {"a": 1.0}),
        (Counter("aab"), {"a": 2, "b": 1}),
        (deque([1, 2], maxlen=3), [1, 2]),
        (frozenset((1, 2)), {1, 2}),
        (torch.float16, torch.float16),
        (torch.device("cuda:1"), torch.device("cuda:1")),
        (torch.Size((1, 2)), (1, 2)),
        (torch.torch_version.TorchVersion("2.1.0"), "2.1.0"),
        ({"nested": [(np.float64(1.5), {Path("a")})]}, {"nested": [(1.5, {"a"})]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_harmless_type_is_read_as_a_plain_value(
    value: object, expected: object, zip_format: bool, tmp_path: Path
) -> None:
    assert loaded(value, tmp_path / "a.pth", _use_new_zipfile_serialization=zip_format) == expected


@pytest.mark.parametrize(
    "value",
    [
        datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
        datetime.timedelta(hours=1),
        decimal.Decimal("0.5"),
        uuid.UUID(int=3),
        np.arange(3),
        np.array(["a", "b"]),
        np.array([None, 3]),
        np.datetime64("2024-01-02"),
        np.random.RandomState(0),
        np.random.default_rng(0),
        slice(1, 2),
        range(3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_harmless_type_is_an_inert_object(value: object, tmp_path: Path) -> None:
    assert isinstance(loaded(value, tmp_path / "a.pth"), Inert)


def test_types_themselves_are_inert(tmp_path: Path) -> None:
    assert loaded([np.float32, int, dict], tmp_path / "a.pth")[0] is Inert


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (Metric.AP, r"test_safe_load\.Metric"),
        (Settings(), r"test_safe_load\.Settings"),
        (torch.nn.Linear(1, 1), r"torch\.nn\.modules\.linear\.Linear"),
        (torch.nn.functional.relu, r"torch\.nn\.functional\.relu"),
        (print, "print"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_type_is_named_with_a_way_out(value: object, kind: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"an object of type \S*{kind}, .*save the weights alone") as error:
        loaded(value, tmp_path / "a.pth")
    assert "\n" not in str(error.value)


class Call:
    """Unpickled by calling a function."""

    def __init__(self, function: Any, *args: object) -> None:
        self.reduced = (function, args)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("function", [eval, exec, open, Path.touch, __import__], ids=lambda function: function.__name__)
def test_nothing_is_called(function: Any, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    argument = f"__import__('pathlib').Path({str(witness)!r}).touch()"
    with pytest.raises(CheckpointError, match="holds an object of type"):
        loaded(Call(function, argument if function in (eval, exec) else witness), tmp_path / "a.pth")
    assert not witness.exists()


@pytest.mark.parametrize("arguments", [(3,), (b"a",), ("f8", b"too long for it"), (np.dtype("O"), b"c")], ids=str)
def test_malformed_numbers_stay_inert(arguments: tuple[object, ...], tmp_path: Path) -> None:
    scalar = np.float64(1).__reduce__()[0]
    assert isinstance(loaded(Call(scalar, *arguments), tmp_path / "a.pth"), Inert)


def test_allowed_types_are_forgotten_after_loading(tmp_path: Path) -> None:
    before = torch.serialization.get_safe_globals()
    loaded(np.float64(1), tmp_path / "a.pth")
    assert torch.serialization.get_safe_globals() == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pth", weights_only=True)


def test_training_checkpoint_with_numpy_and_paths_is_loaded(tmp_path: Path) -> None:
    arguments = argparse.Namespace(
        nheads=np.int64(4), dropout=np.float64(0), output_dir=Path("runs"), lr=np.float32(1e-4)
    )
    content = {"model": state_dict_as_official(small_model(num_heads=4)), "args": arguments, "best": np.float64(0.4)}
    torch.save(content, tmp_path / "checkpoint.pth")
    config = load_checkpoint(tmp_path / "checkpoint.pth").config
    assert (config.num_heads, config.dropout) == (4, 0)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_pickle_protocol_is_named(protocol: int, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is in another pickle protocol than torch\.save's"):
        loaded(np.float64(0.5), tmp_path / "a.pth", pickle_protocol=protocol)


def test_program_of_torchscript_is_named(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "a.pt")
        with pytest.raises(CheckpointError, match="TorchScript"):
            load_torch_file(tmp_path / "a.pt")
