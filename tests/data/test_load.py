"""One way in: manifests, folders with labels and without, several of them together; and what they hold, described."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.conftest import save_image

from groundglass.data.load import load_dataset, load_pool
from groundglass.data.manifest import Label, say
from groundglass.errors import DataError


@pytest.mark.parametrize(("positive", "negative"), [("covid", "non-covid"), ("CT_COVID", "CT_NonCOVID")])
def test_folders_are_labels_and_those_in_them_patients(tmp_path: Path, positive: str, negative: str) -> None:
    root = tmp_path / "ward-7"
    for name in ("p1/10.png", "p1/series/2.png", "c.JPG"):
        save_image(root / positive / name)
    for name in ("c.png", "p2/10.png", "p2/2.png", ".hidden.png"):
        save_image(root / negative / name)
    (root / negative / "notes.txt").write_text("no slice")
    records = load_dataset(root).records
    assert " ".join(record.path.name for record in records) == "c.JPG 10.png 2.png c.png 2.png 10.png"
    assert [record.label for record in records] == [Label.COVID] * 3 + [Label.NON_COVID] * 3
    alone, *first, other, second, last = [record.patient_id for record in records]
    assert (first, second, last) == (["p1", "p1"], "p2", "p2")
    assert alone != other
    assert [record.patient_known for record in records] == [False, True, True] * 2
    assert {(record.source, record.split) for record in records} == {("ward-7", None)}
    assert [record.label for record in load_dataset(root / positive)] == [None] * 3


@pytest.mark.parametrize(
    ("files", "path", "said"),
    [
        ("COVID/a.png healthy/b.png", "", "no sub-folders for NonCOVID"),
        ("COVID/a.png CT_COVID/a.png NonCOVID/b.png", "", "too many sub-folders for COVID"),
        ("COVID/a.png NonCOVID/sub/b.txt", "", "NonCOVID: holds no slices"),
        ("train/COVID/a.png train/NonCOVID/b.png", "", "deeper, in .*train"),
        ("notes/a.txt", "", "holds no slices"),
        ("", "absent", "absent: no such folder or file"),
        ("a.png", "a.png", r"a\.png: a data set is a folder or a manifest CSV"),
    ],
)
def test_what_is_no_data_set(tmp_path: Path, files: str, path: str, said: str) -> None:
    for name in files.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    with pytest.raises(DataError, match=said):
        load_dataset(tmp_path / path)


def test_several_data_sets_are_one(tmp_path: Path) -> None:
    for name in ("a/COVID", "a/NonCOVID", "b/COVID", "b/NonCOVID"):
        save_image(tmp_path / name / "1.png")
    one, other = tmp_path / "a", tmp_path / "b"
    pool = load_pool([one, other])
    assert (pool.name, pool.root, str(pool)) == ("a+b", tmp_path, f"{one}, {other}")
    assert [record.source for record in pool] == ["a", "a", "b", "b"]
    assert len({record.patient_id for record in pool}) == 4
    assert load_pool([one]) == load_dataset(one)
    with pytest.raises(DataError, match=r"1\.png: is in two of the data sets"):
        load_pool([one, other, one])


@pytest.mark.parametrize(
    ("sources", "expected", "same"),
    [
        (",", "a/own:7 b/own:7", True),
        ("rome,", "rome:7 b/own:7", True),
        ("rome,rome", "rome:7 rome:7", True),
        ("rome,oslo", "rome:rome/7 oslo:oslo/7", False),
    ],
)
def test_sources_and_patients_of_several_data_sets_are_kept_apart(
    tmp_path: Path, sources: str, expected: str, same: bool, caplog: pytest.LogCaptureFixture
) -> None:
    say.cache_clear()
    for name, source in zip("ab", sources.split(","), strict=True):
        save_image(tmp_path / name / "1.png")
        (tmp_path / name / "own.csv").write_text(f"path,patient_id,source\n1.png,7,{source}\n")
    pool = load_pool([tmp_path / name / "own.csv" for name in "ab"])
    assert " ".join(f"{record.source}:{record.patient_id}" for record in pool) == expected
    assert ("7: patients of several data sets, taken for the same people" in caplog.text) is same


def test_described(tmp_path: Path, run_command: Callable[..., tuple[int, str, str]]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 30), np.uint8)
    for name, picture in (("[bold]", pixels[0]), ("1", pixels[1]), ("grey", 7), ("broken", 0)):
        save_image(tmp_path / f"{name}.png", picture)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    own, long = tmp_path / "own.csv", "a-" + "long-" * 30 + "name"
    rows = "[bold].png;positive;p;train", "1.png;CAP;q;train", "grey.png;;;", "broken.png;;p;test"
    own.write_text("\n".join(["path;label;patient_id;split", *rows]))
    words = "data", "describe", own, "--map-label", "positive=COVID,CAP=COVID"
    status, out, _ = run_command(*words)
    assert status == 0
    for said in ("own: 4 slices", "PNG L", "COVID", "1 file cannot be read", "1 patient in several parts"):
        assert said in out
    save_image(tmp_path / long / "a.png", 7)
    found = json.loads(run_command(*words, "--json", tmp_path / long)[1])
    covid, unlabelled = found["grey"]["COVID"], found["grey"]["unlabelled"]
    assert (covid["mean"], covid["std"]) == (pytest.approx(pixels.mean()), pytest.approx(pixels.std()))
    assert (unlabelled["mean"], unlabelled["std"]) == (7, 0)
    assert (found["width"], found["total"]["labels"]) == (
        {"min": 6, "max": 30},
        {"COVID": 2, "unlabelled": 3},
    )
    assert found["patients_in_several_parts"] == ["p"]
    assert found["splits"][1]["labels"] == {"unlabelled": 1}
    assert [source["name"] for source in found["sources"]] == [long, "own"]
    out = run_command("data", "describe", tmp_path / long)[1]
    assert "1 slice of unknown patients" in out
    assert out.count("a-long-l…-long-long-name") == 2, "in the title and among the sources"
    assert max(map(len, out.splitlines())) <= 80
