"""With ``--resume`` what is done is kept and the rest follows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import nibabel
import numpy as np
from tests.cli.predict.conftest import Run, pixels, predictions_of


def test_what_is_done_is_not_read_again(run: Run, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(pictures, "--output", out)
    before = predictions_of(out)
    overlays = {path: path.stat().st_mtime_ns for path in (out / "overlays").iterdir()}
    for path in pictures.iterdir():
        path.write_bytes(b"damaged since")
    cv2.imwrite(str(pictures / "6.png"), pixels(6))
    done = run(pictures, "--output", out, "--resume", "--json")
    assert done.status == 0
    assert [Path(row["file"]).name for row in done.rows] == ["6.png"]
    after = predictions_of(out)
    assert after[:6] == before
    assert len(after) == len(list((out / "overlays").iterdir())) == 7
    assert {path: path.stat().st_mtime_ns for path in overlays} == overlays
    assert (out / "report.html").read_text(encoding="utf-8").count("data:image/jpeg") == 7


def test_what_failed_is_tried_again(run: Run, pictures: Path, tmp_path: Path) -> None:
    whole = (pictures / "2.png").read_bytes()
    (pictures / "2.png").write_bytes(whole[:100])
    out = tmp_path / "out"
    assert run(pictures, "--output", out).status == 3
    (pictures / "2.png").write_bytes(whole)
    done = run(pictures, "--output", out, "--resume")
    assert done.status == 0
    assert done.out.splitlines()[-2].startswith("6 slices: 6 classified")
    rows = predictions_of(out)
    assert sorted(Path(row["file"]).name for row in rows) == [f"{number}.png" for number in range(6)]
    assert {row["status"] for row in rows} == {"ok"}
    assert len(list(csv.DictReader((out / "predictions.csv").open(newline="")))) == 6


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


def test_a_volume_is_resumed_in_the_middle(run: Run, tmp_path: Path) -> None:
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
    path = out / "predictions.jsonl"
    path.write_text(path.read_text().replace('-fp32"', '-int8"'))
    before = path.read_bytes()
    done = run(pictures, "--output", out, "--resume")
    assert done.status == 2
    assert "bundle" in done.err
    assert len(done.err.splitlines()) == 1
    assert path.read_bytes() == before


def test_masks_are_completed(run: Run, pictures: Path, tmp_path: Path) -> None:
    (pictures / "5.png").rename(pictures / "5\udcff.png")
    volume = np.stack([pixels(number).T.astype(np.int16) for number in range(5)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "v.nii.gz")
    out, arguments = tmp_path / "out", (pictures, tmp_path / "v.nii.gz", "--masks")
    assert run(*arguments, "--output", out).status == 0
    before = {path.name: path.read_bytes() for path in (out / "masks").iterdir()}
    assert len(before) == 6 * 2 + 2
    assert run(*arguments, "--output", out, "--resume", "--json").rows == [], "all masks are there"
    # As after an interruption in the volume: half of its lines, and none of its masks.
    lines = (out / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (out / "predictions.jsonl").write_bytes(b"".join(lines[:8]))
    halves = [path for path in (out / "masks").iterdir() if path.name.startswith("v-")]
    assert len(halves) == 2
    for path in halves:
        path.unlink()
    done = run(*arguments, "--output", out, "--resume", "--json")
    assert [row["frame"] for row in done.rows] == [0, 1, 2, 3, 4]
    assert {path.name: path.read_bytes() for path in (out / "masks").iterdir()} == before
    assert b"".join(lines) == (out / "predictions.jsonl").read_bytes(), "each slice has one line"
