"""The evaluation log: kept in a run's folder, it names every evaluation of that run.

A test part says something only while nothing is chosen on it. Evaluating it again is not forbidden, but counted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from groundglass.errors import RunError
from groundglass.files import write_json

FILE = "evaluations.json"


@dataclass(frozen=True)
class Entry:
    """One evaluation.

    Attributes:
        data: name of the data set.
        split: specification of the split, or None.
        part: name of the part.
        slices: number of slices.
        fingerprint: of their contents and labels.
        time: when, ISO 8601 in UTC.
        output: absolute path of the folder that got the report.
    """

    data: str
    split: str | None
    part: str
    slices: int
    fingerprint: str
    time: str
    output: str


def record(run: Path, entry: Entry) -> int:
    """Add an evaluation to the log of a run.

    Returns:
        How often these very slices have been evaluated with this run, this time included.

    Raises:
        RunError: the log is damaged or cannot be written.
    """
    try:
        with _locked(run):
            entries = (*_read(run / FILE), entry)
            write_json(run / FILE, {"format": 1, "evaluations": [asdict(each) for each in entries]})
    except OSError as error:
        raise RunError(
            f"{run / FILE}: the evaluation cannot be recorded ({error}); make the run writable"
        ) from None
    return sum(each.fingerprint == entry.fingerprint for each in entries)


def _read(path: Path) -> tuple[Entry, ...]:
    try:
        return tuple(Entry(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))["evaluations"])
    except FileNotFoundError:
        return ()
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
