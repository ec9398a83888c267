"""``groundglass pacs``: CT series of a DICOM archive are classified, and reports stored beside them."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from groundglass.cli.options import BundlePath, Device, EngineThreads, interruptible
from groundglass.errors import PacsError

if TYPE_CHECKING:
    from groundglass.pacs.worker import SeriesResult

_SOME_POSTPONED = 3
_warn = partial(typer.echo, err=True)


def pacs(
    dicomweb: Annotated[str, Option(metavar="URL", help="DICOMweb root of the archive.")],
    study: Annotated[str | None, Option(metavar="UID", help="Process this study alone.")] = None,
    watch: Annotated[bool, Option("--watch", help="Run for ever; process series as they arrive.")] = False,
    interval: Annotated[float, Option(min=0.1, max=1e6, help="Seconds between polls of --watch.")] = 60.0,
    since: Annotated[str | None, Option(metavar="YYYYMMDD", help="Omit earlier studies.")] = None,
    retry: Annotated[float, Option(min=0, max=1e6, help="Seconds of retries if the server fails.")] = 120.0,
    bundle: BundlePath = None,
    threads: EngineThreads = 0,
    device: Device = "cpu",
) -> None:
    """Classify CT series of a DICOM archive; store report, outlined slices and masks beside them. Research use only.

    Series with a report of this bundle are skipped. Credentials come from the environment or from ~/.netrc.

    Exit status: 0 every series has its report, 2 usage, server or bundle error, 3 some were postponed.
    """
    if study is not None and (watch or since is not None):
        raise PacsError("--study goes with neither --watch nor --since")
    if since is not None and re.fullmatch(r"\d{8}", since) is None:
        raise PacsError(f"--since {since}: expected a day such as 20260131")
    try:
        from groundglass.pacs.client import Archive
        from groundglass.pacs.worker import Poll, SeriesProcessor
    except ModuleNotFoundError as error:
        raise PacsError(f"{error.name} is missing; run `pip install '.[pacs]'` in a clone") from None
    from groundglass.inference.bundle import Bundle
    from groundglass.inference.classifier import Classifier

    archive = Archive(dicomweb, retry, on_wait=_warn)
    if archive.sends_credentials_in_the_clear:
        _warn("the credentials travel unencrypted; use https")
    if not watch:
        archive.check()
    classifier = Classifier(Bundle.open(bundle, threads, device))
    poll = Poll(archive, SeriesProcessor(archive, classifier), settle=watch)
    if watch:
        results = poll.forever(interval, since, lambda reason: _warn(f"{reason}; asking again later"))
    else:
        results = poll.all(since) if study is None else poll.study(study)
    states = Counter[str]()
    with interruptible(lambda: "interrupted; what is stored stays, the same command continues"):
        for result in results:
            states[result.state.value] += 1
            _show(result)
    summary = ", ".join(f"{count} {state}" for state, count in states.items())
    typer.echo(f"{states.total()} CT series{': ' * bool(summary)}{summary}. Research use only, no diagnosis.")
    if states["postponed"]:
        raise typer.Exit(_SOME_POSTPONED)


def _show(result: SeriesResult) -> None:
    said = result.summary
    if said is not None:
        score = "nothing classified" if said.series_score is None else f"series score {said.series_score:.3f}"
        label = "" if said.label is None else f", {said.label}"
        typer.echo(f"{result.series}: {said.in_words}; {score}{label}")
    elif result.reason is not None:
        _warn(f"{result.series}: postponed: {result.reason}")
