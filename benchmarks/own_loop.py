"""A training by groundglass with a clock beside it, for ``train_throughput.py``."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from lightning.pytorch import Callback, Trainer

from groundglass.training.train import train


class Clock(Callback):
    """Notes of each epoch its images per second, and the share of its training spent waiting for data."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.rows = batch_size, list[dict[str, float]]()
        self._start = self._batch_end = self._waited = 0.0

    def on_train_epoch_start(self, *_: object) -> None:
        """Start the clock."""
        self._start = self._batch_end = time.perf_counter()
        self._waited = 0.0

    def on_train_batch_start(self, *_: object) -> None:
        """Time since the last batch ended was spent preparing this one."""
        self._waited += time.perf_counter() - self._batch_end

    def on_train_batch_end(self, *_: object) -> None:
        """Note when the batch ended."""
        self._batch_end = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, *_: object) -> None:
        """Add the epoch's row."""
        trained = self._batch_end - self._start
        images = self.batch_size * trainer.num_training_batches
        self.rows.append({"images_per_second": images / trained, "data_share": self._waited / trained})


def main() -> None:
    """Train, and write a row for each epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("recipe", "data", "run", "rows", "cache"):
        parser.add_argument(name)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--set", action="append")
    options = parser.parse_args()
    clock, overrides = Clock(options.batch_size), [*options.set, f"training.batch_size={options.batch_size}"]
    run = train(
        options.recipe, options.data, options.run, overrides=overrides, threads=options.threads,
        accelerator="cpu", cache=options.cache, callbacks=[clock],
    )  # fmt: skip
    rows = [own | {"seconds": row["seconds"]} for own, row in zip(clock.rows, run.history(), strict=True)]
    Path(options.rows).write_text(json.dumps(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
