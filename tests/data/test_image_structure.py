"""Files that are small and would take minutes or gigabytes are refused before they are decoded; unusual ones are read."""

import io
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from benchmarks.hostile import (
    avif_of_frame,
    baseline_jpeg_of_scans,
    bitmap_header,
    gif_of_frame,
    hostile_images,
    icon,
    jpeg_2000,
    jpeg_of_scans,
    png,
    tiff,
    tiff_in_a_tile,
    webp_of_canvas,
)
from PIL import Image

from detrkit import DatasetError
from detrkit.data import decoding
from detrkit.data.avif_structure import frame_sizes
from detrkit.data.image_structure import MAX_SCANS, check_structure
from detrkit.data.images import has_image_content, open_image, read_image_file, read_image_size

STRIPS = {259: (3, [8]), 273: (4, [0]), 278: (4, [2**31]), 279: (4, [100])}


def save(content: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (jpeg_of_scans((1448, 1448), MAX_SCANS + 1), "101 or more scans of 2096704 pixels"),
        (jpeg_of_scans((16, 16), 30_000), "101 or more scans"),
        (baseline_jpeg_of_scans((64, 48), 2000), "101 or more scans"),
        (b"\xff\xd8" + b"\xff\xfe\0\2" * 11_000, "10001 or more segments"),
        (b"\xff\xd8" + b"\xff" * 10**6, "more than 65536 bytes between two segments"),
        (b"\xff\xd8" + b"\xff" * 10**6 + b"\xfe\0\2", "more than 65536 bytes between two segments"),
        (png((8, 8), *[(b"tEXt", b"a\0")] * 11_000), "or more chunks in its first"),
        (png((8, 8), *[(b"IDAT", b"")] * 11_000), "or more chunks in its first"),
        (tiff_in_a_tile((64, 64), (40_000, 40_000)), "has tiles of 40000 x 40000 pixels"),
        (tiff_in_a_tile((64, 64), (40_000, 40_000), is_big=True), "has tiles of 40000 x 40000 pixels"),
        (tiff_in_a_tile((64, 64), (64, 2**28)), "has tiles of 64 x 268435456 pixels"),
        (icon(png((5000, 5000))), "contains an image of 5000 x 5000 pixels"),
        (icon(bitmap_header((5000, 5000))), "contains an image of 5000 x 5000 pixels"),
        (webp_of_canvas((16_383, 16_383)), "16383 x 16383 pixels, more than the maximum"),
        (webp_of_canvas((2**24, 255)), "16777216 x 255 pixels, more than the maximum"),
        (gif_of_frame((65_000, 65_000)), "decompresses to more than"),
        (avif_of_frame((5000, 5000)), "contains a frame of 5000 x 5000 pixels"),
        (jpeg_2000((255, 255), (1, 1)), "has 65025 tiles"),
        (jpeg_2000((60_000, 60_000), (60_000, 60_000)), "60000 x 60000 pixels, more than the maximum"),
        (jpeg_2000((12_000, 12_000), (12_000, 12_000), code_block=2), "code blocks or precincts of 16 pixels"),
        (png((60_000, 60_000), pixels=False), "decompresses to more than"),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_hostile_structure_is_refused(tmp_path: Path, content: bytes, message: str, suffix: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        open_image(save(content, tmp_path, f"a.{suffix}"))
    assert "\n" not in str(caught.value)
    with pytest.raises(DatasetError, match=message):
        read_image_file(io.BytesIO(content), "a.png")


def test_large_image_inside_an_icon_is_not_decoded_by_reading_its_size(tmp_path: Path) -> None:
    path = save(icon(png((5000, 5000))), tmp_path, "a.ico")
    with pytest.raises(DatasetError, match="contains an image of 5000 x 5000"):
        read_image_size(path)
    assert not has_image_content(path)


def test_tiles_of_further_pages_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    pages = [Image.new("L", (64, 64), value) for value in range(5)]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    checked = []
    monkeypatch.setattr(decoding, "check_tiff_blocks", lambda page, where: checked.append(page.tell()))
    assert read_image_file(file, "a.tif", channels=5).shape == (5, 64, 64)
    assert checked == [0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_of_encoders_are_read(progressive: bool, mode: str) -> None:
    file = io.BytesIO()
    noise = Image.effect_noise((300, 200), 80).convert(mode)
    noise.save(file, "JPEG", progressive=progressive, comment=b"\xff\xda" * 300, restart_marker_blocks=1)
    scans = check_structure(file, "a.jpg")
    assert scans <= 18
    assert (scans > 1) is progressive
    assert read_image_file(file, "a.jpg").shape == (3, 200, 300)


def test_scan_by_scan_sequential_jpeg_is_read() -> None:
    content = baseline_jpeg_of_scans((64, 48), 3)
    assert check_structure(io.BytesIO(content), "a.jpg") == 3
    assert read_image_file(io.BytesIO(content), "a.jpg").shape == (3, 48, 64)


def test_scans_of_a_second_image_in_the_file_do_not_count() -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, "JPEG", progressive=True)
    content = file.getvalue() + jpeg_of_scans((16, 16), 1000)
    assert read_image_file(io.BytesIO(content), "a.jpg").shape == (3, 48, 64)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"])
def test_tiffs_of_tools_are_read(compression: str | None) -> None:
    file = io.BytesIO()
    Image.effect_noise((600, 400), 80).convert("RGB").save(file, "TIFF", compression=compression)
    assert read_image_file(file, "a.tif").shape == (3, 400, 600)
    strip = tiff((4, 4), {259: (3, [1]), 273: (4, [0]), 278: (4, [2**32 - 1]), 279: (4, [16])}, bytes(range(16)))
    assert read_image_file(io.BytesIO(strip), "a.tif").shape == (3, 4, 4)  # rows per strip are unlimited by default


@pytest.mark.parametrize("side", [16, 48, 256, 1024])
def test_icons_are_read(side: int) -> None:
    file = io.BytesIO()
    Image.new("RGBA", (side, side), "red").save(file, "ICO", sizes=[(min(side, 256), min(side, 256))])
    assert read_image_file(file, "a.ico").shape[0] == 3
    assert read_image_file(io.BytesIO(icon(png((side, side)))), "a.ico").shape == (3, side, side)


@pytest.mark.parametrize("options", [{}, {"tile_size": (64, 64)}, {"codeblock_size": (16, 16)}, {"no_jp2": True}])
def test_jpeg_2000_files_are_read(options: dict[str, object]) -> None:
    file = io.BytesIO()
    Image.effect_noise((300, 200), 80).convert("RGB").save(file, "JPEG2000", **options)
    assert read_image_file(file, "a.jp2").shape == (3, 200, 300)


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("frames", [1, 3])
def test_webps_are_read(lossless: bool, frames: int) -> None:
    file = io.BytesIO()
    images = [Image.new("RGBA", (60, 40), (shade, 0, 0, 90)) for shade in range(frames)]
    images[0].save(file, "WEBP", lossless=lossless, save_all=True, append_images=images[1:])
    assert read_image_file(file, "a.webp").shape == (3, 40, 60)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("size", [(60, 40), (333, 1), (1030, 770)])
def test_frames_of_avifs_have_their_size(frames: int, size: tuple[int, int]) -> None:
    file = io.BytesIO()
    images = [Image.new("RGBA", size, (shade, 0, 0, 90)) for shade in range(frames)]
    images[0].save(file, "AVIF", save_all=True, append_images=images[1:], speed=10)
    sizes = list(frame_sizes(file.getvalue()))
    assert sizes
    assert set(sizes) == {size}
    assert read_image_file(file, "a.avif").shape == (3, size[1], size[0])


@pytest.mark.parametrize("seed", range(20))
def test_damaged_avifs_end_in_no_other_error(seed: int) -> None:
    content = bytearray(avif_of_frame((40, 30), (40, 30)))
    random = np.random.default_rng(seed)
    for position in random.integers(0, len(content), 1 + seed):
        content[position] = random.integers(256)
    assert len(list(frame_sizes(bytes(content)))) <= 10_000
    assert len(list(frame_sizes(bytes(content[: random.integers(len(content))])))) <= 10_000


def test_scaling_in_blocks_changes_nothing() -> None:
    values = np.random.default_rng(0).normal(100, 300, (1500, 1100)).astype(np.float32)
    values[3, 4], values[5, 6] = np.nan, np.inf
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF")
    finite = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    expected = np.clip(finite / 65535 * 255, 0, 255).astype(np.uint8)
    assert np.array_equal(read_image_file(file, "a.tif", channels=1)[0], expected)


DECODE_ALL = """
import json, resource, sys, time
from pathlib import Path
from types import ModuleType
from detrkit import DatasetError
from detrkit.data import decoding
from detrkit.data.images import open_image, read_image_size
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
open_image(Path(sys.argv[1]))  # decoders are loaded
# the peak of a new program begins at that of its parent
Path("/proc/self/clear_refs").write_text("5")
before = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
for path in sys.argv[2:]:
    start = time.process_time()
    for read in (open_image, read_image_size):
        try:
            read(Path(path))
        except DatasetError as error:
            assert "\\n" not in str(error)
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    print(json.dumps([path, time.process_time() - start, (peak - before) // 1024]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_hostile_files_take_little_time_and_memory(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    paths = [str(save(content, tmp_path, name)) for name, content in hostile_images().items()]
    command = [sys.executable, "-c", DECODE_ALL, str(tmp_path / "good.png"), *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths)
    for path, seconds, mebibytes in map(json.loads, lines):
        assert seconds < 5, path  # of processor time
        assert mebibytes < 300, path


def test_heic_is_read_if_its_decoder_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "HEIF" not in decoding.readable_formats() or "pillow_heif" in sys.modules
    module = ModuleType("pillow_heif")
    module.register_heif_opener = lambda: Image.OPEN.setdefault("HEIF", Image.OPEN["PNG"])  # type: ignore[attr-defined]
    monkeypatch.setattr(Image, "OPEN", {**Image.OPEN})
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    decoding.readable_formats.cache_clear()
    try:
        assert "HEIF" in decoding.readable_formats()
        assert "HEIF" in decoding.readable_formats(decoding.UPLOAD_FORMATS)
    finally:
        decoding.readable_formats.cache_clear()
