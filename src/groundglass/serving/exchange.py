"""What is known of one request and its answer, for the log and the metrics; nothing that names anybody."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

_KEY = "groundglass"


@dataclass
class Exchange:
    """A request and its answer.

    Attributes:
        id: drawn for this request; also in the answer, so that a user can name it.
        status: of the answer; 0 as long as there is none.
        complete: the answer was sent to its end.
        received: bytes of the request's body.
        files: that were uploaded.
        slices: that were judged.
        problem: kind of the problem that broke off an answer.
        gone: the client closed the connection.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    status: int = 0
    complete: bool = False
    received: int = 0
    files: int = 0
    slices: int = 0
    problem: str | None = None
    gone: bool = False

    def fields(self) -> dict[str, Any]:
        """For the log; what is not so is left out."""
        told = {
            "received_bytes": self.received,
            "files": self.files,
            "slices": self.slices,
            "problem": self.problem,
            "client_gone": self.gone,
        }
        return {name: value for name, value in told.items() if value}


def begin_exchange(scope: Scope) -> Exchange:
    """A new exchange, kept with the request."""
    exchange: Exchange = scope.setdefault(_KEY, Exchange())
    return exchange


def exchange_of(scope: Scope) -> Exchange:
    """The exchange of a request."""
    exchange: Exchange = scope[_KEY]
    return exchange
