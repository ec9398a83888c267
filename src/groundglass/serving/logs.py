"""JSON lines on standard output, in which nobody is named."""

from __future__ import annotations

import json
import traceback
from datetime import datetime, timezone


def log(event: str, error: BaseException | None = None, **fields: object) -> None:
    """Log an event; of an error its type and the places it came through, as its text may name a patient.

    Standard error is no place for it: it is closed for moments while pictures are decoded, so that codecs
    cannot write there.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    entry = {"time": now, "level": "info" if error is None else "error", "event": event, **fields}
    if error is not None:
        entry["error"] = type(error).__name__
        entry["through"] = [
            f"{frame.filename.rpartition('site-packages/')[2].rpartition('/src/')[2]}:{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)[-8:]
        ]
    print(json.dumps(entry), flush=True)  # noqa: T201 - the log
