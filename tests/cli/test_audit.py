"""``groundglass data audit`` as a user runs it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from groundglass.cli.main import main
from groundglass.data.manifest import Label, read_manifest, write_manifest
from groundglass.data.phantoms import Severities, write_phantoms

COMMAND = [sys.executable, "-m", "groundglass.cli.main", "data", "audit"]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms, one of them again in another part under the other label."""
    folder = tmp_path_factory.mktemp("data set [bold] ü") / "phantoms"
    written = write_phantoms(folder, 20, Severities(0.3, 0.6), seed=2, size=192)
    first = next(record for record in written if record.split == "train" and record.label is Label.COVID)
    shutil.copyfile(first.path, folder / "NonCOVID" / "again.png")
    text = (folder / "manifest.csv").read_text()
    (folder / "manifest.csv").write_text(text + "NonCOVID/again.png,NonCOVID,other,phantom,test\n")
    return folder / "manifest.csv"


def test_table_report_and_status(manifest: Path, tmp_path: Path) -> None:
    done = run(manifest, "--fail-on", "leakage,conflicts", "--output", tmp_path / "out")
    assert done.returncode == 5, done.stderr
    assert "same file" in done.stdout
    assert "again.png" in done.stdout
    assert "How well the label is predicted" in done.stdout
    assert "found: leakage: 1" in done.stderr
    assert "found: conflicts: 1" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "audit.json",
        "audit.md",
        "report.html",
    ]


def test_single_files(manifest: Path, tmp_path: Path) -> None:
    outputs = ["--output", tmp_path / "a.json", "--output", tmp_path / "a.md"]
    done = run(manifest, "--no-shortcuts", *outputs)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.md"]


def test_json_on_standard_output_and_nothing_else(manifest: Path) -> None:
    done = run(manifest, "--json", "--no-shortcuts")
    assert done.returncode == 0, done.stderr
    audited = json.loads(done.stdout)
    assert audited["summary"]["copies"] == 1
    assert audited["shortcuts"] is None
    assert "warning:" in done.stderr


def test_another_split_keeps_what_it_keeps_together(manifest: Path) -> None:
    read = read_manifest(manifest)
    assert len(read) == 21
    done = run(manifest, "--no-shortcuts", "--split", "leave-source-out:phantom", "--fail-on", "leakage")
    assert done.returncode == 2
    assert "every slice is of these sources" in done.stderr
    done = run(manifest, "--no-shortcuts", "--split", "random", "--seed", "1", "--fail-on", "unreadable")
    assert done.returncode == 0, done.stderr


def test_a_manifest_without_parts_cannot_leak(manifest: Path, tmp_path: Path) -> None:
    read = read_manifest(manifest)
    target = manifest.parent / "without.csv"
    write_manifest(replace(read, records=tuple(replace(record, split=None) for record in read)), target)
    done = run(target, "--no-shortcuts", "--fail-on", "leakage")
    assert done.returncode == 2
    assert "name a split to audit" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nowhere/at/all"], "/nowhere/at/all: no such folder or file"),
        (["{manifest}", "--fail-on", "everything"], "condition 'everything' is not one of"),
        (["{manifest}", "--fail-on", ""], "condition '' is not one of"),
        (["{manifest}", "--fail-on", "leakage,"], "condition '' is not one of"),
        (["{manifest}", "--split", "mine"], "split 'mine' is unknown"),
    ],
)
def test_errors_are_one_line(
    manifest: Path,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [argument.format(manifest=manifest) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["groundglass", "data", "audit", *given])
    with pytest.raises(SystemExit) as end:
        main()
    (error,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert error.startswith("error: ")
    assert said in error


def test_help_is_quick() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "groundglass.cli.main", "data", "audit", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    for heavy in ("numpy", "sklearn", "cv2", "scipy"):
        assert f" {heavy}\n" not in done.stderr
