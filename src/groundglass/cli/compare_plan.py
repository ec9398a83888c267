"""The runs of an experiment on a terminal: what is done, what is left, and how long it may take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from groundglass.training.experiments.estimate import Planned


def print_plan(planned: Sequence[Planned], console: Console) -> None:
    """Print one line per run and the sum."""
    table = Table()
    for head in ("Run", "State", "Estimated time", "Judged by"):
        table.add_column(head, overflow="fold")
    for each in planned:
        time = "" if each.seconds == 0 else duration(each.seconds)
        table.add_row(escape(each.task.name), escape(each.state), time, each.measured_on)
    console.print(table)
    for reason in dict.fromkeys(each.reason for each in planned if each.reason):
        rows = dict.fromkeys(each.task.identity.row for each in planned if each.reason == reason)
        console.print(f"skipped: {', '.join(rows)}: {reason}")
    console.print(in_sum(planned))


def in_sum(planned: Sequence[Planned]) -> str:
    """How many runs are left and how long they may take together."""
    left = [each for each in planned if each.state not in {"done", "skipped"}]
    done = sum(each.state == "done" for each in planned)
    known = [each.seconds for each in left if each.seconds is not None]
    text = f"{len(planned)} runs, {done} done, {len(left)} to do"
    if not left:
        return f"{text}."
    if not known:
        return f"{text}; no run is finished yet to judge the time by."
    text += f", about {duration(sum(known))}"
    return f"{text} for {len(known)} of them." if len(known) < len(left) else f"{text}."


def duration(seconds: float | None) -> str:
    """``2 h 05 min``, ``12 min``, ``40 s``; ``unknown`` for None."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
