"""Check of a file of `torch.save` before torch reads it: its records, storages and pickles, in both formats.

Since PyTorch 1.6, a file is a zip archive of ``data.pkl`` and a record per storage; before, a sequence of pickles that the
storages follow.
"""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from detrkit.checkpoints.pickle_check import check_pickle
from detrkit.checkpoints.pickle_values import refuse, refuse_malformed, storage_itemsize
from detrkit.checkpoints.tensor_budget import budget

MAX_PICKLE = 64 * 2**20  # bytes of one pickle; those of a checkpoint with an optimizer take about 1 MB
_ZIP = b"PK\x03\x04"
_LOCAL_HEADER = 30  # bytes, before the name
_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_NUMEL = 8  # bytes before each storage in the older format


def check_torch_file(path: Path) -> None:
    """Check a file.

    Raises:
        RefusedPickleError: it is damaged, or would take more memory than its size explains.
    """
    with path.open("rb") as file:
        is_zip = file.read(len(_ZIP)) == _ZIP
        file.seek(0)
        (_check_zip if is_zip else _check_sequence)(file, path.stat().st_size)


def _check_zip(file: IO[bytes], size: int) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            comment = archive.comment
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        refuse(f"not readable as weights ({str(error)[:80]}); is the file complete?")
    names = [record.filename for record in records]
    if len({name.casefold() for name in names}) < len(names) or comment:
        refuse("is an archive with ambiguous names or a comment, which torch.save does not write; get the file again")
    unpacked = sum(record.file_size for record in records)
    if unpacked > budget(size):
        refuse(f"claims {unpacked:,} bytes in a file of {size:,}; get the file again, or save it again with torch.save")
    root = names[0].partition("/")[0] if names else ""
    by_name = dict(zip(names, records, strict=True))
    if f"{root}/constants.pkl" in by_name:
        refuse("is a TorchScript program, expected a state dict; save model.state_dict() with torch.save instead")
    content = by_name.get(f"{root}/data.pkl")
    if content is None:
        refuse_malformed()
    sizes = {name.removeprefix(f"{root}/data/"): record.file_size for name, record in by_name.items()}

    def find_storage(identity: Sequence[Any]) -> tuple[int, int]:
        storage_type, key, _, numel = identity[:4]
        itemsize = storage_itemsize(storage_type)
        if sizes.get(key) != numel * itemsize:
            refuse(f"lacks a storage of {numel * itemsize:,} bytes, which is named in it; get the file again")
        return numel * itemsize, itemsize

    check_pickle(_read_record(file, content), find_storage)


def _read_record(file: IO[bytes], record: zipfile.ZipInfo) -> bytes:
    """Read a record without its checksum, which torch can be told not to write."""
    if record.file_size > MAX_PICKLE or record.compress_size > MAX_PICKLE:
        refuse(f"holds a pickle of {record.file_size:,} bytes, expected at most {MAX_PICKLE:,}; save the weights alone")
    file.seek(record.header_offset)
    header = file.read(_LOCAL_HEADER)
    if header[:4] != _ZIP:
        refuse_malformed()
    file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
    data = file.read(record.compress_size)
    if record.compress_type == zipfile.ZIP_DEFLATED:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, record.file_size)
        except zlib.error:
            refuse_malformed()
    if record.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or len(data) != record.file_size:
        refuse_malformed()
    return data


def _check_sequence(file: IO[bytes], size: int) -> None:
    if check_pickle(file) != _MAGIC_NUMBER or check_pickle(file) != _PROTOCOL:
        refuse_malformed()
    check_pickle(file)  # of the machine that wrote it
    storages: dict[Any, int] = {}

    def find_storage(identity: Sequence[Any]) -> tuple[int, int]:
        storage_type, key, _, numel, *views = identity
        itemsize = storage_itemsize(storage_type)
        if type(numel) is not int or numel < 0 or storages.setdefault(key, numel * itemsize) != numel * itemsize:
            refuse_malformed()
        if not views or views[0] is None:
            return numel * itemsize, itemsize
        _, offset, length = views[0]
        if min(offset, length) < 0 or offset + length > numel:
            refuse_malformed()
        return length * itemsize, itemsize

    check_pickle(file, find_storage)
    check_pickle(file)  # keys of the storages
    needed = sum(storages.values()) + _NUMEL * len(storages)
    if needed > size - file.tell():
        refuse(f"names storages of {needed:,} bytes, but only {size - file.tell():,} follow; is the file complete?")
