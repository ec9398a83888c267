"""What answers hold: predictions as ``groundglass predict --json`` prints them, sums, series, links."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from groundglass.inference.bundle import CARD, Bundle
from groundglass.inference.output import OutputPlan, open_output
from groundglass.inference.prediction import Prediction
from groundglass.inference.series import SERIES_SCORE
from groundglass.inference.writers import json_line, predictions_writer
from groundglass.serving.results import KeptSlice, Result

RESULTS = "/v1/results"
PICTURE, OUTLINE, HEAT_MAP, HOUNSFIELD = "picture.png", "outline.svg", "heat_map.png", "hounsfield.raw"


def predictions_document(
    result: Result, seconds_left: float | None, inline: Mapping[int, str | None] | None = None
) -> dict[str, Any]:
    """The answer to an upload.

    Args:
        result: of the upload.
        seconds_left: how long it is kept; None where it is not.
        inline: heat maps by number of prediction, where they were asked for.
    """
    kept = seconds_left is not None
    predictions = []
    for number, prediction in enumerate(result.predictions):
        row = prediction.as_row()
        if kept:
            row.update(_links_of_slice(result, number))
        if inline is not None:
            row["heat_map"] = inline.get(number)
        predictions.append(row)
    return {
        "bundle": result.bundle,
        "counts": {"total": result.totals.counts.total, **asdict(result.totals.counts)},
        "series_score": SERIES_SCORE,
        "series": _series(result),
        "predictions": predictions,
        "kept": _links_of_result(result, seconds_left) if seconds_left is not None else None,
    }


def _series(result: Result) -> list[dict[str, Any]]:
    """The series, each with the numbers of its predictions from 0."""
    series = [{**each.as_document(), "predictions": []} for each in result.totals.summaries()]
    for number, prediction in enumerate(result.predictions):
        index = result.totals.number(prediction)
        if index is not None:
            series[index - 1]["predictions"].append(number)
    return series


def _links_of_result(result: Result, seconds_left: float) -> dict[str, Any]:
    base = f"{RESULTS}/{result.id}"
    return {
        "id": result.id,
        "seconds_left": round(seconds_left),
        "links": {
            "self": base,
            "jsonl": f"{base}/predictions.jsonl",
            "csv": f"{base}/predictions.csv",
            "report": f"{base}/report.zip",
        },
    }


def _links_of_slice(result: Result, number: int) -> dict[str, Any]:
    kept = result.slices.get(number)
    if kept is None:
        return {"image": None}
    base = f"{RESULTS}/{result.id}/slices/{number}"
    return {
        "image": {
            "rows": kept.shape[0],
            "columns": kept.shape[1],
            "picture": f"{base}/{PICTURE}",
            "outline": f"{base}/{OUTLINE}",
            "heat_map": None if kept.activation_map is None else f"{base}/{HEAT_MAP}",
            "hounsfield": None if kept.hounsfield is None else f"{base}/{HOUNSFIELD}",
        }
    }


def json_lines(predictions: Sequence[Prediction]) -> bytes:
    """The lines of ``groundglass predict --json``."""
    return b"".join(map(json_line, predictions))


def csv_table(predictions: Sequence[Prediction]) -> bytes:
    """The table of ``groundglass predict --csv``."""
    stream = io.BytesIO()
    writer = predictions_writer("csv", stream)
    for prediction in predictions:
        writer.write(prediction)
    writer.close()
    return stream.getvalue()


def report_zip(
    bundle: Bundle, predictions: Sequence[Prediction], slices: Mapping[int, KeptSlice], folder: Path
) -> IO[bytes]:
    """The folder that ``groundglass predict --output`` writes, zipped: report.html, tables, pictures.

    Args:
        bundle: that was asked.
        predictions: of the result.
        slices: those of them whose pixels are kept.
        folder: an empty one to work in.

    Returns:
        The zip, in a file without a name that is gone when it is closed.
    """
    plan = OutputPlan(path=folder / "report", command="POST /v1/predictions")
    with open_output(plan, bundle) as output:
        for number, prediction in enumerate(predictions):
            kept = slices.get(number)
            evidence = None if kept is None else kept.evidence(prediction)
            output.add(replace(prediction, evidence=evidence))
    packed = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by whoever sends it
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted((folder / "report").rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    packed.seek(0)
    return packed


def model_document(bundle: Bundle) -> dict[str, Any]:
    """The model card: what the bundle says of itself, and the card's text."""
    return {
        **bundle.info.model_dump(mode="json", exclude={"files", "id", "format"}),
        "bundle": bundle.id,
        "precision": bundle.precision,
        "card": card_text(bundle),
    }


def card_text(bundle: Bundle) -> str:
    """The model card in Markdown; empty where the bundle has none."""
    try:
        if bundle.path.is_dir():
            return (bundle.path / CARD).read_text(encoding="utf-8")
        with zipfile.ZipFile(bundle.path) as archive:
            return archive.read(CARD).decode("utf-8")
    except (OSError, KeyError, UnicodeDecodeError):
        return ""
