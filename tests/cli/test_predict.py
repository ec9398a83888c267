"""``groundglass predict``: what it writes, prints and resumes, of bad files too; and as a process that may be ended."""

import csv
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import nibabel
import numpy as np
import pydicom
import pytest
from tests.conftest import BIRTH, ID, NAME, Command, Patch, change_dicom, make_zip, pixels, png, save_image, stop_when

import groundglass
from groundglass.cli import predict
from groundglass.cli.screen import PredictionsTable
from groundglass.imaging.phantom import make_phantom, write_dicom
from groundglass.inference.bundle import Bundle
from groundglass.inference.input_check import FLAGS
from groundglass.inference.prediction import COLUMNS, COPY, IDENTIFIERS, Prediction, Status, row_schema
from groundglass.reporting.overlay import Layers

DOCS = Path(__file__).parents[2] / "docs"
NO_UID = {"SeriesInstanceUID": "", "StudyInstanceUID": None, "PatientID": None}
FULL = "error: standard output cannot be written (No space left on device)"
OK = Prediction(
    Status.OK, "series/1.dcm", "b", None, 0.12345, "NonCOVID", ("NonCOVID",), ("one-lung-found",),
    series="1.2", position=-312.55,
)  # fmt: skip
REASON = "a colour photograph or a chart, and in any case not an axial CT slice of the chest"
REFUSED = Prediction(Status.REFUSED, "p.png", "b", REASON)
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


@pytest.fixture
def run(tiny_bundle: Path, run_command: Command) -> Command:
    """Runs the command in this process, with the tiny bundle."""

    def call(*arguments: object, bundle: Path = tiny_bundle) -> Any:
        return run_command("predict", *arguments, "--bundle", bundle, "--threads", "1")

    return call


def command(bundle: Path, *arguments: object) -> list[str]:
    start = (sys.executable, "-m", "groundglass.cli.main", "predict", "--bundle", bundle, "--threads", "1")
    return [str(word) for word in (*start, *arguments)]


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
    for number in range(5):
        path = tmp_path / "series" / f"IM{number}"
        write_dicom(make_phantom(np.random.default_rng(number), 0.1 * number, 0.5, size=96), path)
        scan = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "PixelSpacing": [3.7, 3.7]}
        who = {"PatientName": NAME, "PatientID": ID, "PatientBirthDate": BIRTH}
        change_dicom(path, ImagePositionPatient=[0, 0, -10.0 * number], **scan, **who)
    return tmp_path / "series"


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """One slice among what goes wrong."""
    folder = write_pictures(tmp_path / "bad", 1)
    (folder / "1-truncated.png").write_bytes(png(0)[: len(png(0)) // 2])
    (folder / "2-empty.png").touch()
    (folder / "3-text.jpg").write_text("no picture")
    (folder / "4-folder.png").mkdir()
    make_zip(folder / "5-bomb.zip", {"big.png": bytes(40_000_000)})
    os.mkfifo(folder / "6-pipe.png")
    (folder / "7-gone.png").symlink_to("nowhere.png")
    (folder / "8-damaged.dcm").write_bytes(b"\0" * 128 + b"DICM" + os.urandom(300))
    save_image(folder / "9-photograph.png", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    return folder


def predictions_of(path: Path) -> list[dict[str, Any]]:
    """Those in an output, a folder or a file."""
    file = path if path.suffix else path / "predictions.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def series_of(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "series.json").read_text())["series"])


def test_a_folder_holds_everything(run: Command, pictures: Path, series: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "new" / "out"
    done = run(pictures, series, "--output", out, "--parquet")
    assert done.status == 0
    assert done.out.rstrip().endswith(f"Report: {out / 'report.html'}")
    assert {path.name for path in out.iterdir()} == {
        "overlays", "predictions.csv", "predictions.jsonl", "predictions.parquet", "report.html", "series.json",
    }  # fmt: skip
    rows = predictions_of(out)
    assert len(rows) == 11
    assert not [row for row in rows if jsonschema.validate(row, row_schema())]
    assert parquet.read_table(out / "predictions.parquet").to_pylist() == rows
    table = list(csv.DictReader((out / "predictions.csv").open(encoding="utf-8", newline="")))
    assert [row["file"] for row in table] == [row["file"] for row in rows]
    overlays = [out / row["overlay"] for row in rows]
    assert sorted(overlays) == sorted((out / "overlays").iterdir())
    assert all(Layers.read(path.read_text()) for path in overlays)
    (one,) = series_of(out)
    assert (one["series"], one["slices"], one["classified"]) == ("1.2.3.4", 5, 5)
    for row in (each for each in rows if each["series"]):  # they can be joined
        header = pydicom.dcmread(row["file"])
        uids = header.StudyInstanceUID, header.SeriesInstanceUID, header.SOPInstanceUID, header.InstanceNumber
        assert (row["study"], row["series"], row["instance"], row["slice_number"]) == uids
        assert all(row[name] == one[name] for name in ("study", "series", "stack"))
    by_position = {row["position"]: row["probability"] for row in rows if row["series"]}
    assert one["curve"]["at"] == sorted(by_position) == [-40, -30, -20, -10, 0]
    assert one["curve"]["probability"] == [by_position[z] for z in one["curve"]["at"]]
    assert one["series_score"] == pytest.approx(sum(sorted(by_position.values())[-3:]) / 3)
    assert "no diagnosis" in json.loads((out / "series.json").read_text())["series_score"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r'id="s\d+"', page)) == page.count("data:image/jpeg") == 11
    assert f"{one['series_score']:.3f}" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--output x.xlsx", "takes a folder"), ("--resume", "--resume needs"), ("--parquet", "--parquet needs"),
        ("--masks", "--masks needs"), ("--output out --masks --engine ray", "--masks does not go with"),
        ("--workers 2", "go with --engine ray"), ("--engine ray", "--threads does not go with"),
        ("--output pictures/0.png/out", "cannot be"), ("--output pictures/0", "is a file"),
        ("--output mine", "not empty"),
        *((f"--output mine/thesis.{suffix}", "exists") for suffix in ("csv", "parquet", "jsonl")),
        *((f"{path} --output out", path) for path in ("gone.png", "gone/*.png", "gone/**")),
        ("--json --csv", "choose one"), ("rows.csv", "rows.csv: line 2: unexpected end"),
        ("- --json", "-: standard input is not read; save it as a file"),
    ],
)  # fmt: skip
def test_nothing_is_read_nor_lost(run: Command, pictures: Path, arguments: str, words: str, monkeypatch: Patch) -> None:
    (pictures / "0").write_text("a file")
    (pictures.parent / "mine").mkdir()
    for suffix in ("csv", "parquet", "jsonl"):
        (pictures.parent / "mine" / f"thesis.{suffix}").write_text("irreplaceable")
    (pictures.parent / "rows.csv").write_text('path\npictures/0.png\n"pictures/1.png\n')
    monkeypatch.chdir(pictures.parent)
    monkeypatch.setattr("groundglass.inference.classifier.Classifier.predict_all", lambda *_, **__: pytest.fail("read"))
    done = run(pictures, *arguments.split())
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert words in done.err
    assert {path.name for path in Path().iterdir()} == {"pictures", "mine", "rows.csv"}
    assert [path.read_text() for path in Path("mine").iterdir()] == ["irreplaceable"] * 3


def test_its_own_output_is_not_read(run: Command, pictures: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(pictures)
    for arguments in ((), ("--resume",)):
        assert run(".", "--output", "out", "--masks", *arguments).status == 0
        assert len(predictions_of(Path("out"))) == 6 < len(list(Path("out").rglob("*.png")))
    assert "--resume" in run(".", "--output", "out").err, "a finished folder is resumed where asked"


def test_no_output_names_the_patient(run: Command, series: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (series / "IM9").write_bytes((series / "IM0").read_bytes()[:3000])
    change_dicom(series / "IM1", ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    out = tmp_path / "out"
    written = ("--output", out / "all", "--parquet"), ("--output", out / "x.jsonl")
    outputs = [run(series, *arguments) for arguments in ((), ("--json",), ("--csv",), *written)]
    assert {done.status for done in outputs} == {3}
    everything = "".join(done.out + done.err for done in outputs).encode()
    for path in out.rglob("*"):
        everything += path.name.encode() + (path.read_bytes() if path.is_file() else b"")
    assert b"IM0" in everything, "something is searched"
    for secret in (*NAME.split("^"), ID, BIRTH, "1931-07-19", "patient_name"):
        assert secret.lower().encode() not in everything.lower()


def test_identifiers_are_kept_where_asked_for_and_only_there(run: Command, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(series, "--output", out, "--keep-identifiers", "--json")
    for row in (*done.rows, *predictions_of(out)):
        assert tuple(row) == COLUMNS + IDENTIFIERS
        assert (row["patient_name"], row["patient_id"], row["birth_date"]) == (NAME, ID, BIRTH)
    assert NAME in (out / "predictions.csv").read_text()
    for name in ("report.html", "series.json"):
        assert NAME not in (out / name).read_text()


def test_the_documentation_names_every_column_flag_option_and_status() -> None:
    text = (DOCS / "predict.md").read_text(encoding="utf-8")
    options = {"--" + name.replace("_", "-").removeprefix("as-") for name in signature(predict.predict).parameters}
    options -= {"--paths"}
    status = (0, 2, predict.SOME_LEFT_OUT, predict.NONE_CLASSIFIED, 130)
    words = {f"`{name}`" for name in (*COLUMNS, *IDENTIFIERS, *FLAGS)} | {f"\n| {each} | " for each in status}
    assert [each for each in words | options if each not in text] == []
    reference = (DOCS / "reference.md").read_text(encoding="utf-8")
    names = {name for name in groundglass.__all__ if f"::: groundglass.{name}\n" not in reference}
    assert names == {"GroundglassError", "__version__"}, "the former stands among the errors"


def scan(series: Path, folder: Path, slices: int = 5, **elements: object) -> None:
    """Write the slices of a series into a folder, with other elements; None removes one."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(series.iterdir())[:slices]:
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID[:40]}.{sum(folder.name.encode())}.{path.name[2:]}"
        for keyword, value in elements.items():
            delattr(dataset, keyword) if value is None else setattr(dataset, keyword, value)
        dataset.save_as(folder / f"{'-'.join(map(str, elements.values()))[:20]}{path.name}")


@pytest.mark.parametrize(
    ("one", "place", "other", "expected"),
    [
        ({}, "a", {"PatientID": "other"}, [5, 5]),
        ({}, "a", {"StudyInstanceUID": "1.9"}, [5, 5]),
        ({"SeriesInstanceUID": None}, "b", {"SeriesInstanceUID": ""}, [5, 5]),
        ({"SeriesInstanceUID": ""}, "a", {"SeriesInstanceUID": "", "PixelSpacing": [1, 1]}, [5, 5]),
        ({"SeriesInstanceUID": "UNKNOWN"}, "b", {"SeriesInstanceUID": "UNKNOWN"}, [5, 5]),
        ({}, "b", {}, [5, 5]),  # one UID for two scans, as some anonymisers give it
        (NO_UID, "a", NO_UID, [5]),
        ({"SOPInstanceUID": "1.1"}, "a", {"SOPInstanceUID": "1.1"}, [5]),
        ({"PatientName": NAME + "^"}, "a/b", {"ImagePositionPatient": [0, 0, 70.5], "slices": 1}, [6]),
    ],
)
def test_slices_of_one_study_series_and_patient_are_a_series(
    run: Command, series: Path, tmp_path: Path, one: dict[str, Any], place: str, other: dict[str, Any], expected: list[int]
) -> None:  # fmt: skip
    scan(series, tmp_path / "scans" / "a", **one)
    scan(series, tmp_path / "scans" / place, **other)
    out = tmp_path / "out"
    assert run(tmp_path / "scans", "--output", out, "--quiet").status == 0
    assert [each["slices"] for each in series_of(out)] == expected
    assert ID not in (out / "predictions.jsonl").read_text()


@pytest.mark.parametrize("zipped", [False, True])
def test_the_same_image_counts_once(run: Command, series: Path, tmp_path: Path, zipped: bool) -> None:
    folder, out = tmp_path / "twice", tmp_path / "out"
    shutil.copytree(series, folder / "a")
    shutil.copytree(series, folder / "b" / "copy")
    if zipped:
        folder = Path(shutil.make_archive(str(folder), "zip", folder))
    done = run(folder, "--output", out)
    assert done.status == 0
    assert all(words in done.out for words in ("5 slices: 5 classified", "5 copies of these left out"))
    assert [each["slices"] for each in series_of(out)] == [5]
    rows = predictions_of(out)
    first = {row["instance"]: row["file"] for row in rows if row["status"] == "ok"}
    copies = [row for row in rows if row["status"] == "refused"]
    assert len(first) == len(copies) == 5
    assert all(row["reason"].startswith(f"a copy of {first[row['instance']]}") for row in copies)
    shutil.copytree(series, tmp_path / "third")
    done = run(folder, tmp_path / "third", series / "IM0", "--output", out, "--resume")
    assert "11 copies" in done.out, "known from an earlier run"
    assert predictions_of(out)[:10] == rows


def lines(table: PredictionsTable, *predictions: Prediction) -> list[str]:
    return [line.plain for prediction in predictions for line in table.lines(prediction)]


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
    assert all(words in done.out for words in (f"{series}, series 1.2.3.4", "series score"))
    assert re.search(r"-40\.0 mm [▁-█]{5} 0\.0 mm", done.out)
    assert rows[-1].startswith("11 slices: 11 classified")
    assert rows[-1].endswith("Research use only, no diagnosis.")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_any_encoding_of_the_output_will_do(series: Path, tiny_bundle: Path, encoding: str) -> None:
    odd = series.rename(series.with_name("größe"))
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for words in (command(tiny_bundle, odd), [*command(tiny_bundle)[:3], "data", "describe", str(odd)]):
        done = subprocess.run(words, capture_output=True, check=False, env=environment)
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
    assert all(words in done.out for words in ("9 slices: 1 classified", "1 refused, 7 failed"))
    done = run(*(bad / name for name in ("3-text.jpg", "4-folder.png", "6-pipe.png")), "--json")
    assert (done.status, "holds no image" in done.rows[1]["reason"]) == (4, True), "nothing is classified"
    assert "save what comes out of a pipe as a file" in done.rows[2]["reason"]


def test_bundles_and_quiet(run: Command, pictures: Path, tmp_path: Path) -> None:
    done = run(pictures, bundle=tmp_path / "nothing")
    assert (done.status, "no such bundle" in done.err) == (2, True)
    done = run(pictures, "--quiet", "--json", bundle=Path("default"))
    assert ([row["bundle"] for row in done.rows], done.err) == ([Bundle.open().id] * 6, "")
    assert run(pictures, "--quiet") == (0, "", "")
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
    assert all(words in done.err for words in ("5 classified", "2 outside the lungs"))
    assert done.status == 0
    assert run(series, "--strict", "--quiet").status == 3
    assert run(series / "neck").status == 4, "alone it says nothing of a lung"
    (series / "photograph.png").write_bytes((series / "neck").read_bytes()[:2000])
    assert run(series, "--quiet").status == 3, "what else is left out still counts"
    (series / "photograph.png").unlink()
    change_dicom(series / "neck", SeriesInstanceUID="9.9")
    assert run(series, "--quiet").status == 3, "as it does where no slice of its series is classified"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize(
    ("option", "redirected", "status", "err"),
    [
        ("--json", ">/dev/full", 2, FULL),
        ("", ">/dev/full", 2, FULL),
        ("--help", ">/dev/full", 2, FULL),
        ("--quiet", ">/dev/full", 0, ""),
        ("--json", ">&-", 0, "6 slices: 6 classified"),
        ("--json", "2>&-", 0, ""),
        ("--output out.jsonl", ">&- 2>&- <&-", 0, ""),  # a closed stream is no file
    ],
)
def test_odd_streams(pictures: Path, tiny_bundle: Path, option: str, redirected: str, status: int, err: str) -> None:
    out = pictures.parent / "out.jsonl"
    words = f"{shlex.join(command(tiny_bundle))} {pictures} {option} {redirected}".replace("out.jsonl", str(out))
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == bool(err)
    assert done.stderr.startswith(err)
    printed = out.read_text() if "--output" in option else done.stdout
    if "json" in option and (printed or ">" not in redirected.replace("2>", "")):
        assert [json.loads(line)["status"] for line in printed.splitlines()] == ["ok"] * 6


@pytest.mark.parametrize("case", ["SIGTERM out.parquet", "SIGTERM out", "SIGHUP out.csv", "SIGINT out.csv"])
def test_told_to_end_it_leaves_nothing(tmp_path: Path, tiny_bundle: Path, case: str) -> None:
    signalled, name = case.split()
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
    assert {path.name for path in tmp_path.iterdir()} - {"many", "tmp"} == ({"out"} if name == "out" else set())
    assert list(temporaries.iterdir()) == []


def measure(bundle: Path, *arguments: object) -> tuple[set[str], float]:
    """What was imported, and the peak of memory in MiB."""
    words = [sys.executable, "-c", MEASURED, *command(bundle, *arguments)[3:]]
    *modules, peak = subprocess.run(words, capture_output=True, text=True, check=True).stderr.split()
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
    paths = folder / "1?.png", folder
    few, many = (measure(tiny_bundle, path, "--output", tmp_path / path.name[0])[1] for path in paths)
    assert many < 400
    assert many - few < 60, "MiB"


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
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))\n"
    words = command(tiny_bundle, pictures, "--output", tmp_path / name)
    full = [sys.executable, "-B", "-c", f"{limited}from groundglass.cli.main import main\nmain()", *words[3:]]
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
    stopped = stop_when(lambda: predictions.exists() and predictions.read_bytes().count(b"\n") > 10, words, signalled)
    found = predictions.read_bytes().count(b"\n")
    assert 10 < found < 150, "interrupted on its way"
    assert not (out / "report.html").exists()
    if signalled is signal.SIGINT:
        assert (stopped.status, "--resume" in stopped.err, "Traceback" in stopped.err) == (130, True, False)
    done = subprocess.run([*words, "--resume", "--json"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 150 - found <= len(done.stdout.splitlines()) <= 150 - found + 1
    assert sorted(int(Path(row["file"]).stem) for row in predictions_of(out)) == list(range(150))
    assert len(list((out / "overlays").iterdir())) == 150
    assert (out / "report.html").exists()
