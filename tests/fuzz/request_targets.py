"""Targets: what clients of the server send, decoded as the server does it."""

import asyncio
import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import Request
from PIL import Image

from detrkit.data.decoding import UPLOAD_FORMATS, decode_file
from detrkit.data.images import has_image_content, read_image, read_image_file, read_image_size
from detrkit.errors import DatasetError
from detrkit.serve.http_errors import HttpError
from detrkit.serve.unreadable import HEAD_BYTES, describe_unsupported
from detrkit.serve.uploads import read_upload
from tests.fuzz.dataset_targets import image
from tests.fuzz.target import Target

_MAX_PIXELS = 1_000_000
_MAX_WORK = 2 * _MAX_PIXELS
_MAX_BODY = 100_000

# images: the first part is the file name


def _saved(picture: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def _upload_seeds(_folder: Path, nasty: Path | None) -> Iterable[Sequence[bytes]]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield [
            b"a.png",
            _saved(
                noise.convert(mode)
                if mode != "I;16"
                else Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24)),
                "PNG",
            ),
        ]
    for options in (
        {},
        {"progressive": True},
        {"exif": exif},
        {"quality": 100, "subsampling": 0},
        {"comment": b"x"},
        {"restart_marker_rows": 1},
    ):
        yield [b"a.jpg", _saved(noise, "JPEG", **options)]
    yield [b"a.jpg", _saved(noise.convert("L"), "JPEG")]
    yield [b"a.jpg", _saved(noise.convert("CMYK"), "JPEG")]
    others = [noise.rotate(90).resize((24, 16)), noise]
    yield [b"a.gif", _saved(noise, "GIF", save_all=True, append_images=others, transparency=3, loop=0)]
    yield [b"a.png", _saved(noise, "PNG", save_all=True, append_images=others)]
    for options in ({"lossless": True}, {"quality": 50}, {"save_all": True, "append_images": others}, {"exif": exif}):
        yield [b"a.webp", _saved(noise, "WEBP", **options)]
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield [b"a.bmp", _saved(noise.convert(mode), "BMP")]
    yield [b"a.tif", image((24, 16), ".tif")]
    for format in ("AVIF", "ICO", "TGA", "PPM", "PCX", "JPEG2000", "MPO"):
        if format in Image.SAVE or (Image.init() and format in Image.SAVE):
            yield [b"a", _saved(noise, format)]
    for shape, kind in (((4, 6), np.uint8), ((4, 6, 3), np.uint8), ((4, 6, 3), np.uint16)):
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(shape, kind))
        yield [b"a.npy", buffer.getvalue()]
    if nasty is not None:
        paths = (path for path in sorted((nasty / "images").iterdir()) if path.is_file())
        yield from (
            [path.name.encode("ascii", "replace"), content]
            for path in paths
            if len(content := path.read_bytes()) < 12_000
        )


def _upload_run(files: Sequence[bytes], _folder: Path) -> None:
    name = files[0].decode("utf-8", "replace")
    describe_unsupported(files[1][:HEAD_BYTES])

    def before_decoding(pixels: int, passes: int) -> None:
        if pixels * (1 + passes / 8) > _MAX_WORK:
            raise DatasetError(f"{name}: takes too much work")

    pixels = decode_file(io.BytesIO(files[1]), name, 3, _MAX_PIXELS, UPLOAD_FORMATS, before_decoding)
    assert pixels.shape[0] * pixels.shape[1] <= _MAX_PIXELS, pixels.shape


# images of all formats, as in datasets


def _image_run(files: Sequence[bytes], folder: Path) -> None:
    path = folder / f"image{Path(files[0].decode('ascii', 'replace')).suffix[:6]}"
    if not path.name.isprintable() or "/" in path.name:
        path = folder / "image"
    path.write_bytes(files[1])
    has_image_content(path)
    with suppress(DatasetError):
        read_image_size(path)
    for channels in (3, 1):
        with suppress(DatasetError):
            read_image_file(io.BytesIO(files[1]), path.name, channels, _MAX_PIXELS)
    if read_image_size(path)[0] * read_image_size(path)[1] <= _MAX_PIXELS:
        read_image(path)


# requests: the first part is the Content-Type, the second the body


def _form_seeds(_folder: Path, _nasty: Path | None) -> Iterable[Sequence[bytes]]:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\nabc\r\n'
        b'--x\r\nContent-Disposition: form-data; name="more"\r\n\r\n0.5\r\n--x--\r\n'
    )
    yield [b"multipart/form-data; boundary=x", body.replace(b"more", b"threshold")]
    for kind in (
        b"multipart/form-data; boundary=x",
        b'multipart/form-data; charset=punycode; boundary="x"',
        b"image/png",
    ):
        yield [kind, body]
    yield [b"multipart/form-data; boundary=x", body.replace(b'filename="a.png"', b"filename*=UTF-8''%e2%82%ac.png")]
    yield [b"application/x-www-form-urlencoded", b"image=abc&threshold=0.5"]


def _form_run(files: Sequence[bytes], _folder: Path) -> None:
    headers = [(b"content-type", files[0].replace(b"\r", b"").replace(b"\n", b""))]
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers, "query_string": b""}
    chunks = [files[1][: len(files[1]) // 2], files[1][len(files[1]) // 2 :]]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def read() -> None:
        upload = await read_upload(Request(scope, receive), _MAX_BODY)
        try:
            assert upload.name.isprintable()
        finally:
            upload.file.close()

    try:
        asyncio.run(read())
    except HttpError as error:
        assert 400 <= error.status_code < 500, error.detail
        raise DatasetError(error.detail) from None  # whose message is checked


TARGETS = (
    Target("upload", ("bytes", "image"), _upload_run, _upload_seeds),
    Target("image", ("bytes", "image"), _image_run, _upload_seeds),
    Target("form", ("text", "form"), _form_run, _form_seeds),
)
