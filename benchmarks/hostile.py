"""Image files that are small and would take a decoder minutes or gigabytes, for the tests and for `benchmarks.soak`.

    python -m benchmarks.hostile FOLDER

Writes them into a folder, to be sent to a server or passed to a command.
"""

import argparse
import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

Size = tuple[int, int]  # width, height


def jpeg_of_scans(size: Size, scans: int) -> bytes:
    """Return a progressive JPEG with many further scans, each a few bytes that cover the whole image."""
    file = io.BytesIO()
    Image.new("L", size, 90).save(file, "JPEG", progressive=True)
    blocks = -(-size[0] // 8) * -(-size[1] // 8)
    # one table with two codes: 0 is a run of 2^14 or more empty blocks, 10 is one empty block
    table = b"\xff\xc4" + struct.pack(">H", 21) + b"\x10" + bytes([1, 1, *[0] * 14]) + b"\xe0\x00"
    bits = ""
    while blocks >= 2**14:
        run = min(blocks, 2**15 - 1)
        bits += "0" + format(run - 2**14, "014b")
        blocks -= run
    bits += "10" * blocks
    bits += "1" * (-len(bits) % 8)
    data = bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)).replace(b"\xff", b"\xff\x00")
    scan = b"\xff\xda" + struct.pack(">H", 8) + b"\x01\x01\x00" + bytes([1, 63, 0]) + data
    return file.getvalue()[:-2] + table + scan * scans + b"\xff\xd9"


def baseline_jpeg_of_scans(size: Size, scans: int) -> bytes:
    """Return a sequential JPEG whose components come one by one, again and again."""
    file = io.BytesIO()
    Image.new("YCbCr", size).save(file, "JPEG", subsampling=0)
    content = file.getvalue()
    start = content.index(b"\xff\xda")
    one = b"\xff\xda" + struct.pack(">H", 8) + b"\x01\x01\x00" + bytes([0, 63, 0]) + content[start + 14 : -2]
    return content[:start] + one * scans + b"\xff\xd9"


def tiff(size: Size, tags: dict[int, tuple[int, Sequence[int]]], data: bytes, *, is_big: bool = False) -> bytes:
    """Return a TIFF or BigTIFF of one page.

    Args:
        size: of the image.
        tags: further tags with their types (3: 16 bits, 4: 32 bits) and values; the offset in 273 or 324 is filled in.
        data: of its single tile or strip.
        is_big: write a BigTIFF.
    """
    entries = {
        256: (4, [size[0]]), 257: (4, [size[1]]), 258: (3, [8]), 262: (3, [1]), 277: (3, [1]), **tags
    }  # fmt: skip
    head = b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) if is_big else b"II*\0" + struct.pack("<I", 8)
    count, entry, width = ("<Q", "<HHQ", 8) if is_big else ("<H", "<HHI", 4)
    end = len(head) + struct.calcsize(count) + len(entries) * (struct.calcsize(entry) + width) + width
    directory = struct.pack(count, len(entries))
    for tag, (kind, values) in sorted(entries.items()):
        values = [end] if tag in (273, 324) else values
        directory += struct.pack(entry, tag, kind, len(values))
        directory += b"".join(struct.pack("<H" if kind == 3 else "<I", value) for value in values).ljust(width, b"\0")
    return head + directory + bytes(width) + data


def tiff_in_a_tile(size: Size, tile: Size, *, is_big: bool = False) -> bytes:
    """Return a compressed TIFF that is stored in one tile, much larger than the image."""
    data = zlib.compress(bytes(1000))
    tags = {259: (3, [8]), 322: (4, [tile[0]]), 323: (4, [tile[1]]), 324: (4, [0]), 325: (4, [len(data)])}
    return tiff(size, tags, data, is_big=is_big)


def png(size: Size, *chunks: tuple[bytes, bytes], pixels: bool = True) -> bytes:
    """Return a black gray PNG with further chunks before its pixels."""
    row = 1 + size[0]
    compressor = zlib.compressobj(9)
    data = b"".join(compressor.compress(bytes(row)) for _ in range(size[1] if pixels else 0)) + compressor.flush()
    header = (b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in (header, *chunks, (b"IDAT", data), (b"IEND", b""))
    )


def icon(content: bytes, claimed: int = 16) -> bytes:
    """Return an icon that claims a size and contains an image file or bitmap."""
    return b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", claimed, claimed, 0, 0, 1, 32, len(content), 22) + content


def bitmap_header(size: Size) -> bytes:
    """Return the header of a bitmap inside an icon, without pixels."""
    return struct.pack("<IiiHHIIiiII", 40, size[0], 2 * size[1], 1, 32, 0, 0, 0, 0, 0, 0)


def webp_of_canvas(canvas: Size) -> bytes:
    """Return an animated WebP whose frame is tiny and whose canvas is not."""
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    content = bytearray(file.getvalue())
    for start, side in ((24, canvas[0]), (27, canvas[1])):
        content[start : start + 3] = (side - 1).to_bytes(3, "little")
    return bytes(content)


def gif_of_frame(frame: Size) -> bytes:
    """Return a GIF whose screen is 1 x 1 and whose frame is larger."""
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x44\x01\x00;"


def avif_of_frame(frame: Size, claimed: Size = (16, 16)) -> bytes:
    """Return an AVIF that claims a size and contains a frame of another one."""
    file = io.BytesIO()
    Image.new("RGB", frame).save(file, "AVIF", quality=30, speed=10)
    content = file.getvalue()
    start = content.index(b"ispe") + 8
    return content[:start] + struct.pack(">II", *claimed) + content[start + 8 :]


def jpeg_2000(size: Size, tile: Size, code_block: int = 6, components: int = 1) -> bytes:
    """Return the headers of a JPEG 2000 code stream, with code blocks of 2^n pixels on each side."""
    siz = struct.pack(">H8IH", 0, *size, 0, 0, *tile, 0, 0, components) + bytes([7, 1, 1]) * components
    cod = bytes([0, 0, 0, 1, 0, 5, code_block - 2, code_block - 2, 0, 1])
    qcd = bytes([0x40, *[0x48] * 16])
    segments = ((0x51, siz), (0x52, cod), (0x5C, qcd))
    head = b"".join(struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content for marker, content in segments)
    return b"\xff\x4f" + head + b"\xff\x90\0\x0a\0\0\0\0\0\0\0\1\xff\x93\xff\xd9"


def hostile_images() -> dict[str, bytes]:
    """Return files by their names: all are refused, or read as cheaply as an image of their size."""
    zeros = zlib.compress(bytes(200_000_000), 1)
    return {
        "scans.jpg": jpeg_of_scans((1448, 1448), 30_000),
        "scans-baseline.jpg": baseline_jpeg_of_scans((64, 48), 5_000),
        "fillers.jpg": b"\xff\xd8" + b"\xff" * 10_000_000 + b"\xe0\0\2",
        "tile.tif": tiff_in_a_tile((64, 64), (40_000, 40_000)),
        "tile-big.tif": tiff_in_a_tile((64, 64), (40_000, 40_000), is_big=True),
        "icon.ico": icon(png((13_000, 13_000))),
        "pixels.png": png((60_000, 60_000), pixels=False),
        "text.png": png((8, 8), (b"zTXt", b"name\0\0" + zeros)),
        "profile.png": png((8, 8), (b"iCCP", b"name\0\0" + zeros)),
        "chunks.png": png((8, 8), *[(b"tEXt", b"a\0")] * 200_000),
        "canvas.webp": webp_of_canvas((16_383, 16_383)),
        "frame.gif": gif_of_frame((65_000, 65_000)),
        "frame.avif": avif_of_frame((8000, 6000)),
        "tiles.j2k": jpeg_2000((255, 255), (1, 1)),
    }


def main() -> None:
    """Write the files into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files are written")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in hostile_images().items():
        (folder / name).write_bytes(content)
        print(f"{folder / name}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
