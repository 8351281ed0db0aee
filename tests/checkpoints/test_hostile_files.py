"""Small files that would take gigabytes, minutes or the stack are refused in one sentence; ordinary ones are read."""

import io
import json
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from detrkit.checkpoints import files, pickle_check, tensor_budget
from detrkit.checkpoints.containers import find_weights
from detrkit.checkpoints.files import read_safetensors, read_sharded, read_torch_file, read_training_state
from detrkit.checkpoints.safe_load import load_torch_file
from detrkit.errors import CheckpointError
from tests.checkpoints.forged import Call, Stored, forge_sequence, forge_zip, pickled, tensor
from tests.parameters import slow_except

Forge = Callable[[Path, object], Path]
FORMATS: list[Forge] = [forge_zip, forge_sequence]
HUGE = 10**10


def refused(path: Path, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as error:
        load_torch_file(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize(
    "repeated",
    [
        torch.ones(1).expand(1000, 100_000),
        torch.ones(10_000).as_strided((9_000, 9_000), (0, 1)),
        torch.ones(20_000).as_strided((9_000, 9_000), (1, 1)),
        torch.zeros(1, dtype=torch.complex128).expand(10**7),
        torch.zeros(1, dtype=torch.bool).expand(10**5, 10**5),
    ],
    ids=["stride 0", "rows repeated", "windows overlap", "complex", "bool"],
)
def test_views_that_repeat_a_storage_are_refused(repeated: torch.Tensor, zip_format: bool, tmp_path: Path) -> None:
    torch.save({"model": {"weight": repeated}}, tmp_path / "a.pth", _use_new_zipfile_serialization=zip_format)
    assert (tmp_path / "a.pth").stat().st_size < 100_000
    refused(tmp_path / "a.pth", r"its tensors repeat what is stored and would take [\d,]{10,} bytes")


@pytest.mark.parametrize("wrap", [lambda one: [one] * 3000, lambda one: {str(n): one for n in range(3000)}, tuple])
def test_one_tensor_under_many_names_is_refused(wrap: Callable[[Any], object], tmp_path: Path) -> None:
    one = torch.zeros(10_000)
    torch.save({"a": {"b": wrap([one] * 3000 if wrap is tuple else one)}}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "its tensors repeat")


@pytest.mark.parametrize("zip_format", [True, False])
def test_shared_tensors_views_and_small_expanded_ones_are_read(zip_format: bool, tmp_path: Path) -> None:
    big = torch.arange(3_000_000.0)
    content = {
        "model": {"a": big, "tied": big, "rows": big.view(3, -1)[1], "turned": big.view(3, -1).t(), "empty": big[:0]},
        "ema": {"a": big, "buffer": torch.ones(1).expand(1000, 1000), "scalar": torch.tensor(3)},
        "half": torch.ones(3, dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zip_format)
    read = load_torch_file(tmp_path / "a.pth")
    assert torch.equal(read["model"]["turned"], content["model"]["turned"])
    assert read["ema"]["buffer"].shape == (1000, 1000)


def test_weights_of_every_dtype_are_read(tmp_path: Path) -> None:
    dtypes = [torch.float8_e4m3fn, torch.uint16, torch.float16, torch.int8, torch.complex64, torch.bool, torch.float64]
    torch.save({str(dtype): torch.zeros(3).to(dtype) for dtype in dtypes}, tmp_path / "a.pth")
    assert len(load_torch_file(tmp_path / "a.pth")) == len(dtypes)


@pytest.mark.parametrize("forge", FORMATS)
@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (tensor(Stored(), size=(HUGE,)), "needs 40,000,000,000 bytes of a storage of 16"),
        (tensor(Stored(), size=(2, 2), stride=(HUGE, 1)), "bytes of a storage of 16"),
        (tensor(Stored(), offset=1), "needs 20 bytes of a storage of 16"),
        (tensor(Stored(), offset=-1), "negative or malformed size, stride or offset"),
        (tensor(Stored(), size=(-4,)), "negative or malformed"),
        (tensor(Stored(), stride=(-1,)), "negative or malformed"),
        (tensor(Stored(), size=(True,)), "negative or malformed"),
        (tensor(Stored(), size=(1,) * 65, stride=(1,) * 65), "not readable as weights"),
        (tensor(Stored(), size=(4,), stride=()), "not readable as weights"),
        (tensor(Stored(kind=torch.Tensor)), "not readable as weights"),
        (Call(torch._utils._rebuild_tensor_v3, Stored(16, kind=torch.UntypedStorage), 0, (4,), (1,), False, {},
              torch.complex128), "needs 64 bytes of a storage of 16"),
        (Call(torch._utils._rebuild_parameter, tensor(Stored()), True, {}, state=(Stored(), 0, (HUGE,), (1,))),
         "not readable as weights"),
        (Call(torch._tensor._rebuild_from_type_v2, torch._utils._rebuild_tensor_v2, torch.Tensor,
              (Stored(), 0, (HUGE,), (1,), False, {}), {}), "of a storage of 16"),
        (Call(torch._tensor._rebuild_from_type_v2, torch.Size, int, ((1,),), {}), "not readable as weights"),
    ],
)  # fmt: skip
def test_view_outside_of_its_storage_is_refused(forge: Forge, view: Call, reason: str, tmp_path: Path) -> None:
    refused(forge(tmp_path / "a.pth", {"w": view}), reason)


@pytest.mark.parametrize("forge", FORMATS)
@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (Call(bytearray, HUGE), "an array of bytes of a given size"),
        (Call(torch.Tensor, HUGE), r"calls torch\.(_tensor\.)?Tensor, which is no function of torch\.save"),
        (Call(torch.FloatTensor, HUGE), r"calls torch\.FloatTensor"),
        (Call(torch.UntypedStorage, HUGE), "calls torch.*UntypedStorage"),
        (Call(torch.Size, ("a",)), "not readable as weights"),
        (Call(Counter, "text"), "not readable as weights"),
        (Call(complex, "1" * 1000, ()), "not readable as weights"),
    ],
)
def test_function_that_allocates_what_it_is_told_is_refused(
    forge: Forge, call: Call, reason: str, tmp_path: Path
) -> None:
    refused(forge(tmp_path / "a.pth", {"w": tensor(Stored()), "other": [call]}), reason)


def test_functions_are_checked_in_all_parts_of_the_older_format(tmp_path: Path) -> None:
    refused(forge_sequence(tmp_path / "a.pth", {}, system=Call(bytearray, HUGE)), "an array of bytes of a given size")


def deep_tuple(depth: int) -> bytes:
    """Return a pickle of a dict whose key is a tuple in tuples, which hashing follows on the stack."""
    return b"\x80\x02}(" + b")" + b"\x85" * depth + b"Nu."


def doubled_tuple(times: int) -> bytes:
    """Return a pickle of a dict whose key holds itself twice in every level, so that hashing takes 2 ** times steps."""
    return b"\x80\x02}()" + b"q\x00h\x00\x86" * times + b"Nu."


@pytest.mark.parametrize("content", [deep_tuple(60_000), doubled_tuple(64)], ids=["deep", "doubled"])
@pytest.mark.parametrize("kind", slow_except(("dict",), ["dict", "set", "frozenset", "OrderedDict"]))
def test_key_that_is_expensive_to_hash_is_refused(content: bytes, kind: str, tmp_path: Path) -> None:
    key = content[len(b"\x80\x02}(") : -len(b"Nu.")]
    names = {"set": b"c__builtin__\nset\n", "frozenset": b"c__builtin__\nfrozenset\n"}
    if kind in names:
        content = b"\x80\x02" + names[kind] + b"](" + key + b"e\x85R."
    elif kind == "OrderedDict":
        content = b"\x80\x02ccollections\nOrderedDict\n](](" + key + b"K\x01ee\x85R."
    refused(forge_zip(tmp_path / "a.pth", content), "deeply nested key")


@pytest.mark.parametrize("levels", [1, 5000])
def test_calls_in_many_levels_do_not_exhaust_the_stack(levels: int, tmp_path: Path) -> None:
    """A tensor of a subclass whose data is made by the same function, and so on."""
    function, kind = b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch\nTensor\n"
    nested = (b"(" + function + kind) * levels + b")" + b"Nt" * levels
    refused(forge_zip(tmp_path / "a.pth", b"\x80\x02" + function + nested + b"R."), "not readable as weights")


def test_text_is_not_made_of_nested_lists(tmp_path: Path) -> None:
    nested: list[Any] = []
    for _ in range(64):
        nested = [nested, nested]
    path = forge_zip(tmp_path / "a.pth", {"version": Call(torch.torch_version.TorchVersion, nested)})
    assert load_torch_file(path) == {"version": ""}


def test_containers_in_many_levels_are_refused_and_circles_are_walked_once(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    refused(forge_zip(tmp_path / "a.pth", {"w": deep}), "containers in more than 64 levels")
    circle: dict[str, Any] = {f"model{number}": None for number in range(200)}
    circle |= dict.fromkeys(circle, circle)
    assert find_weights(load_torch_file(forge_zip(tmp_path / "b.pth", circle))) == []


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (lambda: torch.ones(3).to_sparse(), "sparse"),
        (lambda: torch.ones(3, 3).to_sparse_csr(), "sparse"),
        (lambda: torch.ones(3, device="meta"), "meta"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantized"),
        (lambda: torch.nested.nested_tensor([torch.ones(2)]), "nested"),
    ],
    ids=["sparse", "csr", "meta", "quantized", "nested"],
)
@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.filterwarnings("ignore")
def test_other_kinds_of_tensors_are_named(
    value: Callable[[], torch.Tensor], kind: str, zip_format: bool, tmp_path: Path
) -> None:
    torch.save({"w": value()}, tmp_path / "a.pth", _use_new_zipfile_serialization=zip_format)
    refused(tmp_path / "a.pth", f"holds a {kind} tensor, expected ordinary ones")


@pytest.mark.parametrize(
    ("storages", "numel", "reason"),
    [
        ({"0": bytes(16)}, 5, "lacks a storage of 20 bytes"),
        ({"0": bytes(16)}, 3, "lacks a storage of 12 bytes"),
        ({}, 4, "lacks a storage of 16 bytes"),
        ({"0": bytes(16)}, HUGE, "lacks a storage of 40,000,000,000 bytes"),
        ({"0": bytes(16)}, -4, "lacks a storage"),
    ],
)
def test_storage_is_compared_with_its_record(
    storages: dict[str, bytes], numel: int, reason: str, tmp_path: Path
) -> None:
    content = {"w": tensor(Stored(numel), size=(1,))}
    refused(forge_zip(tmp_path / "a.pth", content, storages), reason)


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (Stored(HUGE), "names storages of 40,000,000,008 bytes, but only 24 follow"),
        (Stored(-4), "not readable as weights"),
        (Stored(view=("1", 3, 2)), "not readable as weights"),
        (Stored(view=("1", -1, 2)), "not readable as weights"),
        (Stored(view=("1", 0, 2)), "needs 16 bytes of a storage of 8"),
    ],
)
def test_storage_of_the_older_format_is_compared_with_the_file(stored: Stored, reason: str, tmp_path: Path) -> None:
    refused(forge_sequence(tmp_path / "a.pth", {"w": tensor(stored)}), reason)


def test_compressed_records_are_read_within_the_budget(tmp_path: Path) -> None:
    content = {"w": tensor(Stored(100), size=(100,))}
    read = load_torch_file(forge_zip(tmp_path / "a.pth", content, {"0": bytes(400)}, zipfile.ZIP_DEFLATED))
    assert torch.equal(read["w"], torch.zeros(100))
    bomb = {"0": bytes(50_000_000)}
    content = {"w": tensor(Stored(12_500_000), size=(12_500_000,))}
    refused(forge_zip(tmp_path / "b.pth", content, bomb, zipfile.ZIP_DEFLATED), r"claims 50,000,\d+ bytes in a file of")


def test_records_that_overlap_are_counted_one_by_one(tmp_path: Path) -> None:
    forge_zip(tmp_path / "a.pth", {}, {str(number): bytes(100_000) for number in range(2)})
    data = bytearray((tmp_path / "a.pth").read_bytes())
    directory = data.index(b"PK\x01\x02")
    entry_at = data.index(b"a/data/0", directory) - 46
    entry = data[entry_at : entry_at + 54]
    copies = b"".join(bytes(entry[:46]) + b"a/%06d" % number for number in range(1000))
    end = data.index(b"PK\x05\x06")
    total, size, start = struct.unpack("<HII", data[end + 10 : end + 20])
    data[end + 8 : end + 20] = struct.pack("<HHII", total + 1000, total + 1000, size + len(copies), start)
    data[end:end] = copies
    (tmp_path / "a.pth").write_bytes(data)
    refused(tmp_path / "a.pth", r"claims 100,\d+,\d+ bytes in a file of")


@pytest.mark.parametrize("second", ["a/data.pkl", "A/Data.pkl"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archive_that_readers_understand_differently_is_refused(second: str, tmp_path: Path) -> None:
    path = forge_zip(tmp_path / "a.pth", {})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(second, pickled({}))
    refused(path, "ambiguous names")


def test_file_saved_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load_torch_file(tmp_path / "a.pth")["w"], torch.ones(3))


def test_limits_on_instructions_tensors_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({f"w{number}": torch.ones(1) for number in range(20)}, tmp_path / "a.pth")
    monkeypatch.setattr(pickle_check, "MAX_TENSORS", 19)
    refused(tmp_path / "a.pth", "holds more than 19 tensors")
    monkeypatch.setattr(pickle_check, "MAX_INSTRUCTIONS", 100)
    refused(tmp_path / "a.pth", "holds more than 100 instructions")
    monkeypatch.undo()
    torch.save({"x" * 5000: torch.ones(1)}, tmp_path / "b.pth")
    refused(tmp_path / "b.pth", "has 5,000 characters, expected at most 1,000")


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02.", b"\x80\x02h\x05.", b"(((((", b"\x80\x02R."]
)
def test_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    refused(tmp_path / "a.pth", "not readable as weights")


@pytest.mark.parametrize("version", [torch.ones(2), torch.ones(0), [1], "1", None])
def test_training_state_of_another_version_is_refused(version: object, tmp_path: Path) -> None:
    torch.save({"format": version, "model": {}}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="not a training state of this version"):
        read_training_state(tmp_path / "state.pt")


def test_training_state_has_the_same_limits(tmp_path: Path) -> None:
    torch.save({"format": 1, "model": {"w": torch.ones(1).expand(10**5, 10**5)}}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"as a training state \(its tensors repeat .*start the run again"):
        read_training_state(tmp_path / "state.pt")
    forge_zip(tmp_path / "state.pt", {"format": 1, "w": Call(bytearray, HUGE)})
    with pytest.raises(CheckpointError, match="not readable as a training state"):
        read_training_state(tmp_path / "state.pt")
    torch.save({"format": 1, "optimizer": OrderedDict(a=[torch.ones(1)])}, tmp_path / "state.pt")
    assert torch.equal(read_training_state(tmp_path / "state.pt")["optimizer"]["a"][0], torch.ones(1))


def write_safetensors(path: Path, header: dict[str, Any] | bytes, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"w": entry([HUGE], 0, 4)}, bytes(4)),
        ({"w": entry([2**40, 2**40], 0, 4)}, bytes(4)),
        ({"w": entry([0, 2**63], 0, 0)}, b""),
        ({"a": entry([4], 0, 16), "b": entry([4], 0, 16)}, bytes(16)),
        ({"w": entry([4], 4, 20)}, bytes(16)),
        ({"w": entry([1], 0, 4, "STRING")}, bytes(4)),
        ({"w": entry([-1], 0, 4)}, bytes(4)),
        (b"[" * 100_000, b""),
    ],
    ids=["size", "overflow", "empty but huge", "shared", "hole", "dtype", "negative", "nested"],
)
def test_malformed_safetensors_is_refused(header: dict[str, Any] | bytes, data: bytes, tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", header, data)
    with pytest.raises(CheckpointError, match="not readable as safetensors") as error:
        read_safetensors(path)
    assert "\n" not in str(error.value)


def test_safetensors_has_limits_on_header_tensors_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", {"x" * 2000: entry([1], 0, 4)}, bytes(4))
    with pytest.raises(CheckpointError, match="has 2,000 characters"):
        read_safetensors(path)
    save_file({str(number): torch.ones(1) for number in range(20)}, tmp_path / "b.safetensors")
    monkeypatch.setattr(files, "MAX_TENSORS", 19)
    with pytest.raises(CheckpointError, match="holds 20 tensors, expected at most 19"):
        read_safetensors(tmp_path / "b.safetensors")
    monkeypatch.setattr(files, "MAX_JSON", 100)
    with pytest.raises(CheckpointError, match=r"has a header of [\d,]+ bytes, expected at most 100"):
        read_safetensors(tmp_path / "b.safetensors")


def write_index(folder: Path, weight_map: object) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    return path


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/passwd", "sub/a.safetensors", "..\\outside.bin", "C:\\a", "", "..", "."],
)
def test_index_names_files_of_its_folder_only(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"w": torch.ones(1)}, tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match="expected one in the same folder"):
        read_sharded(write_index(folder, {"w": name}))


def test_link_of_an_index_stays_in_its_folder_or_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "models--me--it" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (tmp_path / "models--me--it" / "blobs").mkdir()
    save_file({"w": torch.ones(1)}, tmp_path / "outside.safetensors")
    (folder / "part.safetensors").symlink_to(tmp_path / "outside.safetensors")
    index = write_index(folder, {"w": "part.safetensors"})
    with pytest.raises(CheckpointError, match=r"part\.safetensors: is a link to a file outside of its folder"):
        read_sharded(index)
    (tmp_path / "outside.safetensors").rename(tmp_path / "models--me--it" / "blobs" / "123")
    (folder / "part.safetensors").unlink()
    (folder / "part.safetensors").symlink_to("../../blobs/123")
    assert torch.equal(read_sharded(index)["w"], torch.ones(1))
    save_file({"w": torch.ones(1)}, folder / "inside.safetensors")
    (folder / "part.safetensors").unlink()
    (folder / "part.safetensors").symlink_to("inside.safetensors")
    assert torch.equal(read_sharded(index)["w"], torch.ones(1))


def test_many_names_for_one_file_are_refused(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(5_000_000)}, tmp_path / "real.safetensors")
    names = [f"part{number}.safetensors" for number in range(12)]
    for name in names:
        (tmp_path / name).symlink_to("real.safetensors")
    weights = {f"w{number}": torch.zeros(1) for number in range(12)}
    with pytest.raises(CheckpointError, match="has no entry 'w0'"):
        read_sharded(write_index(tmp_path, dict(zip(weights, names, strict=True))))
    one = torch.zeros(10_000)
    torch.save({f"w{number}": one for number in range(3000)}, tmp_path / "tied.bin")
    with pytest.raises(CheckpointError, match="its tensors repeat"):
        read_sharded(write_index(tmp_path, {f"w{number}": "tied.bin" for number in range(3000)}))
    with pytest.raises(CheckpointError, match="names 1,001 tensors in 1,001 files, expected at most 100,000 in 1,000"):
        read_sharded(write_index(tmp_path, {str(number): f"{number}.bin" for number in range(1001)}))


@pytest.mark.parametrize("text", ["[]", "{", "3", '{"weight_map": []}', "[" * 100_000, '{"weight_map": 1e999}', "{}"])
def test_malformed_index_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: "):
        read_sharded(tmp_path / "model.safetensors.index.json")


def test_budget_is_relative_to_the_file() -> None:
    assert tensor_budget.budget(0) == 32 * 2**20
    assert tensor_budget.budget(10**9) > 4 * 10**9


@pytest.mark.slow
def test_names_of_many_models_in_one_state_dict_are_searched_in_bounded_time(tmp_path: Path) -> None:
    one = torch.zeros(1)
    content = {f"m{number}.transformer.decoder.layers.0.w": one for number in range(20_000)}
    torch.save(content, tmp_path / "a.pth")
    assert find_weights(read_torch_file(tmp_path / "a.pth")) == []


@pytest.mark.parametrize("name", ["x" * 300 + ".safetensors", "a\0b.safetensors"])
def test_index_that_names_no_possible_file_is_rejected(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such file, but model\.safetensors\.index\.json names it"):
        read_sharded(write_index(tmp_path, {"w": name}))


def test_length_beyond_the_end_of_the_file_is_not_allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(
        b"\x80\x02\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little") + b".\x80\x02X\x10\xff\xff\xffabc"
    )
    largest = 0

    class Reader(io.BufferedReader):
        def read(self, count: int | None = -1, /) -> bytes:
            nonlocal largest
            largest = max(largest, count or 0)
            return super().read(count)

    monkeypatch.setattr(Path, "open", lambda self, *_args, **_options: Reader(io.FileIO(self)))
    refused(path, "expected")
    assert 0 < largest <= path.stat().st_size
