"""The HTTP API, version 2, and the web page: which address answers with what."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from functools import partial
from importlib.resources import files
from pathlib import PurePath
from typing import IO, Annotated, Any, cast, get_args

import prometheus_client as prometheus
from anyio.to_thread import run_sync
from fastapi import APIRouter, FastAPI, Header, Path, Query
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from groundglass import __version__
from groundglass.inference.writers import json_line
from groundglass.serving import schemas
from groundglass.serving.jobs import Job, receive_files
from groundglass.serving.results import Classified, Result, card_text, predictions_file, report_zip
from groundglass.serving.schemas import (
    API,
    JSON_LINES,
    MEDIA_TYPES,
    RESULTS,
    Export,
    HeatMaps,
    Layer,
    Problem,
    problem_responses,
)
from groundglass.serving.security import PAGE, PAGE_HEADERS
from groundglass.serving.service import BrokenOffError, Middleware, RequestContext, Service

ResultId = Annotated[str, Path(description="As the answer to the upload has it.", max_length=64)]
Number = Annotated[int, Path(ge=0, le=2**31, description="Of the prediction, from 0.")]
Accept = Annotated[str, Header(description="application/json or another media type of the address.")]

_MARKDOWN = "text/markdown"
_TEXT, _BINARY = {"type": "string"}, {"type": "string", "format": "binary"}
_PAGE_TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
_LAST_WORD = 0.5
"""Seconds from the last line of an answer that breaks off to its end: browsers drop what comes with that."""


def create_app(service: Service) -> ASGIApp:
    """The application of a service, with all that every request passes."""
    app = FastAPI(
        title="groundglass",
        version=__version__,
        summary="Tells COVID-19 pneumonia from everything else on lung CT slices. Research use only.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: _camel_case(route.name),
        exception_handlers=dict.fromkeys(
            (Problem, HTTPException, RequestValidationError, Exception), schemas.answer_error
        ),
    )
    for router in (_predictions(service), _results(service), _service(service), _page()):
        app.include_router(router)
    app.openapi = lambda: _description(app, service)  # type: ignore[method-assign]
    return Middleware(app, service)


def _camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))


def _description(app: FastAPI, service: Service) -> dict[str, Any]:
    """The OpenAPI description, made once."""
    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        parts = described["components"]["schemas"]
        parts["ProblemDetails"] = schemas.ProblemDetails.model_json_schema()
        for unused in ("HTTPValidationError", "ValidationError"):
            parts.pop(unused, None)
        # The framework leaves out what is null, which makes examples invalid.
        answer = described["paths"][f"{API}/predictions"]["post"]["responses"]["200"]["content"]
        extra = json.loads((files("groundglass.serving") / "openapi.json").read_text(encoding="utf-8"))
        answer["application/json"]["examples"] = extra["examples"]
        described["paths"][f"{API}/predictions"]["post"]["requestBody"] = extra["requestBody"]
        if service.settings.token is not None:
            described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            described["security"] = [{"token": []}]
        app.openapi_schema = described
    return app.openapi_schema


class _PredictionsResponse(Response):
    """Takes an upload when it is sent; what was uploaded is gone before the answer is complete.

    Args:
        service: that answers.
        heat_maps: how they are wanted.
        as_lines: each prediction as a line of JSON as soon as it is known, instead of one document.
    """

    def __init__(self, service: Service, heat_maps: HeatMaps, *, as_lines: bool) -> None:
        super().__init__()
        self._service, self._heat_maps, self._as_lines = service, heat_maps, as_lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; where the client is gone, stop."""
        results, context = self._service.results, cast("RequestContext", scope["context"])
        result = results.begin(self._service.bundle.id, keep=self._heat_maps == "link")
        try:
            await self._work(result, scope, receive, send)
        except ClientDisconnect:
            results.forget(result.id)
            context.client_gone = True
            return
        except Exception as problem:
            results.forget(result.id)
            if not context.status or not isinstance(problem, Problem):
                raise
            # Too late for another status: the problem is the last line, and the answer stays without its end.
            context.problem = problem.kind
            await send({"type": "http.response.body", "body": problem.body() + b"\n", "more_body": True})
            await asyncio.sleep(_LAST_WORD)
            raise BrokenOffError from None
        if self._as_lines:
            await send({"type": "http.response.body", "body": b""})
        else:
            await JSONResponse(result.document(results.seconds_left(result)))(scope, receive, send)

    async def _work(self, result: Result, scope: Scope, receive: Receive, send: Send) -> None:
        """Receive and classify within the time of a request, and as long as the client waits for it.

        When it returns no worker has anything of the upload in hand any more, and the upload is removed.
        """
        service, settings = self._service, self._service.settings
        client = scope["client"][0] if scope.get("client") else ""
        with service.admit(client), service.uploads.request() as directory:
            uploaded = await receive_files(Request(scope, receive), directory, settings)
            scope["context"].files = len(uploaded)
            job = Job(service.classifier, uploaded, directory.path, self._heat_maps, settings.slices)
            heavy = any(file.heavy for file in uploaded)
            work = asyncio.create_task(self._classify(job, result, scope, send, heavy=heavy))
            gone = asyncio.create_task(_disconnected(receive))
            try:
                await asyncio.wait({work, gone}, timeout=settings.seconds, return_when="FIRST_COMPLETED")
                if work.done():
                    work.result()
                elif gone.done():
                    raise ClientDisconnect
                else:
                    detail = f"The request took more than {settings.seconds:g} seconds; send fewer files at a time."
                    raise Problem("too-slow", detail, retry_after=30)
            finally:
                gone.cancel()
                work.cancel()
                await asyncio.wait({work})

    async def _classify(self, job: Job, result: Result, scope: Scope, send: Send, *, heavy: bool) -> None:
        service, context = self._service, cast("RequestContext", scope["context"])
        turn: AbstractAsyncContextManager[object] = service.heavy if heavy else nullcontext()
        async with turn, aclosing(job.predictions(service.workers)) as predictions:
            async for classified in predictions:
                if classified.kept is not None:
                    service.results.keep_slice(result, context.slices, classified.kept)
                result.add(classified)
                context.slices += 1
                label = classified.prediction.label or ""
                service.metrics.predictions.labels(classified.prediction.status.value, label).inc()
                if self._as_lines:
                    await self._send(self._line(classified), result, context, send)
                elif self._heat_maps == "inline":
                    result.heat_maps.append(classified.heat_map)
        if self._as_lines and not context.status:
            await self._send(b"", result, context, send)

    def _line(self, classified: Classified) -> bytes:
        if self._heat_maps != "inline":
            return json_line(classified.prediction)
        row = {**classified.prediction.as_row(), "heat_map": classified.heat_map}
        return json.dumps(row).encode() + b"\n"

    async def _send(self, line: bytes, result: Result, context: RequestContext, send: Send) -> None:
        if not context.status:
            headers = [(b"content-type", JSON_LINES.encode())]
            headers += [(b"content-location", result.address.encode())] if result.id else []
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": line, "more_body": True})


async def _disconnected(receive: Receive) -> None:
    """Wait until the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _predictions(service: Service) -> APIRouter:
    router = APIRouter(prefix=API, tags=["predictions"])
    answer = {
        "model": schemas.Predictions,
        "description": "The predictions; with Accept: application/x-ndjson line by line as they are made.",
        "content": {JSON_LINES: {"schema": {**_TEXT, "description": "Each line is a PredictionRow."}}},
    }

    @router.post(
        "/predictions",
        responses={200: answer, **problem_responses(408, 413, 415, 422, 429, 503)},
        response_class=Response,
    )
    async def create_predictions(
        heat_maps: Annotated[
            HeatMaps, Query(description="By link keeps pixels in memory for a while.")
        ] = "none",
        accept: Accept = "*/*",
    ) -> Response:
        """The model's prediction for every slice of one or many files."""
        return _PredictionsResponse(service, heat_maps, as_lines=JSON_LINES in accept)

    return router


def _results(service: Service) -> APIRouter:
    router = APIRouter(prefix=RESULTS + "/{result}", tags=["results"], responses=problem_responses(404, 422))

    @router.get("", responses={200: {"model": schemas.Predictions}})
    async def get_result(result: ResultId) -> Response:
        """The answer to an upload once more, as far as it has come."""
        found = service.results.get(result)
        return JSONResponse(found.document(service.results.seconds_left(found)))

    @router.delete("", status_code=204, response_class=Response)
    async def delete_result(result: ResultId) -> Response:
        """Forget a result now."""
        service.results.forget(service.results.get(result).id)
        return Response(status_code=204)

    @router.get(
        "/{export}",
        responses={200: _content(get_args(Export)), **problem_responses(503)},
        response_class=Response,
    )
    async def export_result(result: ResultId, export: Export) -> Response:
        """What `groundglass predict` prints with --json or --csv, or writes with --output."""
        found = service.results.get(result)
        headers = {"Content-Disposition": f'attachment; filename="{export}"'}
        if export != "report.zip":
            content = predictions_file(found.predictions, export.rpartition(".")[2])
            return Response(content, media_type=MEDIA_TYPES[export], headers=headers)
        if service.reporting.statistics().tasks_waiting >= service.settings.requests:
            raise Problem("busy", "As many reports are being made as there may be.", retry_after=30)
        predictions, slices = list(found.predictions), dict(found.slices)
        with service.uploads.request() as directory:
            directory.path.mkdir()
            make = partial(report_zip, service.bundle, predictions, slices, directory.path)
            packed = await run_sync(make, limiter=service.reporting)
        return StreamingResponse(_chunks(packed), media_type=MEDIA_TYPES[export], headers=headers)

    @router.get(
        "/slices/{number}/{layer}", responses={200: _content(get_args(Layer))}, response_class=Response
    )
    async def get_layer(result: ResultId, number: Number, layer: Layer) -> Response:
        """One layer of a slice: in the lung window or grey; outlines; heat map; Hounsfield units (int16)."""
        kept = service.results.slice(result, number)
        content = await run_sync(kept.layer, layer, limiter=service.drawing)
        if content is None:
            raise Problem("no-such-layer", "The slice has none: see the links of its prediction.")
        return Response(content, media_type=MEDIA_TYPES[layer])

    return router


def _service(service: Service) -> APIRouter:
    router = APIRouter(tags=["service"], responses=problem_responses())

    @router.get(
        f"{API}/model",
        responses={
            200: {"model": schemas.Model, "content": {_MARKDOWN: {"schema": _TEXT}}},
            **problem_responses(422),
        },
    )
    async def get_model(accept: Accept = "*/*") -> Response:
        """The model card; with Accept: text/markdown as people read it."""
        bundle, card = service.bundle, card_text(service.bundle)
        if _MARKDOWN in accept:
            return Response(card, media_type=_MARKDOWN)
        info = bundle.info.model_dump(mode="json", exclude={"files", "id", "format"})
        return JSONResponse({**info, "bundle": bundle.id, "precision": bundle.precision, "card": card})

    @router.get("/healthz", responses={200: {"model": schemas.Health}})
    async def get_health() -> Response:
        """Whether the process works; otherwise start another one."""
        return JSONResponse({"status": "ok"})

    @router.get("/readyz", responses={200: {"model": schemas.Health}, **problem_responses(503)})
    async def get_readiness() -> Response:
        """Whether new requests are welcome."""
        if service.draining:
            raise Problem("not-ready", "The service is ending; use another one.", retry_after=5)
        return JSONResponse({"status": "ok"})

    @router.get("/metrics", responses={200: _content(["text/plain"])}, response_class=Response)
    async def get_metrics() -> Response:
        """Figures for Prometheus."""
        content = prometheus.generate_latest(service.metrics.registry)
        return Response(content, headers={"Content-Type": prometheus.CONTENT_TYPE_LATEST})

    return router


def _page() -> APIRouter:
    """The web page's files, which lie beside this module; they are no part of the API's description."""
    router = APIRouter(include_in_schema=False)
    entries = (files("groundglass.serving") / "page").iterdir()
    known = {
        entry.name: entry.read_bytes() for entry in entries if PurePath(entry.name).suffix in _PAGE_TYPES
    }

    @router.get("/")
    @router.get(PAGE + "{name}")
    async def get_page(name: str = "index.html") -> Response:
        """The page, or a file of it."""
        if name not in known:
            raise HTTPException(404)
        return Response(known[name], media_type=_PAGE_TYPES[PurePath(name).suffix], headers=PAGE_HEADERS)

    return router


def _content(names: Iterable[str]) -> dict[str, Any]:
    """OpenAPI's description of files, by their names or media types."""
    types = {MEDIA_TYPES.get(name, name) for name in names}
    text = [each for each in types if each.startswith(("text/", JSON_LINES))]
    content = {each: {"schema": _TEXT if each in text else _BINARY} for each in sorted(types)}
    return {"description": "As the address says.", "content": content}


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    with stream:
        while chunk := stream.read(2**16):
            yield chunk
