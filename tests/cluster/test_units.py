"""Pieces of work: complete, and in the order in which one process reads."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.imaging.conftest import write_ct

from groundglass.cluster.ray import LARGEST, RayClassifier, Unit
from groundglass.errors import DataError, ImageError
from groundglass.imaging.read import read_slices
from groundglass.inference.bundle import Bundle
from groundglass.inference.prediction import Prediction

Units = Callable[..., Iterator[Unit]]


@pytest.fixture
def units(bundle: Bundle) -> Units:
    return RayClassifier(bundle).units


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Pictures in two levels, and files that are none."""
    folder = tmp_path / "tree"
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "a.png")
    for number in range(150):
        os.link(folder / "a.png", folder / ("a" if number % 3 else "b") / f"{number}.png")
    for name in ("notes.txt", ".hidden.png"):
        (folder / name).write_text("no image")
    return folder


def test_units_are_what_one_process_reads_in_its_order(units: Units, tmp_path: Path, tree: Path) -> None:
    for index, height in enumerate((3, 1, 2)):
        place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, height]}
        write_ct(tree / "a" / f"{index}.dcm", np.zeros((8, 8), np.int16), **place)
    (tree / "a" / "broken.png").write_text("no image")
    for name, member in (("study.zip", "1.png"), ("texts.zip", "notes.txt")):
        with zipfile.ZipFile(tree / "b" / name, "w") as archive:
            archive.write(tree / "a.png", member)
    (tree / "empty").mkdir()
    paths = [tree / "b" / "0.png", tree, tree / "empty", tree / "notes.txt"]

    def read(*paths: Path | str) -> Iterator[str]:
        errors: list[ImageError] = []
        for path in paths:
            for image in chain(read_slices(path, on_error=errors.append), [None]):
                yield from map(str, errors)
                errors.clear()
                yield from [] if image is None else [image.origin.file]

    cut = (
        [f"{item.file}: {item.reason}"] if isinstance(item, Prediction) else read(item)
        for item in chain.from_iterable(units(paths))
    )
    found = list(chain.from_iterable(cut))
    assert found == list(read(*paths))
    assert len(found) == 160


def test_nothing_is_listed_before_it_is_asked_for(
    units: Units, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(Path(path)) or scandir(path))
    assert len(next(units([tree / "a", tree / "b"]))) == LARGEST
    assert opened == [tree / "a"]


def test_a_manifest_stands_for_the_files_it_names_line_by_line(
    units: Units, tree: Path, tmp_path: Path
) -> None:
    manifest, named = tmp_path / "manifest.csv", [f"{tree}/{number}.png" for number in range(100_000)]
    manifest.write_text("\n".join(["path", *named, ",broken"]))
    begun = chain.from_iterable(islice(units([manifest], lambda name: not name.endswith("0.png")), 2))
    assert list(begun) == [name for name in named if name.endswith("0.png")][: 2 * LARGEST]
    with pytest.raises(DataError, match="line 100002"):
        list(units([manifest]))
