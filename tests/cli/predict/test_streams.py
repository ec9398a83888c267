"""A process of its own: full, closed and piped streams, an end it is told, and what it imports and holds in memory."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from tests.cli.predict.conftest import command, pixels, write_pictures
from tests.conftest import save_image

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
FULL = "error: standard output cannot be written (No space left on device)"


def shell(bundle: Path, arguments: str, redirected: str) -> subprocess.CompletedProcess[str]:
    line = f"{shlex.join(command(bundle))} {arguments} {redirected}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("option", "redirected", "status", "err"),
    [
        ("--json", ">/dev/full", 2, FULL),
        ("--csv", ">/dev/full", 2, FULL),
        ("", ">/dev/full", 2, FULL),
        ("--help", ">/dev/full", 2, FULL),
        ("--quiet", ">/dev/full", 0, ""),
        ("--json", ">&-", 0, "6 slices: 6 classified"),
        ("", ">&-", 0, ""),
        ("--json", "2>&-", 0, ""),
        ("--json", "2>/dev/full", 0, ""),
        ("--json", "<&- 2>&-", 0, ""),
        ("", ">/dev/full 2>/dev/full", 2, ""),
        ("gone.png", "2>/dev/full", 2, ""),
        ("--output out.jsonl", ">&- 2>&- <&-", 0, ""),  # a closed stream is no file
    ],
)
def test_full_and_closed_streams(
    pictures: Path, tiny_bundle: Path, option: str, redirected: str, status: int, err: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    done = shell(tiny_bundle, f"{pictures} {option}", redirected)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == bool(err)
    assert done.stderr.startswith(err)
    printed = Path("out.jsonl").read_text() if "--output" in option else done.stdout
    if "json" in option and (printed or ">" not in redirected.replace("2>", "")):
        assert [json.loads(line)["status"] for line in printed.splitlines()] == ["ok"] * 6


def test_standard_input_and_pipes_are_explained(tiny_bundle: Path, pictures: Path) -> None:
    done = shell(tiny_bundle, "- --json", f"< {pictures}/0.png")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip().endswith("-: standard input is not read; save it as a file and name that")
    done = shell(tiny_bundle, f"<(cat {pictures}/1.png) --json", "")
    assert (done.returncode, done.stdout.count("save what comes out of a pipe as a file")) == (4, 1)


@pytest.mark.parametrize(
    ("name", "signalled"),
    [("out.parquet", "SIGTERM"), ("out", "SIGTERM"), ("out.csv", "SIGHUP"), ("out.csv", "SIGINT")],
)
def test_told_to_end_it_leaves_nothing(tmp_path: Path, tiny_bundle: Path, name: str, signalled: str) -> None:
    number = signal.Signals[signalled]
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("hang-ups are ignored here, as under nohup, and a child inherits that")
    many, temporaries = write_pictures(tmp_path / "many", 400), tmp_path / "tmp"
    temporaries.mkdir()
    words = command(tiny_bundle, many, "--output", tmp_path / name, "--json")
    environment, pipe = {**os.environ, "TMPDIR": str(temporaries)}, subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, env=environment) as process:
        process.stdout.readline()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.strip() == (b"interrupted" if number is signal.SIGINT else b"")
    left = {path.name for path in tmp_path.iterdir()} - {"many", "tmp"}
    assert left == ({"out"} if name == "out" else set())
    assert list(temporaries.iterdir()) == []


# The kernel's high-water mark of this program alone: that of getrusage counts the parent's, too.
MEASURED = """
import re, sys
from pathlib import Path
from groundglass.cli.main import main
try:
    main()
finally:
    status = Path("/proc/self/status").read_text()
    print(*sys.modules, re.search(r"VmHWM:\\s+(\\d+)", status)[1], file=sys.stderr)
"""


def measure(bundle: Path, *arguments: object) -> tuple[set[str], float]:
    """What was imported, and the peak of memory in MiB."""
    words = [sys.executable, "-c", MEASURED, *command(bundle, *arguments)[3:]]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    *modules, peak = done.stderr.split()
    return set(modules), int(peak) / 1024


def test_one_picture_imports_only_what_it_needs(pictures: Path, tiny_bundle: Path) -> None:
    modules, _ = measure(tiny_bundle, pictures / "0.png")
    needless = {
        "torch", "timm", "matplotlib", "scipy", "sklearn", "pandas", "pydicom", "nibabel", "gdcm", "jinja2", "pyarrow",
        "requests", "ray", "yaml", "markupsafe", "rich.progress", "groundglass.inference.report",
    }  # fmt: skip
    assert not modules & needless
    assert "onnxruntime" in modules


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_slices(tmp_path: Path, tiny_bundle: Path) -> None:
    """Keeping 250 slices' pixels and masks would take 230 MiB."""
    folder = tmp_path / "many"
    for number in range(8):
        save_image(folder / f"{number}.png", cv2.resize(pixels(number), (700, 700)))
    for number in range(8, 250):
        os.link(folder / f"{number % 8}.png", folder / f"{number}.png")
    few, many = (
        measure(tiny_bundle, path, "--output", tmp_path / path.name[0])[1]
        for path in (folder / "1?.png", folder)
    )
    assert many < 400
    assert many - few < 60, "MiB"
