"""``groundglass serve``: predictions over HTTP."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from typer import Option

from groundglass.cli.options import BundlePath, Device
from groundglass.errors import ServiceError

_TOKEN = "Holds the bearer token; otherwise GROUNDGLASS_TOKEN does."  # noqa: S105 - a help text


def serve(
    host: Annotated[str, Option(help="Address to listen at; beyond this machine only with a token.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    token_file: Annotated[Path | None, Option(exists=True, dir_okay=False, help=_TOKEN)] = None,
    bundle: BundlePath = None,
    device: Device = "cpu",
    workers: Annotated[int, Option(min=0, help="Threads that classify; 0: one per core.")] = 0,
    upload_directory: Annotated[Path | None, Option(help="Of uploads in flight; in memory: /dev/shm.")] = None,
    requests: Annotated[int, Option(min=1, help="Uploads in flight.")] = 64,
    client_requests: Annotated[int | None, Option(min=1, help="Of them by one client's address.")] = None,
    upload_mib: Annotated[int, Option(min=1, help="Size of one upload.")] = 512,
    uploads_mib: Annotated[int, Option(min=1, help="Size of all uploads in flight.")] = 4096,
    unpacked_mib: Annotated[int, Option(min=1, help="Size of one file after decompression.")] = 1024,
    pixels: Annotated[int, Option(min=1, help="Of one slice.")] = 2**24,
    files: Annotated[int, Option(min=1, help="Of one upload.")] = 2_000,
    slices: Annotated[int, Option(min=1, help="Of one upload.")] = 5_000,
    seconds: Annotated[float, Option(min=0.1, help="That one request may take.")] = 300.0,
    idle_seconds: Annotated[float, Option(min=0.1, help="That a client may keep the service waiting.")] = 20.0,
    keep_mib: Annotated[int, Option(min=0, help="Size of results kept in memory.")] = 1024,
    keep_seconds: Annotated[float, Option(min=0, help="How long they are kept.")] = 900.0,
    drain_seconds: Annotated[float, Option(min=0, help="New requests are still accepted after SIGTERM.")] = 1.0,
    open_page: Annotated[bool, Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Predictions for uploaded slices over HTTP, and a page to view them. Research use only, never a diagnosis.

    Says where it is on standard error, and logs JSON lines to standard output. SIGTERM finishes what was accepted.
    """
    try:
        from groundglass.serving import server
    except ModuleNotFoundError as error:
        hint = "comes with `pip install '.[serve]'` in a clone of groundglass"
        raise ServiceError(f"serving needs {error.name}, which {hint}") from error
    from groundglass.inference.bundle import Bundle
    from groundglass.serving.settings import MIB, READING_LIMITS, TOKEN_VARIABLE, Settings

    given = token_file.read_text(errors="replace") if token_file else os.environ.get(TOKEN_VARIABLE) or None
    settings = Settings(
        host=host, port=port, token=given and given.strip(), workers=workers,
        upload_directory=upload_directory, requests=requests, client_requests=client_requests,
        upload_bytes=upload_mib * MIB, uploads_bytes=uploads_mib * MIB, files=files, slices=slices,
        seconds=seconds, idle_seconds=idle_seconds, kept_bytes=keep_mib * MIB, kept_seconds=keep_seconds,
        drain_seconds=drain_seconds,
        reading=replace(READING_LIMITS, pixels=pixels, file_bytes=unpacked_mib * MIB),
    )  # fmt: skip
    server.serve(Bundle.open(bundle, 1, device), settings, open_page=open_page)
