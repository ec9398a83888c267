"""What is written with ``--output``: for which paths, names and patients, and what is never overwritten."""

from __future__ import annotations

import csv
import inspect
import json
import os
import re
from pathlib import Path

import pytest
from tests.cli.predict.conftest import BIRTH, ID, NAME, Run, png, predictions_of, write_pictures
from tests.conftest import change_dicom

import groundglass
from groundglass.cli import predict
from groundglass.inference.input_check import FLAGS
from groundglass.inference.prediction import COLUMNS, IDENTIFIERS
from groundglass.reporting.overlay import Layers

DOCS = Path(__file__).parents[3] / "docs"


def test_a_folder_holds_everything(run: Run, pictures: Path, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    done = run(pictures, series, "--output", out)
    assert done.status == 0
    assert done.out.rstrip().endswith(f"Report: {out / 'report.html'}")
    assert sorted(path.name for path in out.iterdir()) == [
        "overlays", "predictions.csv", "predictions.jsonl", "report.html", "series.json",
    ]  # fmt: skip
    rows = predictions_of(out)
    assert len(rows) == 11
    table = list(csv.DictReader((out / "predictions.csv").open(encoding="utf-8", newline="")))
    assert [row["file"] for row in table] == [row["file"] for row in rows]
    overlays = [out / row["overlay"] for row in rows]
    assert sorted(overlays) == sorted((out / "overlays").iterdir())
    assert all(Layers.read(path.read_text()) for path in overlays)
    document = json.loads((out / "series.json").read_text())
    (one,) = document["series"]
    assert (one["series"], one["slices"], one["classified"]) == ("1.2.3.4", 5, 5)
    by_position = {row["position"]: row["probability"] for row in rows if row["series"]}
    assert one["curve"]["at"] == sorted(by_position) == [-40, -30, -20, -10, 0]
    assert one["curve"]["probability"] == [by_position[z] for z in one["curve"]["at"]]
    assert one["series_score"] == pytest.approx(sum(sorted(by_position.values())[-3:]) / 3)
    assert "no diagnosis" in document["series_score"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r'id="s\d+"', page)) == page.count("data:image/jpeg") == 11
    assert f"{one['series_score']:.3f}" in page


def test_nothing_is_overwritten(run: Run, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("irreplaceable")
    for arguments in ((), ("--resume",)):
        done = run(pictures, "--output", tmp_path / "mine", *arguments)
        assert (done.status, "not empty" in done.err) == (2, True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    for name in ("x.csv", "x.parquet", "x.jsonl"):
        (tmp_path / name).write_text("irreplaceable")
        done = run(pictures, "--output", tmp_path / name)
        assert (done.status, "exists" in done.err) == (2, True)
        assert (tmp_path / name).read_text() == "irreplaceable"


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
        ("--output pictures/0.png/out", "cannot be"),
        ("--output pictures/0", "is a file"),
    ],
)
def test_outputs_that_will_not_do(
    run: Run, pictures: Path, arguments: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures.parent)
    (pictures / "0").write_text("a file")
    done = run(pictures, *arguments.split())
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert words in done.err


def test_its_own_output_is_not_read(run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pictures)
    for arguments in ((), ("--resume",)):
        assert run(".", "--output", "out", "--masks", *arguments).status == 0
        assert len(predictions_of(Path("out"))) == 6 < len(list(Path("out").rglob("*.png")))
    assert "--resume" in run(".", "--output", "out").err, "a finished folder is resumed where asked"


def test_hostile_names(run: Run, tmp_path: Path) -> None:
    folder, out = write_pictures(tmp_path / "names", 1), tmp_path / "out"
    names = (b"<script>alert(1)<", b"new\nline", b"\xff\xfe", b"esc\x1b[2J", b'"q",;', b"=1+1")
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name + b".png")).write_bytes(png(0))
    done = run(folder, "--output", out)
    assert done.status == 0
    assert "\x1b[2J" not in done.out
    rows = predictions_of(out)
    assert len(rows) == len(list((out / "overlays").iterdir())) == 7
    assert "<script" not in (out / "report.html").read_text(encoding="utf-8")
    assert run(folder, "--output", out, "--resume").status == 0
    assert predictions_of(out) == rows, "every name is known again"


def test_no_output_names_the_patient(run: Run, series: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (series / "IM9").write_bytes((series / "IM0").read_bytes()[:3000])
    change_dicom(series / "IM1", ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    folder, lines = (
        ("--output", tmp_path / "out" / "all", "--parquet"),
        ("--output", tmp_path / "out" / "x.jsonl"),
    )
    outputs = [run(series, *arguments) for arguments in ((), ("--json",), ("--csv",), folder, lines)]
    assert {done.status for done in outputs} == {3}
    everything = "".join(done.out + done.err for done in outputs).encode()
    for path in (tmp_path / "out").rglob("*"):
        everything += path.name.encode() + (path.read_bytes() if path.is_file() else b"")
    assert b"IM0" in everything, "something is searched"
    for secret in (*NAME.split("^"), ID, BIRTH, "1931-07-19", "patient_name"):
        assert secret.lower().encode() not in everything.lower()


def test_identifiers_are_kept_where_asked_for_and_only_there(run: Run, series: Path, tmp_path: Path) -> None:
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
    options = set(re.findall(r'"(--[a-z-]+)"', inspect.getsource(predict)))
    assert len(options) >= 10
    status = (0, 2, predict.SOME_LEFT_OUT, predict.NONE_CLASSIFIED, predict.INTERRUPTED)
    words = [
        *(f"`{name}`" for name in (*COLUMNS, *IDENTIFIERS, *FLAGS)),
        *(f"\n| {each} | " for each in status),
    ]
    assert [each for each in (*words, *options - {"--bundle"}) if each not in text] == []
    reference = (DOCS / "reference.md").read_text(encoding="utf-8")
    names = {name for name in groundglass.__all__ if f"::: groundglass.{name}\n" not in reference}
    assert names == {"GroundglassError", "__version__"}, "the former stands among the errors"
