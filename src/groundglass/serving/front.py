"""What every request passes on its way in and every answer on its way out: access, headers, log, metrics."""

from __future__ import annotations

import logging
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundglass.serving.access import refusal
from groundglass.serving.answer import BrokenOffError
from groundglass.serving.exchange import Exchange, begin_exchange
from groundglass.serving.logs import describe, log
from groundglass.serving.problems import internal
from groundglass.serving.service import Service

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of every answer that does not set them itself."""


class Front:
    """Wraps the application.

    Args:
        app: the application.
        service: that it belongs to.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; whatever goes wrong, the client gets an answer and the log has no name in it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange, started = begin_exchange(scope), time.perf_counter()

        async def received() -> Message:
            message = await receive()
            exchange.received += len(message.get("body", b""))
            return message

        async def sent(message: Message) -> None:
            self._complete(message, exchange)
            await send(message)

        try:
            await self._answer(scope, received, sent, exchange)
        finally:
            self._record(scope, exchange, time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> None:
        refused = refusal(self._service.settings, scope["method"], scope["path"], Headers(scope=scope))
        try:
            if refused is not None:
                await refused.response()(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        except BrokenOffError:
            pass
        except Exception as error:  # noqa: BLE001 - the last place to catch it; its text may name a patient
            log("request failed", logging.ERROR, request=exchange.id, **describe(error))
            if not exchange.status:
                await internal().response()(scope, receive, send)

    def _complete(self, message: Message, exchange: Exchange) -> None:
        """Note how an answer begins and ends, and give it the headers that all have."""
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers["X-Request-ID"] = exchange.id
            if self._service.draining:
                headers["Connection"] = "close"
        elif not message.get("more_body", False):
            exchange.complete = True

    def _record(self, scope: Scope, exchange: Exchange, seconds: float) -> None:
        route: Any = getattr(scope.get("route"), "path", None) or "other"
        self._service.metrics.answered(scope["method"], route, exchange.status, seconds, exchange.received)
        log(
            "request",
            request=exchange.id,
            method=scope["method"],
            route=route,
            status=exchange.status,
            complete=exchange.complete,
            milliseconds=round(seconds * 1000, 1),
            **exchange.fields(),
        )
