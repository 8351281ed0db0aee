"""Recognises what is sent instead of an image file, and says what to send."""

import base64
import binascii
import re
from collections.abc import Callable

HEAD_BYTES = 512  # by which contents are recognised
CURL = "curl -F image=@photo.jpg http://127.0.0.1:8000/predict"
_CONVERT = "save it as JPEG, PNG, WebP, GIF or BMP (more than four channels: as .npy)"
HOW_TO_SEND = f"send the image file itself, as in: {CURL}"

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"heif")
_DATA_URL = re.compile(rb"data:[\w.+/-]*[;,]", re.IGNORECASE)
_URL = re.compile(rb"(https?|ftp|file|s3|gs)://\S", re.IGNORECASE)
_FORM = re.compile(rb"[\w.%+\[\]-]+=")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_=\r\n-]+")
# how the files of images begin, and so what base64 of an image decodes to
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\0\0\0")


def describe_unsupported(head: bytes) -> str | None:
    """Describe a content that is not an image file.

    Args:
        head: its first bytes, at least `HEAD_BYTES` of a longer one.

    Returns:
        A part of a sentence, such as `JSON; send ...`; None if the content is of no known kind.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for is_kind, description in _KINDS:
        if is_kind(text if text else head):
            return description
    return None


def _starts(*beginnings: bytes) -> Callable[[bytes], bool]:
    lower = tuple(beginning.lower() for beginning in beginnings)
    return lambda head: head.lower().startswith(lower)


def _is_base64_image(head: bytes) -> bool:
    head = head.strip(b"\"'")
    if len(head) < 16 or not _BASE64.fullmatch(head):
        return False
    letters = re.sub(rb"[\r\n]", b"", head).translate(bytes.maketrans(b"-_", b"+/"))
    try:
        return base64.b64decode(letters[: len(letters) // 4 * 4]).startswith(_IMAGES)
    except binascii.Error:
        return False


def _is_netpbm(head: bytes) -> bool:
    return re.match(rb"P[1-7fF][\s#]", head) is not None


def _is_heif(head: bytes) -> bool:
    return _is_video(head) and head[8:12] in _HEIF_BRANDS


def _is_video(head: bytes) -> bool:
    """Return whether a content is of the MP4 family, which HEIC is of, too; a damaged AVIF file is an image."""
    is_matroska = head.startswith(b"\x1a\x45\xdf\xa3")
    return is_matroska or (head[4:8] == b"ftyp" and b"avif" not in head[8:64])


def _starts_quoted(pattern: re.Pattern[bytes]) -> Callable[[bytes], bool]:
    return lambda head: bool(pattern.match(head.lstrip(b"\"'")))


_KINDS: tuple[tuple[Callable[[bytes], bool], str], ...] = (
    (_is_heif, "a HEIC photo; save it as JPEG first (iPhone: Settings, Camera, Formats, Most Compatible)"),
    (_is_video, "a video; send one frame as JPEG or PNG"),
    (_starts(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), f"a TIFF image; {_CONVERT}"),
    (_starts(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), f"a JPEG 2000 image; {_CONVERT}"),
    (_starts(b"\0\0\1\0", b"\0\0\2\0", b"icns"), f"an icon; {_CONVERT}"),
    (_starts(b"8BPS"), f"a Photoshop file; {_CONVERT}"),
    (_is_netpbm, f"a PPM image; {_CONVERT}"),
    (_is_base64_image, f"base64; {HOW_TO_SEND}"),
    (_starts_quoted(_DATA_URL), f"a data URL; {HOW_TO_SEND}"),
    (_starts_quoted(_URL), f"an address, which is not fetched; {HOW_TO_SEND}"),
    (_starts(b"{", b"["), f"JSON; {HOW_TO_SEND}"),
    (
        lambda head: head.startswith(b"--") and b"content-disposition" in head.lower(),
        "a form under another Content-Type; leave that header to the HTTP client, which adds the boundary to it",
    ),
    (_starts(b"<svg"), "an SVG drawing; send it as PNG"),
    (_starts(b"<!doctype", b"<html", b"<?xml", b"<"), f"HTML or XML; {HOW_TO_SEND}"),
    (_starts(b"%pdf"), "a PDF; send its page as PNG"),
    (_starts(b"pk\x03\x04"), "a ZIP archive; send one image at a time"),
    (_starts(b"\x1f\x8b"), f"gzip; {HOW_TO_SEND}"),
    (_starts_quoted(_FORM), f"a form without files; {HOW_TO_SEND}"),
)
