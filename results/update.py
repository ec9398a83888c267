"""Render the recorded results again, and put their tables between the markers of README and docs.

Run by `make figures`, from anywhere; needs neither torch nor a data set. Tables stand between
`<!-- NAME:begin -->` and `<!-- NAME:end -->`.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

from groundglass.evaluation.segmentation import SEGMENTATION_TITLES
from groundglass.experiments.tables import PAPER_ACCURACY, render_convergence, render_rows, render_seeds
from groundglass.files import write_text

RESULTS = Path(__file__).resolve().parent
ROOT = RESULTS.parent
BUNDLE = ROOT / "src" / "groundglass" / "bundles" / "default"


def quality() -> str:
    """How good the installed model is, beside what the file format alone gives away and beside a hospital left out."""
    bundle = json.loads((BUNDLE / "bundle.json").read_text())
    # The audit's first rule sees the file's format, pixel mode and suffix alone.
    rule = json.loads((RESULTS / "audit" / "audit.json").read_text())["shortcuts"]["baselines"][0]["tested"]
    outside = _hospital("moscow-left-out")
    test, lesions = bundle["metrics"]["test"], _hospital("medseg-test")["segmentation"]
    rows = [
        ("Official test part of COVID-CT", test["slices"], test["metrics"]),
        ("A rule on the file format alone, same slices", test["slices"], rule),
        (
            "Moscow left out of the training: no lesion against moderate to critical",
            outside["data"]["slices"],
            outside["metrics"],
        ),
    ]
    lines = "\n".join(
        f"| {name} | {count} | {_interval(of['auc'])} | {_interval(of['accuracy'])} |"
        for name, count, of in rows
    )
    dice, pointing = lesions["lesion_dice"], lesions["pointing"]
    return (
        f"| | slices | AUC | accuracy |\n|---|---|---|---|\n{lines}\n\n"
        f"One training each, 95 % intervals over patients. Lesions on {dice['slices']} slices of MedSeg that were not "
        f"trained on: Dice {_interval(dice)}; on {100 * pointing['value']:.0f} % the strongest place is a lesion.\n"
    )


def phantoms() -> str:
    """How well lungs, lesions and lung opacity of phantoms are found."""
    figures = _hospital("phantoms")["segmentation"]
    lines = [
        f"| {SEGMENTATION_TITLES[name]} | {each['slices']} | {_interval(each)} |"
        for name, each in figures.items()
    ]
    return "| On phantoms | slices | |\n|---|---|---|\n" + "\n".join(lines) + "\n"


def paper() -> str:
    """Table I under the paper's protocol, beside what the file format alone scores there."""
    with (RESULTS / "table1" / "table1.csv").open(encoding="utf-8", newline="") as stream:
        found = [
            row for row in csv.DictReader(stream) if (row["protocol"], row["part"]) == ("random", "test")
        ]
    rows = [
        (
            f"{row['network']} ({row['weights']})",
            row["slices"],
            [_bounds(row, name) for name in ("auc", "accuracy")],
        )
        for row in found
    ]
    rule = json.loads((RESULTS / "table1" / "file-format.json").read_text())
    for name, where in (("random, as in the table", "same slices"), ("random", "all five draws")):
        measured = rule[name]["metrics"]
        cells = [_interval(measured[key]) for key in ("auc", "accuracy")]
        rows.append((f"A rule on the file format alone, {where}", rule[name]["slices"], cells))
    lines = "\n".join(f"| {name} | {slices} | {' | '.join(cells)} |" for name, slices, cells in rows)
    goals = ", ".join(f"{family} {accuracy:.3f}" for family, accuracy in PAPER_ACCURACY.items())
    return (
        f"| Protocol `random` | slices | AUC | accuracy |\n|---|---|---|---|\n{lines}\n\n"
        f"95 % intervals over patients; [all measures](../results/table1/table1.md). The paper's accuracies: {goals}.\n"
    )


def _bounds(row: dict[str, str], name: str) -> str:
    value, low, high = (float(row[f"{name}_{key}"]) for key in ("mean", "low", "high"))
    return _interval({"value": value, "low": low, "high": high})


def _hospital(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / "hospitals" / f"{name}.json").read_text()))


def _interval(measure: dict[str, float]) -> str:
    return f"{measure['value']:.3f} ({measure['low']:.3f}–{measure['high']:.3f})"


def put(document: Path, name: str, table: str) -> None:
    """Replace what stands between the markers of that name; every marker is there once."""
    text = document.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise SystemExit(f"{document}: expected {begin} and {end} once each, in this order")
    before, _, rest = text.partition(begin)
    write_text(document, f"{before}{begin}\n{table.rstrip()}\n{end}{rest.partition(end)[2]}")


def main() -> None:
    """Render everything, then fill the documents."""
    for experiment in ("table1", "ablation"):
        render_rows(RESULTS / experiment)
    render_convergence(RESULTS / "convergence")
    for folder in ("official-split", "left-out"):
        put(RESULTS / "README.md", folder, render_seeds(RESULTS / folder))
    # Its headings are two levels deeper there.
    audit = (RESULTS / "audit" / "audit.md").read_text(encoding="utf-8")
    put(ROOT / "docs" / "audit.md", "audit", re.sub(r"^#", "###", audit, flags=re.MULTILINE))
    put(ROOT / "README.md", "quality", quality())
    put(ROOT / "docs" / "paper.md", "paper", paper())
    put(RESULTS / "README.md", "phantoms", phantoms())


if __name__ == "__main__":
    main()
