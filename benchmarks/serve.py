"""Throughput of the server with and without dynamic batching.

    python -m benchmarks.serve [--model detr-tiny] [--size 64] [--batch-size 16] [--clients 32] [--images 600] [--rounds 5]

Serves a model with random weights twice, in processes of their own: one with batches, one with `--batch-size 1`, all else
equal. The same clients send synthetic images to one and then to the other, round by round; every client has its own
connection and always one request in flight. Prints images per second of both, their ratio, and the mean batch size.
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
    """Write a preset with random weights."""
    torch.manual_seed(0)
    model = build_model(name, num_classes=len(SHAPES))
    save_checkpoint(path, Checkpoint(model.state_dict(), model.config, SHAPES, Preprocessing(image_size=size)))


def synthetic_jpegs(count: int, size: int) -> list[bytes]:
    """Return synthetic images as JPEG files in landscape format."""
    images = []
    for sample in SyntheticShapes(count, 0, SyntheticStyle(size=max(64, size))).draw_all():
        buffer = io.BytesIO()
        image = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
        image.resize((size * 4 // 3, size)).save(buffer, "JPEG", quality=90)
        images.append(buffer.getvalue())
    return images


@contextmanager
def server(weights: Path, batch_size: int, threads: int, timeout: float = 600.0) -> Iterator[int]:
    """Run `detrkit serve`; yields its port."""
    command = ["serve", str(weights), "--port", "0", "--batch-size", str(batch_size), "--timeout", str(timeout)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "detrkit", *command], stdout=subprocess.PIPE, encoding="utf-8", env=environment
    )
    try:
        assert process.stdout is not None
        first_line = process.stdout.readline()
        yield int(re.search(rf"{HOST}:(\d+)", first_line)[1])  # type: ignore[index]
    finally:
        process.terminate()
        process.communicate()


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    """Send a request and read the response."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))  # type: ignore[index]
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(body.decode())
    return body


async def measure(port: int, images: Sequence[bytes], count: int, clients: int) -> float:
    """Send `count` images and return the number of responses per second."""
    numbers = iter(range(count))

    async def client() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        for number in numbers:
            image = images[number % len(images)]
            head = f"POST /predict HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(image)}\r\n\r\n"
            await exchange(reader, writer, head.encode() + image)
        writer.close()

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return count / (time.perf_counter() - start)


async def mean_batch_size(port: int) -> float:
    """Return the mean number of images per batch."""
    reader, writer = await asyncio.open_connection(HOST, port)
    text = await exchange(reader, writer, f"GET /metrics HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    writer.close()
    count, total = (
        float(re.search(rf"detrkit_batch_size_{word} ([\d.]+)", text.decode())[1])  # type: ignore[index]
        for word in ("count", "sum")
    )
    return total / count


async def wait_until_ready(port: int) -> None:
    """Wait for the first response of a server."""
    while True:
        try:
            await mean_batch_size(port)
        except OSError:
            await asyncio.sleep(0.1)
        except ZeroDivisionError:  # no batches yet
            return


def main() -> None:
    """Measure both servers in turns and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="detr-tiny")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="threads of the model")
    arguments = parser.parse_args()
    images = synthetic_jpegs(min(arguments.images, 32), arguments.size)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.safetensors"
        write_model(weights, arguments.model, arguments.size)
        with (
            server(weights, arguments.batch_size, arguments.threads) as batched,
            server(weights, 1, arguments.threads) as single,
        ):
            for port in (batched, single):
                asyncio.run(wait_until_ready(port))
                asyncio.run(measure(port, images, min(arguments.images, 2 * arguments.clients), arguments.clients))
            rounds = []
            for number in range(arguments.rounds):
                order = (batched, single) if number % 2 else (single, batched)
                rates = {
                    port: asyncio.run(measure(port, images, arguments.images, arguments.clients)) for port in order
                }
                rounds.append((rates[batched], rates[single]))
                ratio = rates[batched] / rates[single]
                print(f"round {number + 1}: {rates[batched]:.1f} and {rates[single]:.1f} images/s, ratio {ratio:.2f}")
            ratio = statistics.median(one[0] / one[1] for one in rounds)
            setup = f"{arguments.model}, {arguments.size} px, {arguments.clients} clients"
            size = asyncio.run(mean_batch_size(batched))
            print(f"{setup}: mean batch size {size:.1f} against single images, median ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
