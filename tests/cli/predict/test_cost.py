"""A single picture imports little, and memory does not grow with the number of slices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from tests.cli.predict.conftest import command, pixels

# The kernel's high-water mark of this program alone: that of getrusage counts the parent's, too.
SCRIPT = """
import re, sys
from pathlib import Path
from groundglass.cli.main import main
try:
    main()
finally:
    status = Path("/proc/self/status").read_text()
    print(*sys.modules, re.search(r"VmHWM:\\s+(\\d+)", status)[1], file=sys.stderr)
"""


def run(bundle: Path, *arguments: object) -> tuple[set[str], float]:
    """What was imported, and the peak of memory in MiB."""
    words = [sys.executable, "-c", SCRIPT, *command(bundle, *arguments)[3:]]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    *modules, peak = done.stderr.split()
    return set(modules), int(peak) / 1024


def test_one_picture_imports_only_what_it_needs(pictures: Path, tiny_bundle: Path) -> None:
    modules, _ = run(tiny_bundle, pictures / "0.png")
    needless = {
        "torch", "timm", "matplotlib", "scipy", "sklearn", "pandas", "pydicom", "nibabel", "gdcm", "jinja2", "pyarrow",
        "requests", "ray", "yaml", "markupsafe", "rich.progress", "groundglass.inference.report",
    }  # fmt: skip
    assert not modules & needless
    assert "onnxruntime" in modules


@pytest.mark.slow
@pytest.mark.parametrize("output", ["out", None])
def test_memory_does_not_grow_with_the_number_of_slices(
    tmp_path: Path, tiny_bundle: Path, output: str | None
) -> None:
    """Keeping 250 slices' pixels and masks would take 230 MiB."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(8):
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(pixels(number), (700, 700)))
    for number in range(8, 250):
        os.link(folder / f"{number % 8}.png", folder / f"{number}.png")
    peaks = []
    for path in (folder / "1?.png", folder):
        arguments = [] if output is None else ["--output", tmp_path / f"{len(peaks)}-{output}"]
        peaks.append(run(tiny_bundle, path, *arguments)[1])
    assert peaks[1] < 400
    assert peaks[1] - peaks[0] < 60, "MiB"
