"""A server in a thread of this process, and images to send to it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from PIL import Image

from detrkit import Detector
from detrkit.data.synthetic import SyntheticShapes, SyntheticStyle
from detrkit.serve.app import build_app
from detrkit.serve.config import ServeConfig
from detrkit.serve.hosts import Access
from detrkit.serve.serve import bind, build_server
from detrkit.serve.service import Service
from tests.detectors import small_detector
from tests.waiting import PATIENCE, wait_until


class Served:
    """A running server and a client."""

    def __init__(self, service: Service, server: uvicorn.Server, port: int) -> None:
        self.service = service
        self.server = server
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def post(self, path: str, content: bytes, name: str = "image.png", **options: Any) -> httpx.Response:
        return self.client.post(path, files={"image": (name, content)}, **options)


@contextmanager
def serving(
    detectors: list[Detector],
    config: ServeConfig | None = None,
    access: Access = Access(),  # noqa: B008  (immutable)
) -> Iterator[Served]:
    with bind("127.0.0.1", 0) as listener:
        config = config or ServeConfig(threshold=0.0)
        service = Service(detectors, "tiny", config)
        server = build_server(build_app(service, access), config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: server.started or not thread.is_alive())
        assert server.started
        served = Served(service, server, listener.getsockname()[1])
        try:
            yield served
        finally:
            served.client.close()
            server.should_exit = True
            thread.join()
            assert not service.batcher.is_alive, "threads have not ended"
            wait_until(lambda: not service.decoders.pids())


@pytest.fixture(scope="session")
def detector() -> Detector:
    return small_detector()


@pytest.fixture(scope="session")
def served(detector: Detector) -> Iterator[Served]:
    with serving([detector]) as one:
        yield one


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Synthetic images of several sizes."""
    folder = tmp_path_factory.mktemp("drawn")
    sizes = ((96, 96), (96, 64), (64, 96), (80, 96))
    for number, sample in enumerate(SyntheticShapes(12, 0, SyntheticStyle(size=96))):
        picture = Image.fromarray(sample.image.permute(1, 2, 0).numpy())
        picture.crop((0, 0, *sizes[number % 4])).save(folder / f"{number}.png")
    return sorted(folder.iterdir())
