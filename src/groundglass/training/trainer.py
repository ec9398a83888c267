"""What every training here shares: the job, its folder, and Lightning's trainer, deterministic and resumable."""

from __future__ import annotations

import csv
import ctypes
import io
import logging
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic

import cv2
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]
from timm.optim import create_optimizer_v2, list_optimizers  # type: ignore[attr-defined]
from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.utils.data import DataLoader

from groundglass.errors import RecipeError, RunError
from groundglass.evaluation.metrics import now, versions
from groundglass.files import atomic_path, locked, one_line, printable, usable_cores, write_json, write_text
from groundglass.models.catalogue import entries
from groundglass.reporting.figures import svg
from groundglass.training.recipe import AnyRecipe_co, BaseRecipe
from groundglass.training.run import FORMAT, HISTORY, INFO, RECIPE, WEIGHTS, learning_curves, read_info, read_recipe
from groundglass.training.samples import cache_folder

CHECKPOINTS, CURVES = "checkpoints", "curves.svg"
PACKAGES = ("torch", "timm", "lightning", "numpy", "opencv-python-headless")
"""What a training's result depends on."""

_MEASURES = ("train_loss", "val_loss", "val_auc", "val_accuracy", "val_dice")
_COLUMNS = ("epoch", "lr", *_MEASURES, "seconds")

# Data preparation costs a few per cent of a step, and worker processes would cost determinism and memory; the
# averaged network stays in evaluation mode; a resumed run's folder is not empty.
_EXPECTED_WARNINGS = (
    ".*does not have many workers.*",
    ".*in eval mode at the start of training.*",
    ".*no `val_dataloader`.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*Checkpoint directory .* exists and is not empty.*",
)


class Scheduled(LightningModule):
    """Learns by the optimiser and the schedule that a recipe names, from ``steps_per_epoch`` batches an epoch."""

    def __init__(self, recipe: BaseRecipe, steps_per_epoch: int, seed: int) -> None:
        super().__init__()
        self.recipe, self.steps_per_epoch, self.seed = recipe, steps_per_epoch, seed

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed torch's generator, from which dropout draws, by the step, so that a resumed training repeats it."""
        entropy = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def configure_optimizers(self) -> Any:
        """Timm's optimiser of what asks for gradients, without decay on biases and norms; its schedule, by the step."""
        section, trainer = self.recipe.optimiser, self.recipe.trainer
        # A fused step would divide by the loss's scale itself, after the gradients were clipped.
        fused = {"fused": True} if section.name == "adamw" and trainer.precision != "16-mixed" else {}
        options = fused | section.options
        optimiser = create_optimizer_v2(self, section.name, section.lr, section.weight_decay, **options)
        per_epoch = -(-self.steps_per_epoch // trainer.accumulate_grad_batches)
        rise = round(section.warmup_epochs * per_epoch)
        after = max(1, per_epoch * self.recipe.training.epochs - rise)
        epochs: Any = {"num_epochs": after / per_epoch, "warmup_epochs": rise / per_epoch}
        schedule, _ = create_scheduler_v2(
            optimiser,
            section.schedule,
            **epochs,
            warmup_lr=section.lr / (rise + 1),
            min_lr=section.lr * section.final_lr_share,
            warmup_prefix=True,
            step_on_epochs=False,
            updates_per_epoch=per_epoch,
            **section.schedule_options,
        )
        scheduled = {"lr_scheduler": {"scheduler": schedule, "interval": "step"}} if schedule else {}
        return {"optimizer": optimiser, **scheduled}

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, *_: Any, **__: Any) -> None:
        """Clip by the norm; Lightning refuses to for a fused optimiser in mixed precision, scaled or not."""
        if gradient_clip_val:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def log_loss(self, loss: Tensor, count: int) -> None:
        """Show a step's loss over so many slices; its mean is the epoch's."""
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=count)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """As timm's schedules are stepped."""
        scheduler.step_update(num_updates=self.global_step)


class Averaging(Scheduled):
    """Keeps an exponential moving average of a network's weights, which is what is evaluated.

    ``decay`` is that of the average; its memory grows with the steps seen, n / (n + 9), up to this.
    """

    def __init__(self, network: nn.Module, recipe: BaseRecipe, steps_per_epoch: int, seed: int, decay: float) -> None:
        super().__init__(recipe, steps_per_epoch, seed)
        self.network = network.to(memory_format=torch.channels_last)
        memory: Any = {"use_warmup": True, "warmup_gamma": 9.0, "warmup_power": 1.0}
        self.averaged = ModelEmaV3(network, decay, **memory).requires_grad_(False)

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        """Take a step, and move the averaged weights towards the trained ones."""
        super().optimizer_step(*arguments, **named)
        self.averaged.update(self.network, step=self.global_step + 1)


class AtomicCheckpoints(TorchCheckpointIO):
    """Checkpoints appear whole or not at all, and are read without pickle."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write; a RunError where that fails, as on a full disk."""
        try:
            with atomic_path(Path(path)) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:
            reason = one_line(str(error).splitlines()[0])
            raise RunError(f"{path}: cannot be written ({reason}); make room, then use --resume") from None

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain values only, whatever the caller asks for; a RunError for a damaged file."""
        try:
            return dict(torch.load(path, map_location=map_location or "cpu", weights_only=True))
        except Exception as error:  # noqa: BLE001 - torch raises many types for a damaged file
            what = f"damaged checkpoint ({type(error).__name__})"
            raise RunError(f"{path}: {what}; remove it to start anew") from None


class History(Callback):
    """One row per epoch, written to ``history.csv``.

    The rows live in the checkpoint, so that after a kill and a resume each epoch appears once.
    """

    def __init__(self, path: Path, batches: Any = None) -> None:
        self.path, self._start, self._batches = path, 0.0, batches
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows of the checkpoint."""
        self.rows = list(state_dict["rows"])
        # Workers draw the next epoch's batches before Lightning says which one it is.
        self._batches.set_epoch(len(self.rows))

    def on_train_epoch_start(self, *_: object) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch's row and write the file; a column that a row lacks stays empty."""
        self.rows.append(
            {
                "epoch": trainer.current_epoch,
                "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
                **{key: float(value) for key, value in trainer.callback_metrics.items() if key in _MEASURES},
                "seconds": time.perf_counter() - self._start,
            }
        )
        if trainer.is_global_zero:
            text = io.StringIO()
            # A checkpoint may be older, and know columns that are none any more.
            writer = csv.DictWriter(text, _COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: f"{value:.6g}" for key, value in row.items()} for row in self.rows)
            write_text(self.path, text.getvalue())


def check_writable(path: Path, option: str) -> None:
    """Refuse by a RunError a path at which nothing can be written, without leaving anything there."""
    try:
        with tempfile.TemporaryFile(dir=_existing(path)) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}); choose another {option}") from None


def _existing(path: Path) -> Path:
    """The innermost folder around a path that is there."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, atomically; a RunError where that fails, as on a full disk."""
    try:
        with atomic_path(path) as temporary:
            # Copies: tied weights share memory, which the format has no way to say.
            copies = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
            save_file(copies, temporary)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: cannot be written ({one_line(str(error))}); make room, then use --resume") from None


@dataclass(frozen=True)
class Job(Generic[AnyRecipe_co]):
    """One training or pretraining."""

    recipe: AnyRecipe_co  # what is trained and how
    data: tuple[Path, ...]  # COVID-CT, folders or manifests; of these a pretraining uses the training part
    split: str  # which slices train and which validate; see :func:`groundglass.data.splits.make_split`
    seed: int  # of everything random
    output: Path  # the run's folder
    lesion_free: Path | None = None  # lesion-free slices to paint into
    images: tuple[Path, ...] = ()  # files and folders of slices without labels, for a pretraining
    allow_overlap: bool = False  # accept patients who are in several parts of the split
    resume: bool = False  # continue where an earlier start of the same job was stopped
    devices: int | None = None  # processes or GPUs per machine; None for the recipe's
    nodes: int = 1  # machines
    threads: int = 0  # CPU threads per process; 0 for one per core
    accelerator: str = "auto"  # cpu, gpu or auto, as Lightning names them
    cache: Path | None = None  # folder for cropped slices
    lungs: Path | None = None  # ONNX model of the lung fields; None for the shipped one
    progress: bool = True  # show a progress bar
    callbacks: tuple[Callback, ...] = ()  # Lightning's or your own; their state goes into the checkpoint
    loggers: tuple[Logger, ...] | None = None  # Lightning's or your own, in place of the recipe's
    map_label: tuple[str, ...] = ()  # labels of other names in the data, such as CAP=NonCOVID

    @property
    def processes(self) -> int:
        """On all machines together."""
        return self.nodes * (self.recipe.trainer.devices if self.devices is None else self.devices)

    @property
    def is_finished(self) -> bool:
        """Whether its folder holds the finished run of the same job, to be resumed: a RunError where of another."""
        if not (self.resume and (self.output / INFO).exists() and read_info(self.output).get("finished")):
            return False
        named = {"data": self.data, **({"images": self.images} if self.images else {})}
        self.check_same(**{key: [printable(path.resolve().name) for path in paths] for key, paths in named.items()})
        return True

    @property
    def rank(self) -> int:
        """This process's number among all, as torchrun or Lightning set it; the first has none set."""
        names = ("RANK",) if "RANK" in os.environ else ("NODE_RANK", "LOCAL_RANK")
        *node, local = (int(os.environ.get(name, "0")) for name in names)
        return sum(node) * self.processes // self.nodes + local

    def prepare(self, network: nn.Module) -> None:
        """Check what can be checked before slices are read; set threads, memory, and what Lightning says of itself.

        Raises:
            RecipeError, RunError: folder, disk or machine do not fit.
        """
        batch = self.recipe.training.batch_size
        if self.processes < 1 or batch % self.processes:
            shared = f"cannot be shared by {self.processes} processes"
            raise RecipeError(f"training.batch_size={batch} {shared}; choose a multiple")
        # Lightning greets, advertises and lists hardware at this level; the command line speaks for itself.
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        if self.rank == 0:
            self._check_folder(network)
            self._check_machine(network)
        torch.set_num_threads(self.threads or usable_cores())
        cv2.setNumThreads(1)
        if sys.platform.startswith("linux"):
            # A step allocates the same activations again and again. By default glibc maps each, the kernel zeroes
            # it, and it is unmapped, which costs up to a third of a step on a CPU: M_MMAP_MAX, M_TRIM_THRESHOLD
            # and M_ARENA_MAX of mallopt(3) stop that.
            with suppress(OSError, AttributeError):
                mallopt = ctypes.CDLL("libc.so.6").mallopt
                for parameter, value in ((-4, 0), (-1, 2**31 - 1), (-8, 2)):
                    mallopt(parameter, value)
        # Deterministic mode would fill every new tensor with NaN first, for code that reads what it never wrote.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def _check_folder(self, network: nn.Module) -> None:
        """Refuse a folder that holds anything but the same job, to be resumed, or that cannot be written."""
        output = self.output
        check_writable(output, "--output")
        check_writable(self.cache or cache_folder(), "--cache")
        if (output / INFO).exists():
            if not self.resume:
                advice = "continue it with --resume or choose another --output"
                raise RunError(f"{output}: holds a run already; {advice}")
            self.check_same()
        # A start that was killed between its first two files has begun nothing.
        elif output.exists() and any(each.name != RECIPE and each.name[0] != "." for each in output.iterdir()):
            raise RunError(f"{output}: is not empty and holds no run; choose another --output")
        free = shutil.disk_usage(_existing(output)).free
        # Weights, their average and two moments of the optimiser, twice, as a checkpoint is written beside the one that
        # it replaces; the best epoch's; the weights at the end.
        needed = 12 * sum(each.numel() * each.element_size() for each in network.parameters())
        if free < needed:
            room = f"{free / 1e6:.0f} MB are free and its checkpoints need {needed / 1e6:.0f}"
            raise RunError(f"{output}: {room}; make room, or choose another --output")

    def _check_machine(self, network: nn.Module) -> None:
        """Refuse accelerators, loggers and optimisers that are not there, and a precision that needs another."""
        has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
        if self.recipe.trainer.precision == "16-mixed" and not has_gpu:
            raise RecipeError("trainer.precision=16-mixed: needs a GPU, which is not here; bf16-mixed does not")
        for package in {"wandb", "mlflow"}.intersection(self.recipe.trainer.loggers):
            if find_spec(package) is None:
                raise RecipeError(f"trainer.loggers: {package} is not installed; `pip install {package}`")
        if (name := self.recipe.optimiser.name) not in list_optimizers():
            near = ", ".join(get_close_matches(name, map(str, list_optimizers()), 3)) or "adamw, sgd, lion"
            raise RecipeError(f"optimiser.name={name}: timm has no such optimiser; it has {near} and others")
        module, section = Scheduled(self.recipe, 1000, self.seed), self.recipe.optimiser
        module.network = network
        try:
            module.configure_optimizers()
        except (AssertionError, TypeError, ValueError) as error:
            given = f"optimiser.options={section.options}, optimiser.schedule_options={section.schedule_options}"
            raise RecipeError(f"{given}: {one_line(str(error))}") from None
        try:
            Trainer(**self._place(), logger=False, enable_checkpointing=False, enable_progress_bar=False)
        except (MisconfigurationException, ValueError, RuntimeError, ImportError) as error:
            asked = f"--accelerator {self.accelerator} --devices {self.processes // self.nodes}"
            raise RunError(f"{asked}: not on this machine ({one_line(str(error), 200)})") from None

    def _place(self) -> dict[str, Any]:
        """Lightning's arguments that say where a job is trained."""
        # Networks that are not of the catalogue may have layers that are not used.
        unused = self.recipe.network.name not in {entry.name for entry in entries()}
        several = DDPStrategy(broadcast_buffers=True, find_unused_parameters=unused)
        return {
            "accelerator": self.accelerator,
            "devices": self.processes // self.nodes,
            "num_nodes": self.nodes,
            "strategy": several if self.processes > 1 else "auto",
        }

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Create the folder, or check that it holds the same slices where it is to be resumed; a RunError where not.

        Of ``facts``, which ``run.json`` repeats, ``fingerprint`` is one hash of all slices that decide the result, and
        ``labels``, where it is there, of what is said of them.
        """
        if (self.output / INFO).exists():
            self.check_same(**{key: facts[key] for key in ("fingerprint", "labels") if key in facts})
        write_text(self.output / RECIPE, self.recipe.to_yaml())
        gpu = self.accelerator != "cpu" and torch.cuda.is_available()
        document = {
            "format": FORMAT,
            "finished": False,
            "recipe": self.recipe.name,
            "network": self.recipe.network.name,
            "seed": self.seed,
            "split": self.split if self.data else None,
            "data": [printable(path.resolve().name) for path in self.data],
            **facts,
            "started": now(),
            "versions": versions(*PACKAGES),
            # In words that do not identify it.
            "machine": {
                "system": platform.system(),
                "architecture": platform.machine(),
                "cores": os.cpu_count() or 0,
                "accelerator": torch.cuda.get_device_name() if gpu else "none",
            },
        }
        write_json(self.output / INFO, document)

    def check_same(self, **facts: Any) -> None:
        """Refuse by a RunError a run that was begun with another seed, split, recipe or other ``facts``."""
        before, cannot = read_info(self.output), f"{self.output}: cannot resume"
        asked = {"seed": self.seed, "split": self.split if self.data else None, **facts}
        for key, value in asked.items():
            if before.get(key, value) != value:
                raise RunError(f"{cannot}, {key} was {before.get(key)}, is {value}; choose another --output")
        with suppress(ValidationError):
            # Checked, so that fields which are newer than the run have their defaults.
            if type(self.recipe).model_validate(read_recipe(self.output)).deciding == self.recipe.deciding:
                return
        raise RunError(f"{cannot}, the recipe has changed; choose another --output")

    def fit(
        self,
        module: LightningModule,
        training: DataLoader[Any],
        validation: DataLoader[Any] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> History:
        """Train to the end, from the newest checkpoint where the job is to be resumed and there is one.

        Raises:
            RunError: the checkpoint is damaged, the disk is full, or another process trains in the folder.
            KeyboardInterrupt: the training was interrupted from the keyboard.
        """
        folder, section = self.output / CHECKPOINTS, self.recipe.trainer
        history = History(self.output / HISTORY, training.sampler)
        loggers = self._made_loggers()
        for logger in loggers:
            logger.log_hyperparams(self.recipe.model_dump(mode="json"))
        shown: list[Callback] = [RichProgressBar()] if self.progress else []
        if loggers:
            shown.append(LearningRateMonitor("epoch"))
        # The newest checkpoint, to resume from; it comes last, so that it holds the state of all other callbacks.
        newest = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        if self.processes > 1 and self.accelerator != "cpu" and torch.cuda.is_available():
            # Timm's: PyTorch's drops the activations that are part of timm's normalisations.
            convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        trainer = Trainer(
            **self._place(),
            max_epochs=self.recipe.training.epochs,
            gradient_clip_val=self.recipe.optimiser.gradient_clip or None,
            precision=section.precision,
            accumulate_grad_batches=section.accumulate_grad_batches,
            logger=loggers,
            callbacks=[history, *callbacks, *self.callbacks, *shown, newest],
            plugins=[AtomicCheckpoints()],
            use_distributed_sampler=False,
            deterministic=True,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            enable_progress_bar=self.progress,
            enable_model_summary=False,
        )
        last = folder / "last.ckpt"
        resumed = last if self.resume and last.exists() else None
        with self._alone(), warnings.catch_warnings():
            for message in _EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message)
            try:
                trainer.fit(module, training, validation, ckpt_path=resumed, weights_only=True)
            except SystemExit:
                # How Lightning ends an interrupted process, deaf to further interrupts.
                signal.signal(signal.SIGINT, signal.default_int_handler)
                raise KeyboardInterrupt from None
            except OSError as error:
                reason = f"cannot be written ({error.strerror or error}); make room, then use --resume"
                raise RunError(f"{error.filename or self.output}: {reason}") from None
        return history

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """A block in which no other process trains in the folder, as far as its file system has locks."""
        with ExitStack() as lock:
            try:
                if self.rank == 0:
                    lock.enter_context(locked(self.output))
            except BlockingIOError:
                busy = "another process trains in it; wait until it has ended, or choose another --output"
                raise RunError(f"{self.output}: {busy}") from None
            except (OSError, ModuleNotFoundError):
                pass
            yield

    def _made_loggers(self) -> list[Logger]:
        if self.loggers is not None:
            return list(self.loggers)
        made: Mapping[str, Callable[[], Logger]] = {
            "tensorboard": lambda: TensorBoardLogger(self.output, name="tensorboard", version=""),
            "wandb": lambda: WandbLogger(name=self.output.name, save_dir=self.output, project="groundglass"),
            "mlflow": lambda: MLFlowLogger("groundglass", self.output.name),
        }
        return [made[name]() for name in self.recipe.trainer.loggers]

    def finish(self, history: History, weights: Mapping[str, Tensor], selected: int | None = None) -> None:
        """Write a run's weights, those of the epoch ``selected`` or the last, its curves, and that it is finished."""
        save_weights(weights, self.output / WEIGHTS)
        facts = {
            "finished": True,
            "ended": now(),
            "selected_epoch": len(history.rows) - 1 if selected is None else selected,
            "training_seconds": round(sum(row["seconds"] for row in history.rows), 1),
            "threads": torch.get_num_threads(),
            "processes": self.processes,
        }
        write_text(self.output / CURVES, svg(learning_curves(history.rows)))
        write_json(self.output / INFO, read_info(self.output) | facts)
