"""All of Table I from slices made small once; on a GPU a matter of minutes.

    python results/table1.py small covid-ct covid-ct-224       # anywhere: a folder that can be copied to the GPU
    python results/table1.py train covid-ct-224                # learning rates by validation, then every row
    python results/table1.py file-format covid-ct              # what the files' format alone scores, same protocols

``train`` takes the options below, and is resumed by the same command. Where no hub can be reached, name networks
whose weights can be had: ``--networks mask-efficientnet-lite0 efficientnet-lite0``.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
from sklearn.linear_model import LogisticRegression

from groundglass.audit.shortcuts import shortcut_features
from groundglass.data.load import load_dataset
from groundglass.data.manifest import Manifest, read_pixels, read_record, write_manifest
from groundglass.data.splits import make_split
from groundglass.evaluation.bootstrap import Resampling
from groundglass.experiments.plan import NETWORKS, convergence_tasks, protocol_splits, table1_tasks
from groundglass.experiments.results import PROTOCOLS, read_run_result
from groundglass.experiments.runner import ExperimentPaths, run_all
from groundglass.experiments.tables import render_rows
from groundglass.files import write_bytes, write_json
from groundglass.imaging.crop import resize_box

SIZE = 224
FIRST_DRAW = "random:1/5:0"


def small(options: argparse.Namespace) -> None:
    """Write every slice as the paper's recipe sees it, and a manifest that keeps patients, sources and parts."""
    data, records = load_dataset(options.data), []
    for number, record in enumerate(data):
        pixels = read_pixels(record)
        squeezed = resize_box(pixels, (0, 0, pixels.shape[1], pixels.shape[0]), SIZE)
        path = options.folder / f"{number:04}.png"
        write_bytes(path, cv2.imencode(".png", squeezed)[1].tobytes())
        records.append(replace(record, path=path, lung_mask=None, lesion_mask=None, unit=""))
    write_manifest(Manifest(data.name, options.folder, tuple(records)), options.folder / "manifest.csv")


def train(options: argparse.Namespace) -> None:
    """Train every network with every rate on the first draw, choose by validation, train and test all rows."""
    tested, output, tasks = options.protocols, options.output, []
    manifest = options.data / "manifest.csv"
    paths = ExperimentPaths(
        (manifest if manifest.exists() else options.data,), options.runs / "table1", output, threads=options.threads
    )
    for network in options.networks:
        found = {}
        for rate in options.rates:
            own = [f"optimiser.lr={rate}", *options.set]
            (task,) = convergence_tasks([network], [options.weights], [0], own, split=FIRST_DRAW)
            where = replace(paths, runs=options.runs / "rates" / rate, output=output / "rates" / rate)
            run_all([task], where, print)
            if where.result(task).exists():
                last = read_run_result(where.result(task)).history[-1]
                found[rate] = last["val_auc"], -last["val_loss"]
        if found:
            own = [f"optimiser.lr={max(found, key=lambda rate: found[rate])}", *options.set]
            tasks += table1_tasks(tested, [network], [options.weights], options.seeds, own)
    run_all(tasks, paths, print)
    render_rows(output)


def file_format(options: argparse.Namespace) -> None:
    """Fit a rule on format, pixel mode and suffix alone to each training part, and evaluate it as networks are."""
    data = load_dataset(options.data)
    formats = np.array([shortcut_features(record, read_record(record)).file_format for record in data])
    seen = (formats[:, None] == np.unique(formats)).astype(np.float64)
    label = np.array([record.label_name == "COVID" for record in data], np.int8)
    patient = np.array([record.patient_id for record in data])
    measured = {}
    for protocol in PROTOCOLS:
        probability, tested = np.zeros(len(data)), []
        for split in protocol_splits(protocol).values():
            parts = make_split(data, split, allow_overlap=split.startswith("random"))
            learnt, held = (np.array(parts.part(part)) for part in ("train", "test"))
            rule = LogisticRegression(max_iter=2000).fit(seen[learnt], label[learnt])
            probability[held] = rule.predict_proba(seen[held])[:, 1]
            tested += [*held]
        found = Resampling(patient[tested]).measure(label[tested], probability[tested])
        metrics = {name: asdict(found.metrics[name]) for name in ("accuracy", "auc")}
        measured[protocol] = {"slices": len(tested), "patients": found.patients.count, "metrics": metrics}
    write_json(options.output / "file-format.json", measured)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for command in (small, train, file_format):
        own = commands.add_parser(command.__name__.replace("_", "-"), help=command.__doc__)
        own.set_defaults(command=command)
        own.add_argument("data", type=Path)
        own.add_argument("--output", type=Path, default=Path("results/table1"))
        if command is small:
            own.add_argument("folder", type=Path)
        if command is train:
            own.add_argument("--runs", type=Path, default=Path("runs"))
            own.add_argument("--networks", nargs="+", default=NETWORKS)
            own.add_argument("--weights", default="imagenet")
            own.add_argument("--rates", nargs="+", default=["1e-4", "3e-4", "1e-3"])
            own.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
            own.add_argument("--protocols", nargs="+", default=["random"])
            own.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
            own.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    options.command(options)


if __name__ == "__main__":
    main()
