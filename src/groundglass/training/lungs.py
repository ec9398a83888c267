"""Train LungNet on slices with lung masks, painted disease and phantoms, so that sick lung stays lung."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Dataset, TensorDataset

from groundglass.data.load import load_pool
from groundglass.data.manifest import Record, read_mask, read_record
from groundglass.data.out_of_distribution import parts_without_lungs
from groundglass.data.splits import held_out
from groundglass.errors import DataError, RecipeError, RunError
from groundglass.files import write_bytes
from groundglass.imaging.lesions import Kind, Mimic, paint_lesion, paint_mimic, smooth_noise
from groundglass.imaging.lungs import SIDE, squared
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.slice import Grey
from groundglass.models.lung_net import LungNet, doubled
from groundglass.training.onnx import lungs_to_onnx
from groundglass.training.recipe import LungsRecipe
from groundglass.training.run import load_weights, read_history, read_info
from groundglass.training.samples import EpochBatches, SampleKey, shaded, shares_of
from groundglass.training.trainer import Averaging, Job

# Slices are kept in squares of this side and warped from there to what the network sees.
_KEPT = 256
_PHANTOMS, _EMPTY = 300, 240
_DENSE = (Kind.CONSOLIDATION, Kind.MIXED, Kind.MIXED, Kind.GROUND_GLASS, Kind.CRAZY_PAVING)
_SOLID = (Mimic.MASS, Mimic.LOBAR_CONSOLIDATION, Mimic.NODULE)
# Below this share of the picture lungs are at their ends: no whole lung there is made solid, for shoulders look alike.
_APEX, _APEX_WEIGHT = 0.05, 4.0
_EMA, _SMOOTH = 0.995, 50.0
_PHANTOM, _NOTHING = "\0phantom", "\0empty"  # sources that no manifest has
# What the exported model says of its training.
_NOTED = ("recipe", "seed", "sources", "counts", "parameters", "fingerprint", "training_seconds", "versions")

_Mask = NDArray[np.uint8]


class LungSlice(NamedTuple):
    """A slice and its lungs, (256, 256) each; ``partial``: the mask holds lesions alone, all else is unknown."""

    source: str
    pixels: Grey
    lungs: _Mask
    partial: bool = False


class LungTrainer(Averaging):
    """Trains LungNet by cross-entropy and Dice; the averaged weights are what is validated and kept."""

    def __init__(self, recipe: LungsRecipe, steps_per_epoch: int, seed: int) -> None:
        super().__init__(LungNet(), recipe, steps_per_epoch, seed, _EMA)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss where the truth is known."""
        slices, lungs, known = batch
        logit = doubled(self.network(slices))
        entropy = binary_cross_entropy_with_logits(logit, lungs, reduction="none") * known
        share, lungs = logit.sigmoid() * known, lungs * known
        overlap = 2 * (share * lungs).sum(dim=(1, 2, 3)) + _SMOOTH
        dice = overlap / (share.sum(dim=(1, 2, 3)) + lungs.sum(dim=(1, 2, 3)) + _SMOOTH)
        loss = entropy.sum() / known.sum().clamp_min(1) + (1 - dice).mean()
        self.log_loss(loss, len(slices))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Mean Dice of the slices."""
        found, lungs = doubled(self.averaged(batch[0])) > 0, batch[1] > 0
        both, either = (each.sum(dim=(1, 2, 3)) for each in (found & lungs, found.int() + lungs.int()))
        # Nothing found where there is nothing is right.
        self.log("val_dice", ((2 * both + 1) / (either + 1)).mean(), prog_bar=True, batch_size=len(found))


@dataclass(frozen=True)
class LungSamples(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Batches of augmented slices, lungs and where these are known, made from keys."""

    slices: Sequence[LungSlice]

    def __getitem__(self, keys: list[SampleKey]) -> tuple[Tensor, Tensor, Tensor]:
        slices = [self.slices[key.index] for key in keys]
        seeds = [np.random.default_rng(key.seed) for key in keys]
        pixels, lungs = zip(*map(augmented, slices, seeds), strict=True)
        known = [own if each.partial else np.ones_like(own) for each, own in zip(slices, lungs, strict=True)]
        return _image(pixels) / 255, _image(lungs), _image(known)


def train_lungs(job: Job[LungsRecipe]) -> float | None:
    """Train, and leave a run with ``weights.safetensors`` behind.

    Gives the mean Dice of the held-out slices after the last epoch, None where none are held out.

    Raises:
        DataError: the data hold no slices with lung masks, or of too few patients.
        RunError: the folder holds another run, or one to be resumed with ``resume``.
    """
    recipe = job.recipe
    if recipe.network.weights != "none" or recipe.network.options:
        raise RecipeError("network.weights, network.options: LungNet takes none")
    if job.is_finished:
        return read_history(job.output)[-1].get("val_dice")
    torch.manual_seed(job.seed)
    module = LungTrainer(recipe, max(1, recipe.draws // recipe.training.batch_size), job.seed)
    job.prepare(module.network)
    records = [record for record in load_pool(job.data, job.map_label).records if record.split != "test"]
    masked = [record for record in records if record.lung_mask is not None]
    if not masked:
        raise DataError("nothing to learn lungs from: name a manifest with a column lung_mask with --data")
    out = held_out(masked, recipe.held_out) if recipe.held_out else set()
    if recipe.held_out and not out:
        raise DataError("too few patients with lung masks: of one source there must be three or more")
    lesions_alone = [record for record in records if record.lung_mask is None and record.lesion_mask]
    people = {masked[number].patient_id for number in out}  # of whom other sources may have slices too
    learned = [record for record in (*masked, *lesions_alone) if record.patient_id not in people]
    training = [load_lung_slice(record) for record in learned]
    validation = [load_lung_slice(masked[number]) for number in sorted(out)]
    content = b"".join(each.pixels.tobytes() + each.lungs.tobytes() for each in [*training, *validation])
    facts = {
        "kind": "lungs",
        "sources": sorted({each.source for each in training}),
        "counts": {"train": len(training), "val": len(validation)},
        "parameters": sum(each.numel() for each in module.network.parameters()),
        "fingerprint": hashlib.sha256(content).hexdigest(),
    }
    job.begin(facts)
    others = parts_without_lungs(np.random.default_rng([job.seed, 2]), _EMPTY, _KEPT)
    nothing = np.zeros((_KEPT, _KEPT), np.uint8)
    empty = (LungSlice(_NOTHING, squared(pixels, _KEPT), nothing) for pixels in others)
    slices = [*training, *_phantoms(job.seed), *empty]
    chances, size = _chances(slices, recipe), recipe.training.batch_size
    batches = EpochBatches(recipe.draws, size, job.seed, chances, shuffled=False)
    held_loader = None
    if validation:
        pixels = _image([squared(each.pixels, SIDE) for each in validation]) / 255
        lungs = _image([squared(each.lungs * 255, SIDE) > 127 for each in validation])
        held_loader = DataLoader(TensorDataset(pixels, lungs), batch_size=64)
    history = job.fit(module, DataLoader(LungSamples(slices), batch_size=None, sampler=batches), held_loader)
    job.finish(history, module.averaged.module.state_dict())
    return history.rows[-1].get("val_dice")


def export_lungs(run: Path, output: Path) -> None:
    """Write a finished run's network as the ONNX model that finds lungs everywhere else, with notes on its training.

    Raises:
        RunError: the run is unfinished or damaged.
    """
    info, network = read_info(run), LungNet()
    if not info.get("finished"):
        raise RunError(f"{run}: the training has not finished; resume it with --resume, then export")
    load_weights(network, run)
    dice = read_history(run)[-1].get("val_dice")
    notes = {name: info[name] for name in _NOTED} | {"held_out_dice": dice and round(dice, 4)}
    write_bytes(output, lungs_to_onnx(network, notes))


def load_lung_slice(record: Record) -> LungSlice:
    """A slice with its lung mask, or where there is none with its lesion mask.

    Raises:
        ImageError: slice or mask cannot be read, or they do not fit.
    """
    ct_slice = read_record(record)
    path = record.lung_mask or record.lesion_mask
    mask = read_mask(path or Path(), ct_slice).astype(np.uint8)
    # Reduced as grey, so that the mask's edge stays where it is.
    kept = squared(ct_slice.pixels, _KEPT), (squared(mask * 255, _KEPT) > 127).astype(np.uint8)
    return LungSlice(record.hospital, *kept, partial=record.lung_mask is None)


def _phantoms(seed: int) -> Iterator[LungSlice]:
    rng = np.random.default_rng([seed, 1])
    for _ in range(_PHANTOMS):
        severity = float(rng.choice([0, rng.uniform(0.3, 1), 1]))
        drawn = make_phantom(rng, severity, float(rng.uniform(0.03, 0.97)), _KEPT)
        yield LungSlice(_PHANTOM, drawn.slice.pixels, drawn.lungs.astype(np.uint8))


def _chances(slices: Sequence[LungSlice], recipe: LungsRecipe) -> NDArray[np.float64]:
    """How likely each slice is drawn; those of which little is marked, such as the ends of the lungs, more often."""
    sources = [each.source for each in slices]
    shares = shares_of(Counter(sources), {_PHANTOM: recipe.phantoms, _NOTHING: recipe.empty})
    weight = np.array([_APEX_WEIGHT if 0 < each.lungs.mean() < _APEX else 1.0 for each in slices])
    total = {name: weight[[each == name for each in sources]].sum() for name in set(sources)}
    chances = np.array([shares[name] for name in sources]) * weight / [total[name] for name in sources]
    return np.asarray(chances / chances.sum())


def augmented(one: LungSlice, rng: Generator) -> tuple[Grey, _Mask]:
    """A slice as another patient, scanner, window and publication might show it, and its lungs, (192, 192) each."""
    pixels, lungs = one.pixels, one.lungs
    if not one.partial and 0 < lungs.mean() < _APEX and rng.random() < 0.5:
        pixels, lungs = _neck(pixels, lungs, rng), np.zeros_like(lungs)
    elif not one.partial and lungs.sum() > 300:
        pixels = _diseased(one, rng)
        if rng.random() < 0.06:
            pixels = np.where(cv2.dilate(lungs, np.ones((3, 3))) > 0, pixels, 0).astype(np.uint8)
    pixels, lungs = _warped(pixels, lungs, rng)
    return _printed(shaded(pixels, rng), rng), lungs


def _neck(pixels: Grey, lungs: _Mask, rng: Generator) -> Grey:
    """A slice through the apices or bases as if a little farther away: tissue in the place of the lungs."""
    hole = cv2.dilate(lungs, np.ones((5, 5), np.uint8))
    filled = cv2.inpaint(pixels, hole, 3, cv2.INPAINT_TELEA)
    grain = smooth_noise(pixels.shape, 128, rng) * rng.uniform(2, 10) * hole
    return np.asarray(np.clip(filled + grain, 0, 255), np.uint8)


def _diseased(one: LungSlice, rng: Generator) -> Grey:
    """The mask stays what it was: painted lung is lung, however dense."""
    pixels, lung, chance = one.pixels, one.lungs.astype(np.bool_), rng.random()
    if one.source != _PHANTOM and chance < 0.45:
        pixels = paint_lesion(pixels, lung, _DENSE[rng.integers(5)], float(rng.uniform(0.3, 1)), rng).pixels
    elif one.source != _PHANTOM and chance < 0.55:
        pixels = paint_mimic(pixels, lung, _SOLID[rng.integers(3)], rng).pixels
    return _solid(pixels, lung, rng) if lung.mean() > _APEX and rng.random() < 0.15 else pixels


def _solid(pixels: Grey, lung: NDArray[np.bool_], rng: Generator) -> Grey:
    """One whole lung, or the back of both, as dense as tissue."""
    count, labels = cv2.connectedComponents(lung.astype(np.uint8))
    rows = np.flatnonzero(lung.any(axis=1))
    behind = np.arange(len(lung))[:, None] > rows[0] + rng.uniform(0.3, 0.9) * np.ptp(rows)
    part = labels == rng.integers(1, count) if rng.random() < 0.5 else lung & behind
    bright = pixels[~lung & (pixels > 60)]
    tissue = np.percentile(bright, 60) if len(bright) else 180.0
    grain = smooth_noise(pixels.shape, 32, rng) * rng.uniform(3, 14)
    opacity = cv2.GaussianBlur(part.astype(np.float32), (0, 0), 1.0) * rng.uniform(0.7, 1)
    solid = pixels + opacity * (tissue * rng.uniform(0.75, 1.05) + grain - pixels)
    return np.asarray(np.clip(solid, 0, 255), np.uint8)


def _warped(pixels: Grey, lungs: _Mask, rng: Generator) -> tuple[Grey, _Mask]:
    """Crop, rotation, stretch, mirror and padding."""
    centre, reach = np.full(2, _KEPT / 2), _KEPT * rng.uniform(0.8, 1.5)
    if lungs.any() and rng.random() < 0.5:  # as close to the lungs as figures are cut
        rows, columns = np.flatnonzero(lungs.any(axis=1)), np.flatnonzero(lungs.any(axis=0))
        centre = np.array([columns[0] + columns[-1], rows[0] + rows[-1]]) / 2
        reach = max(int(np.ptp(columns)), int(np.ptp(rows)), 60) * rng.uniform(0.95, 1.6)
    scale, stretch = SIDE / reach, np.exp(rng.normal(0, 0.12))
    angle = np.deg2rad(rng.normal(0, 7) if rng.random() < 0.9 else rng.uniform(-30, 30))
    mirror, upside = (-1 if rng.random() < 0.5 else 1), (-1 if rng.random() < 0.12 else 1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag([mirror * scale * stretch, upside * scale / stretch])
    shift = SIDE / 2 + rng.normal(0, 0.04, 2) * SIDE - linear @ centre
    matrix, side = np.column_stack([linear, shift]), (SIDE, SIDE)
    fill = 0 if rng.random() < 0.75 else int(rng.integers(0, 256))
    out = cv2.warpAffine(pixels, matrix, side, flags=cv2.INTER_LINEAR, borderValue=fill)
    mask = cv2.warpAffine(lungs * np.uint8(255), matrix, side, flags=cv2.INTER_LINEAR) > 127
    return np.asarray(out, np.uint8), mask.astype(np.uint8)


def _printed(pixels: Grey, rng: Generator) -> Grey:
    """A frame and letters, as figures carry them."""
    if rng.random() < 0.12:
        inner = int(rng.integers(1, 14))
        framed = np.full_like(pixels, rng.integers(0, 256))
        framed[inner:-inner, inner:-inner] = pixels[inner:-inner, inner:-inner]
        pixels = framed
    if rng.random() < 0.15:
        for _ in range(int(rng.integers(1, 4))):
            text = "".join(rng.choice(list("ABCDEFRL0123456789"), 4))
            place, size = rng.integers(0, SIDE - 20, 2).tolist(), float(rng.uniform(0.25, 0.7))
            shade = int(rng.choice([0, 255]))
            drawn = cv2.putText(pixels, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, shade, 1)
            pixels = np.asarray(drawn, np.uint8)
    return pixels


def _image(planes: Sequence[NDArray[Any]]) -> Tensor:
    """(N, S, S) as float32 (N, 1, S, S) in channels-last memory."""
    return torch.from_numpy(np.stack(planes)).float().unsqueeze(1).contiguous(memory_format=torch.channels_last)
