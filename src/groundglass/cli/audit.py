"""``groundglass data audit``: what is wrong with a data set, found before training."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from groundglass.evaluation.audit import Audit

FOUND = 5
"""Exit status where a condition of ``--fail-on`` holds."""


Conditions = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-on",
        metavar="CONDITION",
        help="End with status 5 where this was found: leakage, duplicates, conflicts, lookalikes, sources, "
        "shortcuts[:AUC] or unreadable; can be repeated, or several joined by commas.",
    ),
]
Outputs = Annotated[
    list[Path] | None,
    typer.Option(
        "--output",
        help="Folder for report.html, audit.md and audit.json, or a .html, .md or .json file; can be "
        "repeated.",
    ),
]
Network = Annotated[
    Path | None,
    typer.Option(
        "--network",
        help="A network's figures to compare shortcuts with: predictions.csv or metrics.json of `evaluate`, "
        "seed-N.json or summary.json of `repeat`.",
    ),
]


def audit(
    path: Annotated[
        Path, typer.Argument(help="COVID-CT, a folder COVID/ NonCOVID/, a manifest CSV or slices.")
    ],
    *,
    output: Outputs = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print audit.json instead of tables.")] = False,
    fail_on: Conditions = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Audit the parts of this split instead of the data's own.")
    ] = None,
    network: Network = None,
    shortcuts: Annotated[
        bool, typer.Option("--shortcuts/--no-shortcuts", help="Measure the shortcut baselines as well.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the split and the shortcut baselines.")] = 0,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="To read and compare in; default: one per core.")
    ] = None,
    docs: Annotated[
        Path | None,
        typer.Option("--docs", exists=True, dir_okay=False, help="Markdown file whose tables are replaced."),
    ] = None,
) -> None:
    """Find copies, leakage, label conflicts and shortcuts in a data set."""
    from groundglass.cli.audit_progress import AuditProgress  # noqa: PLC0415
    from groundglass.data.audit import writable  # noqa: PLC0415
    from groundglass.data.load import load_dataset  # noqa: PLC0415
    from groundglass.data.splits import make_split  # noqa: PLC0415
    from groundglass.evaluation import audit as auditing  # noqa: PLC0415 - scikit-learn is slow to import
    from groundglass.evaluation.audit_markdown import BEGIN, END, audit_markdown  # noqa: PLC0415
    from groundglass.evaluation.audit_report import write_audit  # noqa: PLC0415
    from groundglass.evaluation.repeat import update_readme  # noqa: PLC0415
    from groundglass.evaluation.stated import read_stated  # noqa: PLC0415

    # An empty one is refused: a CI job whose variable is not set must not pass for that.
    conditions = [condition.strip() for given in fail_on or () for condition in given.split(",")]
    manifest = load_dataset(path)
    parts = None if split is None else make_split(manifest, split, seed, allow_overlap=True)
    auditing.check_conditions(conditions, manifest, parts, shortcuts=shortcuts)
    with AuditProgress() as progress:
        audited = auditing.audit(
            manifest,
            parts,
            shortcuts=shortcuts,
            network=None if network is None else read_stated(network),
            seed=seed,
            threads=threads,
            progress=progress.advance,
        )
    command = writable(shlex.join(["groundglass", *sys.argv[1:]]))
    for target in output or ():
        write_audit(audited, target, command)
    if docs is not None:
        update_readme(docs, audit_markdown(audited, command, level=3), BEGIN, END)
    held = auditing.found(audited, conditions)
    _show(audited, held, as_json=as_json)
    if held:
        raise typer.Exit(FOUND)


def _show(audited: Audit, held: Sequence[str], *, as_json: bool) -> None:
    """Findings on standard output, warnings and what holds of ``--fail-on`` on standard error."""
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415

    from groundglass.evaluation.audit import document  # noqa: PLC0415
    from groundglass.evaluation.audit_tables import audit_tables  # noqa: PLC0415

    if as_json:
        typer.echo(json.dumps(document(audited), indent=2, ensure_ascii=False))
    else:
        for table in audit_tables(audited):
            Console().print(table)
    errors = Console(stderr=True, soft_wrap=True)
    for warning in audited.warnings():
        errors.print(f"[bold yellow]warning:[/] {escape(warning)}")
    for words in held:
        errors.print(f"[bold red]found:[/] {escape(words)}")
