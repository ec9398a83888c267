"""Ray, started on this machine for one prediction, or joined where a cluster runs."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from groundglass.errors import PredictionError
from groundglass.imaging.guard import without_stderr

PATIENCE = 20.0
"""Seconds after which a cluster that does not answer is given up."""

# Findings are small: what Ray keeps in shared memory stays far below this.
_OBJECT_STORE = 128 * 2**20
# Ray puts sockets into its folder, whose paths may be about 100 characters long.
_LONGEST_FOLDER = 32


@contextmanager
def ray_session(address: str | None, workers: int | None) -> Iterator[int]:
    """Ray, ready to be used in the block; gives the number of workers that find room.

    A Ray that this starts listens on the loopback interface only, asks for a token, has no dashboard, reports
    nothing to anybody and is gone, with its files, after the block. A Ray that runs in this process already
    is used and left alone.

    Args:
        address: of a cluster: ``host:port``, ``auto`` or ``ray://host:port``; None starts one here.
        workers: asked for; as many as there are cores unless given.

    Raises:
        PredictionError: Ray is not installed, does not start, or no cluster answers.
    """
    local = address is None
    with (
        _environment({**_QUIET, **(_alone() if local else {})}),
        tempfile.TemporaryDirectory(
            prefix="groundglass-", dir=_short_folder(), ignore_cleanup_errors=True
        ) as folder,
    ):
        ray = import_ray()
        if ray.is_initialized():
            yield _room(ray, workers)
            return
        # Told of its log level, Ray tells of it.
        with without_stderr():
            if address is None:
                _start(ray, workers or usable_cores(), folder)
            else:
                _join(ray, address)
        try:
            yield _room(ray, workers)
        finally:
            ray.shutdown()


def import_ray() -> Any:
    """The module ``ray``, with Ray Data.

    Raises:
        PredictionError: it is not installed.
    """
    try:
        import ray  # noqa: PLC0415 - an extra, and a second
        import ray.data  # noqa: PLC0415
    except ModuleNotFoundError:
        raise PredictionError(
            "--engine ray needs Ray, which comes with `pip install 'groundglass[cluster]'`"
        ) from None
    return ray


def usable_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Nothing of Ray's own on the terminal, and above all not on standard output, where findings go.
_QUIET: Mapping[str, str] = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".", "RAY_BACKEND_LOG_LEVEL": "error"}


def _alone() -> dict[str, str]:
    """Settings of a Ray for nobody else."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Despite its name the one way to keep Ray on the loopback interface on Linux too.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        # Without a token of its own Ray would leave one in the user's home.
        "RAY_AUTH_TOKEN": _token(),
    }


@cache
def _token() -> str:
    """One for this process: Ray remembers the first that it has seen."""
    return secrets.token_hex(32)


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that Ray and its children read, for a while."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _short_folder() -> str | None:
    """Where temporary folders have short paths."""
    usual = tempfile.gettempdir()
    return "/tmp" if len(usual) > _LONGEST_FOLDER and Path("/tmp").is_dir() else usual  # noqa: S108


def _start(ray: Any, workers: int, folder: str) -> None:
    if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        raise PredictionError(
            "Ray was imported before it could be told to keep to this machine; call ray.init() yourself"
        )
    try:
        ray.init(
            address="local",
            num_cpus=workers,
            num_gpus=0,
            object_store_memory=_OBJECT_STORE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="CRITICAL",
            _temp_dir=folder,
        )
    except Exception as error:  # noqa: BLE001 - whatever Ray stumbles over
        raise PredictionError(f"Ray does not start on this machine ({in_one_line(error)})") from None


def _join(ray: Any, address: str) -> None:
    if address != "auto":
        _knock(address)
    failed: list[BaseException] = []

    def join() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="CRITICAL")
        except BaseException as error:  # noqa: BLE001 - whatever Ray stumbles over, told by the caller
            failed.append(error)

    # Ray has no time limit of its own for whoever listens but does not speak its language.
    thread = threading.Thread(target=join, name="groundglass-join", daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if thread.is_alive():
        raise PredictionError(f"{address}: no Ray cluster answers within {PATIENCE:g} seconds")
    if failed:
        raise PredictionError(f"{address}: no Ray cluster that can be joined ({in_one_line(failed[0])})")


def _knock(address: str) -> None:
    """Refuse an address where nobody listens, at once."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise PredictionError(
            f"{address}: no address of a Ray cluster; write host:port, ray://host:port or auto"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE / 3).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PredictionError(f"{address}: no Ray cluster can be reached there ({reason})") from None


def _room(ray: Any, workers: int | None) -> int:
    cores = int(ray.cluster_resources().get("CPU", 0))
    if cores < 1:
        raise PredictionError("the Ray cluster has no cores to work with")
    if workers is not None and workers > cores:
        raise PredictionError(f"--workers {workers} are more than the {cores} cores of the Ray cluster")
    return workers or cores


def in_one_line(error: BaseException) -> str:
    """What an error says: the last line, where Ray's long ones name the cause."""
    lines = [re.sub("\x1b\\[[0-9;]*m", "", line).strip() for line in str(error).splitlines()]
    return next((line for line in reversed(lines) if line), type(error).__name__)[:300]
