"""Lightning's trainer as every training here uses it: deterministic, resumable, quiet."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from groundglass.errors import RunError
from groundglass.training.checkpoint import AtomicCheckpoints
from groundglass.training.memory import keep_memory
from groundglass.training.run import CHECKPOINTS


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
