"""Render the recorded results again, and put their tables between the markers of README and docs.

Run by `make figures`, from anywhere; needs neither torch nor a data set. Tables stand between
`<!-- NAME:begin -->` and `<!-- NAME:end -->`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from groundglass.experiments.tables import render_convergence, render_rows, render_seeds
from groundglass.files import write_text

RESULTS = Path(__file__).resolve().parent
ROOT = RESULTS.parent


def quality() -> str:
    """How good the default is, beside what the file format alone gives away and beside sources left out."""
    official, left_out = (
        json.loads((RESULTS / name / "summary.json").read_text()) for name in ("official-split", "left-out")
    )
    # The audit's first rule sees the file's format, pixel mode and suffix alone.
    rule = json.loads((RESULTS / "audit" / "audit.json").read_text())["shortcuts"]["baselines"][0]["tested"]
    auc, accuracy = rule["auc"], rule["accuracy"]
    test, outside = official["parts"]["test"], left_out["parts"]["test"]
    rows = [
        [
            "The network, official test part",
            test["slices"],
            *(_over_seeds(test, name) for name in ("auc", "accuracy")),
        ],
        ["A rule on the file format alone, same slices", test["slices"], _interval(auc), _interval(accuracy)],
        [
            "The network, sources that it was not trained on",
            outside["slices"],
            *(_over_seeds(outside, name) for name in ("auc", "accuracy")),
        ],
    ]
    lines = "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
    return (
        f"| | slices | AUC | accuracy |\n|---|---|---|---|\n{lines}\n\n"
        f"The network: mean ± standard deviation over {len(official['seeds'])} and {len(left_out['seeds'])} seeds; "
        "the rule: 95 % interval over patients.\n"
    )


def _over_seeds(part: dict[str, Any], measure: str) -> str:
    value = part["metrics"][measure]
    return f"{value['mean']:.3f} ± {value['sd']:.3f}"


def _interval(measure: dict[str, float]) -> str:
    return f"{measure['value']:.3f} ({measure['low']:.3f}–{measure['high']:.3f})"


def put(document: Path, name: str, table: str) -> None:
    """Replace what stands between the markers of that name; every marker is there once."""
    text = document.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise SystemExit(f"{document}: expected {begin} and {end} once each, in this order")
    before, _, rest = text.partition(begin)
    write_text(document, f"{before}{begin}\n{table.rstrip()}\n{end}{rest.partition(end)[2]}")


def main() -> None:
    """Render everything, then fill the documents."""
    for experiment in ("table1", "ablation"):
        render_rows(RESULTS / experiment)
    render_convergence(RESULTS / "convergence")
    for folder in ("official-split", "left-out"):
        put(RESULTS / "README.md", folder, render_seeds(RESULTS / folder))
    # Its headings are two levels deeper there.
    audit = (RESULTS / "audit" / "audit.md").read_text(encoding="utf-8")
    put(ROOT / "docs" / "audit.md", "audit", re.sub(r"^#", "###", audit, flags=re.MULTILINE))
    put(ROOT / "README.md", "quality", quality())


if __name__ == "__main__":
    main()
