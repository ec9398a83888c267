"""What a network sees in an epoch: real slices and painted pairs, drawn by seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from groundglass.imaging.decoys import Decoy, paint_decoy
from groundglass.imaging.framing import Framing
from groundglass.imaging.lesions import Kind, paint_lesion
from groundglass.training.augment import Augmentation
from groundglass.training.framed import FramedSet
from groundglass.training.recipe import SynthesisSection

# A lesion-free slice is used only where lungs fill this share of the frame, so that a lesion can be seen.
_LEAST_LUNG = 0.12
# A painted slice is COVID only where the lesion covers this share of its lungs; otherwise it stays as it was.
# A decoy smaller than that is no opacity either.
_LEAST_LESION = 0.004
_OTHER_KINDS = (Kind.CONSOLIDATION, Kind.CRAZY_PAVING, Kind.MIXED)
_DECOYS = tuple(Decoy)

UNKNOWN = float("nan")
"""Target of a slice of which the answer is not known: it teaches that output nothing."""

# Whether a decoy is what a reader would call pneumonia-like opacity, asked without regard to its cause.
_DECOY_OPACITY: Mapping[Decoy, float] = {
    # Airspaces filled evenly: the very picture of a bacterial pneumonia.
    Decoy.LOBAR_CONSOLIDATION: 1.0,
    # On a single slice a mass cannot be told from a round pneumonia, so either answer would be wrong.
    Decoy.MASS: UNKNOWN,
    # A focus too small and too sharply bordered for an infiltrate.
    Decoy.NODULE: 0.0,
    # Fluid beside the lung; the lung above it is painted with nothing.
    Decoy.EFFUSION: 0.0,
    # Lung that has become darker, not denser.
    Decoy.EMPHYSEMA: 0.0,
    # Scars: walls around air with no haze between them, which is what sets them apart from crazy paving.
    Decoy.HONEYCOMBING: 0.0,
}

_Drawn = tuple[NDArray[np.uint8], float, float]
"""Pixels, and the targets of COVID and of opacity."""


@dataclass(frozen=True)
class SampleKey:
    """One sample of one epoch: where it comes from and the seed of everything random in it.

    Attributes:
        index: of the slice in its set.
        lesion_free: the slice comes from the lesion-free set.
        painted: a lesion is painted into it.
        seed: entropy of its random generator.
    """

    index: int
    lesion_free: bool
    painted: bool
    seed: tuple[int, int, int]


class EpochBatches(Sampler[list[SampleKey]]):
    """Batches of sample keys, drawn anew for each epoch from (seed, epoch) and nothing else.

    A training that is interrupted and resumed at an epoch's start therefore sees the same samples as one
    that ran through, and every process of a distributed training draws the same batches and takes its share.

    Args:
        real: number of labelled slices; each is seen once an epoch.
        lesion_free: number of lesion-free slices to draw from.
        synthesis: how many of them are drawn an epoch, the share that is painted, and the first epochs that
            hold nothing else (of the same length as the others).
        batch_size: samples of one batch over all processes; a smaller rest is dropped, as batch statistics
            of a few samples harm.
        seed: of the run.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(
        self,
        real: int,
        lesion_free: int,
        synthesis: SynthesisSection,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.real = real
        self.lesion_free = lesion_free
        self.synthesis = synthesis
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    @property
    def samples(self) -> int:
        """Samples of one epoch."""
        return self.real + (self.synthesis.slices_per_epoch if self.lesion_free else 0)

    def __len__(self) -> int:
        return max(1, self.samples // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        alone = self.lesion_free > 0 and self.epoch < self.synthesis.epochs_alone
        real = 0 if alone else self.real
        drawn = self.samples - real
        synthetic = (
            rng.choice(self.lesion_free, drawn, replace=drawn > self.lesion_free) if drawn else np.empty(0)
        )
        painted = np.arange(drawn) < round(drawn * self.synthesis.painted)
        keys = [(index, False, False) for index in range(real)]
        keys += [(int(index), True, bool(paint)) for index, paint in zip(synthetic, painted, strict=True)]
        order = rng.permutation(len(keys))
        for batch in range(len(self)):
            positions = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            mine = positions[self.rank :: self.world_size]
            yield [self._key(keys[position], int(position)) for position in mine]

    def _key(self, drawn: tuple[int, bool, bool], position: int) -> SampleKey:
        return SampleKey(*drawn, seed=(self.seed, self.epoch, position))


class Batch(NamedTuple):
    """Slices and what is known of them; NaN stands for what is not.

    Attributes:
        images: float32 (B, 1, size, size), in channels-last memory.
        covid: float32 (B,), 1 COVID, 0 NonCOVID.
        opacity: float32 (B,), 1 where there is pneumonia-like opacity, whatever its cause, 0 where not.
    """

    images: Tensor
    covid: Tensor
    opacity: Tensor


class TrainingSamples(Dataset[Batch]):
    """Batches of augmented, normalised slices and their labels, made from keys.

    Args:
        real: labelled slices with context.
        labels: 1 COVID, 0 NonCOVID, for ``real``.
        lesion_free: slices with context to paint into, or None.
        framing: normalises what augmentation gives.
        augmentation: applied to every sample.
        synthesis: what is painted into lesion-free slices, and which outputs they teach.
    """

    def __init__(
        self,
        real: FramedSet,
        labels: NDArray[np.float32],
        lesion_free: FramedSet | None,
        framing: Framing,
        augmentation: Augmentation,
        synthesis: SynthesisSection,
    ) -> None:
        self.real = real
        self.labels = labels
        self.lesion_free = lesion_free
        self.framing = framing
        self.augmentation = augmentation
        self.synthesis = synthesis

    def __getitem__(self, keys: list[SampleKey]) -> Batch:
        """The batch of these keys."""
        size = self.framing.size
        pixels = np.empty((len(keys), size, size), np.uint8)
        covid, opacity = np.empty((2, len(keys)), np.float32)
        for row, key in enumerate(keys):
            rng = np.random.default_rng(key.seed)
            source, covid[row], opacity[row] = self._draw(key, rng)
            pixels[row] = self.augmentation(source, rng)
        images = torch.from_numpy(self.framing.normalise(pixels)).unsqueeze(1)
        images = images.contiguous(memory_format=torch.channels_last)
        return Batch(images, torch.from_numpy(covid), torch.from_numpy(opacity))

    def _draw(self, key: SampleKey, rng: np.random.Generator) -> _Drawn:
        if not key.lesion_free or self.lesion_free is None:
            # COVID-19 need not show on every slice, and NonCOVID is healthy or another pneumonia.
            return self.real.pixels[key.index], float(self.labels[key.index]), UNKNOWN
        pixels, covid, opacity = self._paint(self.lesion_free, key, rng)
        teaches = self.synthesis.teaches
        return pixels, UNKNOWN if teaches == "opacity" else covid, UNKNOWN if teaches == "covid" else opacity

    def _paint(self, lesion_free: FramedSet, key: SampleKey, rng: np.random.Generator) -> _Drawn:
        pixels, lungs = lesion_free.pixels[key.index], lesion_free.lungs[key.index]
        synthesis, least = self.synthesis, _LEAST_LESION * lungs.sum()
        if key.painted:
            kind = Kind.GROUND_GLASS
            # Drawn only where there is a choice, so that a recipe without one draws what it always drew.
            if synthesis.ground_glass < 1 and rng.random() >= synthesis.ground_glass:
                kind = _OTHER_KINDS[rng.integers(len(_OTHER_KINDS))]
            painted = paint_lesion(pixels, lungs, kind, rng.uniform(*synthesis.severity), rng)
            if painted.mask.sum() > least:
                return painted.pixels, 1.0, 1.0
        elif synthesis.decoys > 0 and rng.random() < synthesis.decoys:
            decoy = _DECOYS[rng.integers(len(_DECOYS))]
            painted = paint_decoy(pixels, lungs, decoy, rng)
            return painted.pixels, 0.0, _DECOY_OPACITY[decoy] if painted.mask.sum() > least else 0.0
        return pixels, 0.0, 0.0


def with_lungs(slices: FramedSet) -> FramedSet:
    """The slices in which lungs fill enough of the frame to paint a lesion that can be seen."""
    keep = np.flatnonzero(slices.lungs.mean(axis=(1, 2)) >= _LEAST_LUNG)
    return FramedSet(slices.pixels[keep], slices.lungs[keep], tuple(slices.sha256[i] for i in keep))
