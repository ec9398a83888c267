"""When, with what and where a training was made."""

from __future__ import annotations

import os
import platform
import time
from datetime import datetime, timezone
from importlib.metadata import version

import torch

from groundglass import __version__


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of what a training's result depends on."""
    names = ("torch", "timm", "lightning", "numpy", "opencv-python-headless")
    return {
        "groundglass": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def machine() -> dict[str, str | int]:
    """The machine, in words that do not identify it."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 0,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
