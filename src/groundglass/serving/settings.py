"""How a service is set up: where it listens, who may use it, and how much it accepts."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from groundglass.errors import ServiceError
from groundglass.imaging.source import Limits

TOKEN_VARIABLE = "GROUNDGLASS_TOKEN"  # noqa: S105 - the name of a variable, not its value
MIB = 2**20
READING_LIMITS = Limits(pixels=2**24, file_bytes=1024 * MIB, archive_bytes=8192 * MIB, members=20_000, frames=5_000)
"""What one uploaded file may unpack to: tighter than on the command line, whose files are the user's own."""

_SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Settings:
    """A service and its limits, each of which has a clear answer beyond it. Sizes in bytes, times in seconds.

    Raises:
        ServiceError: the token is too short, or missing where other machines could reach the service.
    """

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any that is free
    token: str | None = field(default=None, repr=False)  # of every request but those for the page and health
    workers: int = 0  # threads that read and classify slices; 0: one per core
    requests: int = 64  # uploads received or worked on at the same time
    client_requests: int | None = None  # of these, by one client's address
    upload_bytes: int = 512 * MIB  # of one request's files
    files: int = 2_000  # of one request
    slices: int = 5_000  # of one request
    uploads_bytes: int = 4096 * MIB  # of all requests in flight, on disk or in memory
    upload_directory: Path | None = None  # the system's temporary directory unless given
    seconds: float = 300.0  # that a request may take to arrive, and again to be worked on
    idle_seconds: float = 20.0  # that a client may keep the service waiting
    kept_bytes: int = 1024 * MIB  # of results kept in memory for links
    kept_results: int = 100
    kept_seconds: float = 900.0
    drain_seconds: float = 1.0  # that new requests are still accepted after SIGTERM
    reading: Limits = READING_LIMITS

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < _SHORTEST_TOKEN:
            raise ServiceError(
                f"the token has {len(self.token)} characters, at least {_SHORTEST_TOKEN} are needed. "
                "Make one: python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        if self.token is None and not is_loopback(self.host):
            raise ServiceError(
                f"{self.host}: refusing to listen beyond this machine without a token; "
                f"set {TOKEN_VARIABLE} or --token-file, or listen at 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether a host name or address stands for this machine alone; of names only ``localhost`` does."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
