"""Opacity in an evaluation: there where the network has it, held against the label."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from groundglass.data.manifest import Label, Manifest
from groundglass.errors import RunError
from groundglass.evaluation.evaluate import evaluate

MakeManifest = Callable[..., Manifest]


def answering(run: Any, opacity: Callable[[np.ndarray], np.ndarray]) -> Any:
    """The run, its predictions extended by an opacity made of the logits."""
    plain = run.predict

    def predict(slices: Any) -> Any:
        predictions = plain(slices)
        predictions.opacity_logit = opacity(predictions.logit)
        return predictions

    run.predict = predict
    return run


def measured(
    run: Any, manifest: Manifest, output: Path, split: str | None = "official", part: str = "test"
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    evaluate(run, manifest, split, part, output, resamples=200)
    rows = list(csv.DictReader((output / "predictions.csv").open(encoding="utf-8", newline="")))
    return json.loads((output / "metrics.json").read_text()), rows


def test_opacity_is_written_and_held_against_the_label(
    run: Any, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    # Turned round, opacity ranks as badly as the probability ranks well.
    document, rows = measured(answering(run, lambda logit: -3 * logit), make_manifest(), tmp_path / "out")
    logit, said = (np.array([float(row[name]) for row in rows]) for name in ("logit", "opacity_logit"))
    assert said == pytest.approx(-3 * logit)
    assert [float(row["opacity"]) for row in rows] == pytest.approx(list(1 / (1 + np.exp(3 * logit))))
    covid = np.array([row["label"] == "COVID" for row in rows])
    alone, mean = document["opacity"]["alone"], document["opacity"]["mean_logit"]
    auc = document["metrics"]["auc"]["value"]
    assert alone["auc"] == pytest.approx(1 - auc) == pytest.approx(roc_auc_score(covid, said))
    assert mean["auc"] == pytest.approx(roc_auc_score(covid, logit + said))
    assert alone["gain"] == pytest.approx(1 - 2 * auc)
    assert alone["gain_low"] <= alone["gain"] <= alone["gain_high"]
    assert alone["low"] <= alone["auc"] <= alone["high"]


def test_an_opacity_that_ranks_as_the_probability_gains_nothing(
    run: Any, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    document, _ = measured(answering(run, lambda logit: logit + 1), make_manifest(), tmp_path / "out")
    for ranking in document["opacity"].values():
        assert ranking["auc"] == document["metrics"]["auc"]["value"]
        assert (ranking["gain"], ranking["gain_low"], ranking["gain_high"]) == (0, 0, 0)


def test_without_it_nothing_is_said_of_it(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    document, rows = measured(run, make_manifest(), tmp_path / "out")
    assert "opacity" not in document
    assert not any("opacity" in name for name in rows[0])


def test_a_part_of_one_class_has_an_opacity_but_no_ranking(
    run: Any, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    manifest = make_manifest(label=Label.NON_COVID)
    document, rows = measured(answering(run, lambda logit: logit), manifest, tmp_path / "out", None, "all")
    assert all(row["opacity"] == row["probability"] for row in rows)
    assert document["opacity"]["alone"]["auc"] is None
    assert document["opacity"]["alone"]["reason"] == "no COVID slice in the part"
    assert document["opacity"]["alone"]["gain"] is None


def test_an_opacity_that_is_no_number_is_an_error(
    run: Any, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    def broken(logit: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(logit)) == 3, np.nan, logit)

    with pytest.raises(RunError, match=r"no valid opacity for slice 03\.png"):
        measured(answering(run, broken), make_manifest(), tmp_path / "out")
