"""Images per second of ``groundglass train`` against a plain PyTorch and timm loop, like for like.

Each training is a process of its own. They take turns, in another order each round, and each round gives one
ratio, so that a machine that slows down slows all of them. The plain loop (``plain_loop.py``) loads its data
in the main process, as PyTorch does by default and the script published with COVID-CT does, or in two worker
processes, one per core; in each round the faster of the two counts. The first epoch warms up and is left out.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import cv2
import typer

from groundglass.data.load import load_dataset
from groundglass.data.manifest import Label, Record
from groundglass.data.phantoms import write_phantoms
from groundglass.data.splits import make_split
from groundglass.errors import DataError
from groundglass.training.recipe import load_recipe
from groundglass.training.samples import CONTEXT, load_cropped
from record import RESULTS, Goal, Table, report

SIZE, BATCH, THREADS = 160, 32, 2
PLAIN = ("plain loop, main process", "plain loop, 2 workers")
OURS = {
    "groundglass, EfficientNet-Lite0": "efficientnet-lite0",
    "groundglass, Mask-EfficientNet-Lite0": "mask-efficientnet",
}
RATIO_GOAL, DATA_GOAL, MEMORY_GOAL = 2.0, 0.10, 4.0


@dataclass(frozen=True)
class Measured:
    """One training, its first epoch left out.

    Attributes:
        images_per_second: of training, median over the epochs.
        data_share: share of training time spent waiting for data, median over the epochs.
        epoch_seconds: an epoch with its validation, median over the epochs.
        peak_gib: largest resident memory of the training process (of workers: the largest, where larger).
        system_share: share of processor time spent in the kernel, over the whole process.
    """

    images_per_second: float
    data_share: float
    epoch_seconds: float
    peak_gib: float
    system_share: float


@dataclass(frozen=True)
class Data:
    """What all trainings train on: the data set as groundglass takes it, and as lists of files.

    Attributes:
        path: for ``--data``.
        samples: JSON for the plain loop.
        counts: slices of train and val.
        name: of the data set.
        cold_seconds: to frame all slices the first time.
        cached_seconds: to take them from the cache.
        cache: folder of the cropped slices.
    """

    path: Path
    samples: Path
    counts: dict[str, int]
    name: str
    cold_seconds: float
    cached_seconds: float
    cache: Path


def main(
    data: Annotated[
        Path | None, typer.Option(help="COVID-CT or any data set of unpacked PNG or JPEG; otherwise phantoms.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of all trainings.")] = 5,
    epochs: Annotated[int, typer.Option(min=2, help="Epochs of each training; the first warms up.")] = 3,
    phantoms: Annotated[int, typer.Option(min=10, help="Phantoms to generate without --data.")] = 500,
    quick: Annotated[bool, typer.Option(help="A smoke test: one short round, no record unless --output.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder of the record.")] = None,
) -> None:
    """Compare training speed, data preparation and memory with a plain loop."""
    if quick:
        rounds, epochs, phantoms = 1, 2, 80
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepared = _prepare(data, phantoms, folder)
        measured: dict[str, list[Measured]] = {name: [] for name in (*PLAIN, *OURS)}
        for turn in range(rounds):
            order = [*measured][turn % len(measured) :] + [*measured][: turn % len(measured)]
            for name in order:
                measured[name].append(_train(name, prepared, epochs, folder / f"{turn}"))
                print(f"round {turn + 1} of {rounds}: {name}: {measured[name][-1]}", file=sys.stderr, flush=True)
    _report(measured, prepared, output or (None if quick else RESULTS))


def _prepare(data: Path | None, phantoms: int, folder: Path) -> Data:
    """Generate phantoms where no data is given, list the files, frame them into a cache."""
    if data is None:
        data = folder / "phantoms" / "manifest.csv"
        write_phantoms(data.parent, phantoms, (0.2, 0.8))
    manifest = load_dataset(data)
    split = make_split(manifest, "official")
    parts = {part: [manifest.records[index] for index in split.parts[part]] for part in ("train", "val")}
    samples = folder / "samples.json"
    samples.write_text(json.dumps({part: _listed(records) for part, records in parts.items()}), encoding="utf-8")
    cache = folder / "cache"
    return Data(
        data.resolve(),
        samples,
        {part: len(records) for part, records in parts.items()},
        manifest.name,
        _preprocessing_seconds(parts, cache),
        _preprocessing_seconds(parts, cache),
        cache,
    )


def _listed(records: Sequence[Record]) -> list[tuple[str, int]]:
    packed = next((record for record in records if not record.path.is_file()), None)
    if packed is not None:
        raise DataError(f"{packed.path}: the plain loop reads files only; unpack the zip files first")
    return [(str(record.path.resolve()), int(record.label is Label.COVID)) for record in records]


def _preprocessing_seconds(parts: dict[str, list[Record]], cache: Path) -> float:
    """What a training does before its first epoch: hash all files, frame them or take them from the cache."""
    cv2.setNumThreads(1)
    preprocessing = load_recipe("efficientnet-lite0", [f"preprocessing.size={SIZE}"]).preprocessing
    start = time.perf_counter()
    load_cropped(parts["train"], preprocessing, CONTEXT, cache)
    load_cropped(parts["val"], preprocessing, 0.0, cache)
    return time.perf_counter() - start


def _train(name: str, data: Data, epochs: int, folder: Path) -> Measured:
    folder.mkdir(exist_ok=True)
    rows = folder / "rows.json"
    if name in PLAIN:
        usage = _run(_plain_command(data, rows, 2 * PLAIN.index(name), epochs))
    else:
        usage = _run(_groundglass_command(OURS[name], data, folder / OURS[name], rows, epochs))
    counted = json.loads(rows.read_text(encoding="utf-8"))[1:]
    return Measured(
        statistics.median(row["images_per_second"] for row in counted),
        statistics.median(row["data_share"] for row in counted),
        statistics.median(row["seconds"] for row in counted),
        # Linux counts in KiB, macOS in bytes.
        usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30,
        usage.ru_stime / (usage.ru_utime + usage.ru_stime),
    )


def _plain_command(data: Data, rows: Path, workers: int, epochs: int) -> list[str]:
    script = Path(__file__).with_name("plain_loop.py")
    return [
        *(sys.executable, str(script), str(data.samples), str(rows)),
        *("--size", str(SIZE), "--batch-size", str(BATCH), "--threads", str(THREADS)),
        *("--workers", str(workers), "--epochs", str(epochs)),
    ]


def _groundglass_command(recipe: str, data: Data, run: Path, rows: Path, epochs: int) -> list[str]:
    settings = {
        "network.weights": "none",
        "preprocessing.size": SIZE,
        "training.epochs": epochs,
        "synthesis.slices_per_epoch": 0,
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return [
        *(sys.executable, str(Path(__file__).with_name("own_loop.py")), recipe, str(data.path), str(run)),
        *(str(rows), str(data.cache), "--batch-size", str(BATCH), "--threads", str(THREADS), *overrides),
    ]


def _run(command: list[str]) -> resource.struct_rusage:
    """Run a training to its end; what it and its children used."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(command)}\nended with status {process.returncode}:\n{said.read()}")
    return usage


def _report(measured: dict[str, list[Measured]], data: Data, output: Path | None) -> None:
    rounds = len(measured[PLAIN[0]])
    peer = [max(measured[name][turn].images_per_second for name in PLAIN) for turn in range(rounds)]
    ratios = {name: [one.images_per_second / peer[turn] for turn, one in enumerate(measured[name])] for name in OURS}
    goals = []
    for name in OURS:
        share = statistics.median(one.data_share for one in measured[name])
        memory = max(one.peak_gib for one in measured[name])
        goals += [
            Goal(
                f"{name}: times the plain loop's images per second", RATIO_GOAL, False, statistics.median(ratios[name])
            ),
            Goal(f"{name}: share of a step spent on data", DATA_GOAL, True, share),
            Goal(f"{name}: peak resident memory, GiB", MEMORY_GOAL, True, memory),
        ]
    what = f"{data.name}: {data.counts['train']} slices to train, {data.counts['val']} to validate"
    caching = [("first time", data.cold_seconds), ("from the cache", data.cached_seconds)]
    tables = [
        _ratio_table(ratios, rounds),
        _speed_table(measured, f"{what}; {SIZE} pixels, batches of {BATCH}, {THREADS} threads"),
        Table("Seconds to read and frame all slices, before the first epoch", ("", "seconds"), caching),
    ]
    as_json = {
        "data": {"name": data.name, **data.counts},
        "settings": {"size": SIZE, "batch_size": BATCH, "threads": THREADS},
        "preprocessing_seconds": {"first": data.cold_seconds, "cached": data.cached_seconds},
        "ratios": ratios,
        "trainings": {name: [asdict(one) for one in ones] for name, ones in measured.items()},
    }
    report("train_throughput", output, as_json, goals, tables)


def _ratio_table(ratios: dict[str, list[float]], rounds: int) -> Table:
    return Table(
        f"Images per second, times the faster plain loop of the same round; {rounds} rounds",
        ("training", "median", "min", "max"),
        [(name, statistics.median(each), min(each), max(each)) for name, each in ratios.items()],
    )


def _speed_table(measured: dict[str, list[Measured]], title: str) -> Table:
    rows = []
    for name, ones in measured.items():
        speeds = [one.images_per_second for one in ones]
        rows.append(
            (
                name,
                f"{statistics.median(speeds):.3g} ({min(speeds):.3g} to {max(speeds):.3g})",
                statistics.median(one.epoch_seconds for one in ones),
                statistics.median(one.data_share for one in ones),
                statistics.median(one.system_share for one in ones),
                max(one.peak_gib for one in ones),
            )
        )
    columns = ("training", "images/s (min to max)", "epoch, s", "data share", "kernel share", "peak GiB")
    return Table(title, columns, rows)


if __name__ == "__main__":
    typer.run(main)
