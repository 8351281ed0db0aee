"""The server's side of a process that decodes images: start it, send it uploads, end it."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

import numpy as np

from detrkit.data.decoding import TooMuchWorkError
from detrkit.data.image_structure import ImageFile
from detrkit.errors import DatasetError
from detrkit.serve.decoder_process import receive, send

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_CHUNK = 2**20
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from detrkit.serve.decoder_process import main; main(int(sys.argv[2]))"
)


class DecoderEndedError(Exception):
    """The process of a decoder has ended before it answered.

    Attributes:
        used_up_time: whether its processor time was used up.
    """

    def __init__(self, returncode: int) -> None:
        super().__init__(returncode)
        self.used_up_time = returncode == -getattr(signal, "SIGXCPU", 0) != 0


class DecoderStartError(Exception):
    """The process of a decoder cannot be started."""


@dataclass(frozen=True)
class DecodeRequest:
    """An upload to decode.

    Attributes:
        file: its content.
        name: its file name.
        channels: of the model.
        max_pixels: maximum number of pixels.
        cpu_seconds: maximum processor time.
    """

    file: ImageFile
    name: str
    channels: int
    max_pixels: int
    cpu_seconds: float


class Decoder:
    """A process that decodes one image at a time; it is started when it is needed.

    `decode` is for one thread; `kill` may be called by any, and makes `decode` raise an error.
    """

    def __init__(self, niceness: int = 0) -> None:
        """Describe a process.

        Args:
            niceness: by how much its priority is lower than that of the server.
        """
        self._niceness = niceness
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def is_running(self) -> bool:
        """Return whether the process is running."""
        process = self._process
        return process is not None and process.poll() is None

    @property
    def pid(self) -> int | None:
        """Return the id of the process, if it is running."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start the process if it is not running, and wait until it can decode.

        Raises:
            DecoderStartError: it cannot be started, or is closed.
        """
        if self.is_running:
            return
        self.reap()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-c", _START, json.dumps(sys.path), str(self._niceness)]
        with self._lock:
            if self._is_closed:
                raise DecoderStartError("closed")
            try:
                self._process = subprocess.Popen(  # noqa: S603  (our own command)
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                )
            except OSError as error:
                raise DecoderStartError(str(error)) from None
        requests, answers = self._pipes()
        for pipe in (requests, answers):
            if fcntl is not None and hasattr(fcntl, "F_SETPIPE_SZ"):
                with suppress(OSError):
                    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _CHUNK)
        try:
            receive(answers)
        except (EOFError, OSError, ValueError):
            self.reap()
            raise DecoderStartError("it ended at once") from None

    def decode(self, request: DecodeRequest, max_work: float) -> np.ndarray:
        """Decode an upload.

        Args:
            request: the upload.
            max_work: maximum number of pixels, times how often the decoder visits each.

        Returns:
            (H, W, C) of uint8.

        Raises:
            DatasetError: it cannot be decoded.
            TooMuchWorkError: it takes more work.
            DecoderEndedError: the process was killed, or ended.
        """
        requests, answers = self._pipes()
        try:
            _send_request(requests, request, max_work)
            answer = receive(answers)
            if "error" in answer:
                raise DatasetError(str(answer["error"]))
            if "too_much_work" in answer:
                raise TooMuchWorkError
            return _receive_pixels(answers, answer, request)
        except (EOFError, OSError, ValueError, KeyError, TypeError):
            raise DecoderEndedError(self.reap()) from None

    def kill(self) -> None:
        """End the process at once."""
        with self._lock:
            if self._process is not None:
                self._process.kill()

    def close(self) -> None:
        """End the process for good."""
        with self._lock:
            self._is_closed = True
        self.kill()

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        return process.stdin, process.stdout

    def reap(self) -> int:
        """End the process, wait for its end, and close its pipes; for the thread that calls `decode`.

        Returns:
            Its exit code, minus a signal's number if that ended it.
        """
        process = self._process
        if process is None:
            return 0
        process.kill()
        code = process.wait()
        with self._lock:
            self._process = None
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not sent
                    pipe.close()
        return code


def _send_request(pipe: IO[bytes], request: DecodeRequest, max_work: float) -> None:
    size = request.file.seek(0, os.SEEK_END)
    request.file.seek(0)
    message = {
        "name": request.name,
        "channels": request.channels,
        "max_pixels": request.max_pixels,
        "cpu_seconds": request.cpu_seconds,
        "max_work": max_work,
        "bytes": size,
    }
    send(pipe, message, _chunks(request.file))


def _chunks(file: ImageFile) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _receive_pixels(pipe: IO[bytes], answer: dict, request: DecodeRequest) -> np.ndarray:
    """Receive an array, whose size is checked: the process worked on a hostile file."""
    shape = tuple(int(one) for one in answer["shape"])
    is_possible = len(shape) == 3 and min(shape) >= 1 and shape[2] == request.channels
    if not is_possible or np.prod(shape, dtype=object) > 3 * request.max_pixels:
        raise ValueError(f"shape {shape}")
    pixels = np.empty(shape, np.uint8)
    left = memoryview(pixels.reshape(-1).data)
    while left:
        count = pipe.readinto(left)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        left = left[count:]
    return pixels
