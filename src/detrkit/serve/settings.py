"""How a server behaves: batches, limits, patience."""

from dataclasses import dataclass

from detrkit.errors import ConfigError, arg
from detrkit.inference.options import Threshold


@dataclass(frozen=True)
class ServeConfig:
    """How to serve; `cli/serve.py` explains each."""

    threshold: Threshold = 0.5
    batch_size: int = 8
    batch_wait: float = 5.0  # milliseconds
    queue: int = 256
    timeout: float = 30.0  # seconds
    workers: int = 2
    upload_limit: float = 20.0  # megabytes
    pixel_limit: float = 50.0  # megapixels

    def __post_init__(self) -> None:
        """See that the numbers make sense.

        Raises:
            ConfigError: they do not.
        """
        if not isinstance(self.threshold, str) and not 0 <= self.threshold <= 1:
            raise ConfigError(f"--threshold: found {self.threshold:g}, expected a score between 0 and 1, or auto")
        for name in ("batch_size", "queue", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{arg(name)}: found {getattr(self, name)}, expected at least 1")
        for name in ("timeout", "upload_limit", "pixel_limit"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{arg(name)}: found {getattr(self, name)}, expected more than 0")
        if not 0 <= self.batch_wait <= 1000 * self.timeout:
            raise ConfigError(
                f"--batch-wait: found {self.batch_wait} milliseconds, expected 0 to {1000 * self.timeout:g}, the timeout"
            )

    @property
    def max_bytes(self) -> int:
        """Of an upload, with all that stands around the photo."""
        return int(self.upload_limit * 1e6)

    @property
    def max_pixels(self) -> int:
        """Of a photo."""
        return int(self.pixel_limit * 1e6)
