"""Reading of images: orientation, conversion to RGB, malformed and malicious files."""

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from detrkit import DatasetError
from detrkit.data.images import (
    image_to_tensor,
    open_image,
    read_image,
    read_image_bytes,
    read_image_file,
    read_image_size,
    tensor_to_image,
)


def save_with_orientation(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.new("RGB", (40, 20), "black")
    picture.putpixel((0, 0), (255, 255, 255))
    picture.save(path, exif=exif)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    save_with_orientation(path, 6)  # turn right by 90 degrees to see it upright
    image = open_image(path)
    assert image.size == (20, 40)
    assert image.getpixel((19, 0)) == (255, 255, 255)


def test_exif_orientation_is_ignored_if_annotations_fit_the_stored_pixels(tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    save_with_orientation(path, 6)
    assert open_image(path, annotated_size=(20, 40)).size == (40, 20)
    assert open_image(path, annotated_size=(40, 20)).size == (20, 40)


def test_16_bit_images_are_scaled(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 32768, dtype=np.uint16)).save(path)
    assert open_image(path).getpixel((0, 0)) == (127, 127, 127)


def test_transparency_becomes_white(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(path)
    assert open_image(path).getpixel((0, 0)) == (255, 255, 255)


def test_tensors_and_pillow_images_convert_both_ways() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    tensor = image_to_tensor(Image.fromarray(pixels))
    assert tensor.shape == (3, 5, 7)
    assert np.array_equal(np.asarray(tensor_to_image(tensor)), pixels)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be read as an image"), (b"not a image", "cannot be read as an image"), (None, "no such file")],
)
def test_file_that_is_not_an_image_is_rejected(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "image.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=message) as caught:
        open_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_image_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    Image.effect_noise((200, 200), 50).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DatasetError, match="cannot be read"):
        open_image(path)


def test_folder_named_like_an_image_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(DatasetError, match="is a folder"):
        open_image(tmp_path / "folder.jpg")


def test_malicious_images_are_read_or_rejected(shared: Path) -> None:
    opened = 0
    for path in sorted((shared / "data" / "nasty" / "images").rglob("*")):
        try:
            image = open_image(path)
        except DatasetError as error:
            assert "\n" not in str(error)
            continue
        assert image.mode == "RGB"
        opened += 1
    assert opened > 20


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in (header, *chunks, (b"IEND", b""))
    )


OPEN_ALL = """
import resource, sys
from pathlib import Path
from detrkit import DatasetError
from detrkit.data.images import open_image
open_image(Path(sys.argv[1]))  # decoders are loaded
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    try:
        open_image(Path(path))
        print("opened", path)
    except DatasetError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in kilobytes on Linux only")
@pytest.mark.slow
def test_decompression_bombs_do_not_allocate_their_size(tmp_path: Path) -> None:
    zeros = zlib.compress(bytes(300_000_000), 1)
    black = zlib.compress(bytes(8 * (1 + 8 * 3)))
    (tmp_path / "good.png").write_bytes(png(8, 8, (b"IDAT", black)))
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999, 99999, 3)}"
    hostile = {
        "pixels.png": png(100_000, 100_000, (b"IDAT", zeros)),
        "text.png": png(8, 8, (b"zTXt", b"name\0\0" + zeros), (b"IDAT", black)),
        "profile.png": png(8, 8, (b"iCCP", b"name\0\0" + zeros), (b"IDAT", black)),
        "surplus.png": png(8, 8, (b"IDAT", zeros)),
        "array.npy": b"\x93NUMPY\1\0v\0" + header.ljust(118),
    }
    for name, content in hostile.items():
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in ("good.png", *hostile)]
    done = subprocess.run([sys.executable, "-c", OPEN_ALL, *paths], capture_output=True, text=True, check=True)
    *said, grown = done.stdout.splitlines()
    assert len(said) == len(hostile)
    assert "99999 x 99999 pixels, more than the maximum" in said[-1]
    assert int(grown) < 100, said  # MiB


def test_image_size_is_read_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")

    def decode(_image: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", decode)
    assert read_image_size(tmp_path / "a.png") == (20, 30)


def test_larger_pages_of_an_upload_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [Image.new("L", size) for size in ((8, 8), (900, 900), (8, 8))]
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    decoded = []
    load = TiffImagePlugin.TiffImageFile.load
    monkeypatch.setattr(
        TiffImagePlugin.TiffImageFile, "load", lambda image: (decoded.append(image.size), load(image))[1]
    )
    with pytest.raises(DatasetError, match="its 3 pages differ in size"):
        read_image_file(file, "a.tif", max_pixels=1000)
    assert set(decoded) == {(8, 8)}


def test_pages_beyond_the_channels_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, "TIFF", save_all=True, append_images=[Image.new("L", (4, 4))] * 500)
    asked = []
    seek = TiffImagePlugin.TiffImageFile.seek
    monkeypatch.setattr(
        TiffImagePlugin.TiffImageFile, "seek", lambda image, page: (asked.append(page), seek(image, page))[1]
    )
    assert read_image_file(file, "a.tif").shape == (3, 4, 4)  # the first page
    assert read_image_file(file, "a.tif", channels=4).shape == (4, 4, 4)  # as many as no page, but alpha, has
    assert max(asked) <= 5


def test_size_limit_applies_to_all_pages_of_an_upload() -> None:
    pages = [Image.new("L", (40, 30)) for _ in range(6)]
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    assert read_image_file(file, "a.tif", channels=6, max_pixels=2400).shape == (6, 30, 40)
    with pytest.raises(DatasetError, match="40 x 30 pixels of 6 channels, more than the maximum of 1000"):
        read_image_file(file, "a.tif", channels=6, max_pixels=2000)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.parametrize("read", [read_image, read_image_size, read_image_bytes])
@pytest.mark.parametrize("name", ["pipe.jpg", "pipe.npy"])
def test_pipe_is_refused_instead_of_waiting_for_its_writer(
    read: Callable[[Path], object], name: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DatasetError, match=r"pipe\.(jpg|npy): is a pipe or device, expected an image"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a" * 300 + ".jpg", "a" * 300 + ".npy"])
def test_name_that_is_too_long_for_a_file_is_that_of_no_file(name: str, tmp_path: Path) -> None:
    for read in (open_image, read_image, read_image_bytes, read_image_size):
        with pytest.raises(DatasetError, match="no such file, expected an image"):
            read(tmp_path / name)
