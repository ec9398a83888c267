"""What every training here shares: Lightning's trainer, deterministic and resumable, and the folder of a run."""

from __future__ import annotations

import csv
import ctypes
import io
import json
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
import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from groundglass import __version__
from groundglass.errors import RunError
from groundglass.files import atomic_path, usable_cores, write_json, write_text
from groundglass.training.recipe import PretrainRecipe, Recipe

INFO, RECIPE, HISTORY, WEIGHTS = "run.json", "recipe.yaml", "history.csv", "weights.safetensors"
CHECKPOINTS = "checkpoints"
RUN_FORMAT = 2
"""Version of a run's folder, in ``run.json``; raised whenever older folders cannot be read any more."""

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
"""Of ``history.csv``."""


# Data preparation costs a few per cent of a step, and worker processes would cost determinism and memory; the
# averaged network stays in evaluation mode; a resumed run's folder is not empty.
_EXPECTED_WARNINGS = (
    ".*does not have many workers.*",
    ".*in eval mode at the start of training.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*Checkpoint directory .* exists and is not empty.*",
)


@dataclass(frozen=True)
class FitSettings:
    """Where, how long and on what a network is trained.

    Attributes:
        output: folder of the run.
        epochs: in all.
        gradient_clip: largest norm of the gradient; 0 for any.
        accelerator: ``cpu``, ``gpu`` or ``auto``, as Lightning names them.
        devices: processes (CPU) or accelerators per machine.
        nodes: machines.
        resume: continue from the newest checkpoint.
        progress: show a progress bar.
    """

    output: Path
    epochs: int
    gradient_clip: float
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    resume: bool = False
    progress: bool = True


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

    The rows live in the checkpoint, so that after a kill and a resume each epoch appears once.
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

    @property
    def seconds(self) -> float:
        """Of all epochs, to a tenth."""
        return round(sum(row["seconds"] for row in self.rows), 1)

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
        """Add the epoch's row and write the file; a column that a row lacks stays empty."""
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
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in self.rows)
            write_text(self.path, text.getvalue())


def read_history(path: Path) -> list[dict[str, float]]:
    """The rows of a ``history.csv``; empty where there is none."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [
            {key: float(value) for key, value in row.items() if value != ""} for row in csv.DictReader(stream)
        ]


def read_info(folder: Path) -> dict[str, Any]:
    """Content of a run's ``run.json``.

    Raises:
        RunError: there is none, it is damaged, or of another format.
    """
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(
            f"{folder}: no run here ({INFO} is missing); train one with `groundglass train`"
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(f"{folder}: damaged run ({error})") from None
    written = info.get("format", 1) if isinstance(info, dict) else None
    if written != RUN_FORMAT:
        raise RunError(
            f"{folder}: a run of format {written}, this version of groundglass reads {RUN_FORMAT}; train it again"
        )
    return dict(info)


def read_recipe(folder: Path) -> dict[str, Any]:
    """The unchecked fields of a run's ``recipe.yaml``.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        return dict(yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"{folder}: damaged run ({' '.join(str(error).split())})") from None


def begin_run(output: Path, recipe: Recipe | PretrainRecipe, facts: Mapping[str, Any], resume: bool) -> None:
    """Create a run's folder, or check that it holds the same job.

    Args:
        output: the folder.
        recipe: that is trained.
        facts: what ``run.json`` says of the job.
        resume: accept a folder that holds the same job.

    Raises:
        RunError: the folder holds anything else.
    """
    if (output / INFO).exists():
        if not resume:
            raise RunError(
                f"{output}: holds a run already; continue it with --resume or choose another --output"
            )
        check_same(output, recipe, facts)
    elif output.exists() and any(output.iterdir()):
        raise RunError(f"{output}: is not empty and holds no run; choose another --output")
    write_text(output / RECIPE, recipe.to_yaml())
    made = {"started": now(), "versions": versions(), "machine": _machine()}
    write_json(output / INFO, {"format": RUN_FORMAT, "finished": False, **facts, **made})


def check_same(output: Path, recipe: Recipe | PretrainRecipe, facts: Mapping[str, Any]) -> None:
    """Refuse to continue a run that was begun with another seed, split, recipe or other slices.

    Raises:
        RunError: it was.
    """
    before = read_info(output)
    for key in ("seed", "split", "fingerprint"):
        if key in facts and before.get(key) != facts[key]:
            raise RunError(
                f"{output}: cannot resume, {key} was {before.get(key)}, is {facts[key]}; "
                "choose another --output"
            )
    if read_recipe(output) != yaml.safe_load(recipe.to_yaml()):
        raise RunError(f"{output}: cannot resume, the recipe has changed; choose another --output")


def finish_run(output: Path, facts: Mapping[str, Any]) -> None:
    """Say in ``run.json`` that the run is finished, when, and ``facts``."""
    write_json(output / INFO, {**read_info(output), "finished": True, "ended": now(), **facts})


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, atomically."""
    with atomic_path(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, temporary)


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


def _machine() -> dict[str, str | int]:
    """The machine, in words that do not identify it."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 0,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def prepare(threads: int) -> None:
    """Settings of the process: threads (0 for one per core), memory, and what Lightning says of itself."""
    # Lightning greets, advertises and lists hardware at this level; the command line speaks for itself.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(threads or usable_cores())
    cv2.setNumThreads(1)
    _keep_memory()
    # Deterministic mode would fill every new tensor with NaN first, for code that reads what it never wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _keep_memory() -> None:
    """Stop glibc's allocator from returning large blocks to the system after each use.

    A training step allocates the same activations again and again; by default each is mapped, zeroed by the
    kernel and unmapped, which costs up to a third of a step on a CPU.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    # M_MMAP_MAX, M_TRIM_THRESHOLD and M_ARENA_MAX of mallopt(3).
    for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-8, 2)):
        mallopt(parameter, value)


def fit(
    module: LightningModule,
    training: DataLoader[Any],
    validation: DataLoader[Any] | None,
    callbacks: Sequence[Callback],
    settings: FitSettings,
) -> bool:
    """Train to the end, from the newest checkpoint where the settings say so and there is one.

    Args:
        module: what is trained.
        training: batches of one epoch.
        validation: batches, or None.
        callbacks: whose state goes into the checkpoint.
        settings: where and on what.

    Returns:
        Whether this process is the first of all.

    Raises:
        RunError: the training was interrupted, or the checkpoint is damaged.
    """
    checkpoints = settings.output / CHECKPOINTS
    # The newest checkpoint, to resume from; it comes last, so that it holds the state of all other callbacks.
    newest = ModelCheckpoint(
        checkpoints, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    several = settings.devices * settings.nodes > 1
    trainer = Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=DDPStrategy(broadcast_buffers=True) if several else "auto",
        max_epochs=settings.epochs,
        gradient_clip_val=settings.gradient_clip or None,
        logger=TensorBoardLogger(settings.output, name="", version="tensorboard"),
        callbacks=[*callbacks, newest, *([RichProgressBar()] if settings.progress else [])],
        plugins=[AtomicCheckpoints()],
        use_distributed_sampler=False,
        sync_batchnorm=several and settings.accelerator == "gpu",
        deterministic=True,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_progress_bar=settings.progress,
        enable_model_summary=False,
    )
    last = checkpoints / "last.ckpt"
    resumed = last if settings.resume and last.exists() else None
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        trainer.fit(module, training, validation, ckpt_path=resumed, weights_only=True)
    if trainer.interrupted:
        raise RunError(f"{settings.output}: training was interrupted; continue it with --resume")
    return bool(trainer.is_global_zero)
