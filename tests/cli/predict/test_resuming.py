"""With ``--resume`` what is done is kept and the rest follows, after an interruption or a full disk too."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from tests.cli.predict.conftest import Run, command, pixels, predictions_of, volume, write_pictures
from tests.conftest import wait_for


def names(rows: list[dict[str, object]]) -> list[str]:
    return sorted(Path(str(row["file"])).name for row in rows)


def test_what_is_done_is_not_read_again(run: Run, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(pictures, "--output", out)
    before = predictions_of(out)
    overlays = {path: path.stat().st_mtime_ns for path in (out / "overlays").iterdir()}
    for path in pictures.iterdir():
        path.write_bytes(b"damaged since")
    cv2.imwrite(str(pictures / "6.png"), pixels(6))
    done = run(pictures, "--output", out, "--resume", "--json")
    assert done.status == 0
    assert names(done.rows) == ["6.png"]
    assert predictions_of(out)[:6] == before
    assert len(predictions_of(out)) == len(list((out / "overlays").iterdir())) == 7
    assert {path: path.stat().st_mtime_ns for path in overlays} == overlays
    assert (out / "report.html").read_text(encoding="utf-8").count("data:image/jpeg") == 7


def test_what_failed_is_tried_again(run: Run, pictures: Path, tmp_path: Path) -> None:
    whole = (pictures / "2.png").read_bytes()
    (pictures / "2.png").write_bytes(whole[:100])
    out = tmp_path / "out"
    assert run(pictures, "--output", out).status == 3
    (pictures / "2.png").write_bytes(whole)
    done = run(pictures, "--output", out, "--resume")
    assert done.status == 0
    assert done.out.splitlines()[-2].startswith("6 slices: 6 classified")
    rows = predictions_of(out)
    assert names(rows) == [f"{number}.png" for number in range(6)]
    assert {row["status"] for row in rows} == {"ok"}
    assert len(list(csv.DictReader((out / "predictions.csv").open(newline="")))) == 6


def test_a_volume_is_resumed_in_the_middle(run: Run, tmp_path: Path) -> None:
    path, out = volume(tmp_path / "v.nii.gz", 5), tmp_path / "out.jsonl"
    whole = run(path, "--output", out, "--json").rows
    assert [row["frame"] for row in whole] == [0, 1, 2, 3, 4]
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    done = run(path, "--output", out, "--resume", "--json")
    assert [row["frame"] for row in done.rows] == [3, 4]
    assert [json.loads(line) for line in out.read_bytes().splitlines()] == whole


def test_masks_are_completed(run: Run, pictures: Path, tmp_path: Path) -> None:
    (pictures / "5.png").rename(pictures / "5\udcff.png")
    out, arguments = tmp_path / "out", (pictures, volume(tmp_path / "v.nii.gz", 5), "--masks")
    assert run(*arguments, "--output", out).status == 0
    before = {path.name: path.read_bytes() for path in (out / "masks").iterdir()}
    assert len(before) == 6 * 2 + 2
    assert run(*arguments, "--output", out, "--resume", "--json").rows == [], "all masks are there"
    # As after an interruption in the volume: half of its lines, and none of its masks.
    lines = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join(lines[:8]))
    halves = list((out / "masks").glob("v-*"))
    assert len(halves) == 2
    for path in halves:
        path.unlink()
    done = run(*arguments, "--output", out, "--resume", "--json")
    assert [row["frame"] for row in done.rows] == [0, 1, 2, 3, 4]
    assert {path.name: path.read_bytes() for path in (out / "masks").iterdir()} == before
    assert b"".join(lines) == (out / "predictions.jsonl").read_bytes(), "each slice has one line"


@pytest.mark.parametrize("name", ["out", "out.jsonl", "out.csv", "out.parquet"])
def test_a_full_disk_is_one_line_and_can_be_resumed(
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
    assert done.returncode == 2, done.stderr
    assert "cannot be written (File too large)" in done.stderr
    assert "Traceback" not in done.stderr
    if name.endswith((".csv", ".parquet")):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]
        return
    assert subprocess.run([*words, "--resume", "--quiet"], check=False).returncode == 0
    predictions = tmp_path / name / "predictions.jsonl" if name == "out" else tmp_path / name
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert names(rows) == [f"{number}.png" for number in range(6)]


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
        assert process.returncode == 130
        assert b"--resume" in err
        assert b"Traceback" not in err
    done = subprocess.run([*words, "--resume", "--json"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 150 - found <= len(done.stdout.splitlines()) <= 150 - found + 1
    assert sorted(int(Path(row["file"]).stem) for row in predictions_of(out)) == list(range(150))
    assert len(list((out / "overlays").iterdir())) == 150
    assert (out / "report.html").exists()
