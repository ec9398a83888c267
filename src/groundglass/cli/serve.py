"""``groundglass serve``: predictions over HTTP."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from groundglass.cli.options import BundlePath, Device
from groundglass.errors import ServiceError

Host = Annotated[str, typer.Option(help="Address to listen at; beyond this machine only with a token.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="Holds the bearer token; otherwise GROUNDGLASS_TOKEN does."
    ),
]
Workers = Annotated[int, typer.Option(min=0, help="Threads that classify; 0: one per core.")]
UploadDirectory = Annotated[Path | None, typer.Option(help="Of uploads in flight; in memory: /dev/shm.")]
Requests = Annotated[int, typer.Option(min=1, help="Uploads in flight.")]
ClientRequests = Annotated[int | None, typer.Option(min=1, help="Of them by one client's address.")]
UploadMib = Annotated[int, typer.Option(min=1, help="Size of one upload.")]
UploadsMib = Annotated[int, typer.Option(min=1, help="Size of all uploads in flight.")]
UnpackedMib = Annotated[int, typer.Option(min=1, help="Size of one file after decompression.")]
Pixels = Annotated[int, typer.Option(min=1, help="Of one slice.")]
Files = Annotated[int, typer.Option(min=1, help="Of one upload.")]
Slices = Annotated[int, typer.Option(min=1, help="Of one upload.")]
Seconds = Annotated[float, typer.Option(min=0.1, help="That one request may take.")]
IdleSeconds = Annotated[float, typer.Option(min=0.1, help="That a client may keep the service waiting.")]
KeepMib = Annotated[int, typer.Option(min=0, help="Size of results kept in memory.")]
KeepSeconds = Annotated[float, typer.Option(min=0, help="How long they are kept.")]
Open = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]
DrainSeconds = Annotated[float, typer.Option(min=0, help="New requests are still accepted after SIGTERM.")]


def serve(
    host: Host = "127.0.0.1",
    port: Port = 8000,
    token_file: TokenFile = None,
    bundle: BundlePath = None,
    device: Device = "cpu",
    workers: Workers = 0,
    upload_directory: UploadDirectory = None,
    requests: Requests = 64,
    client_requests: ClientRequests = None,
    upload_mib: UploadMib = 512,
    uploads_mib: UploadsMib = 4096,
    unpacked_mib: UnpackedMib = 1024,
    pixels: Pixels = 2**24,
    files: Files = 2_000,
    slices: Slices = 5_000,
    seconds: Seconds = 300.0,
    idle_seconds: IdleSeconds = 20.0,
    keep_mib: KeepMib = 1024,
    keep_seconds: KeepSeconds = 900.0,
    drain_seconds: DrainSeconds = 1.0,
    open_page: Open = False,
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
    from groundglass.serving.security import TOKEN_VARIABLE
    from groundglass.serving.settings import MIB, READING_LIMITS, Settings

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
