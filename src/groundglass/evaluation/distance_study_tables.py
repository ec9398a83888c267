"""What the distance says of data alike, altered or from elsewhere, as Markdown tables and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from groundglass.atomic import write_json, write_text
from groundglass.evaluation.distance import ALIKE, FAR, TOLD, Share
from groundglass.evaluation.distance_groups import Group
from groundglass.evaluation.distance_study import Study
from groundglass.evaluation.markdown import section, table

JSON, MARKDOWN = "distance.json", "distance.md"
BEGIN, END = "<!-- distance:begin -->", "<!-- distance:end -->"

_HEAD = (
    *("Slices", "Number", "Outside", "Embedding beyond 95 %", "Grey values beyond 95 %", "Refused"),
    *("Told apart (AUC)", "Accuracy", "AUC", "Verdict"),
)


def write_study(study: Study, output: Path, command: str) -> None:
    """Write ``distance.json`` and ``distance.md``."""
    write_json(output / JSON, study.as_json(command))
    write_text(output / MARKDOWN, study_tables(study))


def study_tables(study: Study) -> str:
    """All tables, one section each; intervals are 95 %, by a bootstrap over patients."""
    elsewhere = [group for group in study.groups if group.kind in {"test", "elsewhere"}]
    altered = [group for group in study.groups if group.kind == "altered"]
    lines = [
        f"Bundle `{study.bundle}` on {study.data}, split `{study.split}`, seed {study.seed}; groundglass "
        f"{study.versions['groundglass']}. Intervals are 95 %, by a bootstrap over patients. Data are "
        f"far from {_percent(FAR)} outside on, doubtful above {_percent(ALIKE)} or where they are told apart "
        f"with an AUC of {TOLD:g} or more, alike otherwise.",
        "",
        *section("Data alike: the validation part in halves", _halves(study)),
        *section("The validation part, altered", _altered([study.val, *altered])),
        *section("Other data", _groups(elsewhere)),
    ]
    return "\n".join(lines)


def _halves(study: Study) -> Iterator[str]:
    halves, verdicts = study.halves, study.halves.verdicts
    counts = ", ".join(f"{verdict} {count}" for verdict, count in verdicts.items())
    yield f"Half of its patients placed by the other half, {halves.times} times. Verdicts: {counts}."
    yield ""
    rows = [("Share outside", {key: _percent(value) for key, value in halves.outside.items()})]
    rows += [("Told apart (AUC)", {key: f"{value:.2f}" for key, value in halves.told_apart.items()})]
    yield from table(
        ("", "Mean", "5 % quantile", "Median", "95 % quantile"),
        [(name, *(shown[key] for key in ("mean", "low", "median", "high"))) for name, shown in rows if shown],
    )


def _altered(groups: Iterable[Group]) -> Iterator[str]:
    yield (
        "These are the slices that calibrate the distance: an alteration that is not noticed gives an AUC "
        "below 0.5, for every slice has its twin on the other side."
    )
    yield ""
    yield from _groups(groups)


def _groups(groups: Iterable[Group]) -> Iterator[str]:
    yield from table(_HEAD, map(_row, groups))


def _row(group: Group) -> list[str]:
    distance, placed = group.distance, group.distance.placed
    if placed is None:
        raise ValueError(f"{group.name}: was not placed")
    told = placed.told_apart
    return [
        group.name,
        f"{distance.slices} of {distance.patients}",
        _share(placed.outside),
        _share(placed.embedding.beyond_95),
        _share(placed.grey.beyond_95),
        _share(distance.refused),
        "–" if told.auc is None else f"{told.auc:.2f}",
        _figure(group.accuracy),
        _figure(group.auc),
        distance.verdict,
    ]


def _share(share: Share) -> str:
    interval = (
        "" if share.low is None or share.high is None else f" ({100 * share.low:.0f}–{100 * share.high:.0f})"
    )
    return f"{100 * share.value:.0f} %{interval}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
