"""The HTTP API, version 2, and the web page: which address answers with what, and what every request passes."""

from __future__ import annotations

import asyncio
import io
import json
import time
import uuid
from collections.abc import Mapping
from contextlib import aclosing, nullcontext
from functools import partial
from importlib.resources import files
from typing import Annotated, Any, Literal

import prometheus_client as prometheus
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, FastAPI, Header, Path
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundglass import __version__
from groundglass.data.phantoms import synthetic_zip
from groundglass.inference.prediction import row_schema
from groundglass.inference.writers import PredictionsWriter, json_line
from groundglass.serving import security
from groundglass.serving.jobs import Service, Upload, receive_files, upload_size
from groundglass.serving.results import RESULTS, Layer, Plane, PlaneLayer, report_zip
from groundglass.serving.security import PAGE, Problem, log

_JSON_LINES, _MARKDOWN = "application/x-ndjson", "text/markdown"
_MEDIA_TYPES = {
    "css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml", "png": "image/png",
    "raw": "application/octet-stream", "jsonl": _JSON_LINES, "csv": "text/csv", "zip": "application/zip",
}  # fmt: skip
_HERE = files("groundglass.serving")
_PAGE_FILES = {entry.name: entry.read_bytes() for entry in (_HERE / "page").iterdir()}
_LAST_WORD = 0.5
"""Seconds from the last line of an answer that breaks off to its end: browsers drop what comes with that."""


async def _asked(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


_router = APIRouter()
_Asked = Annotated[Service, Depends(_asked)]
_Number = Annotated[int, Path(ge=0, le=2**31)]
_Accept = Annotated[str, Header()]
_Export = Literal["predictions.jsonl", "predictions.csv", "report.zip"]


def create_app(service: Service) -> ASGIApp:
    """The application of a service, with all that every request passes."""
    handled = (Problem, HTTPException, RequestValidationError, Exception)
    app = FastAPI(
        openapi_url=None, redirect_slashes=False, exception_handlers=dict.fromkeys(handled, security.answer_error)
    )
    app.state.service = service
    app.include_router(_router)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        # What the log says of a request and its answer; nothing that names anybody.
        request, started = uuid.uuid4().hex, time.perf_counter()
        entry: dict[str, Any] = {"request": request, "status": 0, "complete": False, "received_bytes": 0}
        scope["entry"] = entry

        async def received() -> Message:
            message = await receive()
            entry["received_bytes"] += len(message.get("body", b""))
            return message

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry["status"] = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in {**security.HEADERS, "X-Request-ID": request}.items():
                    headers.setdefault(name, value)
                if service.draining:
                    headers["Connection"] = "close"
            entry["complete"] = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        refused, method = security.access_problem(service.settings.token, scope), scope["method"]
        if method == "HEAD":  # the server leaves the content out
            scope = {**scope, "method": "GET"}
        try:
            await (app if refused is None else refused.response())(scope, received, sent)
        except Exception as error:  # noqa: BLE001 - the last place to catch it; its text may name a patient
            log("request failed", error, request=request)
        seconds, route = time.perf_counter() - started, getattr(scope.get("route"), "path", None) or "other"
        service.requests.labels(method, route, str(entry["status"])).inc()
        service.latency.labels(route).observe(seconds)
        service.received.inc(entry["received_bytes"])
        log("request", method=method, route=route, milliseconds=round(seconds * 1000, 1), **entry)

    return answer


class _PredictionsResponse(Response):
    """Takes an upload when it is sent; what was uploaded is gone before the answer is complete."""

    def __init__(self, service: Service, *, keep: bool, as_lines: bool) -> None:
        super().__init__()
        self._service, self._keep, self._as_lines = service, keep, as_lines
        self._result = service.results.begin(service.bundle, keep=keep)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; where the client is gone, stop."""
        results, self._entry, self._send = self._service.results, scope["entry"], send
        try:
            await self._work(Request(scope, receive))
        except ClientDisconnect:
            results.forget(self._result.id)
            self._entry["client_gone"] = True
        except Exception as problem:
            results.forget(self._result.id)
            if not self._entry["status"] or not isinstance(problem, Problem):
                raise
            # Too late for another status: the problem is the last line, and the answer stays without its end.
            self._entry["problem"] = problem.kind
            await self._line(problem.body() + b"\n")
            await asyncio.sleep(_LAST_WORD)
        else:
            if self._as_lines:
                await self._line(b"", more=False)
            else:
                await JSONResponse(self._result.document())(scope, receive, send)

    async def _work(self, request: Request) -> None:
        """Receive and classify within the time of a request, and as long as the client waits for it.

        When it returns no thread has anything of the upload in hand any more, and the upload is removed.
        """
        settings, size = self._service.settings, upload_size(request, self._service.settings)
        with self._service.admit(size) as directory:
            upload = await receive_files(request, size, directory, settings)
            self._entry["files"] = upload.received
            work = asyncio.create_task(self._classify(upload))
            gone = asyncio.create_task(_disconnected(request.receive))
            try:
                await asyncio.wait({work, gone}, timeout=settings.seconds, return_when="FIRST_COMPLETED")
                if work.done():
                    work.result()
                elif gone.done():
                    raise ClientDisconnect
                else:
                    detail = f"The request took more than {settings.seconds:g} seconds; send fewer files at a time."
                    raise Problem("too-slow", detail, Retry_After=30)
            finally:
                gone.cancel()
                work.cancel()
                await asyncio.wait({work})

    async def _classify(self, upload: Upload) -> None:
        service, made = self._service, self._service.classify(upload, keep=self._keep)
        async with service.heavy if upload.heavy else nullcontext(), aclosing(made) as predictions:
            async for prediction, kept in predictions:
                prediction = service.results.add(self._result, prediction, kept)  # noqa: PLW2901 - or that of a copy
                service.predictions.labels(prediction.status.value, prediction.label or "").inc()
                self._entry["slices"] = len(self._result.predictions)
                if self._as_lines:
                    await self._line(json_line(prediction))

    async def _line(self, line: bytes, *, more: bool = True) -> None:
        if not self._entry["status"]:
            headers = [(b"content-type", _JSON_LINES.encode())]
            headers += [(b"content-location", self._result.address.encode())] if self._keep else []
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": line, "more_body": more})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# openapi.json describes the addresses.
@_router.post("/v2/predictions")
async def _create_predictions(service: _Asked, keep: bool = False, accept: _Accept = "*/*") -> Response:
    return _PredictionsResponse(service, keep=keep, as_lines=_JSON_LINES in accept)


@_router.api_route(RESULTS + "/{result}", methods=["GET", "DELETE"])
async def _get_or_delete_result(request: Request, service: _Asked, result: str) -> Response:
    found = service.results.get(result)
    if request.method == "GET":
        return JSONResponse(found.document())
    service.results.forget(found.id)
    return Response(status_code=204)


@_router.get(RESULTS + "/{result}/{export}")
async def _export_result(service: _Asked, result: str, export: _Export) -> Response:
    found = service.results.get(result)
    headers = {"Content-Disposition": f'attachment; filename="{export}"'}
    if export != "report.zip":
        stream = io.BytesIO()
        writer = PredictionsWriter("csv" if export == "predictions.csv" else "jsonl", stream)
        for prediction in found.predictions:
            writer.write(prediction)
        return _file(export, stream.getvalue(), headers)
    make = partial(report_zip, service.bundle, list(found.predictions), dict(found.slices), service.uploads)
    packed = await service.pack(make)
    chunks = iter(partial(packed.read, 2**16), b"")  # which ends the file, as nothing else holds it
    return StreamingResponse(chunks, media_type=_MEDIA_TYPES["zip"], headers=headers)


@_router.get("/v2/synthetic.zip")
async def _get_synthetic(service: _Asked) -> Response:
    return _file("synthetic.zip", await service.pack(partial(synthetic_zip, service.uploads)))


@_router.get(RESULTS + "/{result}/series/{number}/{plane}/{index}/{layer}")
async def _get_plane(
    service: _Asked, result: str, number: _Number, plane: Plane, index: _Number, layer: PlaneLayer
) -> Response:
    volume = service.results.get(result).volume(number)
    content = b""
    if volume is not None:
        content = await run_sync(volume.layer, plane, index, layer, limiter=service.drawing)
    if not content:
        raise Problem("no-such-layer", "The series has no such plane: see its volume, and the size of its slices.")
    return _file(layer, content)


@_router.get(RESULTS + "/{result}/slices/{number}/{layer}")
async def _get_layer(service: _Asked, result: str, number: _Number, layer: Layer) -> Response:
    kept = service.results.get(result).slices.get(number)
    if kept is None:
        raise Problem("no-such-slice", "The result has no slice of this number, or its pixels are not kept.")
    if not kept.has(layer):
        raise Problem("no-such-layer", "The slice has none: see the links of its prediction.")
    return _file(layer, await run_sync(kept.layer, layer, limiter=service.drawing))


@_router.get("/v2/model")
async def _get_model(service: _Asked, accept: _Accept = "*/*") -> Response:
    bundle = service.bundle
    if _MARKDOWN in accept:
        return Response(bundle.card, media_type=_MARKDOWN)
    info = bundle.info.model_dump(mode="json", exclude={"files", "id", "format"})
    return JSONResponse({**info, "bundle": bundle.id, "card": bundle.card})


@_router.get("/healthz")
async def _get_health() -> Response:
    return JSONResponse({"status": "ok"})


@_router.get("/readyz")
async def _get_readiness(service: _Asked) -> Response:
    if service.draining:
        raise Problem("not-ready", "The service is ending; use another one.", Retry_After=5)
    return JSONResponse({"status": "ok"})


@_router.get("/metrics")
async def _get_metrics(service: _Asked) -> Response:
    content = prometheus.generate_latest(service.registry)
    return Response(content, headers={"Content-Type": prometheus.CONTENT_TYPE_LATEST})


@_router.get("/openapi.json")
async def _get_description(service: _Asked) -> Response:
    described = json.loads((_HERE / "openapi.json").read_bytes())
    described["info"]["version"] = __version__
    row, image = row_schema(), {"$ref": "#/components/schemas/ImageLinks"}
    row["properties"]["image"] = {"anyOf": [image, {"type": "null"}], "description": "With keep=true."}
    described["components"]["schemas"]["PredictionRow"] = row
    if service.settings.token is not None:
        described["security"] = [{"token": []}]
    return JSONResponse(described)


@_router.get("/")
@_router.get(PAGE + "{name}")
async def _get_page(name: str = "index.html") -> Response:
    if name not in _PAGE_FILES:
        raise HTTPException(404)
    return _file(name, _PAGE_FILES[name], security.PAGE_HEADERS)


def _file(name: str, content: bytes, headers: Mapping[str, str] | None = None) -> Response:
    return Response(content, media_type=_MEDIA_TYPES[name.rpartition(".")[2]], headers=headers)
