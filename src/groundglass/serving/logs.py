"""JSON lines on standard output, in which nobody is named."""

from __future__ import annotations

import json
import logging
import traceback
import warnings
from collections.abc import Mapping
from datetime import datetime, timezone


def silence_others() -> None:
    """Nothing but :func:`log` says anything: other packages may quote a file's content."""
    warnings.simplefilter("ignore")
    logging.disable()


def log(event: str, fields: Mapping[str, object], error: BaseException | None = None) -> None:
    """Log an event; of an error its type and the places it came through, as its text may name a patient.

    Standard error is no place for it: it is closed for moments while pictures are decoded, so that codecs
    cannot write there.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    entry = {"time": now, "level": "info" if error is None else "error", "event": event, **fields}
    if error is not None:
        frames = traceback.extract_tb(error.__traceback__)[-8:]
        entry["error"] = type(error).__name__
        entry["through"] = [f"{_short(frame.filename)}:{frame.lineno}" for frame in frames]
    print(json.dumps(entry), flush=True)  # noqa: T201 - the log


def _short(file: str) -> str:
    return file.rpartition("site-packages/")[2].rpartition("/src/")[2]
