"""What is printed: the table, predictions as JSON, CSV or Parquet, sums and progress."""

from __future__ import annotations

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


def on_terminal(words: list[str], term: str, *, rows: bool) -> tuple[int, str, bytes]:
    """Status, what a pseudo-terminal of 80 columns shows without its codes, and what went to standard output beside it."""
    watched, terminal = pty.openpty()
    environment = {**os.environ, "TERM": term, "COLUMNS": "80", "NO_COLOR": "1"}
    stdout = terminal if rows else subprocess.PIPE
    with subprocess.Popen(words, stdout=stdout, stderr=terminal, env=environment) as process:
        os.close(terminal)
        out = process.stdout.read() if process.stdout else b""
        shown = b""
        # Linux reports the end of the other side as an error.
        with suppress(OSError), os.fdopen(watched, "rb", buffering=0) as stream:
            while chunk := stream.read(4096):
                shown += chunk
    return process.returncode, re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", shown.decode()), out


def test_the_table(run: Run, pictures: Path) -> None:
    done = run(pictures)
    assert (done.status, done.err) == (0, "")
    header, *rows, empty, total = done.out.splitlines()
    assert header.split() == ["File", "Position", "Status", "Prob.", "Label", "Flags"]
    assert [Path(row.split()[0]).name for row in rows] == [f"{number}.png" for number in range(6)]
    assert empty == ""
    assert total.startswith("6 slices: 6 classified")
    assert total.endswith("Research use only, no diagnosis.")


def test_parquet_goes_through_a_pipe_and_says_the_same(pictures: Path, tiny_bundle: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    done = subprocess.run(command(tiny_bundle, pictures, "--parquet"), capture_output=True, check=True)
    by_json = subprocess.run(command(tiny_bundle, pictures, "--json"), capture_output=True, check=True)
    rows = [json.loads(line) for line in by_json.stdout.splitlines()]
    assert parquet.read_table(io.BytesIO(done.stdout)).to_pylist() == rows
    assert by_json.stderr.startswith(b"6 slices: 6 classified"), "kept away from what is printed"


def test_quiet_prints_nothing_but_what_was_asked_for(run: Run, pictures: Path) -> None:
    assert run(pictures, "--quiet") == Done(0, "", "")
    done = run(pictures, "--quiet", "--json")
    assert (len(done.rows), done.err) == (6, "")
    done = run(pictures, "--json", "--csv")
    assert (done.status, "choose one" in done.err) == (2, True)


def test_a_series_is_summed_up(run: Run, series: Path) -> None:
    done = run(series)
    places = [line.split()[1] for line in done.out.splitlines()[1:6]]
    assert places == ["-40.0", "-30.0", "-20.0", "-10.0", "0.0"]
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
    status, shown, out = on_terminal(command(tiny_bundle, pictures, "--json"), "xterm", rows=False)
    assert status == 0
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["ok"] * 6
    assert "slices/s" in shown
    assert "6/6" in shown


def test_nothing_is_wider_than_a_terminal(series: Path, bad: Path, tiny_bundle: Path) -> None:
    folder = bad.rename(bad.with_name("a-folder-of-a-name-" + "x" * 80))
    status, shown, _ = on_terminal(command(tiny_bundle, series, folder), "xterm", rows=True)
    assert status == 3
    assert all(re.search(rf"IM{number} .* ok ", shown) for number in range(5))
    lines = [line.rpartition("\r")[2] for line in shown.replace("\r\n", "\n").split("\n")]
    assert max(map(len, lines)) <= 80
    assert "Research use only, no diagnosis." in " ".join(shown.split())


def test_a_reader_that_goes_away_ends_it_quietly(pictures: Path, tiny_bundle: Path) -> None:
    words = command(tiny_bundle, pictures, "--json")
    for _ in range(3):
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert b"Traceback" not in process.stderr.read()
            assert process.wait() != 0
