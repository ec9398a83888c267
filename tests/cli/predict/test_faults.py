"""What goes wrong: one bad file never stops the rest, and the exit status tells."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
from tests.cli.predict.conftest import Run

from groundglass.inference.bundle import Bundle


def test_one_bad_file_never_stops_the_rest(run: Run, bad: Path) -> None:
    done = run(bad, "--json")
    assert done.status == 3
    rows = {Path(row["file"].split("!")[0]).name: row for row in done.rows}
    assert rows["0.png"]["status"] == "ok"
    assert rows["9-photograph.png"]["status"] == "refused"
    failed = {name.partition("-")[0] for name, row in rows.items() if row["status"] == "failed"}
    assert failed == set("1235678")
    assert "bomb" in rows["5-bomb.zip"]["reason"]
    assert all(row["reason"].isprintable() for row in rows.values() if row["reason"])
    assert "Traceback" not in done.err
    done = run(bad)
    assert re.search(r"2-empty\.png +failed +the file is empty", done.out)
    assert "9 slices: 1 classified" in done.out
    assert "1 refused, 7 failed" in done.out


def test_nothing_classified_is_a_status_of_its_own(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    assert run(tmp_path / "broken.png").status == 4
    (tmp_path / "empty").mkdir()
    done = run(tmp_path / "empty", "--json")
    assert (done.status, "holds no image" in done.rows[0]["reason"]) == (4, True)


@pytest.mark.parametrize("path", ["gone.png", "gone/*.png", "gone/**"])
def test_what_is_not_there_is_found_out_before_anything_is_read(
    run: Run, pictures: Path, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundglass.inference.bundle.Bundle.open", lambda *_, **__: pytest.fail("read"))
    done = run(pictures, tmp_path / path, "--output", tmp_path / "out")
    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert path in done.err
    assert not (tmp_path / "out").exists()


def test_bundles_and_usage(run: Run, pictures: Path, tmp_path: Path) -> None:
    done = run(pictures, bundle=tmp_path / "nothing")
    assert (done.status, "no such bundle" in done.err) == (2, True)
    rows = run(pictures, "--json", bundle=Path("default")).rows
    assert {row["bundle"] for row in rows} == {Bundle.open().id}
    assert run("--json").status == 2, "no path"


def test_slices_outside_the_lungs_of_a_series_are_no_failure(run: Run, series: Path) -> None:
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
