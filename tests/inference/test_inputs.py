"""Paths as a user names them: checked before anything is read, expanded, and nothing twice."""

import os
from pathlib import Path

import pytest
from tests.conftest import Patch, make_zip

from groundglass.errors import PredictionError
from groundglass.inference.inputs import count_files, expand

LONG = "x" * 300  # as no file can be called


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: Patch) -> Path:
    """Files of no content: paths are never opened."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / ".hidden").mkdir()
    for name in ("a/1.png", "a/2.png", "a/10.png", "a/b/3.png", "a/.hidden/4.png", "a/notes.txt", "x[1].png"):
        (tmp_path / name).touch()
    make_zip(tmp_path / "study.zip", dict.fromkeys(("s/1.png", "s/2.png", "__MACOSX/s/1.png"), b""))
    (tmp_path / "bad.zip").write_bytes(b"PK\3\4 and nothing more")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_arguments_name() -> None:
    for arguments, expected in (
        ("a", "a"),
        ("x[1].png", "x[1].png"),  # a name with brackets is no pattern
        ("study.zip!s/2.png", "study.zip!s/2.png"),
        ("a/**/*.png", "a/1.png a/2.png a/10.png a/b/3.png"),
        ("a/[12].png", "a/1.png a/2.png"),
        # Nothing twice, by their spelling alone.
        ("a/1.png a/1.png ./a/1.png", "a/1.png"),
        ("a/**", "a"),
        ("study.zip!s/1.png study.zip", "study.zip!s/1.png study.zip"),
        (". study.zip a/b/3.png", "."),
        # What a folder passes over is read where it is named itself.
        ("a a/.hidden/4.png", "a a/.hidden/4.png"),
        # A damaged archive is left to its reader.
        (f"bad.zip!{LONG} a", f"bad.zip!{LONG} a"),
    ):
        assert [path.as_posix() for path in expand(arguments.split())] == expected.split()


@pytest.mark.parametrize("argument", ["gone", "a/*.dcm", "study.zip!s/3.png", f"{LONG}.zip!x", "", "link.png"])
def test_what_is_not_there_is_an_error_before_anything_is_read(tree: Path, argument: str) -> None:
    (tree / "link.png").symlink_to("gone.png")
    words = {"a/*.dcm": "no file matches", "link.png": "a link to nothing"}.get(argument, "no such")
    with pytest.raises(PredictionError, match=words) as caught:
        expand(["a", argument])
    assert argument in str(caught.value)


def test_files_are_counted_without_being_opened(tree: Path) -> None:
    for paths, count in (("a", 5), ("study.zip", 2), (".", 5 + 1 + 2 + 1), ("a/1.png a/b", 2)):
        assert count_files(expand(paths.split())) == count
    assert count_files(expand(["a"]), lambda name: not name.endswith(os.path.join("b", "3.png"))) == 4
    (tree / "files.csv").write_text("path\na/1.png\nstudy.zip!s/1.png\ngone.png\n")
    assert count_files([tree / "files.csv", tree / "a", tree / f"{LONG}.csv"]) == 3 + 5 + 1
