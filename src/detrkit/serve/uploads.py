"""A request's body -> a photo's file, counted while it comes; what it says of its own length is not believed.

The body is the photo itself, or a form (multipart/form-data) with one file in it. Up to a megabyte stays in memory, larger
ones lie in a temporary file without a name.
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

_IN_MEMORY = 1_000_000  # bytes
_LONGEST_FIELD = 10_000  # bytes of what stands in a form beside the photo
_LONGEST_NAME = 200
_MAX_WASTED = 50_000_000  # bytes that are taken off a sender's hands, so that it hears that they are too many


@runtime_checkable
class UploadedFile(ImageFile, Protocol):
    """A file that is closed by whoever has it."""

    def close(self) -> None:
        """Close it."""


@dataclass(frozen=True)
class Upload:
    """A photo that came over the network.

    Attributes:
        file: its content; whoever has it closes it.
        name: what its sender calls it, without folders.
    """

    file: UploadedFile
    name: str


async def read_upload(request: Request, max_bytes: int) -> Upload:
    """Read the photo of a request.

    Raises:
        HttpError: there is none, or it is too large.
        ClientDisconnect: the sender has gone.
    """
    body = _counted(request, max_bytes)
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await _from_form(request, body)
    file: Any = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115  (it outlives this function)
    try:
        async for chunk in body:
            file.write(chunk)
        if not file.tell():
            raise _no_photo()
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return Upload(file, "photo")


async def _counted(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Hand on what comes until it is too much; of what is too much, take a part and forget it, then say so."""
    count = 0
    async for chunk in request.stream():
        count += len(chunk)
        if count > max_bytes + _MAX_WASTED:
            break
        if count <= max_bytes:
            yield chunk
    if count > max_bytes:
        raise HttpError(
            413,
            f"photo: the upload is larger than {max_bytes / 1e6:g} MB; send a smaller one",
            {"Connection": "close"},
        )


async def _from_form(request: Request, body: AsyncGenerator[bytes, None]) -> Upload:
    parser = MultiPartParser(request.headers, body, max_files=1, max_fields=8, max_part_size=_LONGEST_FIELD)
    try:
        format = await parser.parse()
    except MultiPartException as error:
        raise HttpError(400, f"photo: the form cannot be read ({error.message}); send one file, named photo") from None
    for _, value in format.multi_items():
        if isinstance(value, UploadFile):
            if value.size:
                return Upload(value.file, _plain(value.filename))
            value.file.close()
    raise _no_photo()


def _no_photo() -> HttpError:
    return HttpError(
        400, "photo: found nothing in the request; send the photo as its body, or a form with a file photo"
    )


def _plain(name: str | None) -> str:
    """The last part of a name, as text that fits a line."""
    last = (name or "").replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(sign for sign in last if sign.isprintable())[-_LONGEST_NAME:] or "photo"
