from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from groundglass.data.covid_ct import load_covid_ct
from groundglass.data.describe import Description, describe
from groundglass.data.load import load_labelled_folder
from groundglass.data.manifest import Label, Manifest, Record


@pytest.fixture(scope="module")
def covid_ct_description(covid_ct: Path) -> Description:
    return describe(load_covid_ct(covid_ct))


def test_counts_of_covid_ct(covid_ct_description: Description) -> None:
    found = covid_ct_description
    assert found.slices == 746
    assert found.labels == {"COVID": 349, "NonCOVID": 397}
    assert found.patients["all"] == found.patients["COVID"] + found.patients["NonCOVID"] == 384
    assert {part: (*split.labels.values(),) for part, split in found.splits.items()} == {
        "train": (191, 234),
        "val": (60, 58),
        "test": (98, 105),
    }
    assert sum(split.patients for split in found.splits.values()) == 384
    assert found.patients_in_several_parts == ()
    assert found.unreadable == ()


def test_containers_of_covid_ct_give_the_label_away(covid_ct_description: Description) -> None:
    by_mode = {(found.file_format, found.mode): found.labels for found in covid_ct_description.file_formats}
    assert by_mode["PNG", "RGBA"] == {"COVID": 174}
    jpeg = Counter[str]()
    for (file_format, _), labels in by_mode.items():
        if file_format == "JPEG":
            jpeg.update(labels)
    assert jpeg == {"COVID": 34, "NonCOVID": 202}
    assert {mode for _, mode in by_mode} == {"L", "RGB", "RGBA"}


def test_sizes_of_covid_ct(covid_ct_description: Description) -> None:
    width, height = covid_ct_description.width, covid_ct_description.height
    assert (width["min"], width["max"]) == (115, 1671)
    assert (height["min"], height["max"]) == (61, 1225)


def test_preprints_that_feed_several_parts(covid_ct_description: Description) -> None:
    several = {found.source for found in covid_ct_description.sources if len(found.parts) > 1}
    preprints = {"2020.03.12.20034686", "2020.03.13.20035212", "2020.03.22.20040782"}
    assert several == preprints | {"medpix", "crawled"}


def test_grey_values_are_exact(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pixels = {name: generator.integers(0, 256, (20, 30), np.uint8) for name in ("a", "b")}
    for name, values in pixels.items():
        (tmp_path / "COVID").mkdir(exist_ok=True)
        Image.fromarray(values).save(tmp_path / "COVID" / f"{name}.png")
    (tmp_path / "NonCOVID").mkdir()
    Image.fromarray(np.full((5, 5), 7, np.uint8)).save(tmp_path / "NonCOVID" / "c.png")
    grey = describe(load_labelled_folder(tmp_path)).grey
    together = np.concatenate([pixels["a"].ravel(), pixels["b"].ravel()])
    assert grey["COVID"].mean == pytest.approx(together.mean())
    assert grey["COVID"].std == pytest.approx(together.std())
    for percent, value in grey["COVID"].percentiles.items():
        assert value == np.percentile(together, float(percent), method="inverted_cdf")
    assert (grey["NonCOVID"].mean, grey["NonCOVID"].std) == (7, 0)


def test_unreadable_unlabelled_and_leaking(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 6), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    records = (
        Record(tmp_path / "a.png", Label.COVID, "p", "s", "train"),
        Record(tmp_path / "broken.png", None, "p", "s", "test"),
        Record(tmp_path / "a.png", None, "unknown:a", "t", None),
    )
    found = describe(Manifest("set", tmp_path, records))
    assert found.labels == {"COVID": 1, "unlabelled": 2}
    assert found.slices_of_unknown_patients == 1
    assert found.patients_in_several_parts == ("p",)
    assert len(found.unreadable) == 1
    assert "broken.png" in found.unreadable[0]
    assert set(found.grey) == {"COVID", "unlabelled"}
    assert json.loads(json.dumps(found.as_json()))["splits"]["test"]["labels"] == {"unlabelled": 1}
