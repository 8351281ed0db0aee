"""Memory, file handles, threads and processes of the server under a mixed load.

    python -m benchmarks.soak [--minutes 30] [--model detr-tiny] [--size 64] [--clients 8] [--plot soak.png]

Serves a model with random weights in a process of its own. Clients send good images, malformed and hostile ones, slow and
incomplete requests, and disconnect, all at random. Every few seconds, the server's memory, file handles, threads and child
processes are read from /proc (Linux). Prints a table, writes a plot, and compares the last third of the time with the
first: the server is flat if nothing has grown by more than 5 % (memory), or by more than 2 (the others). Medians are
compared; of the memory of child processes, which rises to a gigabyte while hostile images are decoded, the lowest tenths.
"""

import argparse
import asyncio
import os
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from benchmarks.hostile import hostile_images, jpeg_of_scans, png
from benchmarks.serve import HOST, server, synthetic_jpegs, wait_until_ready, write_model

_MAX_BYTES = 3_000_000  # of a hostile image: loading the network is not the purpose
_GROWTH = 1.05  # of memory in the last third that is still flat
_MORE = 2  # further handles, threads, processes that are still flat


@dataclass(frozen=True)
class Usage:
    """Resources of the server at one moment.

    Attributes:
        minutes: since the start.
        rss_mb: memory of the server.
        children_mb: memory of its child processes.
        handles: open file handles of the server.
        threads: of the server.
        children: child processes.
        seconds: from a request for /health to its answer.
    """

    minutes: float
    rss_mb: float
    children_mb: float
    handles: int
    threads: int
    children: int
    seconds: float


class Load:
    """Clients that send requests of all kinds, and count the answers."""

    def __init__(self, port: int, model_size: int) -> None:
        self.port = port
        self.good = synthetic_jpegs(32, model_size)
        self.hostile = [one for one in hostile_images().values() if len(one) < _MAX_BYTES]
        self.hostile += [jpeg_of_scans((8000, 6000), 80), png((4000, 3000))]  # large ones that pass all checks
        self.answers: Counter[str] = Counter()
        self.slowest_good = 0.0
        self.kinds: Sequence[tuple[Callable[[], Awaitable[str]], int]] = (
            (self.send_good, 60),
            (self.send_malformed, 15),
            (self.send_hostile, 8),
            (self.disconnect, 8),
            (self.trickle, 3),
            (self.send_what_is_not_http, 3),
            (self.get_page, 3),
        )

    async def run(self, end: float) -> None:
        """Send requests, one after the other, until a time of the monotonic clock."""
        kinds, weights = zip(*self.kinds, strict=True)
        while time.monotonic() < end:
            kind = random.choices(kinds, weights)[0]
            try:
                status = await kind()
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                status = type(error).__name__
            self.answers[f"{kind.__name__} {status}"] += 1

    async def send_good(self) -> str:
        """Post a good image."""
        start = time.monotonic()
        status = await self._post(random.choice(self.good))
        self.slowest_good = max(self.slowest_good, time.monotonic() - start)
        return status

    async def send_malformed(self) -> str:
        """Post a good image with some bytes changed or cut off."""
        content = bytearray(random.choice(self.good))
        for _ in range(random.randrange(1, 20)):
            content[random.randrange(len(content))] = random.randrange(256)
        return await self._post(bytes(content[: random.randrange(1, len(content) + 1)]))

    async def send_hostile(self) -> str:
        """Post an image that is made to occupy a decoder."""
        return await self._post(random.choice(self.hostile))

    async def disconnect(self) -> str:
        """Post a part of an image, or all of it, and leave."""
        content = random.choice([*self.good, *self.hostile])
        await self._exchange(_request(content)[: random.randrange(len(content))], is_answered=False)
        return "left"

    async def trickle(self) -> str:
        """Send a request piece by piece, and give up after a while."""
        _, writer = await asyncio.open_connection(HOST, self.port)
        content = _request(random.choice(self.good))
        try:
            for start in range(0, random.randrange(400), 10):
                writer.write(content[start : start + 10])
                await writer.drain()
                await asyncio.sleep(0.2)
        finally:
            writer.close()
        return "left"

    async def send_what_is_not_http(self) -> str:
        """Send bytes at random."""
        return await self._exchange(random.randbytes(random.randrange(1, 3000)) + b"\r\n\r\n")

    async def get_page(self) -> str:
        """Get the page, the metrics, or what is not there."""
        path = random.choice(["/", "/metrics", "/openapi.json", "/nothing"])
        return await self._exchange(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())

    async def _post(self, content: bytes) -> str:
        return await self._exchange(_request(content))

    async def _exchange(self, request: bytes, *, is_answered: bool = True) -> str:
        reader, writer = await asyncio.open_connection(HOST, self.port)
        try:
            writer.write(request)
            await writer.drain()
            if not is_answered:
                return ""
            answer = await asyncio.wait_for(reader.read(), 60)
            status = re.match(rb"HTTP/1.1 (\d+)", answer)
            return status[1].decode() if status else "closed"
        finally:
            writer.close()


def _request(content: bytes) -> bytes:
    head = f"POST /predict HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def children_of(pid: int) -> list[int]:
    """Return the child processes of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text(encoding="ascii").split()]


def memory_of(pid: int) -> float:
    """Return the resident memory of a process in MB; 0 if it has ended."""
    try:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    except OSError:
        return 0.0
    return int(found[1]) / 1000 if found else 0.0


async def watch(pid: int, load: Load, end: float, interval: float) -> list[Usage]:
    """Read what the server uses until a time of the monotonic clock."""
    start = time.monotonic()
    samples = []
    while time.monotonic() < end:
        before = time.monotonic()
        await load._exchange(f"GET /health HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        answered = time.monotonic()
        children = children_of(pid)
        samples.append(
            Usage(
                (answered - start) / 60,
                memory_of(pid),
                sum(memory_of(child) for child in children),
                sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
                sum(1 for _ in Path(f"/proc/{pid}/task").iterdir()),
                len(children),
                answered - before,
            )
        )
        await asyncio.sleep(interval)
    return samples


def thirds(samples: Sequence[Usage], name: str) -> tuple[float, float]:
    """Return the medians of the first and of the last third, without the first tenth, in which the server warms up.

    Of the memory of child processes, the upper limits of the lowest tenths.
    """
    values = [float(getattr(one, name)) for one in samples[len(samples) // 10 :]]
    length = max(1, len(values) // 3)
    position = 0.1 if name == "children_mb" else 0.5
    first, last = (sorted(third)[int(position * length)] for third in (values[:length], values[-length:]))
    return first, last


_AXES = {
    "rss_mb": "server, MB",
    "children_mb": "decoding, MB",
    "handles": "file handles",
    "threads": "threads",
    "children": "child processes",
    "seconds": "/health, s",
}


def plot(samples: Sequence[Usage], path: Path) -> None:
    """Draw what the server used over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 10), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(len(_AXES), 1, sharex=True), _AXES.items(), strict=True):
        values = [getattr(one, name) for one in samples]
        axes.plot([one.minutes for one in samples], values, linewidth=0.8)
        axes.set_ylabel(label)
        axes.set_ylim(0, 1.05 * max(values))
    axes.set_xlabel("minutes")
    figure.savefig(path, dpi=110)


def report(samples: Sequence[Usage], load: Load) -> bool:
    """Print tables; return whether nothing grew."""
    rows = samples[:: max(1, len(samples) // 15)]
    print(" ".join(f"{field.name:>12}" for field in fields(Usage)))
    for one in rows:
        print(" ".join(f"{value:12.2f}" for value in astuple(one)))
    for kind, count in sorted(load.answers.items()):
        print(f"{kind:32} {count}")
    slowest = max(one.seconds for one in samples)
    print(f"slowest answer to a good image: {load.slowest_good:.2f} s; slowest /health: {slowest:.2f} s")
    is_flat = True
    for name in ("rss_mb", "children_mb", "handles", "threads", "children"):
        first, last = thirds(samples, name)
        grows = last > first * _GROWTH + 5 if name.endswith("mb") else last > first + _MORE
        is_flat = is_flat and not grows
        print(f"{name:12} first third {first:8.1f}, last third {last:8.1f}: {'grows' if grows else 'flat'}")
    return is_flat


async def soak(port: int, pid: int, arguments: argparse.Namespace) -> tuple[list[Usage], Load]:
    """Run the clients, and watch the server."""
    load = Load(port, arguments.size)
    end = time.monotonic() + 60 * arguments.minutes
    interval = min(5.0, 0.6 * arguments.minutes)
    samples, *_ = await asyncio.gather(
        watch(pid, load, end, interval), *(load.run(end) for _ in range(arguments.clients))
    )
    return samples, load


def main() -> None:
    """Run the server and its clients, and print what it used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--model", default="detr-tiny")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, default=Path("soak.png"))
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.safetensors"
        write_model(weights, arguments.model, arguments.size)
        with server(weights, 8, 1, timeout=30.0) as port:
            asyncio.run(wait_until_ready(port))
            pid = max(children_of(os.getpid()))
            samples, load = asyncio.run(soak(port, pid, arguments))
    plot(samples, arguments.plot)
    is_flat = report(samples, load)
    raise SystemExit(0 if is_flat else 1)


if __name__ == "__main__":
    main()
