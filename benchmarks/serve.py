"""How many more photos does a server answer when it predicts together those that wait together?

    python -m benchmarks.serve [--model detr-tiny] [--size 64] [--batch-size 16] [--callers 32] [--photos 600] [--rounds 5]

Draws photos and serves a model with random weights twice, each server a process of its own: one with batches, one with
`--batch-size 1`, all else alike. The same callers ask the one, then the other, round by round; each has a connection of its
own and always one photo on its way. Prints photos per second of both, their ratio, and the sizes of the batches.
"""

import argparse
import asyncio
import io
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image

from detrkit import build_model
from detrkit.checkpoints.native import Checkpoint, Preprocessing, save_checkpoint
from detrkit.data.synthetic import SHAPES, SyntheticShapes, SyntheticStyle

HOST = "127.0.0.1"


def write_model(path: Path, name: str, size: int) -> None:
    """A preset with random weights."""
    torch.manual_seed(0)
    model = build_model(name, num_classes=len(SHAPES))
    save_checkpoint(path, Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=size)))


def draw(count: int, size: int) -> list[bytes]:
    """Photos as JPEG files: lying, as cameras have them."""
    photos = []
    for sample in SyntheticShapes(count, 0, SyntheticStyle(size=max(64, size))):
        buffer = io.BytesIO()
        picture = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
        picture.resize((size * 4 // 3, size)).save(buffer, "JPEG", quality=90)
        photos.append(buffer.getvalue())
    return photos


@contextmanager
def server(weights: Path, batch_size: int, threads: int) -> Iterator[int]:
    """`detrkit serve`; gives its port."""
    words = ["serve", str(weights), "--port", "0", "--batch-size", str(batch_size), "--timeout", "600"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "detrkit", *words], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        greeting = process.stdout.readline()
        yield int(re.search(rf"{HOST}:(\d+)", greeting)[1])  # type: ignore[index]
    finally:
        process.terminate()
        process.communicate()


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    """Send a request and read its answer."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))  # type: ignore[index]
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(body.decode())
    return body


async def ask(port: int, photos: Sequence[bytes], count: int, callers: int) -> float:
    """Send photos; give how many are answered in a second."""
    numbers = iter(range(count))

    async def call() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        for number in numbers:
            photo = photos[number % len(photos)]
            head = f"POST /predict HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(photo)}\r\n\r\n"
            await exchange(reader, writer, head.encode() + photo)
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    return count / (time.perf_counter() - start)


async def mean_batch(port: int) -> float:
    """Photos that were predicted at a time, on average."""
    reader, writer = await asyncio.open_connection(HOST, port)
    text = await exchange(reader, writer, f"GET /metrics HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    writer.close()
    count, total = (
        float(re.search(rf"detrkit_batch_size_{word} ([\d.]+)", text.decode())[1])  # type: ignore[index]
        for word in ("count", "sum")
    )
    return total / count


async def until_ready(port: int) -> None:
    """Wait for a server's first answer."""
    while True:
        try:
            await mean_batch(port)
        except OSError:
            await asyncio.sleep(0.1)
        except ZeroDivisionError:  # it has predicted nothing yet
            return


def main() -> None:
    """Ask both servers in turns and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="detr-tiny")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the model")
    given = parser.parse_args()
    photos = draw(min(given.photos, 32), given.size)
    with tempfile.TemporaryDirectory() as place:
        weights = Path(place) / "model.safetensors"
        write_model(weights, given.model, given.size)
        with server(weights, given.batch_size, given.threads) as many, server(weights, 1, given.threads) as single:
            for port in (many, single):
                asyncio.run(until_ready(port))
                asyncio.run(ask(port, photos, min(given.photos, 2 * given.callers), given.callers))
            rounds = []
            for number in range(given.rounds):
                order = (many, single) if number % 2 else (single, many)
                rates = {port: asyncio.run(ask(port, photos, given.photos, given.callers)) for port in order}
                rounds.append((rates[many], rates[single]))
                ratio = rates[many] / rates[single]
                print(f"round {number + 1}: {rates[many]:.1f} and {rates[single]:.1f} photos/s, ratio {ratio:.2f}")
            ratio = statistics.median(one[0] / one[1] for one in rounds)
            what = f"{given.model}, {given.size} px, {given.callers} callers"
            size = asyncio.run(mean_batch(many))
            print(f"{what}: batches of {size:.1f} on average against one by one, median ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
