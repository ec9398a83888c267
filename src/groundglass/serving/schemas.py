"""What the API takes and gives, for its OpenAPI description; answers are held against it by tests."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from groundglass.serving.answer import JSON_LINES
from groundglass.serving.problems import MEDIA_TYPE


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ImageLinks(_Schema):
    """Layers of a slice; picture, outline and heat map have the slice's size and lie on each other."""

    rows: int
    columns: int
    picture: str
    outline: str
    heat_map: str | None
    hounsfield: str | None


class PredictionRow(_Schema):
    """What is said of one slice, as ``groundglass predict --json`` says it."""

    file: str
    frame: int | None
    series: str | None
    position: float | None
    status: Literal["ok", "refused", "failed"]
    reason: str | None
    probability: float | None = Field(ge=0, le=1)
    label: Literal["COVID", "NonCOVID", "uncertain"] | None
    prediction_set: list[str]
    flags: list[str]
    bundle: str
    image: ImageLinks | None = Field(None, description="Where heat_maps=link was asked for.")
    heat_map: str | None = Field(
        None, description="A PNG as data URI, of the slice's size; where heat_maps=inline was asked for."
    )


class Counts(_Schema):
    """How many slices came out how."""

    total: int
    ok: int
    refused: int
    failed: int
    covid: int
    non_covid: int
    uncertain: int


class Curve(_Schema):
    """Probability along a series, from the feet to the head where positions are known."""

    axis: Literal["mm", "frame", "order"]
    at: list[float]
    probability: list[float]
    label: list[str]


class Series(_Schema):
    """What is said of one series or volume."""

    series: str | None
    place: str
    slices: int
    classified: int
    refused: int
    failed: int
    positive: int
    negative: int
    uncertain: int
    series_score: float | None
    slices_in_score: int
    curve: Curve
    predictions: list[int] = Field(description="Numbers of its predictions, from 0.")


class ResultLinks(_Schema):
    """Where a result is found as long as it is kept."""

    self: str
    jsonl: str
    csv: str
    report: str


class Kept(_Schema):
    """How to come back to a result."""

    id: str
    seconds_left: int
    links: ResultLinks


class Predictions(_Schema):
    """What is said of an upload."""

    bundle: str
    counts: Counts
    series_score: str = Field(description="What the series scores are.")
    series: list[Series]
    predictions: list[PredictionRow]
    kept: Kept | None = Field(description="Where heat_maps=link was asked for.")


class Model(BaseModel):
    """The model card; further members are those of the bundle."""

    model_config = ConfigDict(extra="allow")

    name: str
    bundle: str
    precision: Literal["fp32", "int8"]
    created: str
    licence: str
    network: dict[str, Any]
    preprocessing: dict[str, Any]
    metrics: dict[str, Any]
    card: str = Field(description="Markdown.")


class Health(_Schema):
    """Whether the service lives, or is ready."""

    status: Literal["ok"]


class ProblemDetails(BaseModel):
    """An error (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str


_ROW = {
    "file": "series/slice-041.dcm",
    "frame": None,
    "series": "1.2.840.113619.2.55",
    "position": -121.5,
    "status": "ok",
    "reason": None,
    "probability": 0.91,
    "label": "COVID",
    "prediction_set": ["COVID"],
    "flags": [],
    "bundle": "93ca333d9732-int8",
}
_RESULT = "/v1/results/4fWq0x1f8Q5cVgk2nJ7bYw"
_IMAGE = {
    "rows": 512,
    "columns": 512,
    "picture": f"{_RESULT}/slices/0/picture.png",
    "outline": f"{_RESULT}/slices/0/outline.svg",
    "heat_map": f"{_RESULT}/slices/0/heat_map.png",
    "hounsfield": f"{_RESULT}/slices/0/hounsfield.raw",
}
_COUNTS = {"total": 1, "ok": 1, "refused": 0, "failed": 0, "covid": 1, "non_covid": 0, "uncertain": 0}
_SERIES = {
    "series": "1.2.840.113619.2.55",
    "place": "series",
    "slices": 1,
    "classified": 1,
    "refused": 0,
    "failed": 0,
    "positive": 1,
    "negative": 0,
    "uncertain": 0,
    "series_score": 0.91,
    "slices_in_score": 1,
    "curve": {"axis": "mm", "at": [-121.5], "probability": [0.91], "label": ["COVID"]},
    "predictions": [0],
}
_PLAIN = {
    "bundle": "93ca333d9732-int8",
    "counts": _COUNTS,
    "series_score": "Mean of the highest fifth of the calibrated probabilities of COVID.",
    "series": [_SERIES],
    "predictions": [_ROW],
    "kept": None,
}
_KEPT = {
    "id": _RESULT.rpartition("/")[2],
    "seconds_left": 900,
    "links": {
        "self": _RESULT,
        "jsonl": f"{_RESULT}/predictions.jsonl",
        "csv": f"{_RESULT}/predictions.csv",
        "report": f"{_RESULT}/report.zip",
    },
}
PREDICTIONS_EXAMPLES: dict[str, Any] = {
    "none": {"summary": "heat_maps=none", "value": _PLAIN},
    "link": {
        "summary": "heat_maps=link",
        "value": {**_PLAIN, "predictions": [{**_ROW, "image": _IMAGE}], "kept": _KEPT},
    },
    "inline": {
        "summary": "heat_maps=inline",
        "value": {**_PLAIN, "predictions": [{**_ROW, "heat_map": "data:image/png;base64,iVBORw0KGgo="}]},
    },
}
PREDICTIONS_ANSWER: dict[str, Any] = {
    "model": Predictions,
    "description": "What was found; with Accept: application/x-ndjson line by line as it is found.",
    "content": {
        "application/json": {"examples": PREDICTIONS_EXAMPLES},
        JSON_LINES: {"schema": {"type": "string", "description": "Each line is a PredictionRow."}},
    },
}
UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                            "description": "PNG, JPEG, TIFF, BMP, DICOM, NIfTI, MetaImage or zip. A file "
                            "name may be a relative path; the part's own name does not matter.",
                        }
                    },
                    "required": ["files"],
                }
            }
        },
    }
}

_PROBLEMS: dict[int, tuple[str, str]] = {
    400: ("bad-request", "The multipart form is damaged: it ends before its last boundary."),
    401: ("unauthorized", "Send the header Authorization: Bearer, followed by the service's token."),
    403: ("foreign-origin", "Pages of other sites may not use this service."),
    404: ("no-such-result", "No result of this id is kept. Send the files again."),
    405: ("method-not-allowed", "This address does not take this method."),
    408: ("upload-too-slow", "The upload stopped for 20 seconds, or took more than 300 in all."),
    413: ("upload-too-large", "The files are larger than the 536,870,912 bytes of one request."),
    415: ("unsupported-media-type", "Send the files as multipart/form-data."),
    421: ("misdirected-request", "This service answers to localhost and 127.0.0.1 only."),
    422: ("invalid-request", "File 1 of the request has no name."),
    429: ("too-many-requests", "8 uploads of this client are in flight, as many as one may have."),
    500: ("internal-error", "The service failed on this request."),
    503: ("busy", "64 uploads are in flight, as many as there may be."),
}
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}


def problem_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Descriptions of the problems that an address may answer with, those of every address among them."""
    return {status: _problem(status) for status in sorted({400, 401, 403, 405, 421, 500, *statuses})}


def _problem(status: int) -> dict[str, Any]:
    kind, detail = _PROBLEMS[status]
    example = {
        "type": f"urn:groundglass:problem:{kind}",
        "title": kind.replace("-", " ").capitalize(),
        "status": status,
        "detail": detail,
    }
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    answer: dict[str, Any] = {
        "description": example["title"],
        "content": {MEDIA_TYPE: {"schema": schema, "example": example}},
    }
    if status in {429, 503}:
        answer["headers"] = _RETRY
    return answer
