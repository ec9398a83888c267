"""Paths: which slices they stand for, and names of any kind in every output."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import nibabel
import numpy as np
from tests.cli.predict.conftest import Run, pixels, predictions_of, write_pictures


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
    rows = predictions_of(tmp_path / "out")
    assert len(rows) == 7
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;.png" in page
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 7
    again = run(folder, "--output", tmp_path / "out", "--resume")
    assert again.status == 0
    assert predictions_of(tmp_path / "out") == rows, "every name is known again"


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
    assert page.count('<article class="card one-series"') == 2
    assert run(odd, "--output", odd / "out", "--resume").status == 0
    assert len(predictions_of(odd / "out")) == 8


def test_of_many_paths_the_report_names_a_few(run: Run, pictures: Path, tmp_path: Path) -> None:
    paths = [f"{pictures}/{number}.png" for number in range(6)]
    run(*paths, "--output", tmp_path / "few")
    assert paths[5] in (tmp_path / "few" / "report.html").read_text().split("<dt>Command</dt>")[1]
    run(*paths, *(f"{pictures}/./{number}.png" for number in range(6)), "--output", tmp_path / "many")
    command = (tmp_path / "many" / "report.html").read_text().split("<dt>Command</dt>")[1]
    assert command.count(".png") < 12
    assert "…" in command
    assert f"--output {tmp_path / 'many'}" in command.replace(" --bundle", "")
