"""What is printed: the table, predictions as JSON or CSV, sums and progress; nothing acts on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from tests.cli.predict.conftest import Done, Run, command

from groundglass.cli.screen import PredictionsTable
from groundglass.inference.prediction import COPY, Prediction, Status

OK = Prediction(
    Status.OK, "series/1.dcm", "b", None, 0.12345, "NonCOVID", ("NonCOVID",), ("one-lung-found",),
    series="1.2", position=-312.55,
)  # fmt: skip
REASON = "a colour photograph or a chart, and in any case not an axial CT slice of the chest"
REFUSED = Prediction(Status.REFUSED, "p.png", "b", REASON)


def lines(table: PredictionsTable, *predictions: Prediction) -> list[str]:
    return [line.plain for prediction in predictions for line in table.lines(prediction)]


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize(
    "file", ["1.dcm", "a/very/long/path/" * 20 + "1-001.dcm", "扫描/切片-" * 20 + "1.png"]
)
def test_columns_stay_in_place_and_within_the_terminal(width: int, file: str) -> None:
    shown = lines(PredictionsTable(width), replace(OK, file=file), replace(REFUSED, file=file))
    assert all(cell_len(line) <= width for line in shown)
    header, first, second, *rest = shown
    values = {"Position": "-312.6 mm", "Status": "ok", "Prob.": "0.123", "Flags": "one-lung-found"}
    for title, value in values.items():
        assert cell_len(first[: first.index(value)]) == header.index(title)
    assert cell_len(second[: second.index("refused")]) == header.index("Status")
    assert " ".join([second, *rest]).split("refused")[1].split() == REASON.split()
    assert file[-9:].strip() in first


@pytest.mark.parametrize("width", [80, 120])
def test_words_are_never_split(width: int) -> None:
    flags = ("one-lung-found", "soft-tissue-window", "low-resolution", "upside-down")
    uid = "1.2.826.0.1.3680043.8.498." + "1" * 38
    reason = f"refers to /a/folder/of-some-length/{'x' * 40}.raw, of {uid} and nothing else"
    _, *rows = lines(PredictionsTable(width), replace(OK, flags=flags), replace(REFUSED, reason=reason))
    assert all(cell_len(row) <= width for row in rows)
    words = " ".join(rows).replace(",", " ").split()
    assert {*flags, "refers", "to", "of", "and", "nothing", "else"} <= set(words)
    (path,) = [word for word in words if word.startswith("/a")]
    assert path.endswith(".raw")


def test_what_is_refused_for_one_reason_is_summed_up_on_a_terminal_alone() -> None:
    reason = "outside the lungs: no lung (score {}.5, limit 2.0)"
    many = [replace(REFUSED, file=f"{n}.png", reason=reason.format(n)) for n in range(30)]
    copy, failed = replace(REFUSED, reason=f"{COPY} of a.dcm"), replace(REFUSED, status=Status.FAILED)
    table = PredictionsTable(80)
    shown = "\n".join(lines(table, many[0], OK, *many[1:], failed, copy, copy))
    assert (shown.count("outside the lungs"), shown.count(".png")) == (1, 3), "the first of each reason"
    assert list(table.repeated()) == ["30 refused: outside the lungs: no lung", "2 refused: a copy"]
    table = PredictionsTable(None)
    assert "\n".join(lines(table, *many)).count("outside the lungs") == 30
    assert list(table.repeated()) == []


@pytest.mark.parametrize("name", ["\x1b[2Jb", "a\nb", "a\rb", "a\u202eb", "a\udcffb", "\x07", "[red]x[/red]"])
def test_names_do_nothing_to_the_terminal(name: str) -> None:
    for prediction in (replace(OK, file=name), replace(REFUSED, file=name, reason=name)):
        for width in (80, None):
            found = lines(PredictionsTable(width), prediction)
            assert all(line.isprintable() for line in found)
            assert (name in found[1]) is name.isprintable()


def on_terminal(words: list[str], *, rows: bool) -> tuple[int, str, bytes]:
    """Status, what a pseudo-terminal of 80 columns shows without its codes, and what went to standard output beside it."""
    watched, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"}
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


def test_the_table_and_the_sum_of_a_series(run: Run, pictures: Path, series: Path) -> None:
    done = run(pictures, series)
    assert (done.status, done.err) == (0, "")
    header, *rows = done.out.splitlines()
    assert header.split() == ["File", "Position", "Status", "Prob.", "Label", "Flags"]
    assert [Path(row.split()[0]).name for row in rows[:6]] == [f"{number}.png" for number in range(6)]
    assert [row.split()[1] for row in rows[6:11]] == ["-40.0", "-30.0", "-20.0", "-10.0", "0.0"]
    assert f"{series}, series 1.2.3.4" in done.out
    assert "series score" in done.out
    assert re.search(r"-40\.0 mm [▁-█]{5} 0\.0 mm", done.out)
    assert rows[-1].startswith("11 slices: 11 classified")
    assert rows[-1].endswith("Research use only, no diagnosis.")


def test_parquet_says_the_same(pictures: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    words = command(tiny_bundle, pictures, "--json", "--output", tmp_path / "x.parquet")
    by_json = subprocess.run(words, capture_output=True, check=True)
    rows = [json.loads(line) for line in by_json.stdout.splitlines()]
    assert parquet.read_table(tmp_path / "x.parquet").to_pylist() == rows
    assert by_json.stderr.startswith(b"6 slices: 6 classified"), "kept away from what is printed"


def test_quiet_prints_nothing_but_what_was_asked_for(run: Run, pictures: Path) -> None:
    assert run(pictures, "--quiet") == Done(0, "", "")
    done = run(pictures, "--quiet", "--json")
    assert (len(done.rows), done.err) == (6, "")
    done = run(pictures, "--json", "--csv")
    assert (done.status, "choose one" in done.err) == (2, True)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_any_encoding_of_the_output_will_do(series: Path, tiny_bundle: Path, encoding: str) -> None:
    odd = series.rename(series.with_name("größe"))
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(command(tiny_bundle, odd), capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert ("größe" in done.stdout.decode(encoding)) is (encoding == "utf-8")


def test_a_progress_bar_on_a_terminal_leaves_a_pipe_alone(pictures: Path, tiny_bundle: Path) -> None:
    status, shown, out = on_terminal(command(tiny_bundle, pictures, "--json"), rows=False)
    assert status == 0
    assert [json.loads(line)["status"] for line in out.splitlines()] == ["ok"] * 6
    assert "slices/s" in shown
    assert "6/6" in shown


def test_nothing_is_wider_than_a_terminal(series: Path, bad: Path, tiny_bundle: Path) -> None:
    folder = bad.rename(bad.with_name("a-folder-of-a-name-" + "x" * 80))
    status, shown, _ = on_terminal(command(tiny_bundle, series, folder), rows=True)
    assert status == 3
    assert all(re.search(rf"IM{number} .* ok ", shown) for number in range(5))
    assert max(len(line.rpartition("\r")[2]) for line in shown.replace("\r\n", "\n").split("\n")) <= 80
    assert "Research use only, no diagnosis." in " ".join(shown.split())


def test_a_reader_that_goes_away_ends_it_quietly(pictures: Path, tiny_bundle: Path) -> None:
    words = command(tiny_bundle, pictures, "--json")
    for _ in range(3):
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdout.close()
            assert b"Traceback" not in process.stderr.read()
            assert process.wait() != 0
