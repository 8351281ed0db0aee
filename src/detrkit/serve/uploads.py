"""Read the image of a request, counting its bytes while they arrive; the declared length is not trusted.

The body is the image itself, or a form (multipart/form-data) with one file. Up to a megabyte stays in memory; larger
images are kept in an unnamed temporary file.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any, Protocol, runtime_checkable

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from detrkit.data.images import ImageFile
from detrkit.serve.http_errors import HttpError

_MAX_MEMORY = 1_000_000  # bytes of an upload kept in memory
_MAX_FIELD = 10_000  # bytes of other fields in a form
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
    """

    file: UploadedFile
    name: str


async def read_upload(request: Request, max_bytes: int) -> Upload:
    """Read the image of a request.

    Raises:
        HttpError: the request has no image, or is too large.
        ClientDisconnect: the client disconnected.
    """
    body = _read_counted(request, max_bytes)
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await _read_form(request, body)
    file: Any = SpooledTemporaryFile(_MAX_MEMORY)  # noqa: SIM115  (it outlives this function)
    try:
        async for chunk in body:
            file.write(chunk)
        if not file.tell():
            raise _no_image()
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return Upload(file, "image")


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
    parser = MultiPartParser(request.headers, body, max_files=1, max_fields=8, max_part_size=_MAX_FIELD)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HttpError(400, f"image: the form cannot be read ({error.message}); send one file named image") from None
    for _, value in form.multi_items():
        if isinstance(value, UploadFile):
            if value.size:
                return Upload(value.file, _clean_name(value.filename))
            value.file.close()
    raise _no_image()


def _no_image() -> HttpError:
    return HttpError(400, "image: found none in the request; send it as the body, or as the file image of a form")


def _clean_name(name: str | None) -> str:
    """Return the last part of a path, without unprintable characters."""
    last = (name or "").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(sign for sign in last if sign.isprintable())[-_MAX_NAME:] or "image"
