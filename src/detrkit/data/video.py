"""Reading of videos and cameras frame by frame, and writing of videos (extra `video`: PyAV).

Files are untrusted: only formats that contain their frames are read, because playlists refer to other files and servers;
the size of a frame is checked before it is decoded.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from detrkit._internal.files import is_file, what_is_at
from detrkit.data.image_structure import MAX_PIXELS
from detrkit.errors import ConfigError, DatasetError, import_optional

_FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,ogg,asf"
_STREAM = re.compile(r"(rtsps?|rtmps?|rtp|udp|tcp|srt|https?)://", re.IGNORECASE)
# of live streams; no playlists, which refer to other servers
_STREAM_FORMATS = f"{_FORMATS},rtsp,sdp,rtp,mjpeg,mpjpeg,h264,hevc"
_STREAM_PROTOCOLS = "rtsp,rtsps,rtmp,rtmps,rtp,udp,tcp,tls,srt,srtp,http,https,httpproxy"
_STREAM_TIMEOUT = 10.0  # seconds to connect, and between frames
_TICKS = 90_000  # per second: MPEG's clock, in which all usual frame rates are whole numbers
_DEFAULT_RATE = Fraction(30)
_MARK = "written by detrkit"  # in the header, so that detrkit may overwrite the file
_MAX_MISSING = 0.05  # fraction of the frames in the header that may be missing, as after edits


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes:
        number: from 0.
        seconds: since the first frame.
        pixels: the image, upright.
        pixel_aspect: width of a pixel divided by its height; not 1 for anamorphic videos, as of DVDs and DV cameras.
    """

    number: int
    seconds: float
    pixels: UInt8[Tensor, "3 H W"]
    pixel_aspect: Fraction = Fraction(1)


@dataclass(frozen=True)
class Video:
    """An opened video or camera.

    Attributes:
        name: path or camera name given by the user.
        num_frames: according to the header; 0 if unknown.
        rate: frames per second.
        has_sound: whether it has a sound track, which is not read.
    """

    name: str
    num_frames: int
    rate: Fraction
    _container: Any
    has_sound: bool = False

    def __iter__(self) -> Iterator[Frame]:
        """Decode frame by frame, once.

        Raises:
            DatasetError: the video is damaged, or shorter than its header says.
        """
        number, start = 0, None
        try:
            for decoded in self._container.decode(video=0):
                time = float(number / self.rate) if decoded.time is None else decoded.time
                start = time if start is None else start
                yield Frame(number, max(0.0, time - start), _pixels(decoded, self.name), self._pixel_aspect(decoded))
                number += 1
        except DatasetError:
            raise
        except Exception as error:  # the decoders raise errors of many kinds
            raise DatasetError(
                f"{self.name}: damaged after {number} frames ({_reason(error)}); copy it again"
            ) from None
        if not number:
            raise DatasetError(f"{self.name}: contains no frame that can be decoded; copy it again")
        if number < self.num_frames * (1 - _MAX_MISSING):
            raise DatasetError(f"{self.name}: ends after {number} of {self.num_frames} frames; copy it again")

    def _pixel_aspect(self, decoded: Any) -> Fraction:
        """Return the aspect of a pixel of the upright frame."""
        stream = self._container.streams.video[0]
        aspect = Fraction(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
        return 1 / aspect if round(decoded.rotation / 90) % 2 else aspect


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open a video file.

    Raises:
        DatasetError: it is missing, not a video, or too large.
        ConfigError: PyAV is not installed.
    """
    if not is_file(path):
        raise DatasetError(f"{path}: {what_is_at(path)}, expected a video; check the path")
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    expected = "expected an MP4, MOV, MKV, WebM or AVI file"
    with _opened(str(path), str(path), expected, options=options) as video:
        yield video


@contextmanager
def open_camera(name: str) -> Iterator[Video]:
    """Open a camera by its number, by its name in the system, or by the address of its stream, as ``rtsp://...``.

    Raises:
        DatasetError: it cannot be opened.
        ConfigError: PyAV is not installed.
    """
    shown = camera_name(name)
    if is_stream_address(name):
        options = {"format_whitelist": _STREAM_FORMATS, "protocol_whitelist": _STREAM_PROTOCOLS}
        expected = "expected a camera's stream that can be reached, for example rtsp://192.168.0.8/stream"
        with _opened(shown, name, expected, options=options, timeout=_STREAM_TIMEOUT) as video:
            yield video
        return
    address, format = camera_address(name, sys.platform)
    expected = "expected a camera that is not in use, for example camera:0"
    with _opened(shown, address, expected, format=format) as video:
        yield video


def is_stream_address(name: str) -> bool:
    """Return whether a camera is named by the address of its stream."""
    return _STREAM.match(name) is not None


def camera_name(name: str) -> str:
    """Return the name of a camera in results and messages: an address is shown without user and password."""
    if not is_stream_address(name):
        return f"camera:{name}"
    start, _, rest = name.partition("://")
    host, slash, path = rest.partition("/")
    return f"{start}://{host.rpartition('@')[2]}{slash}{path}"


def is_detrkit_video(path: Path) -> bool:
    """True if `VideoWriter` wrote a file.

    Raises:
        ConfigError: PyAV is not installed.
    """
    av = _import_av(str(path))
    try:
        with av.open(str(path), options={"format_whitelist": "mov,mp4", "protocol_whitelist": "file"}) as container:
            return bool(container.metadata.get("comment") == _MARK)
    except Exception:  # the decoders raise errors of many kinds
        return False


def camera_address(name: str, system: str) -> tuple[str, str]:
    """Return the address of a camera in FFmpeg, and the name of the input device."""
    if system == "darwin":
        return f"{name}:none", "avfoundation"
    if system == "win32":
        return f"video={name}", "dshow"
    return (f"/dev/video{name}" if name.isdigit() else name), "v4l2"


@contextmanager
def _opened(name: str, address: str, expected: str, **options: Any) -> Iterator[Video]:
    av = _import_av(name)
    try:
        container = av.open(address, **options)
    except Exception as error:  # the decoders raise errors of many kinds
        raise DatasetError(f"{name}: cannot be opened ({_reason(error)}); {expected}") from None
    with container:
        if not container.streams.video:
            raise DatasetError(f"{name}: contains no video; {expected}")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise DatasetError(f"{name}: its codec cannot be decoded; {expected}")
        _check_size(stream.codec_context.height, stream.codec_context.width, name)
        stream.thread_type = "AUTO"
        has_sound = bool(container.streams.audio)
        yield Video(name, stream.frames, stream.average_rate or _DEFAULT_RATE, container, has_sound)


def _pixels(decoded: Any, name: str) -> UInt8[Tensor, "3 H W"]:
    _check_size(decoded.height, decoded.width, name)
    pixels = np.rot90(decoded.to_ndarray(format="rgb24"), round(decoded.rotation / 90))
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def _check_size(height: int, width: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise DatasetError(f"{name}: its frames have {width} x {height} pixels, more than the maximum of {MAX_PIXELS}")


def _import_av(name: str) -> Any:
    return import_optional("av", name, "detrkit[video]")


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or f"{type(error).__name__}: {error}").splitlines()[0][:120]


class VideoWriter:
    """Writes images with their times as an MP4 file."""

    def __init__(self, path: Path, rate: Fraction) -> None:
        """Create a file.

        Raises:
            ConfigError: it cannot be written, or PyAV is not installed.
        """
        self._av = _import_av(str(path))
        try:
            self._container = self._av.open(str(path), "w", format="mp4")
            self._container.metadata["comment"] = _MARK
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({_reason(error)})") from None
        self._rate = rate
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None and kind is None:
            self._container.mux(self._stream.encode())
        self._container.close()

    def add(self, image: Image.Image, seconds: float, pixel_aspect: Fraction = Fraction(1)) -> None:
        """Append an image; all get the size of the first, rounded up to even numbers, which the codec requires.

        Args:
            image: of any mode.
            seconds: its time.
            pixel_aspect: of the first image, see `Frame`; players stretch the video by it.
        """
        if self._stream is None:
            self._stream = self._add_stream(image, pixel_aspect)
        size = (self._stream.width, self._stream.height)
        if image.size != size:
            differs_by_rounding = (image.width + image.width % 2, image.height + image.height % 2) == size
            image = image.crop((0, 0, *size)) if differs_by_rounding else image.resize(size)
        frame = self._av.VideoFrame.from_image(image)
        self._last = max(self._last + 1, round(seconds * _TICKS))
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        self._container.mux(self._stream.encode(frame))

    def _add_stream(self, image: Image.Image, pixel_aspect: Fraction) -> Any:
        codec = "libx264" if "libx264" in self._av.codecs_available else "mpeg4"
        stream = self._container.add_stream(codec, rate=self._rate)
        stream.width, stream.height = image.width + image.width % 2, image.height + image.height % 2
        stream.pix_fmt = "yuv420p"
        if pixel_aspect != 1:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if codec == "libx264":  # mpeg4 counts frames
            stream.codec_context.time_base = Fraction(1, _TICKS)
        return stream
