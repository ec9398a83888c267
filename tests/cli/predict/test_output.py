"""What is written with ``--output``: for which paths, names, series and patients, and what is never overwritten."""

import csv
import json
import re
import shutil
from inspect import signature
from pathlib import Path
from typing import Any

import jsonschema
import pydicom
import pytest
from tests.cli.predict.conftest import BIRTH, ID, NAME, predictions_of
from tests.conftest import Command, change_dicom

import groundglass
from groundglass.cli import predict
from groundglass.inference.input_check import FLAGS
from groundglass.inference.prediction import COLUMNS, IDENTIFIERS, row_schema
from groundglass.reporting.overlay import Layers

DOCS = Path(__file__).parents[3] / "docs"


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
        assert [row[name] for name in ("study", "series", "stack")] == [
            one[name] for name in ("study", "series", "stack")
        ]
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
        ("--output x.xlsx", "takes a folder"),
        ("--output x.csv --resume", "--resume needs"),
        ("--resume", "--resume needs"),
        ("--output x.csv --parquet", "--parquet needs"),
        ("--parquet", "--parquet needs"),
        ("--output x.jsonl --masks", "--masks needs"),
        ("--masks", "--masks needs"),
        ("--output out --masks --engine ray", "--masks does not go with"),
        ("--workers 2", "go with --engine ray"),
        ("--address auto", "go with --engine ray"),
        ("--engine ray", "--threads does not go with"),
        ("--output pictures/0.png/out", "cannot be"),
        ("--output pictures/0", "is a file"),
        ("--output mine", "not empty"),
        ("--output mine --resume", "not empty"),
        *((f"--output mine/thesis.{suffix}", "exists") for suffix in ("csv", "parquet", "jsonl")),
        *((f"{path} --output out", path) for path in ("gone.png", "gone/*.png", "gone/**")),
        ("--json --csv", "choose one"),
    ],
)
def test_what_will_not_do_is_found_out_before_anything_is_read_or_overwritten(
    run: Command, pictures: Path, arguments: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "0").write_text("a file")
    (pictures.parent / "mine").mkdir()
    for suffix in ("csv", "parquet", "jsonl"):
        (pictures.parent / "mine" / f"thesis.{suffix}").write_text("irreplaceable")
    monkeypatch.chdir(pictures.parent)
    monkeypatch.setattr("groundglass.inference.classifier.Classifier.predict_all", lambda *_, **__: pytest.fail("read"))
    done = run(pictures, *arguments.split())
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert words in done.err
    assert {path.name for path in Path().iterdir()} == {"pictures", "mine"}
    assert [path.read_text() for path in Path("mine").iterdir()] == ["irreplaceable"] * 3


def test_its_own_output_is_not_read(run: Command, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    resumed = run(series, "--output", out, "--resume")
    assert (resumed.status, "--keep-identifiers" in resumed.err) == (2, True)


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


# Which slices of DICOM folders are one series: by study, series and patient, else by folder and geometry.


def scan(series: Path, folder: Path, slices: int = 5, **elements: object) -> None:
    """Write the slices of a series into a folder, with other elements; None removes one."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(series.iterdir())[:slices]:
        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID[:40]}.{sum(folder.name.encode())}.{path.name[2:]}"
        for keyword, value in elements.items():
            delattr(dataset, keyword) if value is None else setattr(dataset, keyword, value)
        dataset.save_as(folder / f"{'-'.join(map(str, elements.values()))[:20]}{path.name}")


NO_UID = {"SeriesInstanceUID": "", "StudyInstanceUID": None, "PatientID": None}


@pytest.mark.parametrize(
    ("one", "place", "other", "expected"),
    [
        ({}, "b", {"PatientID": "other"}, [5, 5]),
        ({}, "a", {"PatientID": "other"}, [5, 5]),
        ({}, "a", {"PatientName": "Other^One"}, [5, 5]),
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
    assert "5 slices: 5 classified" in done.out
    assert "5 copies of these left out" in done.out
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
