"""How many uploads are taken on at a time, in all and from one client."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from groundglass.serving.problems import Problem, busy
from groundglass.serving.settings import Capacity

_RETRY_SECONDS = 2


class Admission:
    """Counts the uploads that are received or worked on; for one thread, the event loop's.

    Attributes:
        in_flight: uploads now.
    """

    def __init__(self, capacity: Capacity) -> None:
        self._most = capacity.requests
        self._most_of_client = capacity.client_requests or capacity.requests
        self._of_client: Counter[str] = Counter()
        self.in_flight = 0

    @contextmanager
    def admit(self, client: str) -> Iterator[None]:
        """Take an upload on while the block lasts.

        Args:
            client: its address.

        Raises:
            Problem: there are as many as there may be.
        """
        if self._of_client[client] >= self._most_of_client < self._most:
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too-many-requests",
                f"{self._most_of_client} uploads of this client are in flight, as many as one may have.",
                retry_after=_RETRY_SECONDS,
            )
        if self.in_flight >= self._most:
            raise busy(f"{self._most} uploads are in flight, as many as there may be.")
        self.in_flight += 1
        self._of_client[client] += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]
