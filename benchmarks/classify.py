"""Predictions of a list of files by groundglass, timed in a process of its own; what ``predict.py`` measures."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from groundglass.inference.bundle import Bundle
from groundglass.inference.classifier import Classifier
from groundglass.inference.prediction import Status


def main() -> None:
    """Classify as told on the command line and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, help="JSON: a list of paths")
    parser.add_argument("output", type=Path, help="JSON with the figures")
    parser.add_argument("--bundle", type=Path)
    options = parser.parse_args()

    bundle = Bundle.open(options.bundle)  # the self-test warms up
    classifier = Classifier(bundle)
    paths = json.loads(options.files.read_text(encoding="utf-8"))
    start = time.perf_counter()
    predictions = list(classifier.predict_all(paths))
    seconds = time.perf_counter() - start
    row = {
        "seconds": seconds,
        "slices": len(predictions),
        "classified": sum(prediction.status is Status.OK for prediction in predictions),
        "size": bundle.info.preprocessing.size,
        "bundle": bundle.id,
        "precision": bundle.info.precision,
    }
    options.output.write_text(json.dumps(row), encoding="utf-8")


if __name__ == "__main__":
    main()
