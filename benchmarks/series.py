"""A DICOM series from its files to its answer, against reading and decoding the same files with pydicom alone.

Both are processes of their own, which take turns in another order each round; each round gives one ratio.
"""

from __future__ import annotations

import statistics
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Annotated

import pydicom
import typer
from pydicom.uid import generate_uid

from process import in_turns, run, stay_on_cores
from record import RESULTS, Goal, Table, report

CORES, RATIO_GOAL = 2, 1.5
PREDICT, READ = "groundglass predict", "pydicom"
READS = """
import sys
from pathlib import Path
import pydicom
for path in sorted(Path(sys.argv[1]).iterdir()):
    pydicom.dcmread(path).pixel_array
"""


def main(
    series: Annotated[Path, typer.Argument(help="Folder with the slices of one DICOM series.")],
    slices: Annotated[int, typer.Option(help="The series is repeated along the body to so many.")] = 346,
    rounds: int = 5,
    output: Path = RESULTS,
) -> None:
    """Time both on the same files."""
    stay_on_cores(CORES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        syntax = _repeat(series, slices, folder)
        groundglass = str(Path(sysconfig.get_path("scripts")) / "groundglass")
        commands = {PREDICT: [groundglass, "predict", name, "--json"], READ: [sys.executable, "-c", READS, name]}
        seconds: dict[str, list[float]] = {each: [] for each in commands}
        peak = 0.0
        for turn, order in enumerate(in_turns(list(commands), rounds + 1)):
            for each in order:
                # Slices of neck and abdomen may be refused; the first round warms up.
                ran = run(commands[each], (0, 3))
                if turn:
                    seconds[each].append(ran.seconds)
                    peak = max(peak, ran.peak_mib) if each == PREDICT else peak
    ratios = [one / other for one, other in zip(seconds[PREDICT], seconds[READ], strict=True)]
    ratio = statistics.median(ratios)
    rows = [(each, statistics.median(times), min(times), max(times)) for each, times in seconds.items()]
    rows.append(("ratio", ratio, min(ratios), max(ratios)))
    title = f"{slices} slices, {syntax}, seconds; peak memory {peak:.0f} MiB"
    measured = {"slices": slices, "transfer_syntax": syntax, "seconds": seconds, "ratios": ratios, "peak_mib": peak}
    goal = Goal("file to series answer, times pydicom's reading", RATIO_GOAL, True, ratio)
    report("series", output, measured, [goal], [Table(title, ("", "median", "least", "most"), rows)])


def _repeat(series: Path, slices: int, folder: Path) -> str:
    """Write the series so often that there are so many slices, one above the other; returns its transfer syntax."""
    found = [pydicom.dcmread(path) for path in sorted(series.iterdir()) if path.is_file()]
    found.sort(key=lambda each: float(each.ImagePositionPatient[2]))
    low, high = (float(each.ImagePositionPatient[2]) for each in (found[0], found[-1]))
    step = (high - low) / (len(found) - 1)
    for number in range(slices):
        each = found[number % len(found)]
        each.ImagePositionPatient[2] = round(low + number * step, 3)
        each.InstanceNumber = number + 1
        each.SOPInstanceUID = each.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        each.save_as(folder / f"{number:04}.dcm")
    return str(found[0].file_meta.TransferSyntaxUID.name)


if __name__ == "__main__":
    typer.run(main)
