"""``groundglass predict``: its start, its speed against a plain PyTorch pipeline, its memory; on two cores.

Everything runs in processes of their own, which take turns, in another order each round; each round gives
one ratio, so that a machine that slows down slows all of them. The plain pipeline (``plain_predict.py``)
reads its files in the main process or in two worker processes; in each round the faster of the two counts.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from groundglass.data.load import load_dataset
from groundglass.data.phantoms import write_phantoms
from groundglass.errors import DataError
from process import Ran, in_turns, run, stay_on_cores
from record import RESULTS, Goal, Table, report

CORES = 2
START_GOAL, HELP_GOAL, RATIO_GOAL, MEMORY_GOAL = 0.35, 0.3, 3.0, 400.0
USUAL_SIZE = 224
"""Input size most classifiers are trained with; measured for information."""

PREDICT, IMPORTS, HELP, PYTHON = "predict one.png", "import torch, timm", "--help", "python -c pass"
PLAIN = ("plain pipeline, main process", "plain pipeline, 2 workers")
SCRIPTS = Path(__file__).parent
# Refused slices are predictions, too.
PREDICTIONS = (0, 3, 4)


@dataclass(frozen=True)
class Speed:
    """One run over the slices.

    Attributes:
        slices_per_second: model loaded and warm, from the first file to the last prediction.
        ran: the whole process, imports and loading included.
    """

    slices_per_second: float
    ran: Ran


def main(
    data: Annotated[
        Path | None, typer.Option(help="COVID-CT or any data set of unpacked pictures; otherwise phantoms.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="The model; the installed one unless given.")] = None,
    slices: Annotated[int, typer.Option(min=2, help="Slices to classify for speed and memory.")] = 500,
    many: Annotated[int, typer.Option(min=2, help="Slices to classify for memory alone.")] = 20_000,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of all pipelines.")] = 5,
    starts: Annotated[int, typer.Option(min=1, help="Turns of all starts.")] = 11,
    quick: Annotated[bool, typer.Option(help="A smoke test: one short round, no record unless --output.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder of the record.")] = None,
) -> None:
    """Measure start, speed and memory of `groundglass predict` on two cores."""
    if quick:
        slices, many, rounds, starts = 40, 200, 1, 1
    stay_on_cores(CORES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        phantoms = _phantoms(20, folder / "phantoms")
        files = phantoms * (slices // 20 + 1) if data is None else _real(data)
        files = [files[index] for index in np.unique(np.linspace(0, len(files) - 1, slices).astype(int))]
        listed = folder / "files.json"
        listed.write_text(json.dumps(files), encoding="utf-8")
        about = _about(listed, bundle, folder)
        measured = {
            "slices": {"data": data.name if data is not None else "phantoms", **about},
            "starts": _starts(files[0], bundle, starts),
            "speed": _speed(listed, bundle, about, rounds, folder),
            "memory": _memory(phantoms, bundle, (slices, many), folder),
        }
    _report(measured, output or (None if quick else RESULTS))


def _phantoms(count: int, folder: Path) -> list[str]:
    manifest = write_phantoms(folder, count, (0.2, 0.8))
    return [str(record.path) for record in manifest.records]


def _real(data: Path) -> list[str]:
    records = load_dataset(data).records
    packed = next((record for record in records if not record.path.is_file()), None)
    if packed is not None:
        raise DataError(f"{packed.path}: the plain pipeline reads files only; unpack the zip files first")
    return [str(record.path.resolve()) for record in records]


def _about(listed: Path, bundle: Path | None, folder: Path) -> dict[str, Any]:
    """What the model says of the slices, whatever time it takes: it reads the files for the first time."""
    _classify(listed, bundle, folder)
    row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
    sizes = [os.stat(path).st_size for path in json.loads(listed.read_text(encoding="utf-8"))]
    return {
        "count": row["slices"],
        "classified": row["classified"],
        "mean_file_bytes": statistics.mean(sizes),
        "bundle": row["bundle"],
        "size": row["size"],
        "precisions": [row["precision"]],
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _groundglass() -> list[str]:
    """The command that an installation puts beside Python."""
    return [str(Path(sysconfig.get_path("scripts")) / "groundglass")]


def _with(bundle: Path | None) -> list[str]:
    return [] if bundle is None else ["--bundle", str(bundle)]


def _starts(file: str, bundle: Path | None, rounds: int) -> dict[str, list[float]]:
    """Seconds that each command takes, by round; a first round warms up and is left out."""
    commands = {
        PREDICT: [*_groundglass(), "predict", file, *_with(bundle)],
        IMPORTS: [sys.executable, "-c", "import torch, timm"],
        HELP: [*_groundglass(), "--help"],
        PYTHON: [sys.executable, "-c", "pass"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn, order in enumerate(in_turns(list(commands), rounds + 1)):
        for name in order:
            ran = run(commands[name], PREDICTIONS)
            if turn:
                seconds[name].append(ran.seconds)
        _say(f"start {turn} of {rounds}: " + ", ".join(f"{name} {each[-1:]}" for name, each in seconds.items()))
    return seconds


def _classify(listed: Path, bundle: Path | None, folder: Path) -> Ran:
    script = str(SCRIPTS / "classify.py")
    return run([sys.executable, script, str(listed), str(folder / "row.json"), *_with(bundle)])


def _plain(listed: Path, size: int, workers: int, folder: Path) -> Ran:
    script = str(SCRIPTS / "plain_predict.py")
    options = ["--size", str(size), "--workers", str(workers), "--threads", str(CORES)]
    return run([sys.executable, script, str(listed), str(folder / "row.json"), *options])


def _speed(
    listed: Path, bundle: Path | None, about: dict[str, Any], rounds: int, folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """What each pipeline does, by round."""
    calls = {_ours(kind): partial(_classify, listed, bundle, folder) for kind in about["precisions"]}
    for workers, name in zip((0, 2), PLAIN, strict=True):
        calls[name] = partial(_plain, listed, about["size"], workers, folder)
        calls[_usual(name)] = partial(_plain, listed, USUAL_SIZE, workers, folder)
    speeds: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
    for turn, order in enumerate(in_turns(list(calls), rounds)):
        for name in order:
            ran = calls[name]()
            row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
            speed = Speed(row["slices"] / row["seconds"], ran)
            speeds[name].append(asdict(speed))
            _say(f"round {turn + 1} of {rounds}: {name}: {speed.slices_per_second:.1f} slices/s")
    return speeds


def _ours(precision: str) -> str:
    return f"groundglass, {precision}"


def _usual(name: str) -> str:
    return f"{name}, {USUAL_SIZE} pixels"


def _memory(phantoms: Sequence[str], bundle: Path | None, counts: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """Largest resident memory by number of slices, and by where the predictions go."""
    rows = []
    for count in counts:
        place = folder / f"{count}"
        place.mkdir()
        for number in range(count):
            os.link(phantoms[number % len(phantoms)], place / f"{number}.png")
        outputs = {
            "table": [],
            "x.jsonl": ["--output", str(folder / f"{count}.jsonl")],
            "x.csv": ["--output", str(folder / f"{count}.csv")],
        }
        for name, options in outputs.items():
            ran = run([*_groundglass(), "predict", str(place), *_with(bundle), *options], PREDICTIONS)
            rows.append({"slices": count, "output": name, **asdict(ran)})
            _say(f"memory: {rows[-1]}")
    return rows


def _report(measured: dict[str, Any], output: Path | None) -> None:
    ratios = _all_ratios(measured)
    goals = [
        Goal("start: predict one.png, times import torch, timm", START_GOAL, True, statistics.median(ratios["start"])),
        Goal("start: --help, s", HELP_GOAL, True, statistics.median(measured["starts"][HELP])),
        Goal(
            "times the plain pipeline's slices per second",
            RATIO_GOAL,
            False,
            statistics.median(ratios[_ours(measured["slices"]["precisions"][0])]),
        ),
    ]
    goals += [
        Goal(
            f"peak resident memory, {row['slices']:,} slices, {row['output']}, MiB", MEMORY_GOAL, True, row["peak_mib"]
        )
        for row in measured["memory"]
    ]
    report("predict", output, {**measured, "ratios": ratios}, goals, _tables(measured, ratios))


def _all_ratios(measured: dict[str, Any]) -> dict[str, list[float]]:
    """Ratios of each round: of the starts, and of each model's speed to both plain pipelines."""
    starts, speed = measured["starts"], measured["speed"]
    ratios = {"start": [ours / peer for ours, peer in zip(starts[PREDICT], starts[IMPORTS], strict=True)]}
    for kind in measured["slices"]["precisions"]:
        ours = [each["slices_per_second"] for each in speed[_ours(kind)]]
        for title, names in ((_ours(kind), PLAIN), (_usual(_ours(kind)), [_usual(name) for name in PLAIN])):
            rounds = zip(*([each["slices_per_second"] for each in speed[name]] for name in names), strict=True)
            ratios[title] = [own / max(peers) for own, peers in zip(ours, rounds, strict=True)]
    return ratios


def _tables(measured: dict[str, Any], ratios: dict[str, list[float]]) -> list[Table]:
    about, starts = measured["slices"], measured["starts"]
    what = (
        f"Slices per second; {about['count']} slices of {about['data']}, {about['classified']} of them "
        f"classified, {about['mean_file_bytes'] / 1024:.0f} KiB on average; {about['size']} pixels unless "
        f"another size stands there; {CORES} cores"
    )
    speeds = {name: [each["slices_per_second"] for each in rows] for name, rows in measured["speed"].items()}
    whole = {name: [each["ran"]["seconds"] for each in rows] for name, rows in measured["speed"].items()}
    peaks = {name: max(each["ran"]["peak_mib"] for each in rows) for name, rows in measured["speed"].items()}
    return [
        Table(
            f"Start, seconds; {len(ratios['start'])} rounds",
            ("command", "median", "min", "max"),
            [_spread(name, each) for name, each in starts.items()],
        ),
        Table(
            "Slices per second, times the faster plain pipeline of the same round, at its size",
            ("pipeline", "median", "min", "max"),
            [_spread(name, each) for name, each in ratios.items() if name != "start"],
        ),
        Table(
            what,
            ("pipeline", "median", "min", "max", "whole process, s", "peak MiB"),
            [(*_spread(name, each), statistics.median(whole[name]), peaks[name]) for name, each in speeds.items()],
        ),
        Table(
            "Peak resident memory of groundglass predict, phantoms of 512 x 512 pixels",
            ("slices", "predictions to", "MiB", "seconds"),
            [(f"{row['slices']:,}", row["output"], row["peak_mib"], row["seconds"]) for row in measured["memory"]],
        ),
    ]


def _spread(name: str, values: Sequence[float]) -> tuple[str, float, float, float]:
    return name, statistics.median(values), min(values), max(values)


if __name__ == "__main__":
    typer.run(main)
