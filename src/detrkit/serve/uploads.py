"""Read the image of a request, counting its bytes while they arrive; the declared length is not trusted.

The body is the image itself, or a form (multipart/form-data) with one file. Up to a megabyte stays in memory; larger
images are kept in an unnamed temporary file.
"""

import codecs
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any, Protocol, runtime_checkable

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from detrkit._internal.text import printable
from detrkit.data.image_structure import ImageFile
from detrkit.serve.http_errors import HttpError
from detrkit.serve.unreadable import CURL, HOW_TO_SEND

_MAX_MEMORY = 1_000_000  # bytes of an upload kept in memory
_MAX_FIELD = 10_000  # bytes of other fields in a form
# of browsers and HTTP clients, in Python's names; it has others that are not of text, or that raise errors of other kinds
_CHARSETS = frozenset(
    ["utf-8", "ascii", "koi8-r", "koi8-u", "gb2312", "gbk", "gb18030", "big5", "euc_jp", "shift_jis", "cp932", "euc_kr"]
    + [f"iso8859-{part}" for part in range(1, 17)]
    + [f"cp125{part}" for part in range(9)]
)
_MAX_NAME = 200  # characters
_MAX_DISCARDED = 50_000_000  # bytes read and discarded from a client that sends too many, so that it gets the answer


@runtime_checkable
class UploadedFile(ImageFile, Protocol):
    """A file that its owner closes."""

    def close(self) -> None:
        """Close the file."""


@dataclass(frozen=True)
class Upload:
    """An uploaded image.

    Attributes:
        file: its content; the owner of the upload closes it.
        name: its file name, without folders.
        is_form_text: whether its Content-Type is that of a form without files, which `curl -d` sends.
    """

    file: UploadedFile
    name: str
    is_form_text: bool = False


async def read_upload(request: Request, max_bytes: int) -> Upload:
    """Read the image of a request.

    Raises:
        HttpError: the request has no image, or is too large.
        ClientDisconnect: the client disconnected.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise HttpError(415, f"image: found the Content-Encoding {encoding[:40]!r}, which is not read; {HOW_TO_SEND}")
    body = _read_counted(request, max_bytes)
    content_type = request.headers.get("content-type", "").lower()
    if content_type.startswith("multipart/form-data"):
        return await _read_form(request, body)
    file: Any = SpooledTemporaryFile(_MAX_MEMORY)  # noqa: SIM115  (it outlives this function)
    try:
        async for chunk in body:
            file.write(chunk)
        if not file.tell():
            raise HttpError(400, f"image: found none in the request, whose body is empty; {HOW_TO_SEND}")
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return Upload(file, "image", content_type.startswith("application/x-www-form-urlencoded"))


async def _read_counted(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the body up to a size; of a larger body, discard a part before answering."""
    count = 0
    async for chunk in request.stream():
        count += len(chunk)
        if count > max_bytes + _MAX_DISCARDED:
            break
        if count <= max_bytes:
            yield chunk
    if count > max_bytes:
        raise HttpError(
            413,
            f"image: the upload is larger than {max_bytes / 1e6:g} MB; send a smaller one",
            {"Connection": "close"},
        )


async def _read_form(request: Request, body: AsyncGenerator[bytes, None]) -> Upload:
    _check_charset(request)
    parser = MultiPartParser(request.headers, body, max_files=1, max_fields=8, max_part_size=_MAX_FIELD)
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError, ValueError, LookupError, KeyError) as error:
        reason = printable(getattr(error, "message", str(error)))[:_MAX_NAME].rstrip(".")
        raise HttpError(400, f"image: the form cannot be read ({reason}); send one file, as in: {CURL}") from None
    fields = form.multi_items()
    files = [value for _, value in fields if isinstance(value, UploadFile)]
    if files and files[0].size and "threshold" not in form:
        return Upload(files[0].file, _clean_name(files[0].filename))
    for file in files:
        file.file.close()
    raise _wrong_form([name for name, value in fields if isinstance(value, str)], bool(files))


def _check_charset(request: Request) -> None:
    """Check the encoding of a form's names; other codecs of Python, such as punycode, raise errors of any kind."""
    _, parameters = parse_options_header(request.headers["content-type"])
    charset = parameters.get(b"charset", b"utf-8").decode("latin-1").strip()
    try:
        is_known = codecs.lookup(charset).name in _CHARSETS
    except (LookupError, ValueError):
        is_known = False
    if not is_known:
        raise HttpError(
            415, f"image: the form has the charset {charset[:40]!r}, expected utf-8; leave it to the HTTP client"
        )


def _wrong_form(text_fields: list[str], has_file: bool) -> HttpError:
    if "threshold" in text_fields:
        return HttpError(400, "threshold: found in the form, expected in the address, as in /predict?threshold=0.5")
    if has_file:
        return HttpError(400, f"image: found none in the request, whose file is empty; {HOW_TO_SEND}")
    if text_fields:
        name = _clean_name(text_fields[0])
        return HttpError(
            400, f"image: found none in the request, only the text field {name!r}; send a file (curl: with @): {CURL}"
        )
    return HttpError(400, f"image: found none in the request, whose form is empty; {HOW_TO_SEND}")


def _clean_name(name: str | None) -> str:
    """Return the last part of a path, without unprintable characters."""
    last = (name or "").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(sign for sign in last if sign.isprintable())[-_MAX_NAME:] or "image"
