"""Commands run as a benchmark wants them: one after the other, timed, and their memory known."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ran:
    """What a command took.

    Attributes:
        seconds: from its start to its end.
        processor_seconds: of all its threads and of the processes it waited for.
        peak_mib: largest resident memory of it, or of one of those processes where that is larger.
    """

    seconds: float
    processor_seconds: float
    peak_mib: float


def run(command: Sequence[str], accepted: Sequence[int] = (0,), environment: Mapping[str, str] | None = None) -> Ran:
    """Run a command to its end, its output thrown away.

    Args:
        command: its words.
        accepted: exit statuses; any other one ends the benchmark with what the command said.
        environment: variables that differ from this process's.
    """
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**os.environ, **(environment or {})},
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in accepted:
            said.seek(0)
            sys.exit(f"{' '.join(command)}\nended with status {process.returncode}:\n{said.read()}")
    # Linux counts in KiB, macOS in bytes.
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**20
    return Ran(seconds, usage.ru_utime + usage.ru_stime, peak)


def in_turns(names: Sequence[str], rounds: int) -> list[list[str]]:
    """The names in an order of its own for each round, so that none always follows the same one."""
    return [[*names[turn % len(names) :], *names[: turn % len(names)]] for turn in range(rounds)]


def stay_on_cores(count: int) -> None:
    """Keep this process and its children to so many cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[-count:]))
