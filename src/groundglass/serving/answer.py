"""The answer to an upload: receive the files, have them judged, and say what was found."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from groundglass.inference.writers import json_line
from groundglass.serving.documents import RESULTS, predictions_document
from groundglass.serving.exchange import exchange_of
from groundglass.serving.job import HeatMaps, Job, Judged
from groundglass.serving.logs import log
from groundglass.serving.problems import Problem, busy
from groundglass.serving.results import Result
from groundglass.serving.service import Service
from groundglass.serving.upload import ClientGone, check_readable, receive_files

JSON_LINES = "application/x-ndjson"

_LAST_WORD = 0.5
"""Seconds from the last line of an answer that breaks off to its end: browsers drop what comes with that."""


class PredictionsAnswer(Response):
    """Takes an upload on when it is sent; what is uploaded is gone before the answer is complete.

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
        results, keep = self._service.results, self._heat_maps == "link"
        result = results.begin(self._service.bundle.id, keep=keep)
        try:
            if self._as_lines:
                await self._stream(result, scope, receive, send)
            else:
                document = await self._document(result, scope, receive)
                content = json.dumps(document, allow_nan=False).encode()
                await Response(content, media_type="application/json")(scope, receive, send)
        except ClientGone:
            results.forget(result.id)
            exchange_of(scope).gone = True
        except Problem:
            results.forget(result.id)
            raise

    async def _document(self, result: Result, scope: Scope, receive: Receive) -> dict[str, Any]:
        inline: dict[int, str | None] = {}
        async with self._judged(result, scope, receive) as predictions:
            async for judged in predictions:
                inline[len(result.predictions) - 1] = judged.heat_map
        kept = self._service.results.seconds_left(result) if self._heat_maps == "link" else None
        return predictions_document(result, kept, inline if self._heat_maps == "inline" else None)

    async def _stream(self, result: Result, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            async with self._judged(result, scope, receive) as predictions:
                async for judged in predictions:
                    if not started:
                        await send(self._start(result))
                        started = True
                    await send({"type": "http.response.body", "body": self._line(judged), "more_body": True})
        except Problem as problem:
            if not started:
                raise
            # Too late for another status: the problem is the last line, and the answer stays without its end.
            exchange_of(scope).problem = problem.kind
            await send({"type": "http.response.body", "body": problem.body() + b"\n", "more_body": True})
            await asyncio.sleep(_LAST_WORD)
            raise BrokenOffError from None
        if not started:
            await send(self._start(result))
        await send({"type": "http.response.body", "body": b""})

    def _start(self, result: Result) -> dict[str, Any]:
        headers = [(b"content-type", JSON_LINES.encode())]
        if self._heat_maps == "link":
            headers.append((b"content-location", f"{RESULTS}/{result.id}".encode()))
        return {"type": "http.response.start", "status": 200, "headers": headers}

    def _line(self, judged: Judged) -> bytes:
        if self._heat_maps != "inline":
            return json_line(judged.prediction)
        return json.dumps({**judged.prediction.as_row(), "heat_map": judged.heat_map}).encode() + b"\n"

    @asynccontextmanager
    async def _judged(
        self, result: Result, scope: Scope, receive: Receive
    ) -> AsyncIterator[AsyncIterator[Judged]]:
        """The predictions of the upload as they come; the upload is removed when the block ends."""
        service, capacity = self._service, self._service.settings.capacity
        client = scope["client"][0] if scope.get("client") else ""
        with service.admission.admit(client), service.scratch.folder() as folder:
            files = await receive_files(Headers(scope=scope), receive, folder, capacity)
            exchange_of(scope).files = len(files)
            check_readable(files)
            job = Job(service.classifier, files, self._heat_maps, capacity.slices)
            async with self._running(job, receive):
                yield self._recorded(job, result, scope)

    @asynccontextmanager
    async def _running(self, job: Job, receive: Receive) -> AsyncIterator[None]:
        """The work under way; over for certain when the block ends."""
        seconds = self._service.settings.capacity.seconds
        late = busy(
            f"The request took more than {seconds:g} seconds; send fewer files at a time.",
            kind="too-slow",
            retry_after=30,
        )
        timer = asyncio.get_running_loop().call_later(seconds, job.stop, late)
        watcher = asyncio.create_task(_watch(receive, job))
        job.start(self._service.workers)
        try:
            yield
        finally:
            timer.cancel()
            watcher.cancel()
            job.stop(ClientGone())
            await job.ended()

    async def _recorded(self, job: Job, result: Result, scope: Scope) -> AsyncIterator[Judged]:
        async for judged in job.predictions():
            number = len(result.predictions)
            result.add(judged.prediction)
            if judged.kept is not None:
                self._service.results.keep_slice(result, number, judged.kept)
            self._service.metrics.found(judged.prediction)
            exchange_of(scope).slices += 1
            yield judged


class BrokenOffError(Exception):
    """An answer that had begun ends early; its last line says why."""


async def _watch(receive: Receive, job: Job) -> None:
    """Stop the work when the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
    log("client closed the connection", logging.DEBUG)
    job.stop(ClientGone())
