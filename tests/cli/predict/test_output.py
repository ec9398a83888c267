"""What is written with ``--output``, and what is never overwritten."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from tests.cli.predict.conftest import Run, predictions_of

from groundglass.reporting.overlay import Layers


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
    overlays = list((out / "overlays").iterdir())
    assert len(overlays) == 11
    assert all(Layers.read(path.read_text()) for path in overlays)

    document = json.loads((out / "series.json").read_text())
    (one,) = document["series"]
    assert (one["series"], one["slices"], one["classified"]) == ("1.2.3.4", 5, 5)
    assert one["curve"]["at"] == [-40, -30, -20, -10, 0]
    by_position = {row["position"]: row["probability"] for row in rows if row["series"]}
    assert one["curve"]["probability"] == [by_position[z] for z in one["curve"]["at"]]
    highest = sorted(by_position.values())[-3:]
    assert one["series_score"] == pytest.approx(sum(highest) / 3)
    assert "no diagnosis" in document["series_score"].replace("it is no", "no")

    page = (out / "report.html").read_text(encoding="utf-8")
    assert len(re.findall(r'id="s\d+"', page)) == page.count("data:image/jpeg") == 11
    assert page.count('class="curve"') == 1
    for link in re.findall(r'<a href="([^"#]+)"', page):
        assert (out / link).is_file()
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
    assert run(pictures, "--output", tmp_path / "out").status == 0
    assert "--resume" in run(pictures, "--output", tmp_path / "out").err, (
        "a finished folder is resumed where asked"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--output", "x.xlsx"), "takes a folder"),
        (("--output", "x.csv", "--resume"), "--resume needs"),
        (("--resume",), "--resume needs"),
        (("--output", "x.csv", "--parquet"), "--parquet goes with"),
        (("--output", "x.jsonl", "--masks"), "--masks needs"),
        (("--masks",), "--masks needs"),
        (("--output", "out", "--masks", "--engine", "ray"), "--masks does not go with"),
        (("--output", "pictures/0.png/out"), "cannot be"),
        (("--output", "pictures/0"), "is a file"),
    ],
)
def test_outputs_that_will_not_do(
    run: Run, pictures: Path, arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures.parent)
    (pictures / "0").write_text("a file")
    done = run(pictures, *arguments)
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert words in done.err


def test_an_output_within_the_input_is_not_read(
    run: Run, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    for arguments in ((), ("--resume",)):
        assert run(".", "--output", "out", *arguments).status == 0
        assert len(predictions_of(Path("out"))) == 6
