"""``groundglass pacs``: CT series of an archive are judged, and the answers stored beside them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from groundglass.cli.predict import INTERRUPTED, BundlePath, Threads
from groundglass.errors import PacsError

if TYPE_CHECKING:
    from groundglass.inference.classifier import Classifier
    from groundglass.pacs.client import Archive
    from groundglass.pacs.worker import RunResult

SOME_PUT_OFF = 3
"""Exit status beside 0, every series has its answer, and 2, an error that the user can mend."""

Root = Annotated[str, typer.Option("--dicomweb", metavar="URL", help="DICOMweb root of the archive.")]
Study = Annotated[str | None, typer.Option("--study", metavar="UID", help="Judge this study alone.")]
Watch = Annotated[bool, typer.Option("--watch", help="Go on for ever; judge series as they come in.")]
Interval = Annotated[float, typer.Option("--interval", min=0.1, help="Seconds between looks of --watch.")]
Since = Annotated[
    str | None, typer.Option("--since", metavar="YYYYMMDD", help="Leave out studies of earlier days.")
]
Seconds = Annotated[
    float, typer.Option("--patience", min=0, help="Seconds to wait for a server that is away, per request.")
]


def pacs(
    dicomweb: Root,
    study: Study = None,
    watch: Watch = False,
    interval: Interval = 60.0,
    since: Since = None,
    patience: Seconds = 120.0,
    bundle: BundlePath = None,
    threads: Threads = 0,
) -> None:
    """Judge the CT series of a DICOM archive and store report and heat maps beside them. Research use only.

    Series that this bundle has answered are skipped. Credentials come from the environment or from ~/.netrc.

    Exit status: 0 every series has its answer, 2 usage, server or bundle error, 3 some were put off.
    """
    if study is not None and (watch or since is not None):
        raise PacsError("--study goes with neither --watch nor --since")
    if since is not None and re.fullmatch(r"\d{8}", since) is None:
        raise PacsError(f"--since {since}: expected a day such as 20260131")
    archive = _open(dicomweb, patience)
    if not watch:
        archive.check()
    classifier = _classifier(bundle, threads)
    try:
        states = _show(_outcomes(archive, classifier, study, since, interval if watch else None))
    except KeyboardInterrupt:
        typer.echo("interrupted; what is stored stays, the same command goes on", err=True)
        raise typer.Exit(INTERRUPTED) from None
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    typer.echo(f"{states.total()} CT series{': ' * bool(told)}{told}. Research use only, no diagnosis.")
    if states["put off"]:
        raise typer.Exit(SOME_PUT_OFF)


def _open(url: str, patience: float) -> Archive:
    try:
        from groundglass.pacs.client import Archive
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    archive = Archive(url, patience, on_wait=_tell)
    if archive.sends_credentials_in_the_clear:
        _tell("the credentials travel unencrypted; use https")
    return archive


def _classifier(bundle: Path | None, threads: int) -> Classifier:
    from groundglass.inference.bundle import Bundle
    from groundglass.inference.classifier import Classifier

    return Classifier(Bundle.open(bundle, threads), threads)


def _outcomes(
    archive: Archive, classifier: Classifier, study: str | None, since: str | None, interval: float | None
) -> Iterable[RunResult]:
    try:
        from groundglass.pacs.worker import (
            Answerer,
            Rounds,
            watch,
        )
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    rounds = Rounds(archive, Answerer(archive, classifier), settle=interval is not None)
    if interval is not None:
        return watch(rounds, interval, since, lambda reason: _tell(f"{reason}; looking again later"))
    return rounds.all(since) if study is None else rounds.study(study)


def _show(outcomes: Iterable[RunResult]) -> Counter[str]:
    """Print outcomes as they come; returns how many there were of each state."""
    states: Counter[str] = Counter()
    for outcome in outcomes:
        states[outcome.state.value] += 1
        if outcome.answer is not None:
            score = outcome.answer.series_score
            said = "nothing to judge" if score is None else f"series score {score:.3f}"
            typer.echo(f"{outcome.series}: {outcome.answer.counts.in_words()}; {said}")
        elif outcome.reason is not None:
            _tell(f"{outcome.series}: put off: {outcome.reason}")
    return states


def _missing(error: ModuleNotFoundError) -> PacsError:
    return PacsError(f"{error.name} is missing; `groundglass pacs` needs `pip install 'groundglass[pacs]'`")


def _tell(line: str) -> None:
    typer.echo(line, err=True)
