"""What is printed: the table, predictions as JSON, CSV or Parquet, sums and progress."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from tests.cli.predict.conftest import Done, Run, command

from groundglass.inference.prediction import COLUMNS


def everything_shown(terminal: int) -> bytes:
    """What comes out of a pseudo-terminal until its other end is closed, which Linux reports as an error."""
    shown = b""
    with suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as stream:
        while chunk := stream.read(4096):
            shown += chunk
    return shown


def test_the_table(run: Run, pictures: Path) -> None:
    done = run(pictures)
    assert (done.status, done.err) == (0, "")
    header, *rows, empty, total = done.out.splitlines()
    assert header.split() == ["File", "Position", "Status", "Prob.", "Label", "Flags"]
    assert [Path(row.split()[0]).name for row in rows] == [f"{number}.png" for number in range(6)]
    assert empty == ""
    assert total.startswith("6 slices: 6 classified")
    assert total.endswith("Research use only, no diagnosis.")


def test_json_csv_and_parquet_say_the_same(run: Run, pictures: Path, series: Path, tmp_path: Path) -> None:
    by_json = run(pictures, series, "--json")
    assert by_json.status == 0
    assert [tuple(row) for row in by_json.rows] == [COLUMNS] * 11
    by_csv = list(csv.DictReader(io.StringIO(run(pictures, series, "--csv").out, newline="")))
    assert [row["file"] for row in by_csv] == [row["file"] for row in by_json.rows]
    assert [float(row["probability"]) for row in by_csv] == [row["probability"] for row in by_json.rows]
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    assert run(pictures, series, "--output", path, "--quiet").out == ""
    assert parquet.read_table(path).to_pylist() == by_json.rows


def test_parquet_goes_through_a_pipe(pictures: Path, tiny_bundle: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    done = subprocess.run(command(tiny_bundle, pictures, "--parquet"), capture_output=True, check=True)
    assert parquet.read_table(io.BytesIO(done.stdout)).num_rows == 6


def test_only_one_format_is_printed(run: Run, pictures: Path) -> None:
    done = run(pictures, "--json", "--csv")
    assert done.status == 2
    assert "choose one" in done.err


def test_quiet_prints_nothing_but_what_was_asked_for(run: Run, pictures: Path) -> None:
    assert run(pictures, "--quiet") == Done(0, "", "")
    done = run(pictures, "--quiet", "--json")
    assert (len(done.rows), done.err) == (6, "")


def test_sums_are_kept_away_from_printed_predictions(run: Run, pictures: Path) -> None:
    done = run(pictures, "--json")
    assert done.err.startswith("6 slices: 6 classified")
    assert len(done.rows) == 6


def test_a_series_is_summed_up(run: Run, series: Path) -> None:
    done = run(series)
    assert [line.split()[1] for line in done.out.splitlines()[1:6]] == [
        "-40.0",
        "-30.0",
        "-20.0",
        "-10.0",
        "0.0",
    ]
    assert f"{series}, series 1.2.3.4" in done.out
    assert "series score" in done.out
    assert re.search(r"-40\.0 mm [▁-█]{5} 0\.0 mm", done.out)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_any_encoding_of_the_output_will_do(series: Path, tiny_bundle: Path, encoding: str) -> None:
    odd = series.with_name("größe")
    series.rename(odd)
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(command(tiny_bundle, odd), capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert ("größe" in done.stdout.decode(encoding)) is (encoding == "utf-8")


def test_a_progress_bar_on_a_terminal_leaves_a_pipe_alone(pictures: Path, tiny_bundle: Path) -> None:
    watched, stderr = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        command(tiny_bundle, pictures, "--json"), stdout=subprocess.PIPE, stderr=stderr, env=environment
    ) as process:
        os.close(stderr)
        assert process.stdout is not None
        out = process.stdout.read()
    shown = everything_shown(watched)
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["ok"] * 6
    assert b"slices/s" in shown
    assert b"6/6" in shown


def test_on_a_terminal_rows_and_progress_share_it(pictures: Path, tiny_bundle: Path) -> None:
    watched, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"}
    process = subprocess.Popen(
        command(tiny_bundle, pictures), stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    shown = everything_shown(watched)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", shown.decode())
    for number in range(6):
        assert re.search(rf"{number}\.png .* ok ", text)
    assert "6 slices: 6 classified" in text


def test_nothing_is_wider_than_a_terminal(series: Path, bad: Path, tiny_bundle: Path) -> None:
    watched, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "80", "NO_COLOR": "1"}
    folder = bad.rename(bad.with_name("a-folder-of-a-name-" + "x" * 80))
    words = command(tiny_bundle, series, folder)
    process = subprocess.Popen(words, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    text = re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", everything_shown(watched).decode())
    assert process.wait() == 3
    lines = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n")]
    assert max(map(len, lines)) <= 80
    assert "Research use only, no diagnosis." in " ".join(text.split())


def test_a_reader_that_goes_away_ends_it_quietly(pictures: Path, tiny_bundle: Path) -> None:
    for _ in range(3):
        process = subprocess.Popen(
            command(tiny_bundle, pictures, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        process.stderr.close()
        assert process.wait() != 0
