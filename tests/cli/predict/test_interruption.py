"""An interruption or a full disk leaves no half table behind; folders and JSON lines can be resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.predict.conftest import command, predictions_of, write_pictures


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
    arguments = command(tiny_bundle, pictures, "--output", tmp_path / name)[3:]
    done = subprocess.run(
        [sys.executable, "-c", limited, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written (File too large)" in done.stderr
    assert "Traceback" not in done.stderr
    if name.endswith((".csv", ".parquet")):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]
        return
    again = [*command(tiny_bundle, pictures, "--output", tmp_path / name), "--resume", "--quiet"]
    assert subprocess.run(again, check=False).returncode == 0
    predictions = tmp_path / name / "predictions.jsonl" if name == "out" else tmp_path / name
    names = [Path(json.loads(line)["file"]).name for line in predictions.read_text().splitlines()]
    assert sorted(names) == [f"{number}.png" for number in range(6)]


@pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_is_resumed(tmp_path: Path, tiny_bundle: Path, signalled: signal.Signals) -> None:
    pictures, out = write_pictures(tmp_path / "many", 150), tmp_path / "out"
    process = subprocess.Popen(
        command(tiny_bundle, pictures, "--output", out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    predictions = out / "predictions.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (
        predictions.exists() and predictions.read_bytes().count(b"\n") > 10
    ):
        time.sleep(0.01)
    process.send_signal(signalled)
    _, err = process.communicate(timeout=60)
    found = predictions.read_bytes().count(b"\n")
    assert 10 < found < 150, "interrupted on its way"
    assert not (out / "report.html").exists()
    if signalled is signal.SIGINT:
        assert process.returncode == 130
        assert b"--resume" in err
        assert b"Traceback" not in err
    done = subprocess.run(
        command(tiny_bundle, pictures, "--output", out, "--resume", "--json"),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    new = len(done.stdout.splitlines())
    assert 150 - found <= new <= 150 - found + 1
    rows = predictions_of(out)
    assert sorted(int(Path(row["file"]).stem) for row in rows) == list(range(150))
    assert len(list((out / "overlays").iterdir())) == 150
    assert (out / "report.html").exists()
