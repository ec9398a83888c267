"""Judged activation maps as Markdown tables and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from groundglass.atomic import write_json, write_text
from groundglass.evaluation.map_answers import RISE
from groundglass.evaluation.map_figures import EVERYTHING, Figures, MapDifference
from groundglass.evaluation.maps import GroupReport, MapsReport, ModelFigures
from groundglass.evaluation.markdown import minus, section, signed, table
from groundglass.evaluation.painted_slices import KINDS, SEVERITIES
from groundglass.evaluation.paired_rows import Spread

JSON, MARKDOWN = "maps.json", "maps.md"
BEGIN, END = "<!-- maps:begin -->", "<!-- maps:end -->"

TITLES: Mapping[str, str] = {
    "pointing": "Hottest cell in the lesion",
    "energy": "Energy in the lesion",
    f"pointing{RISE}": "Hottest cell in the lesion, map less twin's",
    f"energy{RISE}": "Energy in the lesion, map less twin's",
    "noticed": "Logit above the twin's",
    "auc": "AUC painted against untouched",
}

_MAP_COLUMNS = (
    ("Hottest cell in the lesion", "pointing{}"),
    ("beyond chance", "pointing{}_beyond"),
    ("near it", "near{}"),
    ("Energy in the lesion", "energy{}"),
    ("beyond chance", "energy{}_beyond"),
    ("Energy in the lungs", "energy_in_lungs{}"),
    ("of it in the lesion", "energy_of_lungs{}"),
    ("beyond chance", "energy_of_lungs{}_beyond"),
    ("Nothing positive", "blank{}"),
)


def write_maps(report: MapsReport, output: Path, command: str) -> None:
    """Write ``maps.json`` and ``maps.md``."""
    write_json(output / JSON, report.as_json(command))
    write_text(output / MARKDOWN, maps_tables(report))


def maps_tables(report: MapsReport) -> str:
    """All tables, one section for each group of slices."""
    lines = [
        f"Lesions: {', '.join(kind.value for kind in KINDS)}, of severity "
        f"{', '.join(f'{severity:g}' for severity in SEVERITIES)}; in phantoms ground glass alone. Seed "
        f"{report.seed}. In percent; ± the standard deviation over a model's seeds; in brackets 95 % "
        f"intervals by {report.resamples:,} resamples of patients, which one patient alone cannot give.",
        "",
        *table(
            ["Model", "Network", "Recipe", "Split", "Seeds"],
            [(row.name, row.network, f"`{row.recipe}`", f"`{row.split}`", row.seeds) for row in report.rows],
        ),
        "",
    ]
    for group in report.groups:
        lines += section(f"{group.name[:1].upper()}{group.name[1:]}", _group(group))
    return "\n".join(lines)


def _group(group: GroupReport) -> Iterator[str]:
    seen = "; ".join(f"{model.name}: {model.seen}" for model in group.models)
    small = f" Left out with hardly any lesion: {group.too_small}." if group.too_small else ""
    yield (
        f"Untouched slices: {group.slices}; patients or series: {group.patients}; painted copies: "
        f"{group.paintings}.{small} Untouched slices seen in training? {seen}."
    )
    yield from _titled("Map of the painted slice", _maps(group, ""))
    yield from _titled("That map less the one of the untouched twin", _maps(group, RISE))
    yield from _titled("Is the lesion noticed?", _noticed(group))
    yield from _titled("By severity and kind", _subsets(group))
    if group.differences:
        yield from _titled("Differences on the same paintings", _differences(group.differences))


def _titled(title: str, lines: Iterator[str]) -> Iterator[str]:
    yield ""
    yield f"**{title}**"
    yield ""
    yield from lines


def _maps(group: GroupReport, suffix: str) -> Iterator[str]:
    heads, names = zip(*_MAP_COLUMNS, strict=True)
    rows: list[Sequence[object]] = []
    for model in group.models:
        measures = _everything(model).measures
        rows.append((model.name, *(_percent(measures[name.format(suffix)]) for name in names)))
    yield from table(["Model", *heads], [*rows, *_chance(group)])


def _chance(group: GroupReport) -> Iterator[Sequence[object]]:
    """What maps reach that know nothing: in the first model's frames, for others hardly differ."""
    known = {name: _bare(spread) for name, spread in _everything(group.models[0]).measures.items()}
    frame, lungs, near = known["lesion_of_frame"], known["lesion_of_lungs"], known["near_of_lungs"]
    in_lungs = known["lungs_of_frame"]
    yield "*even over the frame*", frame, "", known["near_of_frame"], frame, "", in_lungs, lungs, "", ""
    yield "*even over the lungs*", lungs, "", near, lungs, "", "100.0", lungs, "", ""
    even = [known[f"even_{name}"] for name in ("pointing", "energy", "energy_in_lungs", "energy_of_lungs")]
    yield "*chance: the same on this grid*", even[0], "", near, even[1], "", even[2], even[3], "", ""
    yield "*best on this grid*", "", "", "", known["best_energy"], "", "", "", "", ""


def _noticed(group: GroupReport) -> Iterator[str]:
    head = [
        "Model",
        "Logit above the untouched twin's",
        "Mean gain of the logit",
        "AUC painted against untouched",
        "Painted, called COVID",
        "Untouched, called COVID",
    ]
    rows = []
    for model in group.models:
        measures = _everything(model).measures
        rows.append(
            (
                model.name,
                _percent(measures["noticed"]),
                _number(measures["gain"], 2),
                _number(measures["auc"], 3),
                _percent(measures["called"]),
                _percent(measures["twin_called"]),
            )
        )
    yield from table(head, rows)


def _subsets(group: GroupReport) -> Iterator[str]:
    head = [
        "Model",
        "Lesions",
        "Paintings",
        "Lesion of the lungs",
        "Hottest cell in the lesion",
        "Energy in the lesion",
        "Hottest cell, less twin",
        "Energy, less twin",
        "Logit above the twin's",
        "AUC",
    ]
    names = ("pointing", "energy", f"pointing{RISE}", f"energy{RISE}", "noticed")
    rows = []
    for model in group.models:
        for each in model.figures:
            if each.subset == EVERYTHING:
                continue
            measures = each.measures
            rows.append(
                (
                    model.name,
                    each.subset,
                    each.paintings,
                    _bare(measures["lesion_of_lungs"]),
                    *(_percent(measures[name]) for name in names),
                    _number(measures["auc"], 3),
                )
            )
    yield from table(head, rows)


def _differences(differences: Sequence[MapDifference]) -> Iterator[str]:
    head = ["First less second", "Measure", "Difference", "p"]
    yield from table(head, [_difference_row(each) for each in differences])


def _difference_row(each: MapDifference) -> Sequence[object]:
    scale, digits = (1, 3) if each.measure == "auc" else (100, 1)
    values = [each.value, each.low, each.high]
    value, low, high = ("–" if number is None else signed(scale * number, digits) for number in values)
    interval = "" if each.low is None else f" ({low} to {high})"
    p = "–" if each.p is None else f"{each.p:.3f}"
    return f"{each.first} less {each.second}", TITLES[each.measure], f"{value}{interval}", p


def _everything(model: ModelFigures) -> Figures:
    return next(each for each in model.figures if each.subset == EVERYTHING)


def _percent(spread: Spread) -> str:
    return _number(spread, 1, 100)


def _bare(spread: Spread) -> str:
    """In percent, without spread and interval."""
    return "–" if spread.mean is None else f"{100 * spread.mean:.1f}"


def _number(spread: Spread, digits: int, scale: int = 1) -> str:
    if spread.mean is None:
        return "–"
    sd = "" if spread.sd is None else f" ± {scale * spread.sd:.{digits}f}"
    if spread.low is None or spread.high is None:
        interval = ""
    else:
        low, high = (minus(scale * bound, digits) for bound in (spread.low, spread.high))
        interval = f" ({low} to {high})" if spread.low < 0 else f" ({low}–{high})"
    return f"{minus(scale * spread.mean, digits)}{sd}{interval}"
