"""Decode uploads in a process of its own, within limits of memory and processor time. Imports neither torch nor the server.

The process reads requests from its standard input and writes answers to its standard output: a length, a JSON object, and
as many bytes as its field `bytes` says. It ends when its input does, so it does not outlive a server that was killed.
"""

import io
import json
import os
import signal
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from detrkit.data.decoding import UPLOAD_FORMATS, TooMuchWorkError, decode_file, readable_formats
from detrkit.errors import DatasetError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_LENGTH = struct.Struct(">I")
_BYTES_PER_PIXEL = 40  # at most, of an image of few colors with transparency and rotation
_RESERVE = 2**28  # bytes of memory above that, for the decoders themselves
_PASSES_PER_DECODING = 8  # scans of a progressive JPEG that take as long as all the rest
_MAX_MESSAGE = 2**16  # bytes of a JSON object


def send(file: IO[bytes], message: dict[str, Any], content: Iterable[bytes | memoryview] = ()) -> None:
    """Write a message and the bytes that follow it."""
    text = json.dumps(message).encode()
    file.write(_LENGTH.pack(len(text)) + text)
    for piece in content:
        file.write(piece)
    file.flush()


def receive(file: IO[bytes]) -> dict[str, Any]:
    """Read a message.

    Raises:
        EOFError: the other process has ended.
    """
    (length,) = _LENGTH.unpack(read_exactly(file, _LENGTH.size))
    if length > _MAX_MESSAGE:
        raise EOFError
    message: dict[str, Any] = json.loads(read_exactly(file, length))
    return message


def read_exactly(file: IO[bytes], length: int) -> bytes:
    """Read some bytes.

    Raises:
        EOFError: the other process has ended.
    """
    content = file.read(length)
    if len(content) < length:
        raise EOFError
    return content


def main(niceness: int = 0) -> None:
    """Answer requests until the input ends.

    Args:
        niceness: by how much to lower the priority of this process.
    """
    if niceness and hasattr(os, "nice"):
        os.nice(niceness)
    for number in (signal.SIGINT, signal.SIGTERM):  # of a terminal or a service manager: the server ends this process
        signal.signal(number, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # decoders that print do not mix with answers
    readable_formats(UPLOAD_FORMATS)
    memory = _virtual_memory()
    _set_limit("CORE", 0)
    send(answers, {"ready": True})
    try:
        while True:
            request = receive(requests)
            content = read_exactly(requests, request["bytes"])
            _answer(answers, request, content, memory)
            del content
    except (EOFError, BrokenPipeError):
        os._exit(0)  # without flushing to a closed pipe


def _answer(answers: IO[bytes], request: dict[str, Any], content: bytes, memory: int) -> None:
    def before_decoding(pixels: int, passes: int) -> None:
        if pixels * (1 + passes / _PASSES_PER_DECODING) > request["max_work"]:
            raise TooMuchWorkError
        limit_memory(pixels)

    def limit_memory(pixels: int) -> None:
        if memory:
            _set_limit("AS", memory + 2 * len(content) + _RESERVE + _BYTES_PER_PIXEL * pixels)

    if resource is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _set_limit("CPU", int(used.ru_utime + used.ru_stime + request["cpu_seconds"]) + 1)
    limit_memory(request["max_pixels"])
    try:
        pixels = decode_file(
            io.BytesIO(content),
            request["name"],
            request["channels"],
            request["max_pixels"],
            UPLOAD_FORMATS,
            before_decoding,
        )
        pixels = np.ascontiguousarray(pixels)
    except TooMuchWorkError:
        send(answers, {"too_much_work": True})
        return
    except DatasetError as error:
        send(answers, {"error": error.message[:1000]})
        return
    except MemoryError:
        send(answers, {"error": f"{request['name']}: takes more memory than an image of its size should"})
        return
    send(answers, {"shape": pixels.shape, "bytes": pixels.nbytes}, [pixels.reshape(-1).data])


def _virtual_memory() -> int:
    """Return the bytes of address space in use; 0 where it cannot be limited."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _set_limit(name: str, value: int) -> None:
    """Set a limit of this process, as far as the system allows."""
    if resource is None:
        return
    kind = getattr(resource, f"RLIMIT_{name}")
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(kind, (value, hard))
