"""The ablation's tables: every variant against the default, on every part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.experiments.results_factory import document, write

from groundglass.errors import DataError
from groundglass.experiments.tables import render_ablation


def variant(
    row: str, skill: float, title: str, seed: int, left_out: bool = False, **changes: Any
) -> dict[str, Any]:
    """A variant judged on val and test, or on the sources left out."""
    parts = {}
    for part, noise in (("test", 1),) if left_out else (("val", 2), ("test", 3)):
        parts[part] = document(row, skill, seed=seed, noise=noise, **changes)["predictions"]["test"]
    protocol = "left-out" if left_out else "official"
    return {
        **document(row, skill, seed=seed, experiment="ablation", protocol=protocol),
        "title": title,
        "network": "mask-efficientnet-lite0",
        "predictions": parts,
        "parts": {part: {"warnings": []} for part in parts},
        "split": {"specification": "leave-source-out:medpix" if left_out else "official"},
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = [
        ("default", 3.0, "default"),
        ("no-mask", 3.0, "no mask branch"),
        ("weights-none", 0.4, "weights: none"),
    ]
    return write(
        tmp_path / "ablation",
        *(
            variant(row, skill, title, seed, left_out)
            for row, skill, title in rows
            for seed in range(3)
            for left_out in (False, True)
        ),
    )


def test_three_views_and_their_verdicts(results: Path) -> None:
    text = render_ablation(results)
    assert "Official val (split `official`): 200 slices" in text
    assert "Left-out source (split `leave-source-out:medpix`): 200 slices" in text
    assert "- no mask branch: no difference to the default is shown." in text
    (said,) = [line for line in text.splitlines() if line.startswith("- weights: none:")]
    for view in ("official val", "official test", "left-out source"):
        assert f"worse than the default in AUC on {view}" in said
        assert f"| {view}, against the default |" in text
    order = [text.index(f"\n| {title} |") for title in ("default", "no mask branch", "weights: none")]
    assert order == sorted(order)
    kept = json.loads((results / "comparisons.json").read_text())
    assert len(kept) == 6
    assert {each["second"] for each in kept} == {"default"}
    assert "no mask branch" in (results / "ablation.svg").read_text()


def test_a_view_may_be_missing(results: Path) -> None:
    for path in (results / "left-out").iterdir():
        path.unlink()
    text = render_ablation(results)
    assert "eft-out source" not in text
    assert "official test" in text


def test_without_the_default_nothing_is_tested(results: Path) -> None:
    for path in results.glob("*/default-seed-*.json"):
        path.unlink()
    text = render_ablation(results)
    assert "p corrected" not in text
    assert "| no mask branch |" in text


def test_left_out_sources_of_one_class(tmp_path: Path) -> None:
    write(
        tmp_path,
        *(
            variant(row, 2.0, row, seed, left_out=True, covid=0.0)
            for row in ("default", "no-mask")
            for seed in (0, 1)
        ),
    )
    text = render_ablation(tmp_path)
    assert "(0 COVID)" in text
    assert "Δ accuracy to the default" in (tmp_path / "ablation.svg").read_text()


def test_results_without_a_single_whole_row(tmp_path: Path) -> None:
    write(tmp_path, {**variant("default", 1.0, "default", 0), "fold": 1, "folds": 5})
    with pytest.raises(DataError, match="no variant's folds are complete"):
        render_ablation(tmp_path)


def test_into_a_readme(results: Path) -> None:
    readme = results.parent / "README.md"
    readme.write_text("<!-- ablation:begin -->\n<!-- ablation:end -->\n")
    render_ablation(results, readme=readme)
    assert "](ablation/ablation.svg)" in readme.read_text()
