"""How a service is set up: where it listens, who may ask, and how much a request may ask for."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from groundglass.errors import ServiceError
from groundglass.imaging.source import Limits

MIB, GIB = 2**20, 2**30

TOKEN_VARIABLE = "GROUNDGLASS_TOKEN"  # noqa: S105 - the name of a variable, not its value
_SHORTEST_TOKEN = 16

READING_LIMITS = Limits(pixels=2**24, file_bytes=GIB, archive_bytes=8 * GIB, members=20_000, frames=5_000)
"""What a single upload may unpack to: tighter than on the command line, whose files are the user's own."""


@dataclass(frozen=True)
class Capacity:
    """How much a service takes on; beyond it there is a clear answer.

    Attributes:
        requests: uploads received or worked on at the same time.
        client_requests: of these, by one client's address; None for as many.
        upload_bytes: of one request.
        files: of one request.
        slices: of one request.
        scratch_bytes: of all uploads in flight together, on disk or in memory.
        seconds: that one request may take, from its first byte to its last prediction.
        idle_seconds: that a client may keep the service waiting, for the next bytes or to take an answer.
        kept_bytes: of results kept in memory for links.
        kept_results: how many of them.
        kept_seconds: how long.
        drain_seconds: that new requests are still taken after the service was told to end.
    """

    requests: int = 64
    client_requests: int | None = None
    upload_bytes: int = 512 * MIB
    files: int = 2_000
    slices: int = 5_000
    scratch_bytes: int = 4 * GIB
    seconds: float = 300.0
    idle_seconds: float = 20.0
    kept_bytes: int = 512 * MIB
    kept_results: int = 100
    kept_seconds: float = 900.0
    drain_seconds: float = 1.0


@dataclass(frozen=True)
class Settings:
    """A service.

    Attributes:
        host: name or address to listen at.
        port: 0 for any that is free.
        token: that every request but those for health must carry; None for none.
        workers: threads that read and judge slices; 0 for one per core.
        capacity: how much it takes on.
        reading: what a single upload may unpack to.
        scratch: folder for uploads while they are worked on; the system's temporary folder unless given.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    workers: int = 0
    capacity: Capacity = Capacity()
    reading: Limits = READING_LIMITS
    scratch: Path | None = None

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < _SHORTEST_TOKEN:
            raise ServiceError(
                f"the token has {len(self.token)} characters; {_SHORTEST_TOKEN} are the least. "
                "Make one: python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        if self.token is None and not is_loopback(self.host):
            raise ServiceError(
                f"{self.host}: refusing to listen beyond this machine without a token; "
                f"set {TOKEN_VARIABLE} or --token-file, or listen at 127.0.0.1"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the service, so that no token is asked for."""
        return self.token is None


def is_loopback(host: str) -> bool:
    """Whether a host name or address stands for this machine alone; of names only ``localhost`` does."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(path: Path | None) -> str | None:
    """The token from a file, else from the environment; None where neither has one.

    Raises:
        ServiceError: the file cannot be read or is empty.
    """
    if path is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip() or None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ServiceError(f"{path}: the token cannot be read ({error})") from None
    if not token:
        raise ServiceError(f"{path}: holds no token")
    return token
