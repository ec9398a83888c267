"""What the API accepts and returns: predictions, results, and problem details (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from groundglass.errors import GroundglassError

API = "/v2"
RESULTS = f"{API}/results"
JSON_LINES = "application/x-ndjson"
PROBLEM_JSON = "application/problem+json"

Layer = Literal["picture.png", "outline.svg", "heat_map.png", "hounsfield.raw"]
Export = Literal["predictions.jsonl", "predictions.csv", "report.zip"]
HeatMaps = Literal["none", "link", "inline"]
MEDIA_TYPES: Mapping[str, str] = {
    "picture.png": "image/png",
    "outline.svg": "image/svg+xml",
    "heat_map.png": "image/png",
    "hounsfield.raw": "application/octet-stream",
    "predictions.jsonl": JSON_LINES,
    "predictions.csv": "text/csv",
    "report.zip": "application/zip",
}

_KINDS = {
    400: "bad-request",
    401: "unauthorized",
    403: "cross-site",
    404: "not-found no-such-result no-such-slice no-such-layer",
    405: "method-not-allowed",
    408: "upload-too-slow",
    410: "gone",
    413: "upload-too-large too-many-files too-many-slices",
    415: "unsupported-media-type",
    421: "misdirected-request",
    422: "invalid-request",
    429: "too-many-requests",
    500: "internal-error",
    503: "busy too-slow not-ready",
}
"""Kinds of problem by the status of their answers."""

_STATUS = {kind: status for status, kinds in _KINDS.items() for kind in kinds.split()}


class Problem(GroundglassError):  # noqa: N818 - the name RFC 9457 gives it
    """A request that is not answered as it was meant to be.

    Args:
        kind: last part of the problem's ``type``.
        detail: what is wrong with this request and what to do.
        retry_after: seconds after which the same request may succeed.
        headers: of the answer.
        errors: of each parameter.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
        errors: list[dict[str, str]] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind, self.status = kind, _STATUS[kind]
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)
        self._members = {} if errors is None else {"errors": errors}

    def body(self) -> bytes:
        """The answer's content; text that UTF-8 cannot hold is escaped."""
        title = self.kind.replace("-", " ").capitalize()
        members = {"type": f"urn:groundglass:problem:{self.kind}", "title": title, "status": self.status}
        return json.dumps({**members, "detail": str(self), **self._members}).encode()

    def response(self) -> Response:
        """The answer."""
        return Response(self.body(), self.status, self.headers, PROBLEM_JSON)


async def answer_error(request: Request, error: Exception) -> Response:
    """The answer to any error; of the service's own faults the client learns nothing."""
    if isinstance(error, RequestValidationError):
        errors = [{"parameter": ".".join(map(str, e["loc"])), "reason": e["msg"]} for e in error.errors()]
        detail = "; ".join(f"{each['parameter']}: {each['reason']}" for each in errors)
        error = Problem("invalid-request", f"{detail}.", errors=errors)
    elif isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = "This address does not take this method; see the header Allow."
        error = Problem("method-not-allowed", detail, headers=error.headers)
    elif isinstance(error, HTTPException) and request.url.path.startswith("/v1/"):
        error = Problem("gone", f"Version 1 of this interface is gone; its successor is below {API}/.")
    elif isinstance(error, HTTPException):
        error = Problem("not-found", "There is nothing at this address; /openapi.json lists those there are.")
    elif not isinstance(error, Problem):
        detail = "The service failed on this request; its log says where, under the answer's X-Request-ID."
        error = Problem("internal-error", detail)
    return error.response()


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the problems that an address may answer with."""
    schema = {"$ref": "#/components/schemas/ProblemDetails"}
    return {
        status: {
            "description": _KINDS[status].replace(" ", ", "),
            "content": {PROBLEM_JSON: {"schema": schema}},
            "headers": {"Retry-After": {"schema": {"type": "integer"}}} if status in {429, 503} else {},
        }
        for status in sorted({400, 401, 403, 405, 421, 500, *statuses})
    }


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ImageLinks(_Schema):
    """Layers of a slice; picture, outline and heat map have its size and lie on each other."""

    rows: int
    columns: int
    picture: str
    outline: str
    heat_map: str | None
    hounsfield: str | None


class PredictionRow(_Schema):
    """The prediction of one slice, as ``groundglass predict --json`` prints it."""

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
    image: ImageLinks | None = Field(None, description="With heat_maps=link.")
    heat_map: str | None = Field(None, description="A PNG as data URI; with heat_maps=inline.")


class Curve(_Schema):
    """Probability along a series, from the feet to the head where positions are known."""

    axis: Literal["mm", "frame", "order"]
    at: list[float]
    probability: list[float]
    label: list[str]


class Series(_Schema):
    """The predictions of one series or volume together."""

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


class Kept(_Schema):
    """How to come back to a result."""

    id: str
    seconds_left: int
    links: dict[Literal["self", "jsonl", "csv", "report"], str]


class Predictions(_Schema):
    """The predictions of an upload."""

    bundle: str
    counts: dict[Literal["total", "ok", "refused", "failed", "covid", "non_covid", "uncertain"], int]
    series_score: str = Field(description="What the series scores are.")
    series: list[Series]
    predictions: list[PredictionRow]
    kept: Kept | None = Field(description="With heat_maps=link.")


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

    type: str = Field(examples=["urn:groundglass:problem:busy"])
    title: str = Field(examples=["Busy"])
    status: int = Field(examples=[503])
    detail: str = Field(examples=["64 uploads are in flight, as many as there may be."])
