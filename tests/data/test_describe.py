"""What a description says of COVID-CT and of small data sets that are counted by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groundglass.data.describe import PERCENTILES, describe, description_tables
from groundglass.data.load import load_dataset
from groundglass.data.manifest import Label, Manifest, Record

from .conftest import save_image


def test_grey_values_are_exact(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 30), np.uint8)
    save_image(tmp_path / "NonCOVID" / "0.png", 7)
    (tmp_path / "COVID").mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "COVID" / f"{number}.png")
    found = describe(load_dataset(tmp_path))
    grey = found.grey["COVID"]
    assert (grey["mean"], grey["std"]) == (pytest.approx(pixels.mean()), pytest.approx(pixels.std()))
    exact = np.percentile(pixels, PERCENTILES, method="inverted_cdf")
    assert grey["percentiles"] == tuple(exact)
    assert (found.grey["NonCOVID"]["mean"], found.grey["NonCOVID"]["std"]) == (7, 0)
    assert found.width == {"min": 6, "median": 30.0, "max": 30}


def test_unreadable_unlabelled_and_leaking(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    records = (
        Record(tmp_path / "a.png", Label.COVID, "p", "s", "train"),
        Record(tmp_path / "broken.png", None, "p", "s", "test"),
        Record(tmp_path / "a.png", None, "unknown:a", "t", None),
    )
    found = describe(Manifest("set", tmp_path, records))
    assert found.total.labels == {"COVID": 1, "unlabelled": 2}
    assert found.slices_of_unknown_patients == 1
    assert found.patients_in_several_parts == ("p",)
    (line,) = found.unreadable
    assert "broken.png" in line
    assert set(found.grey) == {"COVID", "unlabelled"}
    tables = [str(table.title) for table in description_tables(found)]
    assert (tables[0], tables[-1]) == ("set: 3 slices", "1 file cannot be read")
    assert json.loads(json.dumps(asdict(found)))["splits"][1]["labels"] == {"unlabelled": 1}
