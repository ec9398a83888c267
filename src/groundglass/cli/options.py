"""Options that several commands have: one name and one meaning for one thing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

INTERRUPTED = 130
"""Exit status after an interruption from the keyboard."""

Data = Annotated[
    list[Path],
    Option(help="COVID-CT, a folder with COVID/ and NonCOVID/, or a manifest CSV; repeat it for several data sets."),
]


MapLabel = Annotated[
    list[str] | None, Option(metavar="NAME=LABEL", help="Read labels of other names: positive=COVID,CAP=NonCOVID.")
]
Lungs = Annotated[Path | None, Option(help="Model of the lung fields, .onnx; default: the installed one.")]
Split = Annotated[
    str,
    Option(
        help="official, random, patients:FOLD/FOLDS or leave-source-out:NAME; :SEED at the end of folds fixes them."
    ),
]
Seed = Annotated[int, Option(min=0, help="Of everything random.")]
RecipeName = Annotated[str, Option(help="Name of a recipe, or a YAML file.")]
Overrides = Annotated[
    list[str] | None, Option("--set", metavar="KEY=VALUE", help="Override a field: optimiser.lr=3e-4.")
]
LesionFree = Annotated[Path | None, Option(help="Folder of lesion-free slices for lesion synthesis.")]
AllowOverlap = Annotated[bool, Option("--allow-overlap", help="Accept patients who are in several parts of the split.")]
Resume = Annotated[bool, Option("--resume", help="Continue where an earlier run stopped.")]
Accelerator = Annotated[str, Option(help="auto, cpu or gpu.")]
Threads = Annotated[int, Option(min=0, help="CPU threads; 0: one per core.")]
Cache = Annotated[Path | None, Option(help="Folder for preprocessed slices.")]
Quiet = Annotated[bool, Option("--quiet", help="No progress bar.")]
BundlePath = Annotated[Path | None, Option(help="Trained model; default: the installed one.")]
Device = Annotated[str, Option(help="ONNX Runtime's provider: cpu, cuda, ...; `--version --verbose` lists them.")]
EngineThreads = Annotated[int, Option(min=0, help="CPU threads; 0: one per core but one.")]


def duration(seconds: float) -> str:
    """In words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
