"""The HTTP API: which address answers with what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path as FilePath
from typing import IO, Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, FastAPI, Header, Path, Query
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp

from groundglass import __version__
from groundglass.serving import documents, layers, metrics, schemas
from groundglass.serving.answer import JSON_LINES, PredictionsAnswer
from groundglass.serving.front import Front
from groundglass.serving.job import HeatMaps
from groundglass.serving.problems import (
    Problem,
    answer_http_error,
    answer_invalid,
    answer_problem,
    busy,
    internal,
)
from groundglass.serving.results import KeptSlice
from groundglass.serving.schemas import problem_answers
from groundglass.serving.service import Service
from groundglass.serving.web_page import page_router

_MARKDOWN, _ZIP, _CSV = "text/markdown", "application/zip", "text/csv"
_CHUNK = 2**16

ResultId = Annotated[str, Path(description="As the answer to the upload has it.", max_length=64)]
Number = Annotated[int, Path(ge=0, le=2**31, description="Of the prediction, from 0.")]
Accept = Annotated[str, Header(description="application/json or another kind the address gives.")]
Wanted = Annotated[
    HeatMaps,
    Query(
        description="Heat maps: none; by link, which keeps pixels and predictions in memory for a while; inline."
    ),
]


def create_app(service: Service) -> ASGIApp:
    """The application of a service, with all that every request passes."""
    app = FastAPI(
        title="groundglass",
        version=__version__,
        summary="Tells COVID-19 pneumonia from everything else on lung CT slices. Research use only.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            Problem: answer_problem,
            HTTPException: answer_http_error,
            RequestValidationError: answer_invalid,
            Exception: answer_problem,
        },
    )
    for router in (
        _predictions(service),
        _results(service),
        _slices(service),
        _about(service),
        page_router(),
    ):
        app.include_router(router)
    app.openapi = lambda: _description(app, service)  # type: ignore[method-assign]
    return Front(app, service)


def _description(app: FastAPI, service: Service) -> dict[str, Any]:
    """The OpenAPI description, made once."""
    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        parts = described.setdefault("components", {}).setdefault("schemas", {})
        parts["ProblemDetails"] = schemas.ProblemDetails.model_json_schema()
        for unused in ("HTTPValidationError", "ValidationError"):
            parts.pop(unused, None)
        # The framework leaves out what is null, which makes examples invalid.
        answer = described["paths"]["/v1/predictions"]["post"]["responses"]["200"]["content"]
        answer["application/json"]["examples"] = schemas.PREDICTIONS_EXAMPLES
        if not service.settings.is_local:
            described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            described["security"] = [{"token": []}]
        app.openapi_schema = described
    return app.openapi_schema


def _predictions(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["predictions"])

    @router.post(
        "/predictions",
        responses={200: schemas.PREDICTIONS_ANSWER, **problem_answers(408, 413, 415, 422, 429, 503)},
        openapi_extra=schemas.UPLOAD,
        response_class=Response,
    )
    async def find(heat_maps: Wanted = "none", accept: Accept = "*/*") -> Response:
        """What the model says of every slice of one or many files."""
        return PredictionsAnswer(service, heat_maps, as_lines=JSON_LINES in accept)

    return router


def _results(service: Service) -> APIRouter:
    router = APIRouter(prefix=documents.RESULTS, tags=["results"], responses=problem_answers(404, 422))

    @router.get("/{result}", responses={200: {"model": schemas.Predictions}})
    async def look(result: ResultId) -> Response:
        """The answer to an upload once more, as far as it has come."""
        found = service.results.get(result)
        document = documents.predictions_document(found, service.results.seconds_left(found))
        return JSONResponse(document)

    @router.delete("/{result}", status_code=204, response_class=Response)
    async def forget(result: ResultId) -> Response:
        """Forget a result now."""
        service.results.forget(service.results.get(result).id)
        return Response(status_code=204)

    @router.get("/{result}/predictions.jsonl", responses={200: _content(JSON_LINES)}, response_class=Response)
    async def lines(result: ResultId) -> Response:
        """The lines of `groundglass predict --json`."""
        content = documents.json_lines(service.results.get(result).predictions)
        return _download(content, JSON_LINES, "predictions.jsonl")

    @router.get("/{result}/predictions.csv", responses={200: _content(_CSV)}, response_class=Response)
    async def table(result: ResultId) -> Response:
        """The table of `groundglass predict --csv`."""
        content = documents.csv_table(service.results.get(result).predictions)
        return _download(content, _CSV, "predictions.csv")

    @router.get(
        "/{result}/report.zip",
        responses={200: _content(_ZIP, binary=True), **problem_answers(503)},
        response_class=Response,
    )
    async def report(result: ResultId) -> Response:
        """The folder of `groundglass predict --output`: report.html, tables, pictures."""
        found = service.results.get(result)
        predictions, slices = list(found.predictions), dict(found.slices)

        def make(folder: FilePath) -> IO[bytes]:
            return documents.report_zip(service.bundle, predictions, slices, folder)

        if service.reporting.statistics().tasks_waiting >= service.settings.capacity.requests:
            raise busy("As many reports are being made as there may be.", retry_after=30)
        with service.scratch.folder() as folder:
            packed = await run_sync(make, folder.path, limiter=service.reporting)
        return StreamingResponse(_chunks(packed), media_type=_ZIP, headers=_named("report.zip"))

    return router


def _slices(service: Service) -> APIRouter:
    router = APIRouter(
        prefix=documents.RESULTS + "/{result}/slices/{number}",
        tags=["slices"],
        responses=problem_answers(404, 422),
    )

    async def layer(
        result: str, number: int, draw: Callable[[KeptSlice], bytes | None], media_type: str
    ) -> Response:
        kept = service.results.slice(result, number)
        content = await run_sync(draw, kept, limiter=service.drawing)
        if content is None:
            raise Problem(404, "no-such-layer", "The slice has none: see the links of its prediction.")
        return Response(content, media_type=media_type)

    @router.get("/picture.png", responses={200: _content("image/png", binary=True)}, response_class=Response)
    async def picture(result: ResultId, number: Number) -> Response:
        """The slice in the lung window, or in grey as its file has it."""
        return await layer(result, number, layers.grey_png, "image/png")

    @router.get("/heat_map.png", responses={200: _content("image/png", binary=True)}, response_class=Response)
    async def heat_map(result: ResultId, number: Number) -> Response:
        """What speaks for COVID (orange) and against it (blue), else transparent; lies on the picture."""
        return await layer(result, number, layers.heat_map_png, "image/png")

    @router.get("/outline.svg", responses={200: _content("image/svg+xml")}, response_class=Response)
    async def outline(result: ResultId, number: Number) -> Response:
        """Outlines of the lungs and of what the network was shown; lies on the picture."""
        return await layer(result, number, layers.outline_svg, "image/svg+xml")

    @router.get(
        "/hounsfield.raw",
        responses={200: _content("application/octet-stream", binary=True)},
        response_class=Response,
    )
    async def hounsfield(result: ResultId, number: Number) -> Response:
        """Hounsfield units row by row, little-endian signed 16-bit numbers: for any window and level."""
        return await layer(result, number, layers.hounsfield_bytes, "application/octet-stream")

    return router


def _about(service: Service) -> APIRouter:
    router = APIRouter(tags=["service"], responses=problem_answers())

    @router.get(
        "/v1/model",
        responses={
            200: {"model": schemas.Model, "content": {_MARKDOWN: {"schema": {"type": "string"}}}},
            **problem_answers(422),
        },
    )
    async def model(accept: Accept = "*/*") -> Response:
        """The model card; with Accept: text/markdown as people read it."""
        if _MARKDOWN in accept:
            return Response(documents.card_text(service.bundle), media_type=_MARKDOWN)
        return JSONResponse(documents.model_document(service.bundle))

    @router.get("/healthz", responses={200: {"model": schemas.Health}})
    async def healthz() -> Response:
        """Whether the process works; otherwise start another one."""
        if not service.workers.alive:
            raise internal()
        return JSONResponse({"status": "ok"})

    @router.get("/readyz", responses={200: {"model": schemas.Health}, **problem_answers(503)})
    async def readyz() -> Response:
        """Whether new requests are welcome."""
        if not service.is_ready:
            raise busy("The service is ending; ask another one.", kind="not-ready", retry_after=5)
        return JSONResponse({"status": "ok"})

    @router.get("/metrics", responses={200: _content("text/plain")}, response_class=Response)
    async def figures() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.page(), headers={"Content-Type": metrics.MEDIA_TYPE})

    return router


def _content(media_type: str, *, binary: bool = False) -> dict[str, Any]:
    schema = {"type": "string", "format": "binary"} if binary else {"type": "string"}
    return {"description": "As the address says.", "content": {media_type: {"schema": schema}}}


def _named(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _download(content: bytes, media_type: str, name: str) -> Response:
    return Response(content, media_type=media_type, headers=_named(name))


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    with stream:
        while chunk := stream.read(_CHUNK):
            yield chunk
