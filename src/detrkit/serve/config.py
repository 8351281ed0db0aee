"""Settings of `serve_model`. Free of torch, so that they are checked before anything heavy is imported."""

from pydantic import BaseModel, ConfigDict, Field, field_validator

from detrkit.errors import ConfigError, arg
from detrkit.inference.options import Threshold, parse_threshold

THREAD_PREFIX = "detrkit serve"  # of the names of the server's threads


class ServeConfig(BaseModel):
    """Settings of `serve_model`; also the options of the `serve` command."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: Threshold = Field(
        0.5, description="Minimum score of a detection for requests without `?threshold=0.7`, 0 to 1, or `auto`"
    )
    batch_size: int = Field(8, ge=1, description="Maximum number of images per batch on each device")
    batch_wait_ms: float = Field(
        5.0, description="Maximum milliseconds that an image waits for others on an idle device"
    )
    max_queue: int = Field(256, ge=1, description="Maximum number of images in progress; further ones are answered 503")
    timeout: float = Field(
        30.0,
        description="Seconds for an image to arrive, and seconds for its answer; later ones are answered 408 and 504",
    )
    shutdown_timeout: float = Field(
        5.0, description="Seconds that requests in progress have to finish after SIGTERM or Ctrl-C; then answered 503"
    )
    workers: int = Field(
        2, ge=1, description="Processes that read images; as many more, started when needed, read large ones"
    )
    decode_timeout: float = Field(10.0, description="Maximum seconds of processor time to read one image")
    max_connections: int = Field(
        1000, ge=1, description="Maximum number of connections; at most half of the file handles that the system allows"
    )
    max_connections_per_address: int = Field(
        200,
        ge=1,
        description="Maximum number of connections of one address (IPv6: /64), or of requests in progress that a trusted "
        "proxy forwards for it",
    )
    max_upload_mb: float = Field(20.0, description="Maximum size of an upload in megabytes")
    max_megapixels: float = Field(50.0, description="Maximum size of an image in megapixels")

    @field_validator("threshold", mode="before")
    @classmethod
    def _parse_threshold(cls, value: object) -> Threshold:
        return parse_threshold(value)

    def model_post_init(self, _context: object, /) -> None:
        """Check the limits.

        Raises:
            ConfigError: a value is out of range.
        """
        for name in ("timeout", "shutdown_timeout", "decode_timeout", "max_upload_mb", "max_megapixels"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"{arg(name, value)} is out of range; use a number above 0")
        if not 0 <= self.batch_wait_ms <= 1000 * self.timeout:
            raise ConfigError(
                f"{arg('batch_wait_ms', self.batch_wait_ms)} is out of range; use 0 to {1000 * self.timeout:g} "
                f"milliseconds, the {arg('timeout')}"
            )

    @property
    def max_upload_bytes(self) -> int:
        """Maximum size of a request body, the image and the form around it."""
        return int(self.max_upload_mb * 1e6)

    @property
    def max_pixels(self) -> int:
        """Maximum number of pixels of an image."""
        return int(self.max_megapixels * 1e6)
