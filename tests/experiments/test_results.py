"""Results of runs: what goes in comes out, and what is damaged is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.experiments.results_factory import document, write

from groundglass.errors import DataError
from groundglass.experiments.results import read_not_run, read_run_result, read_run_results, write_run_result


def test_a_result_survives_the_file(tmp_path: Path) -> None:
    known = document("vgg-16-none", 1.0)
    known["predictions"]["test"][0][0] = "Lunge 'ä', \"1\"\n.png"
    first = read_run_result(write(tmp_path, known) / "official" / "vgg-16-none-seed-0.json")
    # A network's logits are 32-bit numbers, and come back to the last bit.
    logit = first.predictions["test"].logit.astype(np.float32).astype(np.float64)
    exact = replace(first.predictions["test"], logit=logit)
    path = tmp_path / "again.json"
    write_run_result(replace(first, path=path, predictions={"test": exact}))
    read, stored = read_run_result(path), json.loads(path.read_text())
    np.testing.assert_array_equal(read.predictions["test"].logit.astype(np.float32), logit.astype(np.float32))
    rows, again = (each.pop("predictions")["test"] for each in (known, stored))
    assert stored == known
    assert [row[:3] for row in again] == [row[:3] for row in rows]
    # One line per slice keeps a change of one slice readable.
    assert sum(line.startswith("      [") for line in path.read_text().splitlines()) == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "no readable result"),
        (lambda text: "[]", "no readable result"),
        (lambda text: text.replace('"cost"', '"price"'), "'cost' is missing"),
        (lambda text: text.replace('"NonCOVID"', '"healthy"'), "no readable result"),
        (lambda text: text.replace('"format": 2', '"format": 1'), "format 1, this version reads 2"),
        (lambda text: text.replace('"p0", ', '"p0", "x", '), "no readable result"),
    ],
)
def test_a_damaged_or_older_result_is_named(
    tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    path = write(tmp_path, document("vgg-16-none", 1.0)) / "official" / "vgg-16-none-seed-0.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message) as caught:
        read_run_results(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_runs_made_since_are_no_longer_missing(tmp_path: Path) -> None:
    assert read_not_run(tmp_path) == {}
    reasons = {"official/vgg-16-none-seed-0": "no hub", "official/vgg-16-c2l-seed-0": "no file"}
    (tmp_path / "not-run.json").write_text(json.dumps(reasons))
    assert read_not_run(tmp_path) == reasons
    write(tmp_path, document("vgg-16-none", 1.0))
    assert list(read_not_run(tmp_path)) == ["official/vgg-16-c2l-seed-0"]
    (tmp_path / "not-run.json").write_text("{")
    with pytest.raises(DataError, match=r"not-run\.json"):
        read_not_run(tmp_path)
