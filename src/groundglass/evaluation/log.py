"""The evaluation log: kept in a run's folder, it names every evaluation of that run.

A test part says something only while nothing is chosen on it. Evaluating it again is not forbidden, but counted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from groundglass.errors import RunError
from groundglass.evaluation.part import Part
from groundglass.files import printable, write_json

FILE = "evaluations.json"


def record(run: Path, part: Part, sha256: str, time: str, output: Path) -> int:
    """Add an evaluation to the log of a run.

    Args:
        run: folder of the run.
        part: the slices that were evaluated.
        sha256: fingerprint of their contents and labels.
        time: when, ISO 8601 in UTC.
        output: folder that gets the report.

    Returns:
        How often these very slices have been evaluated with this run, this time included.

    Raises:
        RunError: the log is damaged or cannot be written.
    """
    entry = {
        "data": part.data, "split": part.split, "part": part.name, "slices": len(part.records),
        "fingerprint": sha256, "time": time, "output": printable(output.absolute()),
    }  # fmt: skip
    path = run / FILE
    try:
        with _locked(run):
            entries = [*_read(path), entry]
            write_json(path, {"format": 1, "evaluations": entries})
    except OSError as error:
        advice = f"the evaluation cannot be recorded ({error}); make the run writable"
        raise RunError(f"{path}: {advice}") from None
    return sum(each["fingerprint"] == sha256 for each in entries)


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["evaluations"]
        return [{**each, "fingerprint": each["fingerprint"]} for each in entries]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path}: the evaluation log cannot be read ({error}); repair or remove it") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two evaluations that end at once must not lose each other's entry."""
    if sys.platform == "win32":
        yield
        return
    import fcntl  # noqa: PLC0415 - not there on Windows

    with (folder / f".{FILE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
