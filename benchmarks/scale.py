"""``groundglass predict --engine ray`` with one worker and with two, and what a large archive would cost.

Every run is a process of its own; they take turns, in another order each round. Each is made with few slices
and with many, and the rate is that of the difference: Ray's start, which does not grow with the archive, is
stated by itself. What predictions take on disk is measured on each slice once, as slices that come again would
be stored for nothing. The costs of an archive are these figures carried forward, and say so.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from groundglass.data.load import load_dataset
from groundglass.data.phantoms import write_phantoms
from process import Ran, in_turns, run, stay_on_cores
from record import RESULTS, Goal, Table, report

CORES = 2
RATIO_GOAL = 1.7
ARCHIVE = 100_000_000
"""Slices of the archive whose costs are worked out."""

DICOM_BYTES = 512 * 512 * 2
"""Pixels of an uncompressed CT slice, to which its header adds little."""

LOCAL, ONE, TWO = "one process", "Ray, 1 worker", "Ray, 2 workers"
# Refused slices are predictions, too.
PREDICTIONS = (0, 3, 4)
BEGIN, END = "<!-- scale:begin -->", "<!-- scale:end -->"


def main(
    data: Annotated[Path | None, typer.Option(help="Any data set of unpacked pictures; else phantoms.")] = None,
    few: Annotated[int, typer.Option(min=1, help="Slices of the short runs.")] = 640,
    many: Annotated[int, typer.Option(min=2, help="Slices of the long runs.")] = 6400,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of all runs.")] = 3,
    reuse: Annotated[bool, typer.Option(help="Take the rates of the record that is there.")] = False,
    quick: Annotated[bool, typer.Option(help="A smoke test: one short round, no record.")] = False,
    docs: Annotated[Path | None, typer.Option(help="Markdown file whose figures are replaced.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the record.")] = None,
) -> None:
    """Measure prediction with Ray on two cores."""
    if quick:
        few, many, rounds = 64, 256, 1
    stay_on_cores(CORES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = _files(data, folder / "phantoms")
        measured = {
            "data": data.name if data is not None else "phantoms",
            "few": few,
            "many": many,
            "mean_file_bytes": statistics.mean(os.stat(file).st_size for file in files),
            **_storage(files, folder),
            "runs": _recorded() if reuse else _rates(files, (few, many), rounds, folder),
        }
    _report(measured, output or (None if quick else RESULTS), docs)


def _recorded() -> dict[str, list[dict[str, Any]]]:
    document = json.loads((RESULTS / "scale.json").read_text(encoding="utf-8"))
    runs: dict[str, list[dict[str, Any]]] = document["measured"]["runs"]
    return runs


def _rates(files: Sequence[Path], counts: Sequence[int], rounds: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What every run does, by round."""
    places = {count: _linked(files, count, folder / f"{count}") for count in counts}
    ran: dict[str, list[dict[str, Any]]] = {name: [] for name in (LOCAL, ONE, TWO)}
    for turn, order in enumerate(in_turns(list(ran), rounds)):
        for name in order:
            row = _measure(name, places, folder / "predictions.parquet")
            ran[name].append(row)
            _say(f"round {turn + 1} of {rounds}: {name}: {row['slices_per_second']:.1f} slices/s")
    return ran


def _storage(files: Sequence[Path], folder: Path) -> dict[str, float]:
    """Bytes of a prediction in a Parquet file that holds each slice once, and how long its paths are."""
    place, predictions = _linked(files, len(files), folder / "once"), folder / "once.parquet"
    _predict(LOCAL, place, predictions)
    return {
        "bytes_per_prediction": predictions.stat().st_size / len(files),
        "mean_path_characters": statistics.mean(len(str(path)) for path in place.iterdir()),
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _files(data: Path | None, folder: Path) -> list[Path]:
    if data is not None:
        return [record.path.resolve() for record in load_dataset(data).records]
    return [record.path for record in write_phantoms(folder, 20, (0.2, 0.8)).records]


def _linked(files: Sequence[Path], count: int, folder: Path) -> Path:
    """A folder of so many slices, the same ones again and again under other names."""
    folder.mkdir()
    for number in range(count):
        source = files[number % len(files)]
        (folder / f"{number}{source.suffix}").symlink_to(source)
    return folder


def _measure(name: str, places: dict[int, Path], predictions: Path) -> dict[str, Any]:
    (few, short), (many, long) = ((count, _predict(name, place, predictions)) for count, place in places.items())
    rate = (many - few) / (long.seconds - short.seconds)
    return {
        "slices_per_second": rate,
        "start_seconds": short.seconds - few / rate,
        "short": asdict(short),
        "long": asdict(long),
    }


def _predict(name: str, place: Path, predictions: Path) -> Ran:
    predictions.unlink(missing_ok=True)
    command = [str(Path(sysconfig.get_path("scripts")) / "groundglass"), "predict", str(place), "--quiet"]
    command += ["--output", str(predictions)]
    if name != LOCAL:
        command += ["--engine", "ray", "--workers", "1" if name == ONE else "2"]
    return run(command, PREDICTIONS)


def _report(measured: dict[str, Any], output: Path | None, docs: Path | None) -> None:
    rates = {name: [row["slices_per_second"] for row in rows] for name, rows in measured["runs"].items()}
    ratios = [two / one for one, two in zip(rates[ONE], rates[TWO], strict=True)]
    costs = _costs(measured, statistics.median(rates[TWO]) / CORES)
    goals = [Goal("two workers, times the rate of one", RATIO_GOAL, False, statistics.median(ratios))]
    report(
        "scale",
        output,
        {**measured, "ratios": ratios, "costs": costs},
        goals,
        [_rate_table(measured, rates, ratios), _cost_table(costs)],
    )
    if docs is not None:
        before, _, rest = docs.read_text(encoding="utf-8").partition(BEGIN)
        text = _text(measured, rates, ratios, costs).rstrip()
        docs.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def _costs(measured: dict[str, Any], per_core: float) -> dict[str, float]:
    """What the archive takes where every core works at the rate of one of the two workers."""
    return {
        "slices": ARCHIVE,
        "slices_per_core_second": per_core,
        "core_hours": ARCHIVE / per_core / 3600,
        "predictions_gb": ARCHIVE * measured["bytes_per_prediction"] / 1e9,
        "read_gb": ARCHIVE * measured["mean_file_bytes"] / 1e9,
        "read_dicom_gb": ARCHIVE * DICOM_BYTES / 1e9,
        "mb_per_core_second": per_core * DICOM_BYTES / 1e6,
    }


def _rate_table(measured: dict[str, Any], rates: dict[str, list[float]], ratios: Sequence[float]) -> Table:
    runs = measured["runs"]
    return Table(
        f"Slices per second, {measured['many']:,} less {measured['few']:,} slices of {measured['data']}; "
        f"{len(ratios)} rounds; {CORES} cores",
        ("engine", "median", "min", "max", "start, s", "peak MiB of the largest process"),
        [
            (
                name,
                statistics.median(each),
                min(each),
                max(each),
                statistics.median(row["start_seconds"] for row in runs[name]),
                max(row["long"]["peak_mib"] for row in runs[name]),
            )
            for name, each in rates.items()
        ],
    )


def _cost_table(costs: dict[str, float]) -> Table:
    return Table(
        f"{ARCHIVE:,} slices, carried forward from the rate per core of two workers",
        ("what", "figure"),
        [
            ("slices per second and core", costs["slices_per_core_second"]),
            ("core-hours", f"{costs['core_hours']:,.0f}"),
            ("predictions as Parquet, GB", costs["predictions_gb"]),
            ("read, files as small as these, GB", f"{costs['read_gb']:,.0f}"),
            ("read, uncompressed DICOM of 512 x 512 pixels, GB", f"{costs['read_dicom_gb']:,.0f}"),
            ("read per second and core then, MB", costs["mb_per_core_second"]),
        ],
    )


def _text(
    measured: dict[str, Any], rates: dict[str, list[float]], ratios: Sequence[float], costs: dict[str, float]
) -> str:
    """The figures in words, for the documentation."""
    start = statistics.median(row["start_seconds"] for row in measured["runs"][TWO])
    one, two = statistics.median(rates[LOCAL]), statistics.median(rates[TWO])
    hours, storage = costs["core_hours"], costs["mb_per_core_second"]
    return (
        f"Measured by `benchmarks/scale.py` on {CORES} cores, {measured['many']:,} slices of "
        f"{measured['data']}, {len(ratios)} rounds: two workers classify {two:.0f} slices per second, "
        f"{statistics.median(ratios):.2f} times as many as one ({min(ratios):.2f} to {max(ratios):.2f}); one "
        f"process without Ray, which reads and classifies in two threads, {one:.0f}. Ray's start takes "
        f"{start:.0f} s more, whatever the number of slices.\n\n"
        f"Carried forward to {ARCHIVE // 1_000_000} million slices, nothing but the workers being slow:\n\n"
        "| what | costs |\n|---|---|\n"
        f"| computing, at {costs['slices_per_core_second']:.0f} slices per second and core | "
        f"{hours:,.0f} core-hours: {hours / 64:.1f} hours on 64 cores, {hours / 1024:.2f} on 1,024 |\n"
        f"| predictions as Parquet, {measured['bytes_per_prediction']:.0f} bytes each with paths of "
        f"{measured['mean_path_characters']:.0f} characters | {costs['predictions_gb']:.1f} GB |\n"
        f"| reading, pictures like these | {costs['read_gb'] / 1000:.1f} TB |\n"
        f"| reading, uncompressed DICOM of 512 × 512 pixels | {costs['read_dicom_gb'] / 1000:.1f} TB, "
        f"{storage:.0f} MB per second and core: 64 cores ask storage for {storage * 64 / 1000:.1f} GB/s |\n\n"
        "The rate of a thousand cores has not been measured, only that of two; a network file system that "
        "cannot deliver what the workers ask for decides first.\n"
    )


if __name__ == "__main__":
    typer.run(main)
