"""Structured logs: one JSON object per line on standard output, and nothing in it that names a patient.

Names of files, addresses of clients, results' ids and texts of exceptions are left out; what other packages
would log is dropped, as it may quote a file's content.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
import warnings
from datetime import datetime, timezone
from types import TracebackType
from typing import Any

LOGGER = logging.getLogger("groundglass.serving")
_OWN = ("groundglass.serving", "uvicorn.error")


class _JsonFormatter(logging.Formatter):
    """One line of JSON; of an exception its type and place only."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            fields.update(describe(record.exc_info[1]))
        return json.dumps(fields)


def configure_logs() -> None:
    """Send this package's log to standard output, and silence everybody else's.

    Standard error is no place for it: it is closed for moments while pictures are decoded, so that codecs
    cannot write there.
    """
    warnings.simplefilter("ignore")
    logging.getLogger().handlers = [logging.NullHandler()]
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonFormatter())
    for name in _OWN:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
    LOGGER.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def log(event: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event with its fields."""
    LOGGER.log(level, event, extra={"fields": fields})


def describe(error: BaseException) -> dict[str, Any]:
    """An exception's type and the places it came through, without its text."""
    return {"error": type(error).__name__, "through": _places(error.__traceback__)}


def _places(trace: TracebackType | None) -> list[str]:
    return [
        f"{frame.filename.rpartition('site-packages/')[2].rpartition('/src/')[2]}:{frame.lineno}"
        for frame in traceback.extract_tb(trace)[-8:]
    ]
