"""Lightning's trainer as every training here uses it: deterministic, resumable, quiet.

Tell glibc to keep the memory that training asks for again at every step.

What is written while a training runs: checkpoints that are whole or not there, and its history.

When, with what and where a training was made.
"""

from __future__ import annotations

import csv
import ctypes
import io
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from groundglass import __version__
from groundglass.errors import RunError
from groundglass.files import atomic_path, write_text

INFO, RECIPE, HISTORY, WEIGHTS, CHECKPOINTS = (
    "run.json",
    "recipe.yaml",
    "history.csv",
    "weights.safetensors",
    "checkpoints",
)

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_memory() -> bool:
    """Stop the allocator from returning large blocks to the system after each use.

    A training step allocates the same activations again and again; by default each is mapped, zeroed by the
    kernel and unmapped, which costs up to a third of a step on a CPU.

    Returns:
        Whether the allocator is glibc's and took the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 2))
    return bool(min(mallopt(parameter, value) for parameter, value in settings))


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


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of what a training's result depends on."""
    names = ("torch", "timm", "lightning", "numpy", "opencv-python-headless")
    return {
        "groundglass": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def machine() -> dict[str, str | int]:
    """The machine, in words that do not identify it."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 0,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


@dataclass(frozen=True)
class Hardware:
    """What a training runs on.

    Attributes:
        accelerator: ``cpu``, ``gpu`` or ``auto``, as Lightning names them.
        devices: processes (CPU) or accelerators per machine.
        nodes: machines.
    """

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1

    @property
    def processes(self) -> int:
        """Processes in all."""
        return self.devices * self.nodes


def prepare(threads: int) -> None:
    """Settings of the process: threads (0 for one per core), memory, and what Lightning says of itself."""
    # Lightning greets, advertises and lists hardware at this level; the command line speaks for itself.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(threads or os.cpu_count() or 1)
    cv2.setNumThreads(1)
    keep_memory()
    # Deterministic mode would fill every new tensor with NaN first, for code that reads what it never wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def make_trainer(
    output: Path,
    epochs: int,
    callbacks: Sequence[Callback],
    hardware: Hardware,
    *,
    gradient_clip: float,
    progress: bool,
) -> Trainer:
    """A trainer that keeps its newest checkpoint in ``output``.

    Args:
        output: folder of the run.
        epochs: in all.
        callbacks: whose state goes into the checkpoint.
        hardware: what it runs on.
        gradient_clip: largest norm of the gradient; 0 for any.
        progress: show a progress bar.
    """
    # The newest checkpoint, to resume from; it comes last, so that it holds the state of all other callbacks.
    newest = ModelCheckpoint(
        dirpath=output / CHECKPOINTS,
        filename="last",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    bar: list[Callback] = [RichProgressBar()] if progress else []
    several = hardware.processes > 1
    return Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy=DDPStrategy(broadcast_buffers=True) if several else "auto",
        max_epochs=epochs,
        gradient_clip_val=gradient_clip or None,
        logger=TensorBoardLogger(output, name="", version="tensorboard"),
        callbacks=[*callbacks, newest, *bar],
        plugins=[AtomicCheckpoints()],
        use_distributed_sampler=False,
        sync_batchnorm=several and hardware.accelerator == "gpu",
        deterministic=True,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_progress_bar=progress,
        enable_model_summary=False,
    )


def fit(
    trainer: Trainer,
    module: LightningModule,
    training: DataLoader[Any],
    validation: DataLoader[Any] | None,
    *,
    resume: bool,
) -> None:
    """Train to the end, from the newest checkpoint where ``resume`` says so and there is one.

    Raises:
        RunError: the training was interrupted, or the checkpoint is damaged.
    """
    output = Path(trainer.loggers[0].save_dir or ".")
    last = output / CHECKPOINTS / "last.ckpt"
    with warnings.catch_warnings():
        # Data preparation costs a few per cent of a step; worker processes would cost determinism and memory.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
        warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
        trainer.fit(
            module,
            training,
            validation,
            ckpt_path=last if resume and last.exists() else None,
            weights_only=True,
        )
    if trainer.interrupted:
        raise RunError(f"{output}: training was interrupted; go on with --resume")
