"""Paths as a user names them: checked before anything is read, expanded, and nothing twice."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from groundglass.errors import PredictionError
from groundglass.inference.inputs import count_files, expand, named_by


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of no content: paths are never opened."""
    for name in ("a/1.png", "a/2.png", "a/10.png", "a/b/3.png", "a/.hidden/4.png", "a/notes.txt", "x[1].png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for name in ("s/1.png", "s/2.png", "__MACOSX/s/1.png"):
            archive.writestr(name, b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*arguments: str) -> list[str]:
    return [path.as_posix() for path in expand(arguments)]


def test_what_exists_means_itself(tree: Path) -> None:
    assert names("a") == ["a"]
    assert names("./a/../a/1.png") == ["a/../a/1.png"]
    assert names("x[1].png") == ["x[1].png"], "a name with brackets is no pattern"
    assert names("study.zip", "a/1.png") == ["study.zip", "a/1.png"]
    assert names("study.zip!s/2.png") == ["study.zip!s/2.png"]


def test_patterns_are_expanded_in_natural_order(tree: Path) -> None:
    assert names("a/*.png") == ["a/1.png", "a/2.png", "a/10.png"]
    assert names("a/**/*.png") == ["a/1.png", "a/2.png", "a/10.png", "a/b/3.png"]
    assert names("a/[12].png") == ["a/1.png", "a/2.png"]
    assert names(str(tree / "a" / "?.png")) == [str(tree / "a/1.png"), str(tree / "a/2.png")]


@pytest.mark.parametrize(
    "argument", ["gone", "a/gone.png", "a/*.dcm", "gone/**", "study.zip!s/3.png", "gone.zip!x", ""]
)
def test_what_is_not_there_is_an_error_before_anything_is_read(tree: Path, argument: str) -> None:
    with pytest.raises(PredictionError, match=r"no such|no file matches") as caught:
        names("a", argument)
    assert argument in str(caught.value)


def test_a_link_to_nothing_is_named(tree: Path) -> None:
    (tree / "link.png").symlink_to("gone.png")
    with pytest.raises(PredictionError, match="link to nothing"):
        names("link.png")


def test_nothing_is_read_twice(tree: Path) -> None:
    assert names("a/1.png", "a/1.png", "./a/1.png", str(tree / "a/1.png")) == ["a/1.png"]
    assert names("a/1.png", "a", "a/b") == ["a"]
    assert names("a/**") == ["a"]
    assert names("study.zip!s/1.png", "study.zip") == ["study.zip"]
    assert names(".", "study.zip!s/1.png", "a/b/3.png") == ["."]


def test_what_a_folder_passes_over_is_read_where_it_is_named_itself(tree: Path) -> None:
    assert names("a", "a/.hidden/4.png") == ["a", "a/.hidden/4.png"]
    (tree / "b").symlink_to("a/b")
    (tree / "a" / "linked").symlink_to(tree / "a2")
    (tree / "a2").mkdir()
    assert names("a", "b") == ["a"], "the same folder by another name"
    assert names("a", "a/linked") == ["a", "a/linked"], "folders do not follow links to folders"
    (tree / "a" / "alias.png").symlink_to(tree / "x[1].png")
    assert names("a", "a/alias.png") == ["a"], "but they read links to files"


def test_a_damaged_archive_is_left_to_its_reader(tree: Path) -> None:
    (tree / "bad.zip").write_bytes(b"PK\3\4 and nothing more")
    assert names("bad.zip", "bad.zip!x") == ["bad.zip"]
    assert names("bad.zip!x") == ["bad.zip!x"]


def test_files_are_counted_without_being_opened(tree: Path) -> None:
    assert count_files(expand(["a"])) == 4
    assert count_files(expand(["study.zip"])) == 2
    assert count_files(expand(["."])) == 4 + 1 + 2
    assert count_files(expand(["a/1.png", "a/b"])) == 2
    assert count_files(expand(["a"]), lambda name: not name.endswith(os.path.join("b", "3.png"))) == 3


def test_a_manifest_stands_for_the_files_it_names(tree: Path) -> None:
    (tree / "files.csv").write_text("path\na/1.png\nstudy.zip!s/1.png\ngone.png\n")
    assert [path.as_posix() for path in named_by(tree / "files.csv")] == [
        f"{tree}/a/1.png",
        f"{tree}/study.zip!s/1.png",
        f"{tree}/gone.png",
    ]
    assert list(named_by("a/1.png")) == [Path("a/1.png")]
    assert count_files([tree / "files.csv", tree / "a"]) == 3 + 4
