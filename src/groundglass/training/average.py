"""The average of several runs' weights as a run of its own (Wortsman et al., Model soups, ICML 2022).

Networks that were fine-tuned from one start often lie in one valley of the loss, and the middle between them
may be as good as all of them asked together, at the price of one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader

from groundglass.atomic import write_json, write_text
from groundglass.errors import DataError, RunError
from groundglass.training.checkpoint import write_history
from groundglass.training.classify import validation_measures
from groundglass.training.job import Job, Material, load_material
from groundglass.training.provenance import machine, now, versions
from groundglass.training.run import (
    HISTORY,
    INFO,
    RECIPE,
    WEIGHTS,
    Run,
    build_network,
    judge,
    predict_framed,
)
from groundglass.training.train import job_facts, training_samples
from groundglass.training.trainer import prepare


@dataclass(frozen=True)
class Average:
    """What is asked for.

    Attributes:
        runs: finished, of one recipe, split and start, and of different seeds.
        data: the data set they were trained on.
        output: folder of the new run.
        lesion_free: folder of lesion-free slices, where they were trained with one.
        threads: CPU threads; 0 for one per core.
        cache: folder for framed slices.
    """

    runs: Sequence[Run]
    data: Path
    output: Path
    lesion_free: Path | None = None
    threads: int = 0
    cache: Path | None = None

    @property
    def job(self) -> Job:
        """The first run's training, which gives the new run recipe, split and seed."""
        first = self.runs[0]
        return Job(
            first.recipe,
            self.data,
            first.split_spec,
            first.seed,
            self.output,
            lesion_free=self.lesion_free,
            # What the runs were trained on decides; the fingerprint says whether it is that.
            allow_overlap=True,
            threads=self.threads,
            cache=self.cache,
        )


def average(asked: Average) -> Run:
    """Write a run whose weights are the mean of those of other runs, judged on the validation part.

    The statistics of batch normalisation are not averaged: they are taken anew, over one epoch of training
    samples, because those of an average of weights are not the average of theirs.

    Raises:
        RunError: the runs do not belong together or are unfinished, or the folder is not free.
        DataError: the data are not those the runs were trained on.
    """
    _check(asked)
    started = now()
    prepare(asked.threads)
    job = asked.job
    material = load_material(job)
    if material.fingerprint != asked.runs[0].info["fingerprint"]:
        raise DataError(
            f"{asked.data}: with the split {job.split}, and the lesion-free slices given or not given, these "
            f"are not the slices that {asked.runs[0].path} was trained on"
        )
    network = build_network(job.recipe, pretrained=False).to(memory_format=torch.channels_last)
    network.load_state_dict(mean_state([run.weights() for run in asked.runs]))
    _take_statistics(network, job, material)
    _write(asked, material, network, started)
    return Run.open(asked.output)


def mean_state(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each tensor; of whole numbers, which only count, the first's.

    Args:
        states: of one network, at least one.
    """
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0)
        if first.is_floating_point()
        else first
        for name, first in states[0].items()
    }


def _check(asked: Average) -> None:
    runs, first = asked.runs, asked.runs[0]
    if len({run.seed for run in runs}) < max(2, len(runs)):
        raise RunError(f"{first.path}: an average needs at least two runs, each of a seed of its own")
    for run in runs:
        if not run.info.get("finished", False):
            raise RunError(f"{run.path}: the training has not finished; go on with --resume, then average")
        _check_pair(first, run)
    if first.recipe.network.start is None:
        raise RunError(
            f"{first.path}: began from other random parameters than the other runs, so that their average "
            "means nothing; train all with one start: --set network.start=0"
        )
    if asked.output.exists() and any(asked.output.iterdir()):
        raise RunError(f"{asked.output}: is not empty; choose another --output")


def _check_pair(first: Run, other: Run) -> None:
    if other.recipe != first.recipe:
        raise RunError(f"{other.path}: its recipe is not that of {first.path}; average runs of one recipe")
    for key in ("split", "fingerprint"):
        if other.info.get(key) != first.info.get(key):
            raise RunError(
                f"{other.path}: its training or validation slices are not those of {first.path}; the seed "
                "draws folds anew unless the split ends in one, as official-source-cv:1/3:0 does"
            )


def _take_statistics(network: nn.Module, job: Job, material: Material) -> None:
    """Batch normalisation's statistics over one epoch of training samples that no run has seen."""
    samples, batches = training_samples(job, material)
    batches.set_epoch(job.recipe.training.epochs)
    update_bn(DataLoader(samples, batch_size=None, sampler=batches), network)


def _write(asked: Average, material: Material, network: nn.Module, started: str) -> None:
    """The new run's folder, whole or not at all."""
    job, runs = asked.job, asked.runs
    info = {
        **job_facts(job, material),
        "finished": True,
        "averaged": [{"run": run.path.name, "seed": run.seed} for run in runs],
        "started": started,
        "versions": versions(),
        "machine": machine(),
        "training_seconds": sum(run.info["training_seconds"] for run in runs),
        "threads": torch.get_num_threads(),
    }
    row = _measured(job, material, network)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=asked.output.parent, prefix=f".{asked.output.name}.") as folder:
        whole = Path(folder) / "run"
        write_text(whole / RECIPE, job.recipe.to_yaml())
        write_history(whole / HISTORY, [row])
        state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        save_file(state, whole / WEIGHTS)
        write_json(whole / INFO, {**info, "ended": now()})
        whole.replace(asked.output)


def _measured(job: Job, material: Material, network: nn.Module) -> dict[str, float]:
    """The history's row: what the average is on validation, after as many epochs as each run had."""
    asked = judge(job.recipe, network).eval()
    logit = predict_framed(asked, job.recipe.framing.build(), material.val.pixels).logit
    measures = validation_measures(torch.from_numpy(logit), torch.from_numpy(material.val_labels))
    return {
        "epoch": job.recipe.training.epochs - 1,
        **{name: float(value) for name, value in measures.items()},
    }
