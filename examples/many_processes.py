"""One series a process: python many_processes.py FOLDER FOLDER ... A classifier travels as its bundle's path."""

import sys
from concurrent.futures import ProcessPoolExecutor

import groundglass


def main() -> None:
    """Classify each folder."""
    classifier = groundglass.load(threads=1)
    with ProcessPoolExecutor(2) as pool:
        for folder, answer in zip(sys.argv[1:], pool.map(classifier.predict_series, sys.argv[1:]), strict=True):
            print(folder, answer.label, answer.series_score)


if __name__ == "__main__":
    main()
