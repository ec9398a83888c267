"""What answers hold: findings as ``groundglass predict --json`` prints them, sums, series, links."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

from groundglass.inference.bundle import CARD, Bundle
from groundglass.inference.finding import Finding
from groundglass.inference.findings_file import findings_writer, json_line, row_of
from groundglass.inference.output import OutputPlan, open_output
from groundglass.inference.study import STUDY_SCORE
from groundglass.serving.results import KeptSlice, Result

RESULTS = "/v1/results"
PICTURE, OUTLINE, HEAT_MAP, HOUNSFIELD = "picture.png", "outline.svg", "heat_map.png", "hounsfield.raw"


def findings_document(
    result: Result, seconds_left: float | None, inline: Mapping[int, str | None] | None = None
) -> dict[str, Any]:
    """The answer to an upload.

    Args:
        result: of the upload.
        seconds_left: how long it is kept; None where it is not.
        inline: heat maps by number of finding, where they were asked for.
    """
    kept = seconds_left is not None
    findings = []
    for number, finding in enumerate(result.findings):
        row = row_of(finding)
        if kept:
            row.update(_links_of_slice(result, number))
        if inline is not None:
            row["heat_map"] = inline.get(number)
        findings.append(row)
    return {
        "bundle": result.bundle,
        "counts": {"total": result.studies.counts.total, **asdict(result.studies.counts)},
        "study_score": STUDY_SCORE,
        "series": _series(result),
        "findings": findings,
        "kept": _links_of_result(result, seconds_left) if seconds_left is not None else None,
    }


def _series(result: Result) -> list[dict[str, Any]]:
    """The series, each with the numbers of its findings from 0."""
    series = [{**each.as_document(), "findings": []} for each in result.studies.summaries()]
    for number, finding in enumerate(result.findings):
        index = result.studies.number(finding)
        if index is not None:
            series[index - 1]["findings"].append(number)
    return series


def _links_of_result(result: Result, seconds_left: float) -> dict[str, Any]:
    base = f"{RESULTS}/{result.id}"
    return {
        "id": result.id,
        "seconds_left": round(seconds_left),
        "links": {
            "self": base,
            "jsonl": f"{base}/findings.jsonl",
            "csv": f"{base}/findings.csv",
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


def json_lines(findings: Sequence[Finding]) -> bytes:
    """The lines of ``groundglass predict --json``."""
    return b"".join(map(json_line, findings))


def csv_table(findings: Sequence[Finding]) -> bytes:
    """The table of ``groundglass predict --csv``."""
    stream = io.BytesIO()
    writer = findings_writer("csv", stream)
    for finding in findings:
        writer.write(finding)
    writer.close()
    return stream.getvalue()


def report_zip(
    bundle: Bundle, findings: Sequence[Finding], slices: Mapping[int, KeptSlice], folder: Path
) -> IO[bytes]:
    """The folder that ``groundglass predict --output`` writes, zipped: report.html, tables, pictures.

    Args:
        bundle: that was asked.
        findings: of the result.
        slices: those of them whose pixels are kept.
        folder: an empty one to work in.

    Returns:
        The zip, in a file without a name that is gone when it is closed.
    """
    plan = OutputPlan(path=folder / "report", command="POST /v1/findings")
    with open_output(plan, bundle) as output:
        for number, finding in enumerate(findings):
            kept = slices.get(number)
            evidence = None if kept is None else kept.evidence(finding)
            output.add(replace(finding, evidence=evidence))
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
