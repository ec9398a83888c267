"""Render the recorded results again, and put their tables between the markers of README and docs.

Run by `make figures`, from anywhere; needs neither torch nor a data set. Tables stand between
`<!-- NAME:begin -->` and `<!-- NAME:end -->`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from math import isnan
from pathlib import Path
from typing import Any

from groundglass.evaluation.segmentation import SEGMENTATION_TITLES
from groundglass.experiments.comparison import MeanSD
from groundglass.experiments.tables import PAPER_ACCURACY, cell, render_convergence, render_rows, render_seeds
from groundglass.files import write_json, write_text
from groundglass.inference.bundle import CARD, INFO, identity

RESULTS = Path(__file__).resolve().parent
ROOT = RESULTS.parent
BUNDLE = ROOT / "src" / "groundglass" / "bundles" / "default"
LEFT_OUT = {
    "moscow": "Moscow left out: COVID-19, moderate to critical, against no lesion",
    "china": "China left out: against other pneumonia and normal, eight patients",
    "wuhan": "Wuhan left out: against bacterial pneumonia and healthy",
}
_SHOWN = ("auc", "accuracy")


def quality() -> str:
    """How good the recipe of the installed model is, beside the file format alone and left-out hospitals."""
    # The audit's first rule sees the file's format, pixel mode and suffix alone.
    rule = json.loads((RESULTS / "audit" / "audit.json").read_text())["shortcuts"]["baselines"][0]["tested"]
    tested, lesions = _seeds("official"), _seeds("lesions")
    slices = tested[0]["data"]["slices"]
    rows = [_row("Official test part of COVID-CT", slices, *(_values(tested, "metrics", name) for name in _SHOWN))]
    figures = " | ".join(f"{rule[name]['value']:.3f}" for name in _SHOWN)
    rows.append(f"| A rule on the file format alone, same slices | {slices} | – | {figures} |")
    for name, title in LEFT_OUT.items():
        part = json.loads((RESULTS / "left-out" / name / "summary.json").read_text())["parts"]["test"]
        rows.append(_row(title, part["slices"], *(part["metrics"][each]["values"] for each in _SHOWN)))
    enhanced, named = _seeds("left-out-masks20"), ("lesion_dice", "pointing")
    slices, accuracy = enhanced[0]["data"]["slices"], cell(MeanSD.of(_values(enhanced, "metrics", "accuracy")))
    rows.append(
        f"| `masks20` left out: COVID-19 alone, enhanced contrast | {slices} | {len(enhanced)} | – | {accuracy} |"
    )
    (dice, pointing), elsewhere = (
        [cell(MeanSD.of(_values(seeds, "segmentation", each))) for each in named] for seeds in (lesions, enhanced)
    )
    return (
        "| | slices | trainings | AUC | accuracy |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n\n"
        "Mean ± SD over seeds. Lesions on the "
        f"{lesions[0]['data']['slices']} test slices of MedSeg: Dice {dice}; strongest place in a "
        f"lesion: {pointing}; on `masks20`, left out, {' and '.join(elsewhere)}. {_coverage()}\n"
    )


def _coverage() -> str:
    held = []
    for name in LEFT_OUT:
        covid, other = _hospital(f"unseen-{name}")["applicability"]["prediction_sets"]["coverage"].values()
        held.append(f"{name.title()} {covid['value']:.0%}, {other['value']:.0%}")
    return (
        "With all three hospitals left out, prediction sets for 90 % hold the true label of COVID and NonCOVID slices: "
        f"{'; '.join(held)}."
    )


def _seeds(name: str) -> list[dict[str, Any]]:
    paths = sorted((RESULTS / "hospitals").glob(f"{name}-[0-9].json"))
    return [json.loads(path.read_text()) for path in paths]


def _values(documents: list[dict[str, Any]], section: str, figure: str) -> list[float]:
    return [each[section][figure]["value"] for each in documents]


def _row(title: str, slices: int, *figures: list[float]) -> str:
    return f"| {title} | {slices} | {len(figures[0])} | {' | '.join(cell(MeanSD.of(each)) for each in figures)} |"


def phantoms() -> str:
    """How well lungs, lesions and lung opacity of phantoms are found."""
    figures = _hospital("phantoms")["segmentation"]
    lines = [
        f"| {SEGMENTATION_TITLES[name]} | {each['slices']} | {_interval(each)} |" for name, each in figures.items()
    ]
    return "| On phantoms | slices | |\n|---|---|---|\n" + "\n".join(lines) + "\n"


def paper() -> str:
    """Table I where patients are mixed and where they are not, beside what the file format alone scores there."""
    with (RESULTS / "table1" / "table1.csv").open(encoding="utf-8", newline="") as stream:
        found = [row for row in csv.DictReader(stream) if row["part"] == "test"]
    rule, lines = json.loads((RESULTS / "table1" / "file-format.json").read_text()), []
    for protocol in dict.fromkeys(row["protocol"] for row in found):
        rows = [
            (
                f"{row['network']} ({row['weights']}, {row['input_size']} px)",
                row,
                [_bounds(row, name) for name in _SHOWN],
            )
            for row in found
            if row["protocol"] == protocol
        ]
        cells = [_interval(rule[protocol]["metrics"][name]) for name in _SHOWN]
        rows.append(("a rule on the file format alone", {**rule[protocol], "seeds": ""}, cells))
        for name, row, own in rows:
            seeds = len(row["seeds"].split()) or "–"
            lines.append(f"| `{protocol}` | {name} | {row['slices']} | {seeds} | {' | '.join(own)} |")
    goals = ", ".join(f"{family} {accuracy:.3f}" for family, accuracy in PAPER_ACCURACY.items())
    table = "\n".join(lines)
    return (
        f"| protocol | | slices | seeds | AUC | accuracy |\n|---|---|---|---|---|---|\n{table}\n\n"
        "Mean, its SD over seeds, and 95 % interval over patients; [all measures](../results/table1/table1.md). "
        f"The paper's accuracies: {goals}.\n"
    )


def audit() -> str:
    """What the audit of COVID-CT warns of, its pairs, and its shortcuts."""
    found = json.loads((RESULTS / "audit" / "audit.json").read_text(encoding="utf-8"))
    warnings = ["- " + re.sub(r"([_*~])", r"\\\1", words) for words in found["warnings"]]
    pairs = [
        f"| {pair['kind']} {pair['correlation']:.3f} | "
        + "<br>".join(f"`{one['file']}` ({one['label']}, {one['part']})" for one in (pair["first"], pair["second"]))
        + " |"
        for pair in found["pairs"]
    ]
    shortcuts = [
        f"| {each['title']} | "
        + " | ".join(_interval(each[how][name]) for how in ("cross_validated", "tested") for name in _SHOWN)
        + " |"
        for each in found["shortcuts"]["baselines"]
    ]
    heads = "| seen | AUC, cross-validated | accuracy | AUC, tested | accuracy |"
    return "\n".join(
        [*warnings, "", "| correlation | slices |", "|---|---|", *pairs, "", heads, "|---|---|---|---|---|", *shortcuts]
    )


def _bounds(row: dict[str, str], name: str) -> str:
    mean, sd, low, high = (float(row[f"{name}_{key}"] or "nan") for key in ("mean", "sd", "low", "high"))
    return cell(MeanSD(mean, None if isnan(sd) else sd, low, high, ()))


def _hospital(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / "hospitals" / f"{name}.json").read_text()))


def _interval(measure: dict[str, float]) -> str:
    return cell(MeanSD(measure["value"], None, measure["low"], measure["high"], ()))


def put(document: Path, name: str, table: str) -> None:
    """Replace what stands between the markers of that name; every marker is there once."""
    text = document.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise SystemExit(f"{document}: expected {begin} and {end} once each, in this order")
    before, _, rest = text.partition(begin)
    write_text(document, f"{before}{begin}\n{table.rstrip()}\n{end}{rest.partition(end)[2]}")


def put_in_card(table: str) -> None:
    """Tell in the installed model's card how its recipe does elsewhere, and list the card as it is then."""
    card, info = BUNDLE / CARD, json.loads((BUNDLE / INFO).read_text(encoding="utf-8"))
    before, errors, after = card.read_text(encoding="utf-8").partition("## Where it errs")
    heading = "## Its recipe at hospitals left out"
    said = (
        "Trainings of the same recipe; each row with a source left out is of networks that never saw it. The lungs\n"
        "are the installed LungNet's, which has seen `masks20`."
    )
    write_text(card, f"{before.partition(heading)[0]}{heading}\n\n{said}\n\n{table}\n{errors}{after}")
    content = card.read_bytes()
    info["files"][CARD] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    write_json(BUNDLE / INFO, info | {"id": identity(info)})


def main() -> None:
    """Render everything, then fill the documents."""
    for experiment in ("table1", "ablation", "ablation-default"):
        render_rows(RESULTS / experiment)
    render_convergence(RESULTS / "convergence")
    left_out = [render_seeds(RESULTS / "left-out" / name) for name in LEFT_OUT]
    put(RESULTS / "README.md", "left-out", "\n".join(left_out))
    put(ROOT / "docs" / "audit.md", "audit", audit())
    put(ROOT / "README.md", "quality", quality())
    put_in_card(quality())
    put(ROOT / "docs" / "paper.md", "paper", paper())
    put(RESULTS / "README.md", "phantoms", phantoms())


if __name__ == "__main__":
    main()
