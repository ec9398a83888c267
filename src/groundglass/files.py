"""What every room shares: files that appear whole or not at all, text fit to print, and how many cores there are."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends without an error.

    The content is flushed to disk before the rename, so that a killed process or machine leaves either the
    old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:20]}.{token_hex(4)}{path.suffix[:10]}"
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        with temporary.open("r+b") as written:  # Windows syncs no file that is only read
            os.fsync(written.fileno())
        temporary.chmod(mode)  # safetensors makes a file that others may not read
        temporary.replace(path)
    except OSError as error:
        if error.filename in {None, str(temporary)}:  # a full disk names no file
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process.

    Raises:
        BlockingIOError: another has it.
        OSError, ModuleNotFoundError: it is a link, or file system or machine have no locks.
    """
    import fcntl  # noqa: PLC0415 - not on Windows

    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write ``text``, in which names of files may be no UTF-8, as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(printable(text), encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content``, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline, atomically. NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def printable(text: str | os.PathLike[str]) -> str:
    r"""Text or a path that UTF-8 can hold: bytes of a file's name that are no UTF-8 become ``\udcff`` and the like."""
    return os.fspath(text).encode("utf-8", "backslashreplace").decode("utf-8")


def one_line(text: str, longest: int = 160) -> str:
    """Text from a file or decoder, fit for a message: printable, on one line, cut where it is too long."""
    text = "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))
    return text if len(text) <= longest else text[: longest - 1] + "…"


def cut_middle(text: str, width: int) -> str:
    """Text of at most so many characters; more of its end is kept than of its beginning."""
    return text if len(text) <= width else f"{text[: width // 3]}…{text[-(width - width // 3 - 1) :]}"


def counted(count: int, noun: str) -> str:
    """``1 slice``, ``2 slices``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def name_some(names: Sequence[str], shown: int = 3) -> str:
    """The first ``shown`` names, comma-separated, and how many there are beyond."""
    listed = ", ".join(names[:shown])
    return f"{listed} and {len(names) - shown} more" if len(names) > shown else listed


def usable_cores() -> int:
    """Cores that this process may run on, by its affinity and by its control groups' CPU quota, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas())]))


def _quotas(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[float]:
    """Cores that each control group of this process, and those it lies in, may use."""
    with suppress(OSError):
        for line in proc.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            # Control groups of version 2, or of version 1.
            names = ["cpu.max"] if number == "0" else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
            own = (root if number == "0" else root / "cpu") / path.lstrip("/")
            for folder in (own, *own.parents) if number == "0" or "cpu" in controllers.split(",") else ():
                with suppress(OSError, ValueError, ZeroDivisionError):
                    quota, period = " ".join((folder / name).read_text() for name in names).split()
                    if float(quota) > 0:  # "max" is no number, -1 no limit
                        yield float(quota) / float(period)
