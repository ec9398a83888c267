"""What is written while a training runs: checkpoints that are whole or not there, and its history."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from groundglass.atomic import atomic_path, write_text
from groundglass.errors import RunError

COLUMNS = (
    "epoch",
    "lr",
    "train_loss",
    "val_loss",
    "val_auc",
    "val_accuracy",
    "seconds",
    "images_per_second",
    "data_share",
)


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints appear whole or not at all, and are read without pickle."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write to a temporary file beside ``path`` that then takes its place."""
        with atomic_path(Path(path)) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain values only, whatever the caller asks for.

        Raises:
            RunError: the file is damaged or holds anything else.
        """
        try:
            return dict(torch.load(path, map_location=map_location or "cpu", weights_only=True))
        except Exception as error:  # noqa: BLE001 - torch raises many types for a damaged file
            raise RunError(
                f"{path}: damaged checkpoint ({type(error).__name__}); remove it to start anew"
            ) from None


class History(Callback):
    """One row per epoch, kept in the checkpoint and written to ``history.csv``.

    The rows live in the checkpoint, so that after a kill and a resume each epoch stands there once.
    ``data_share`` is the share of the epoch's training time spent waiting for data.

    Args:
        path: of the CSV file.
        samples: images of one epoch.
    """

    def __init__(self, path: Path, samples: int) -> None:
        self.path = path
        self.samples = samples
        self.rows: list[dict[str, float]] = []
        self._epoch_start = self._batch_end = self._waited = self._trained = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows of the checkpoint."""
        self.rows = list(state_dict["rows"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._epoch_start = self._batch_end = time.perf_counter()
        self._waited = self._trained = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Time since the last batch ended was spent preparing this one."""
        self._waited += time.perf_counter() - self._batch_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note when the batch ended."""
        self._batch_end = time.perf_counter()
        self._trained = self._batch_end - self._epoch_start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch's row and write the file."""
        measured = {key: float(value) for key, value in trainer.callback_metrics.items() if key in COLUMNS}
        self.rows.append(
            {
                "epoch": trainer.current_epoch,
                "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
                **measured,
                "seconds": time.perf_counter() - self._epoch_start,
                "images_per_second": self.samples / self._trained,
                "data_share": self._waited / self._trained,
            }
        )
        if trainer.is_global_zero:
            write_history(self.path, self.rows)


def write_history(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write rows of :data:`COLUMNS` as CSV; a column that a row lacks stays empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def read_history(path: Path) -> list[dict[str, float]]:
    """The rows of a ``history.csv``; empty where there is none."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            {key: float(value) for key, value in row.items() if value != ""} for row in csv.DictReader(stream)
        ]
