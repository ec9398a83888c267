"""``groundglass predict`` as its user meets it: what is printed and written, and with which exit status."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import pydicom
import pytest

from groundglass.cli import predict
from groundglass.cli.main import main
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.phantom_files import write_dicom
from groundglass.inference import flags, prediction_report
from groundglass.inference.classifier import Classifier
from groundglass.inference.finding import COLUMNS, IDENTIFIERS

NAME, ID, BIRTH = "Zwiebelfisch^Xaver", "MRN-4711-XZ", "19310719"


@dataclass(frozen=True)
class Done:
    """A finished command."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Done]


@pytest.fixture
def run(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Runs the command in this process, with the tiny bundle."""

    def call(*arguments: object, bundle: Path = tiny_bundle) -> Done:
        texts = [str(argument) for argument in arguments]
        monkeypatch.setattr(
            sys, "argv", ["groundglass", "predict", *texts, "--bundle", str(bundle), "--threads", "1"]
        )
        capfdbinary.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        sys.stdout.flush()
        out, err = capfdbinary.readouterr()
        return Done(int(ended.value.code or 0), out.decode("utf-8"), err.decode("utf-8"))

    return call


def command(bundle: Path, *arguments: object) -> list[str]:
    texts = [str(argument) for argument in arguments]
    start = [
        sys.executable,
        "-m",
        "groundglass.cli.main",
        "predict",
        "--bundle",
        str(bundle),
        "--threads",
        "1",
    ]
    return [*start, *texts]


def everything_shown(terminal: int) -> bytes:
    """What comes out of a pseudo-terminal until its other end is closed, which Linux reports as an error."""
    shown = b""
    with suppress(OSError), os.fdopen(terminal, "rb", buffering=0) as stream:
        while chunk := stream.read(4096):
            shown += chunk
    return shown


@cache
def pixels(seed: int) -> np.ndarray:
    return make_phantom(np.random.default_rng(seed), 0.6 * (seed % 2), 0.5, size=96).slice.pixels


@cache
def png(seed: int) -> bytes:
    return bytes(cv2.imencode(".png", pixels(seed))[1])


def write_pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(number % 8))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six slices."""
    return write_pictures(tmp_path / "pictures", 6)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """A DICOM series of five slices of somebody with a telling name."""
    folder = tmp_path / "series"
    folder.mkdir()
    for number in range(5):
        path = folder / f"IM{number}"
        write_dicom(make_phantom(np.random.default_rng(number), 0.1 * number, 0.5, size=96), path)
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = "1.2.3.4"
        dataset.ImagePositionPatient = [0, 0, -10.0 * number]
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = NAME, ID, BIRTH
        dataset.save_as(path)
    return folder


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """One slice among what goes wrong."""
    folder = tmp_path / "bad"
    write_pictures(folder, 1)
    content = (folder / "0.png").read_bytes()
    (folder / "1-truncated.png").write_bytes(content[: len(content) // 2])
    (folder / "2-empty.png").touch()
    (folder / "3-text.jpg").write_text("no picture")
    (folder / "4-folder.png").mkdir()
    with zipfile.ZipFile(folder / "5-bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big.png", b"\0" * 40_000_000)
    os.mkfifo(folder / "6-pipe.png")
    (folder / "7-gone.png").symlink_to("nowhere.png")
    (folder / "8-damaged.dcm").write_bytes(b"\0" * 128 + b"DICM" + os.urandom(300))
    cv2.imwrite(
        str(folder / "9-photograph.png"), np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    )
    return folder


def findings_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "findings.jsonl").read_text(encoding="utf-8").splitlines()]


# What is printed


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


def test_sums_are_kept_away_from_printed_findings(run: Run, pictures: Path) -> None:
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
    assert "study score" in done.out
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


# What goes wrong


def test_one_bad_file_never_stops_the_rest(run: Run, bad: Path) -> None:
    done = run(bad, "--json")
    assert done.status == 3
    rows = {Path(row["file"].split("!")[0]).name: row for row in done.rows}
    assert rows["0.png"]["status"] == "ok"
    assert rows["9-photograph.png"]["status"] == "refused"
    failed = {name for name, row in rows.items() if row["status"] == "failed"}
    assert failed == {"1-truncated.png", "2-empty.png", "3-text.jpg", "5-bomb.zip", "8-damaged.dcm"}
    assert "bomb" in rows["5-bomb.zip"]["reason"]
    assert all(row["reason"].isprintable() for row in rows.values() if row["reason"])
    assert "Traceback" not in done.err


def test_the_table_says_why(run: Run, bad: Path) -> None:
    done = run(bad)
    assert re.search(r"2-empty\.png +failed +the file is empty", done.out)
    assert "7 slices: 1 classified" in done.out
    assert "1 refused, 5 failed" in done.out


def test_named_one_by_one_they_do_not_stop_the_rest_either(run: Run, bad: Path) -> None:
    paths = sorted(path for path in bad.iterdir() if path.exists())
    done = run(*paths, "--json")
    assert done.status == 3
    assert [row["status"] for row in done.rows].count("ok") == 1
    reasons = {Path(row["file"]).name: row["reason"] for row in done.rows}
    assert "holds no image" in reasons["4-folder.png"]
    assert "neither a file nor a folder" in reasons["6-pipe.png"]


def test_a_file_that_vanishes_meanwhile_fails_alone(
    run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Classifier._judge

    def vanish(self: Classifier, *arguments: Any) -> Any:
        (pictures / "5.png").unlink(missing_ok=True)
        return judge(self, *arguments)

    monkeypatch.setattr(Classifier, "_judge", vanish)
    monkeypatch.setattr("groundglass.inference.classifier._AHEAD", 1)
    done = run(pictures, "--json")
    assert done.status == 3
    assert [row["status"] for row in done.rows] == ["ok"] * 5 + ["failed"]


def test_nothing_classified_is_a_status_of_its_own(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    assert run(tmp_path / "broken.png").status == 4
    (tmp_path / "empty").mkdir()
    done = run(tmp_path / "empty", "--json")
    assert done.status == 4
    assert "holds no image" in done.rows[0]["reason"]


@pytest.mark.parametrize("path", ["gone.png", "gone/*.png", "gone/**"])
def test_what_is_not_there_is_found_out_before_anything_is_read(
    run: Run, pictures: Path, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundglass.inference.bundle.Bundle.open", lambda *_: pytest.fail("read"))
    done = run(pictures, tmp_path / path, "--output", tmp_path / "out")
    assert (done.status, done.out) == (2, "")
    assert path in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_bundle_or_precision_that_is_not_there(run: Run, pictures: Path, tmp_path: Path) -> None:
    done = run(pictures, bundle=tmp_path / "nothing")
    assert done.status == 2
    assert "no such bundle" in done.err
    done = run(pictures, "--precision", "int8")
    assert done.status == 2
    assert "int8" in done.err
    assert run(pictures, "--precision", "fp32").status == 0
    assert run(pictures, "--precision", "fp64").status == 2


def test_usage(run: Run) -> None:
    assert run("--json").status == 2, "no path"


# Paths


def test_patterns_zips_and_members(run: Run, pictures: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for number in range(3):
            archive.write(pictures / f"{number}.png", f"inner/{number}.png")
    assert len(run(tmp_path / "study.zip", "--json").rows) == 3
    (row,) = run(f"{tmp_path / 'study.zip'}!inner/1.png", "--json").rows
    assert row["file"] == f"{tmp_path / 'study.zip'}!inner/1.png"
    assert len(run(tmp_path / "**" / "[0-2].png", "--json").rows) == 3
    rows = run(pictures, pictures / "1.png", tmp_path / "*/2.png", "--json").rows
    assert len(rows) == 6, "nothing twice"


def test_hostile_names(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "names"
    write_pictures(folder, 1)
    content = (folder / "0.png").read_bytes()
    names = [
        b"<script>alert(1)<.png",
        b"new\nline.png",
        b"\xff\xfe.png",
        b"esc\x1b[2J.png",
        b'"q",;.png',
        b"=1+1.png",
    ]
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(content)
    done = run(folder, "--output", tmp_path / "out")
    assert done.status == 0
    assert "\x1b[2J" not in done.out
    rows = findings_of(tmp_path / "out")
    assert len(rows) == 7
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1
    assert "&lt;script&gt;alert(1)&lt;.png" in page
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 7
    again = run(folder, "--output", tmp_path / "out", "--resume")
    assert again.status == 0
    assert findings_of(tmp_path / "out") == rows, "every name is known again"


def test_names_of_bytes_in_every_place(run: Run, series: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    series.rename(odd)
    volume = np.stack([pixels(number).T.astype(np.int16) for number in range(3)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "v.nii.gz")
    (tmp_path / "v.nii.gz").rename(odd / os.fsdecode(b"v\xff.nii.gz"))
    for arguments in ((), ("--json",), ("--csv",), ("--output", odd / "out")):
        assert run(odd, *arguments).status == 0
    (one, two) = json.loads((odd / "out" / "series.json").read_text(encoding="utf-8"))["series"]
    assert {one["place"][-7:], two["place"][-7:]} == {r"f\udce9", ".nii.gz"}
    page = (odd / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count('data-series="1"') + page.count('data-series="2"') == 8
    assert run(odd, "--output", odd / "out", "--resume").status == 0
    assert len(findings_of(odd / "out")) == 8


def test_of_many_paths_the_report_names_a_few(run: Run, pictures: Path, tmp_path: Path) -> None:
    paths = [f"{pictures}/{number}.png" for number in range(6)]
    run(*paths, "--output", tmp_path / "few")
    assert paths[5] in (tmp_path / "few" / "report.html").read_text().split("<pre>")[1]
    run(*paths, *(f"{pictures}/./{number}.png" for number in range(6)), "--output", tmp_path / "many")
    command = (tmp_path / "many" / "report.html").read_text().split("<pre>")[1]
    assert "4 more paths" in command
    assert f"--output {tmp_path / 'many'}" in command


# A folder


def test_a_folder_holds_everything(run: Run, pictures: Path, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    done = run(pictures, series, "--output", out)
    assert done.status == 0
    assert done.out.rstrip().endswith(f"Report: {out / 'report.html'}")
    assert sorted(path.name for path in out.iterdir()) == [
        "findings.csv", "findings.jsonl", "overlays", "report.html", "series.json",
    ]  # fmt: skip
    rows = findings_of(out)
    assert len(rows) == 11
    table = list(csv.DictReader((out / "findings.csv").open(encoding="utf-8", newline="")))
    assert [row["file"] for row in table] == [row["file"] for row in rows]
    overlays = list((out / "overlays").iterdir())
    assert len(overlays) == 11
    assert all(cv2.imread(str(path)).shape == (320, 646, 3) for path in overlays)

    document = json.loads((out / "series.json").read_text())
    (one,) = document["series"]
    assert (one["series"], one["slices"], one["classified"]) == ("1.2.3.4", 5, 5)
    assert one["curve"]["at"] == [-40, -30, -20, -10, 0]
    by_position = {row["position"]: row["probability"] for row in rows if row["series"]}
    assert one["curve"]["probability"] == [by_position[z] for z in one["curve"]["at"]]
    highest = sorted(by_position.values())[-3:]
    assert one["study_score"] == pytest.approx(sum(highest) / 3)
    assert "no diagnosis" in document["study_score"].replace("it is no", "no")

    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count('<li class="slice"') == page.count("data:image/jpeg") == 11
    assert page.count('class="curve"') == 1
    for link in re.findall(r'<a href="([^"]*)"', page):
        assert (out / link).is_file()
    assert f"{one['study_score']:.3f}" in page


def test_parquet_beside(run: Run, pictures: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run(pictures, "--output", tmp_path / "out", "--parquet").status == 0
    assert parquet.read_table(tmp_path / "out" / "findings.parquet").to_pylist() == findings_of(
        tmp_path / "out"
    )


def test_refused_slices_are_shown_and_failures_explained(run: Run, bad: Path, tmp_path: Path) -> None:
    assert run(bad, "--output", tmp_path / "out").status == 3
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count('<li class="slice"') == 7
    assert "the file is empty" in page
    assert "5 files could not be read" in page


def test_a_large_folder_is_shown_in_part(
    run: Run, bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(bad / "more", 9)
    monkeypatch.setattr(prediction_report, "GALLERY", 6)
    monkeypatch.setattr(prediction_report, "UNCLASSIFIED", 2)
    run(bad, "--output", tmp_path / "out")
    rows = findings_of(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    shown = re.findall(r'<li class="slice" data-order="(\d+)" data-file="([^"]*)" data-status="(\w+)"', page)
    assert len(shown) == 6
    assert [int(order) for order, _, _ in shown] == sorted(int(order) for order, _, _ in shown)
    classified = [row["file"] for row in rows if row["status"] == "ok"]
    highest = sorted((row["probability"] for row in rows if row["status"] == "ok"), reverse=True)[:4]
    assert sum(status == "ok" for _, _, status in shown) == 4
    probability = {row["file"]: row["probability"] for row in rows}
    assert sorted((probability[file] for _, file, status in shown if status == "ok"), reverse=True) == highest
    assert f"holds all {len(rows)}" in page
    assert "the 4 with the highest probability of COVID and the first 2 of 6 refused or failed ones" in page
    assert len(classified) == 10


def test_nothing_is_overwritten(run: Run, pictures: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("irreplaceable")
    for arguments in ((), ("--resume",)):
        done = run(pictures, "--output", mine, *arguments)
        assert done.status == 2
        assert "not empty" in done.err
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]
    for name in ("x.csv", "x.parquet", "x.jsonl"):
        (tmp_path / name).write_text("irreplaceable")
        done = run(pictures, "--output", tmp_path / name)
        assert done.status == 2
        assert "exists" in done.err
        assert (tmp_path / name).read_text() == "irreplaceable"


def test_a_finished_folder_is_gone_on_with_only_where_asked(run: Run, pictures: Path, tmp_path: Path) -> None:
    run(pictures, "--output", tmp_path / "out")
    done = run(pictures, "--output", tmp_path / "out")
    assert done.status == 2
    assert "--resume" in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--output", "x.xlsx"), "takes a folder"),
        (("--output", "x.csv", "--resume"), "--resume needs"),
        (("--resume",), "--resume needs"),
        (("--output", "x.csv", "--parquet"), "--parquet goes with"),
        (("--output", "pictures/0.png/out"), "cannot be"),
        (("--output", "pictures/0"), "is a file"),
    ],
)
def test_outputs_that_will_not_do(
    run: Run,
    pictures: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (pictures / "0").write_text("a file")
    done = run(pictures, *arguments)
    assert done.status == 2
    assert words in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("name", ["out", "out.jsonl", "out.csv", "out.parquet"])
def test_a_full_disk_is_one_line_and_can_be_gone_on_with(
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
    findings = tmp_path / name / "findings.jsonl" if name == "out" else tmp_path / name
    names = [Path(json.loads(line)["file"]).name for line in findings.read_text().splitlines()]
    assert sorted(names) == [f"{number}.png" for number in range(6)]


def test_an_output_within_the_input_is_not_read(
    run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    assert run(".", "--output", "out").status == 0
    assert len(findings_of(Path("out"))) == 6
    assert run(".", "--output", "out", "--resume").status == 0
    assert len(findings_of(Path("out"))) == 6


# Going on


def test_what_is_done_is_not_read_again(run: Run, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(pictures, "--output", out)
    before = findings_of(out)
    page = (out / "report.html").read_text(encoding="utf-8")
    for path in pictures.iterdir():
        path.write_bytes(b"damaged since")
    cv2.imwrite(str(pictures / "6.png"), pixels(6))
    done = run(pictures, "--output", out, "--resume", "--json")
    assert done.status == 0
    assert [Path(row["file"]).name for row in done.rows] == ["6.png"]
    after = findings_of(out)
    assert after[:6] == before
    assert len(after) == len(list((out / "overlays").iterdir())) == 7
    pictures_before = re.findall(r"data:image/jpeg;base64,[^\"]*", page)
    pictures_after = re.findall(
        r"data:image/jpeg;base64,[^\"]*", (out / "report.html").read_text(encoding="utf-8")
    )
    assert pictures_after[:6] == pictures_before


def test_what_failed_is_tried_again(run: Run, pictures: Path, tmp_path: Path) -> None:
    whole = (pictures / "2.png").read_bytes()
    (pictures / "2.png").write_bytes(whole[:100])
    out = tmp_path / "out"
    assert run(pictures, "--output", out).status == 3
    (pictures / "2.png").write_bytes(whole)
    done = run(pictures, "--output", out, "--resume")
    assert done.status == 0
    assert done.out.splitlines()[-2].startswith("6 slices: 6 classified")
    rows = findings_of(out)
    assert sorted(Path(row["file"]).name for row in rows) == [f"{number}.png" for number in range(6)]
    assert {row["status"] for row in rows} == {"ok"}
    assert len(list(csv.DictReader((out / "findings.csv").open(newline="")))) == 6


def test_curves_cover_old_and_new(run: Run, series: Path, tmp_path: Path) -> None:
    last = series / "IM4"
    last.rename(tmp_path / "IM4")
    out = tmp_path / "out"
    run(series, "--output", out)
    (tmp_path / "IM4").rename(last)
    done = run(series, "--output", out, "--resume")
    assert "5 slices: 5 classified" in done.out
    (one,) = json.loads((out / "series.json").read_text())["series"]
    assert one["curve"]["at"] == [-40, -30, -20, -10, 0]


def test_a_volume_is_gone_on_with_in_the_middle(run: Run, tmp_path: Path) -> None:
    volume = np.stack([pixels(number).T.astype(np.int16) for number in range(5)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "v.nii.gz")
    out = tmp_path / "out.jsonl"
    whole = run(tmp_path / "v.nii.gz", "--output", out, "--json").rows
    assert [row["frame"] for row in whole] == [0, 1, 2, 3, 4]
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    done = run(tmp_path / "v.nii.gz", "--output", out, "--resume", "--json")
    assert [row["frame"] for row in done.rows] == [3, 4]
    assert [json.loads(line) for line in out.read_bytes().splitlines()] == whole


def test_bundles_are_not_mixed(run: Run, pictures: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    out = tmp_path / "out"
    run(pictures, "--output", out)
    path = out / "findings.jsonl"
    path.write_text(path.read_text().replace('-fp32"', '-int8"'))
    before = path.read_bytes()
    done = run(pictures, "--output", out, "--resume")
    assert done.status == 2
    assert "bundle" in done.err
    assert len(done.err.splitlines()) == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_is_gone_on_with(
    tmp_path: Path, tiny_bundle: Path, signalled: signal.Signals
) -> None:
    pictures, out = write_pictures(tmp_path / "many", 150), tmp_path / "out"
    process = subprocess.Popen(
        command(tiny_bundle, pictures, "--output", out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    findings = out / "findings.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (findings.exists() and findings.read_bytes().count(b"\n") > 10):
        time.sleep(0.01)
    process.send_signal(signalled)
    _, err = process.communicate(timeout=60)
    found = findings.read_bytes().count(b"\n")
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
    rows = findings_of(out)
    assert sorted(int(Path(row["file"]).stem) for row in rows) == list(range(150))
    assert len(list((out / "overlays").iterdir())) == 150
    assert (out / "report.html").exists()


def test_an_interrupted_csv_does_not_appear(tmp_path: Path, tiny_bundle: Path) -> None:
    pictures, out = write_pictures(tmp_path / "many", 400), tmp_path / "out.csv"
    with subprocess.Popen(
        command(tiny_bundle, pictures, "--output", out, "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many"]


# Identifiers


def everything_in(folder: Path) -> bytes:
    return b"".join(
        path.name.encode() + path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    )


def test_no_output_names_the_patient(run: Run, series: Path, tmp_path: Path) -> None:
    (series / "IM9").write_bytes((series / "IM0").read_bytes()[:3000])
    dataset = pydicom.dcmread(series / "IM1")
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    dataset.save_as(series / "IM1")
    outputs = [run(series, *arguments) for arguments in ((), ("--json",), ("--csv",))]
    arguments = ["--output", tmp_path / "out"]
    parquet = find_spec("pyarrow") is not None
    outputs.append(run(series, *arguments, *(["--parquet"] * parquet)))
    outputs.append(run(series, "--output", tmp_path / "x.jsonl"))
    everything = "".join(done.out + done.err for done in outputs).encode() + everything_in(tmp_path / "out")
    everything += (tmp_path / "x.jsonl").read_bytes()
    assert b"IM0" in everything, "something is searched"
    assert {done.status for done in outputs} == {3}
    for secret in (*NAME.split("^"), ID, BIRTH, "1931-07-19", "patient_name"):
        assert secret.encode() not in everything
        assert secret.lower().encode() not in everything.lower()


def test_identifiers_are_kept_where_asked_for_and_nowhere_else(
    run: Run, series: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run(series, "--output", out, "--keep-identifiers", "--json")
    assert done.status == 0
    for row in (*done.rows, *findings_of(out)):
        assert tuple(row) == COLUMNS + IDENTIFIERS
        assert (row["patient_name"], row["patient_id"], row["birth_date"]) == (NAME, ID, BIRTH)
    assert NAME in (out / "findings.csv").read_text()
    for name in ("report.html", "series.json"):
        assert NAME not in (out / name).read_text()
    resumed = run(series, "--output", out, "--resume")
    assert resumed.status == 2
    assert "--keep-identifiers" in resumed.err


# Speed and size

ONLY_THESE = """
import sys
from groundglass.cli.main import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def test_one_picture_imports_only_what_it_needs(pictures: Path, tiny_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ONLY_THESE, *command(tiny_bundle, pictures / "0.png")[3:]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1 slice: 1 classified" in done.stdout
    modules = set(done.stderr.split())
    needless = {
        "torch", "timm", "matplotlib", "scipy", "sklearn", "pandas", "pydicom", "nibabel", "gdcm", "jinja2", "pyarrow",
        "pooch", "ray", "yaml", "markupsafe", "groundglass.inference.pictures", "groundglass.reporting.figures",
    }  # fmt: skip
    assert not modules & needless
    assert "onnxruntime" in modules


@pytest.mark.slow
@pytest.mark.parametrize("output", ["out", None])
def test_memory_does_not_grow_with_the_number_of_slices(
    tmp_path: Path, tiny_bundle: Path, output: str | None
) -> None:
    """Keeping 1,000 slices' pixels and masks would take 200 MiB."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(8):
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(pixels(number), (320, 320)))
    for number in range(8, 1000):
        os.link(folder / f"{number % 8}.png", folder / f"{number}.png")
    # The kernel's high-water mark of this program alone: that of getrusage counts the parent's, too.
    script = (
        "import re, sys\nfrom pathlib import Path\nfrom groundglass.cli.main import main\ntry:\n    main()\n"
        "finally:\n    status = Path('/proc/self/status').read_text()\n"
        "    print(re.search(r'VmHWM:\\s+(\\d+)', status)[1], file=sys.stderr)"
    )
    peaks = []
    for path in (folder / "1?.png", folder):
        arguments = [] if output is None else ["--output", tmp_path / f"{len(peaks)}-{output}"]
        done = subprocess.run(
            [sys.executable, "-c", script, *command(tiny_bundle, path, *arguments)[3:]],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stderr.split()[-1]) / 1024)
    assert peaks[1] < 400
    assert peaks[1] - peaks[0] < 60, "MiB"


# What is written about it

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "predict.md"


def test_the_documentation_names_every_column_flag_option_and_status() -> None:
    text = DOCUMENTATION.read_text(encoding="utf-8")
    known = {value for name, value in vars(flags).items() if name.isupper() and isinstance(value, str)}
    assert "lungs-not-found" in known
    for name in (*COLUMNS, *IDENTIFIERS, *known):
        assert f"`{name}`" in text, name
    options = set(re.findall(r'"(--[a-z-]+)"', inspect.getsource(predict)))
    assert len(options) >= 10
    for option in options - {"--bundle"}:
        assert option in text, option
    for status in (0, 2, predict.SOME_LEFT_OUT, predict.NONE_CLASSIFIED, predict.INTERRUPTED):
        assert f"\n| {status} | " in text
