"""How a service is set up, by the options of ``groundglass serve``: where it listens, who may use it, its limits."""

import os
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

from typer import Option

from groundglass.errors import ServiceError
from groundglass.imaging.source import Limits

MIB = 2**20

_TOKEN_VARIABLE = "GROUNDGLASS_TOKEN"  # noqa: S105 - the name of a variable, not its value
_TOKEN = f"Holds the bearer token; otherwise {_TOKEN_VARIABLE} does."
_SHORTEST_TOKEN, _LONGEST = 16, 366 * 86400.0
# What one uploaded file may unpack to: tighter than on the command line, whose files are the user's own.
_READING = Limits(archive_bytes=8192 * MIB, members=20_000, frames=5_000)


@dataclass(frozen=True)
class Settings:
    """A service and its limits, each of which has a clear answer beyond it. Times in seconds.

    Raises:
        ServiceError: the token is too short, cannot be sent, or lacks where other machines could reach the service.
    """

    host: Annotated[str, Option(help="Address to listen at; beyond this machine only with a token.")] = "127.0.0.1"
    port: Annotated[int, Option(min=0, max=65535, help="0: any that is free.")] = 8000
    token_file: Annotated[Path | None, Option(exists=True, dir_okay=False, help=_TOKEN)] = None
    workers: Annotated[int, Option(min=0, help="Threads that classify; 0: one per core.")] = 0
    upload_directory: Annotated[Path | None, Option(help="Of uploads in flight; in memory: /dev/shm.")] = None
    requests: Annotated[int, Option(min=1, help="Uploads in flight.")] = 64
    upload_mib: Annotated[int, Option(min=1, help="Size of one upload.")] = 512
    uploads_mib: Annotated[int, Option(min=1, help="Size of all uploads in flight.")] = 4096
    unpacked_mib: Annotated[int, Option(min=1, help="Size of one file after decompression.")] = 1024
    pixels: Annotated[int, Option(min=1, help="Of one slice.")] = 2**24
    files: Annotated[int, Option(min=1, help="Of one upload.")] = 2_000
    slices: Annotated[int, Option(min=1, help="Of one upload.")] = 5_000
    seconds: Annotated[float, Option(min=0.1, max=_LONGEST, help="That one request may take.")] = 300.0
    idle_seconds: Annotated[float, Option(min=0.1, max=_LONGEST, help="That a client may keep it waiting.")] = 20.0
    keep_mib: Annotated[int, Option(min=0, help="Size of results kept in memory.")] = 1024
    keep_seconds: Annotated[float, Option(min=0, max=_LONGEST, help="How long they are kept.")] = 900.0
    drain_seconds: Annotated[float, Option(min=0, max=_LONGEST, help="New requests are accepted after SIGTERM.")] = 1.0
    token: str | None = field(init=False, repr=False)  # of every request but those for the page and health

    def __post_init__(self) -> None:
        given = os.environ.get(_TOKEN_VARIABLE) or None
        if self.token_file is not None:
            given = self.token_file.read_text(errors="replace")
        object.__setattr__(self, "token", given and given.strip())
        if self.token is not None and len(self.token) < _SHORTEST_TOKEN:
            raise ServiceError(
                f"the token has {len(self.token)} characters, at least {_SHORTEST_TOKEN} are needed. "
                "Make one: python -c 'import secrets; print(secrets.token_urlsafe())'"
            )
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise ServiceError("the token holds characters that no header can carry; use letters, digits and - . _ ~")
        if self.token is None and not is_loopback(self.host):
            raise ServiceError(
                f"{self.host}: refusing to listen beyond this machine without a token; "
                f"set {_TOKEN_VARIABLE} or --token-file, or listen at 127.0.0.1"
            )

    @property
    def reading(self) -> Limits:
        """What one uploaded file may ask for."""
        return replace(_READING, pixels=self.pixels, file_bytes=self.unpacked_mib * MIB)


def is_loopback(host: str) -> bool:
    """Whether a host name or address stands for this machine alone; of names only ``localhost`` does."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
