"""What a benchmark measured, as JSON and as Markdown, with the command and the machine that made it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from groundglass.files import write_json, write_text
from machine import describe_machine, describe_versions

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Goal:
    """A figure that was aimed at, and the one that was measured.

    Attributes:
        what: is measured, with its unit.
        limit: the figure aimed at.
        at_most: whether it is an upper limit, otherwise a lower one.
        measured: the figure.
    """

    what: str
    limit: float
    at_most: bool
    measured: float

    @property
    def met(self) -> bool:
        """Whether the measured figure keeps the limit."""
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit


@dataclass(frozen=True)
class Table:
    """A table of results: its title, column names, and rows of text or numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]


def report(name: str, output: Path | None, measured: Any, goals: list[Goal], tables: list[Table]) -> None:
    """Print what was measured, and write ``NAME.json`` and ``NAME.md`` where ``output`` names a folder."""
    about = {
        "benchmark": name,
        "command": command(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    judged = [{**asdict(goal), "met": goal.met} for goal in goals]
    text = _markdown(about, [_goal_table(goals), *tables])
    if output is not None:
        write_json(output / f"{name}.json", {**about, "goals": judged, "measured": measured})
        write_text(output / f"{name}.md", text)
    print(text, end="")


def command() -> str:
    """The command line of this process; of a path its last part only, as the rest belongs to the machine."""
    arguments = [Path(argument).name if "/" in argument else argument for argument in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])


def _goal_table(goals: list[Goal]) -> Table:
    rows = [
        (goal.what, f"{'≤' if goal.at_most else '≥'} {goal.limit:g}", goal.measured, "yes" if goal.met else "no")
        for goal in goals
    ]
    return Table("Goals", ("what", "goal", "measured", "met"), rows)


def _markdown(about: dict[str, Any], tables: list[Table]) -> str:
    machine, versions = about["machine"], about["versions"]
    lines = [
        f"# {about['benchmark']}",
        "",
        f"`{about['command']}`, {about['date']}",
        "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']} "
        f"{machine['architecture']}, Python {machine['python']}; "
        + ", ".join(f"{package} {version}" for package, version in versions.items()),
    ]
    for table in tables:
        lines += ["", f"## {table.title}", "", _row(table.columns), _row(["---"] * len(table.columns))]
        lines += [_row(row) for row in table.rows]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str | float]) -> str:
    return "| " + " | ".join(cell if isinstance(cell, str) else f"{cell:.3g}" for cell in cells) + " |"
