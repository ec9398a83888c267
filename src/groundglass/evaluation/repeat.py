"""The same recipe over several seeds: one JSON per seed, their mean and spread, and the table of a README."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from groundglass.atomic import write_json, write_text
from groundglass.errors import DataError
from groundglass.evaluation.metrics import TITLES
from groundglass.evaluation.protocol import TrainedRun

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
"""Where in a Markdown file the generated table stands."""


def seed_document(run: TrainedRun, parts: Mapping[str, Path]) -> dict[str, Any]:
    """What is kept of one finished run: recipe, circumstances, and the metrics of each part.

    Args:
        run: a finished run.
        parts: part name to the folder of its evaluation.
    """
    info = {key: value for key, value in run.info.items() if key != "training_sha256"}
    return {
        "seed": run.seed,
        "run": info,
        "recipe": run.recipe.model_dump(mode="json"),
        "history": list(run.history()),
        "parts": {name: _measured(folder / "metrics.json") for name, folder in parts.items()},
    }


def _measured(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8"))
    kept = ("data", "metrics", "confusion", "interval", "warnings", "evaluations_of_these_slices", "command")
    return {key: document[key] for key in kept}


def summarise(folder: Path) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of ``folder``, for every part and measure.

    Raises:
        DataError: no seed is there, or the seeds differ in recipe, split or data.
    """
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("seed-*.json"))]
    if not documents:
        raise DataError(f"{folder}: holds no seed-*.json; make them with `groundglass repeat`")
    documents.sort(key=lambda document: int(document["seed"]))
    first = documents[0]
    for other in documents[1:]:
        seeds = f"seeds {first['seed']} and {other['seed']}"
        if other["recipe"] != first["recipe"]:
            raise DataError(f"{folder}: {seeds} differ in their recipe")
        if other["run"]["split"] != first["run"]["split"]:
            raise DataError(f"{folder}: {seeds} differ in their split")
    return {
        "recipe": first["recipe"]["name"],
        "network": first["recipe"]["network"]["name"],
        "size": first["recipe"]["framing"]["size"],
        "epochs": first["recipe"]["training"]["epochs"],
        "split": first["run"]["split"],
        "seeds": [document["seed"] for document in documents],
        "training_seconds": _spread(document["run"]["training_seconds"] for document in documents),
        "parts": {
            part: {
                "slices": first["parts"][part]["data"]["slices"],
                "patients": first["parts"][part]["data"]["patients"],
                "metrics": {
                    name: _spread(document["parts"][part]["metrics"][name]["value"] for document in documents)
                    for name in TITLES
                },
            }
            for part in first["parts"]
        },
    }


def _spread(values: Iterable[float | None]) -> dict[str, Any]:
    known = [float(value) for value in values if value is not None]
    if not known:
        return {"mean": None, "sd": None, "values": []}
    return {
        "mean": statistics.fmean(known),
        "sd": statistics.stdev(known) if len(known) > 1 else None,
        "values": known,
    }


def summary_table(summary: Mapping[str, Any]) -> str:
    """The summary as a Markdown table: mean ± standard deviation over seeds, one column per part."""
    parts = summary["parts"]
    heads = [
        f"{part} ({value['slices']} slices, {value['patients']} patients)" for part, value in parts.items()
    ]
    lines = [
        f"{summary['network']}, recipe `{summary['recipe']}`, {summary['size']} × {summary['size']} pixels, "
        f"{summary['epochs']} epochs, split `{summary['split']}`, seeds "
        f"{', '.join(str(seed) for seed in summary['seeds'])}: mean ± standard deviation over the seeds.",
        "",
        f"| | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    lines += [
        f"| {title} | {' | '.join(_cell(value['metrics'][name]) for value in parts.values())} |"
        for name, title in TITLES.items()
    ]
    return "\n".join(lines) + "\n"


def _cell(spread: Mapping[str, Any]) -> str:
    if spread["mean"] is None:
        return "–"
    return f"{spread['mean']:.3f}" + (f" ± {spread['sd']:.3f}" if spread["sd"] is not None else "")


def write_summary(folder: Path) -> dict[str, Any]:
    """Write ``summary.json`` and ``summary.md`` beside the seeds, and return the summary."""
    summary = summarise(folder)
    write_json(folder / "summary.json", summary)
    write_text(folder / "summary.md", summary_table(summary))
    return summary


def update_readme(readme: Path, table: str, begin: str = BEGIN, end: str = END) -> None:
    """Put ``table`` between the markers of a Markdown file.

    Raises:
        DataError: the markers are not there, once each and in order.
    """
    text = readme.read_text(encoding="utf-8")
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise DataError(f"{readme}: holds no {begin} ... {end} to put the table into")
    write_text(readme, f"{before}{begin}\n{table}{end}{after}")
