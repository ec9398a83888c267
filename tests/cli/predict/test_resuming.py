"""With ``--resume`` what is done is kept and the rest follows, after an interruption or a full disk too."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from tests.cli.predict.conftest import Run, command, pixels, predictions_of, write_pictures
from tests.conftest import wait_for


def names(rows: list[dict[str, object]]) -> list[str]:
    return sorted(Path(str(row["file"])).name for row in rows)


def test_what_is_done_is_not_read_again_and_what_failed_is(run: Run, pictures: Path, tmp_path: Path) -> None:
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


def test_volumes_and_masks_are_completed(run: Run, pictures: Path, tmp_path: Path) -> None:
    (pictures / "5.png").rename(pictures / "5\udcff.png")
    voxels = np.stack([pixels(number).T.astype(np.int16) for number in range(5)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "v.nii.gz")
    out = tmp_path / "out"
    arguments, predictions = (
        (pictures, tmp_path / "v.nii.gz", "--masks", "--output", out),
        out / "predictions.jsonl",
    )

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
def test_a_full_disk_is_told_and_resumed(
    pictures: Path, tmp_path: Path, tiny_bundle: Path, name: str
) -> None:
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
