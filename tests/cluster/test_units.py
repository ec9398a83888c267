"""Pieces of work: complete, and in the order in which one process reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groundglass.cluster.ray import LARGEST, RayClassifier, Unit
from groundglass.errors import DataError
from groundglass.inference.bundle import Bundle

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
