"""An archive gone through once, or watched: which series to judge, which to skip, which to put off."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

from groundglass.errors import PacsError, PacsRefusedError, PacsUnavailableError
from groundglass.serving.dicomweb import Archive, SeriesEntry, StudyEntry
from groundglass.serving.pacs_answer import Answerer, SeriesAnswer

_MOST_POLLS_LEFT_OUT = 64


class State(str, Enum):
    """What became of a series."""

    ANSWERED = "answered"
    KNOWN = "already answered"
    GROWING = "may still be growing"
    PUT_OFF = "put off"


@dataclass(frozen=True)
class Outcome:
    """What became of one series.

    Attributes:
        series: its Series Instance UID.
        state: what became of it.
        answer: what was answered, now.
        reason: why it was put off.
    """

    series: str
    state: State
    answer: SeriesAnswer | None = None
    reason: str | None = None


class Rounds:
    """Goes through an archive's CT series and answers those without an answer of this bundle.

    The archive itself holds what is done; nothing is kept elsewhere, so that any number of runs, one after
    another or after a crash, end in the same objects.

    Args:
        archive: to go through.
        answerer: judges and stores.
        settle: judge a series only when it had as many images in the round before.
    """

    def __init__(self, archive: Archive, answerer: Answerer, *, settle: bool = False) -> None:
        self._archive = archive
        self._answerer = answerer
        self._settle = settle
        self._done: dict[str, int] = {}
        self._images: dict[str, int] = {}
        self._rests: dict[str, _Rest] = {}

    def all(self, since: str | None = None) -> Iterator[Outcome]:
        """One round through the studies with CT images.

        Args:
            since: the first day of the studies, YYYYMMDD.

        Raises:
            PacsUnavailableError: the archive is away.
        """
        for study in self._archive.studies(since):
            # Nothing was added since all its series had their answers.
            if study.images is None or self._done.get(study.uid) != study.images:
                yield from self._of_study(study)

    def study(self, uid: str) -> Iterator[Outcome]:
        """The CT series of one study.

        Raises:
            PacsError: the archive has no such study.
            PacsUnavailableError: the archive is away.
        """
        listed = self._archive.series(uid)
        if not listed:
            raise PacsError(f"{self._archive.url}: has no study {uid}")
        yield from self._of_series(listed)

    def _of_study(self, study: StudyEntry) -> Iterator[Outcome]:
        complete = True
        for outcome in self._of_series(self._archive.series(study.uid)):
            complete = complete and outcome.state is State.KNOWN
            yield outcome
        if complete and study.images is not None:
            self._done[study.uid] = study.images

    def _of_series(self, listed: list[SeriesEntry]) -> Iterator[Outcome]:
        present = {each.uid for each in listed}
        for series in listed:
            if series.modality == "CT":
                yield self._of_one(series, present)

    def _of_one(self, series: SeriesEntry, present: set[str]) -> Outcome:
        if series.images is not None and self._has_answer(series, series.images, present):
            return Outcome(series.uid, State.KNOWN)
        rest = self._rests.setdefault(series.uid, _Rest())
        if rest.goes_on():
            return Outcome(series.uid, State.PUT_OFF)
        instances = self._archive.instances(series)
        if self._has_answer(series, len(instances), present):
            return Outcome(series.uid, State.KNOWN)
        if self._settle and self._images.get(series.uid) != len(instances):
            self._images[series.uid] = len(instances)
            return Outcome(series.uid, State.GROWING)
        try:
            answer = self._answerer.answer(series, instances)
        except (PacsUnavailableError, PacsRefusedError) as error:
            rest.begin()
            return Outcome(series.uid, State.PUT_OFF, reason=str(error))
        for memory in (self._rests, self._images):
            memory.pop(series.uid, None)
        return Outcome(series.uid, State.ANSWERED, answer)

    def _has_answer(self, series: SeriesEntry, images: int, present: set[str]) -> bool:
        return self._answerer.report_series(series.uid, images) in present


@dataclass
class _Rest:
    """Rounds in which a series that could not be answered is left alone: one, then two, then four."""

    left: int = 0
    following: int = 1

    def begin(self) -> None:
        self.left, self.following = self.following, min(2 * self.following, _MOST_POLLS_LEFT_OUT)

    def goes_on(self) -> bool:
        self.left -= 1
        return self.left >= 0


def watch(
    rounds: Rounds,
    interval: float,
    since: str | None,
    on_away: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Outcome]:
    """Go round for ever; a server that is away is asked again in the next round.

    Args:
        rounds: with ``settle``, since series may arrive at any time.
        interval: seconds between rounds.
        since: see :meth:`Rounds.all`.
        on_away: told that the server is away.
        sleep: waits.
    """
    while True:
        try:
            yield from rounds.all(since)
        except PacsUnavailableError as error:
            on_away(str(error))
        sleep(interval)
