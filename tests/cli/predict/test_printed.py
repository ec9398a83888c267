"""What is printed, of bad files too: table, predictions as data, sums and progress; nothing acts on a terminal."""

import os
import pty
import re
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from rich.cells import cell_len
from tests.cli.predict.conftest import command
from tests.conftest import Command, Done

from groundglass.cli.screen import PredictionsTable
from groundglass.inference.bundle import Bundle
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
@pytest.mark.parametrize("file", ["1.dcm", "a/very/long/path/" * 20 + "1-001.dcm", "扫描/切片-" * 20 + "1.png"])
def test_columns_stay_in_place_and_words_whole_within_the_terminal(width: int, file: str) -> None:
    flags = ("one-lung-found", "soft-tissue-window", "low-resolution", "upside-down")
    uid = "1.2.826.0.1.3680043.8.498." + "1" * 38
    reason = f"refers to /a/folder/of-some-length/{'x' * 40}.raw, of {uid} and nothing else"
    refused = replace(REFUSED, file=file, reason=reason)
    shown = lines(PredictionsTable(width), replace(OK, file=file, flags=flags), refused)
    assert all(cell_len(line) <= width for line in shown)
    header, first, *rest = shown
    values = {"Position": "-312.6 mm", "Status": "ok", "Prob.": "0.123", "Flags": "one-lung-found"}
    for title, value in values.items():
        assert cell_len(first[: first.index(value)]) == header.index(title)
    (second,) = (line for line in rest if "refused" in line)
    assert cell_len(second[: second.index("refused")]) == header.index("Status")
    assert file[-9:].strip() in first
    words = " ".join([first, *rest]).replace(",", " ").split()
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


def on_terminal(words: list[str]) -> tuple[int, str]:
    """Status, and what a pseudo-terminal of 80 columns shows without its codes."""
    watched, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"}
    shown = b""
    with subprocess.Popen(words, stdout=terminal, stderr=terminal, env=environment) as process:
        os.close(terminal)
        # Linux reports the end of the other side as an error.
        with suppress(OSError), os.fdopen(watched, "rb", buffering=0) as stream:
            while chunk := stream.read(4096):
                shown += chunk
    return process.returncode, re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", shown.decode())


def test_the_table_and_the_sum_of_a_series(run: Command, pictures: Path, series: Path) -> None:
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


def test_quiet_prints_nothing_but_what_was_asked_for(run: Command, pictures: Path) -> None:
    assert run(pictures, "--quiet") == Done(0, "", "")
    done = run(pictures, "--quiet", "--json")
    assert (len(done.rows), done.err) == (6, "")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_any_encoding_of_the_output_will_do(series: Path, tiny_bundle: Path, encoding: str) -> None:
    odd = series.rename(series.with_name("größe"))
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(command(tiny_bundle, odd), capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert ("größe" in done.stdout.decode(encoding)) is (encoding == "utf-8")


def test_nothing_is_wider_than_a_terminal(series: Path, bad: Path, tiny_bundle: Path) -> None:
    folder = bad.rename(bad.with_name("a-folder-of-a-name-" + "x" * 80))
    status, shown = on_terminal(command(tiny_bundle, series, folder))
    assert (status, "slices/s" in shown, "14/14" in shown) == (3, True, True)
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


# One bad file never stops the rest, and the exit status tells.


def test_one_bad_file_never_stops_the_rest(run: Command, bad: Path) -> None:
    done = run(bad, "--json")
    assert done.status == 3
    rows = {Path(row["file"].split("!")[0]).name: row for row in done.rows}
    assert rows["0.png"]["status"] == "ok"
    assert rows["9-photograph.png"]["status"] == "refused"
    assert {name[0] for name, row in rows.items() if row["status"] == "failed"} == set("1235678")
    assert "bomb" in rows["5-bomb.zip"]["reason"]
    assert all(row["reason"].isprintable() for row in rows.values() if row["reason"])
    assert "Traceback" not in done.err
    done = run(bad)
    assert re.search(r"2-empty\.png +failed +the file is empty", done.out)
    assert "9 slices: 1 classified" in done.out
    assert "1 refused, 7 failed" in done.out


def test_nothing_classified_is_a_status_of_its_own(run: Command, bad: Path, tmp_path: Path) -> None:
    assert run(bad / "3-text.jpg").status == 4
    (tmp_path / "empty").mkdir()
    done = run(tmp_path / "empty", "--json")
    assert (done.status, "holds no image" in done.rows[0]["reason"]) == (4, True)


def test_bundles_and_usage(run: Command, pictures: Path, tmp_path: Path) -> None:
    done = run(pictures, bundle=tmp_path / "nothing")
    assert (done.status, "no such bundle" in done.err) == (2, True)
    rows = run(pictures, "--json", bundle=Path("default")).rows
    assert {row["bundle"] for row in rows} == {Bundle.open().id}
    assert run("--json").status == 2, "no path"


def test_slices_outside_the_lungs_of_a_series_are_no_failure(run: Command, series: Path) -> None:
    """Five chest slices, one of the neck and one of the abdomen: a body without lungs, as noisy as of a scanner."""
    dataset = pydicom.dcmread(series / "IM0")
    rows, columns = np.mgrid[-1 : 1 : dataset.Rows * 1j, -1 : 1 : dataset.Columns * 1j]
    noise = np.random.default_rng(0).normal(40, 150, rows.shape)
    body = np.where(rows**2 + columns**2 < 0.6, noise, -1000) - float(dataset.RescaleIntercept)
    dataset.PixelData = body.astype(dataset.pixel_array.dtype).tobytes()
    for name, position in (("neck", 40), ("abdomen", -90)):
        dataset.ImagePositionPatient = [0, 0, position]
        dataset.SOPInstanceUID = f"1.2.3.{position + 100}"
        dataset.save_as(series / name)
    done = run(series, "--json")
    reasons = {Path(row["file"]).name: row["reason"] for row in done.rows if row["status"] == "refused"}
    assert set(reasons) == {"neck", "abdomen"}
    assert all(reason.startswith("outside the lungs: ") for reason in reasons.values())
    assert "5 classified" in done.err
    assert "2 outside the lungs" in done.err
    assert done.status == 0
    assert run(series, "--strict", "--quiet").status == 3
    assert run(series / "neck").status == 4, "alone it says nothing of a lung"
    (series / "photograph.png").write_bytes((series / "neck").read_bytes()[:2000])
    assert run(series, "--quiet").status == 3, "what else is left out still counts"
