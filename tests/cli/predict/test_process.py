"""A process of its own: full and closed streams, ends that it is told, what it imports and holds; and ``--resume``."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
from tests.cli.predict.conftest import command, pixels, predictions_of, write_pictures
from tests.conftest import Command, save_image, wait_for

FULL = "error: standard output cannot be written (No space left on device)"


def shell(bundle: Path, arguments: str, redirected: str) -> subprocess.CompletedProcess[str]:
    line = f"{shlex.join(command(bundle))} {arguments} {redirected}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
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
    pictures: Path, tiny_bundle: Path, option: str, redirected: str, status: int, err: str
) -> None:
    out = pictures.parent / "out.jsonl"
    done = shell(tiny_bundle, f"{pictures} {option}".replace("out.jsonl", str(out)), redirected)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == bool(err)
    assert done.stderr.startswith(err)
    printed = out.read_text() if "--output" in option else done.stdout
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
        measure(tiny_bundle, path, "--output", tmp_path / path.name[0])[1] for path in (folder / "1?.png", folder)
    )
    assert many < 400
    assert many - few < 60, "MiB"


# With ``--resume`` what is done is kept and the rest follows, after an interruption or a full disk too.


def names(rows: list[dict[str, object]]) -> list[str]:
    return sorted(Path(str(row["file"])).name for row in rows)


def test_what_is_done_is_not_read_again_and_what_failed_is(run: Command, pictures: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", (pictures / "2.png").read_bytes()
    (pictures / "2.png").write_bytes(whole[:100])
    assert run(pictures, "--output", out).status == 3
    before = [row for row in predictions_of(out) if row["status"] == "ok"]
    assert len(before) == 5
    overlays = {path: path.stat().st_mtime_ns for path in (out / "overlays").iterdir()}
    for path in pictures.iterdir():
        path.write_bytes(b"damaged since")
    for name in ("2.png", "6.png"):
        (pictures / name).write_bytes(whole)
    done = run(pictures, "--output", out, "--resume")
    assert done.status == 0
    assert done.out.splitlines()[-2].startswith("7 slices: 7 classified")
    rows = predictions_of(out)
    assert (rows[:5], names(rows[5:])) == (before, ["2.png", "6.png"])
    table = list(csv.DictReader((out / "predictions.csv").open(newline="")))
    assert len(table) == len(list((out / "overlays").iterdir())) == 7
    assert {path: path.stat().st_mtime_ns for path in overlays} == overlays
    assert (out / "report.html").read_text(encoding="utf-8").count("data:image/jpeg") == 7


def test_volumes_and_masks_are_completed(run: Command, pictures: Path, tmp_path: Path) -> None:
    (pictures / "5.png").rename(pictures / "5\udcff\n\x1b[2J.png")
    voxels = np.stack([pixels(number).T.astype(np.int16) for number in range(5)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "v.nii.gz")
    out = tmp_path / "out"
    arguments, predictions = ((pictures, tmp_path / "v.nii.gz", "--masks", "--output", out), out / "predictions.jsonl")

    def masks() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (out / "masks").iterdir()}

    def resumed() -> list[object]:
        return [row["frame"] for row in run(*arguments, "--resume", "--json").rows]

    assert run(*arguments).status == 0
    before, lines = masks(), predictions.read_bytes().splitlines(keepends=True)
    assert len(before) == 6 * 2 + 2
    assert resumed() == [], "all masks are there"
    # As after an interruption in the volume: half of its lines, the last one unfinished.
    predictions.write_bytes(b"".join(lines[:8]) + lines[8][:20])
    assert resumed() == [2, 3, 4]
    assert b"".join(lines) == predictions.read_bytes(), "each slice has one line"
    # And where its masks were not written all of it is predicted again.
    predictions.write_bytes(b"".join(lines[:8]))
    for path in (out / "masks").glob("v-*"):
        path.unlink()
    assert resumed() == [0, 1, 2, 3, 4]
    assert masks() == before
    assert b"".join(lines) == predictions.read_bytes()


@pytest.mark.parametrize("name", ["out", "out.jsonl", "out.csv", "out.parquet"])
def test_a_full_disk_is_told(pictures: Path, tmp_path: Path, tiny_bundle: Path, name: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    limited = (
        "import resource, sys\nfrom groundglass.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))\nmain()"
    )
    words = command(tiny_bundle, pictures, "--output", tmp_path / name)
    full = [sys.executable, "-c", limited, *words[3:]]
    done = subprocess.run(full, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "cannot be written (File too large)" in done.stderr
    if name.endswith((".csv", ".parquet")):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]
        return
    assert subprocess.run([*words, "--resume", "--quiet"], check=False).returncode == 0
    assert names(predictions_of(tmp_path / name)) == [f"{number}.png" for number in range(6)]


@pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_is_resumed(tmp_path: Path, tiny_bundle: Path, signalled: signal.Signals) -> None:
    pictures, out = write_pictures(tmp_path / "many", 150), tmp_path / "out"
    words, predictions = command(tiny_bundle, pictures, "--output", out), out / "predictions.jsonl"
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        wait_for(lambda: predictions.exists() and predictions.read_bytes().count(b"\n") > 10)
        process.send_signal(signalled)
        _, err = process.communicate(timeout=60)
    found = predictions.read_bytes().count(b"\n")
    assert 10 < found < 150, "interrupted on its way"
    assert not (out / "report.html").exists()
    if signalled is signal.SIGINT:
        assert (process.returncode, b"--resume" in err, b"Traceback" in err) == (130, True, False)
    done = subprocess.run([*words, "--resume", "--json"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 150 - found <= len(done.stdout.splitlines()) <= 150 - found + 1
    assert sorted(int(Path(row["file"]).stem) for row in predictions_of(out)) == list(range(150))
    assert len(list((out / "overlays").iterdir())) == 150
    assert (out / "report.html").exists()
