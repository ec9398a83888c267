"""What a network sees in an epoch: cropped slices and painted ones, augmented, drawn by seed and epoch alone.

Slices are cropped once and cached. Everything that is drawn works on their 8-bit grey, before normalisation, so
that an augmented slice is what another scanner, window or JPEG encoder would have produced.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar
from zipfile import BadZipFile

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from groundglass.data.manifest import Record, content_hash, file_hash, read_mask, read_record
from groundglass.files import atomic_path
from groundglass.imaging.crop import Preprocessing, resize_box
from groundglass.imaging.lesions import Kind, Mimic, Painted, paint_lesion, paint_mimic
from groundglass.imaging.lungs import LungSegmenter, shipped
from groundglass.imaging.slice import Grey
from groundglass.training.recipe import AugmentationSection, SynthesisSection

CONTEXT = 0.125
"""Share of the cropped slice's side kept around it for training, for augmentation's crops and shifts."""

# Raised whenever preprocessing or the layout of the cache changes, so that old files are not used.
_CACHE_VERSION = 3
# A lesion-free slice is used only where lungs fill this share of it, so that a lesion can be seen.
_LEAST_LUNG = 0.12
# A painted slice is COVID only where the lesion covers this share of its lungs; otherwise it stays as it was.
_LEAST_LESION = 0.004
_OTHER_KINDS = (Kind.CONSOLIDATION, Kind.CRAZY_PAVING, Kind.MIXED)
_MIMICS = tuple(Mimic)
# What lies so near the lungs is kept when everything else is blackened.
_RIM = np.ones((5, 5), np.uint8)

_Source = TypeVar("_Source")


@dataclass(frozen=True)
class CroppedSet:
    """Cropped slices with some context around them, with their lungs and lesions, each of shape (N, C, C).

    Where the lesions are not known, there are none. ``sha256`` is that of each file's content.
    """

    pixels: NDArray[np.uint8]
    lungs: NDArray[np.bool_]
    lesions: NDArray[np.bool_]
    sha256: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, indices: NDArray[np.integer]) -> CroppedSet:
        """The chosen slices."""
        hashes = tuple(self.sha256[index] for index in indices)
        return CroppedSet(self.pixels[indices], self.lungs[indices], self.lesions[indices], hashes)


def cache_folder() -> Path:
    """Where cropped slices are kept: ``$GROUNDGLASS_CACHE``, else the user's cache folder."""
    if chosen := os.environ.get("GROUNDGLASS_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "groundglass"


def load_cropped(
    records: Sequence[Record],
    preprocessing: Preprocessing,
    context: float,
    cache: Path | None = None,
    segmenter: LungSegmenter | None = None,
    progress: bool = False,
) -> CroppedSet:
    """Crop slices with ``context``, a share of the side, kept on every side around them, or take them from the cache.

    The cache, a folder, is keyed by the content of the files, the model of the lungs, the preprocessing's geometry and
    the context; normalisation happens later and is no part of it.

    Raises:
        ImageError: a slice or a lesion mask cannot be read.
    """
    find_lungs = segmenter or shipped()
    hashes = tuple(content_hash(record) for record in records)
    of_masks = [each.lesion_mask and file_hash(each.lesion_mask) for each in records]
    geometry = preprocessing.model_dump(exclude={"normalisation"})
    key = json.dumps([_CACHE_VERSION, geometry, context, hashes, of_masks, find_lungs.sha256])
    path = (cache or cache_folder()) / f"cropped-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    side = round(preprocessing.size * (1 + 2 * context))
    shape = (len(records), side, side)
    # A damaged file is as good as none.
    with suppress(OSError, ValueError, KeyError, EOFError, BadZipFile), np.load(path) as stored:
        lungs, lesions = (
            np.unpackbits(stored[name], count=math.prod(shape)).reshape(shape).view(np.bool_)
            for name in ("lungs", "lesions")
        )
        return CroppedSet(stored["pixels"].reshape(shape), lungs, lesions, hashes)
    cropped = np.empty((3, *shape), np.uint8)
    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    watched = track(records, "Cropping slices", console=console, transient=True, disable=hidden)
    for index, record in enumerate(watched):
        cropped[:, index] = _cropped(record, preprocessing, find_lungs, context, side)
    pixels, lungs, lesions = cropped[0], cropped[1].view(np.bool_), cropped[2].view(np.bool_)
    # On a full disk the next training crops them again.
    with suppress(OSError), atomic_path(path) as temporary:
        np.savez(temporary, pixels=pixels, lungs=np.packbits(lungs), lesions=np.packbits(lesions))
    return CroppedSet(pixels, lungs, lesions, hashes)


def _cropped(
    record: Record, preprocessing: Preprocessing, find_lungs: LungSegmenter, context: float, side: int
) -> tuple[Grey, NDArray[np.bool_], NDArray[np.bool_]]:
    ct_slice = read_record(record)
    pixels = ct_slice.pixels
    cut = preprocessing.apply(pixels, find_lungs(pixels))
    left, top, right, bottom = cut.box
    dx, dy = round((right - left) * context), round((bottom - top) * context)
    wider = (left - dx, top - dy, right + dx, bottom + dy)
    lesions = np.zeros(pixels.shape, np.bool_)
    if record.lesion_mask is not None:
        lesions = read_mask(record.lesion_mask, ct_slice)
    # Masks are resized as grey, so that their edges stay where they are.
    lungs, lesions = (resize_box(mask * np.uint8(255), wider, side) > 127 for mask in (cut.lungs, lesions))
    return resize_box(pixels, wider, side), lungs, lesions


def to_images(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """Normalise cropped slices (N, size, size) to what networks take: float32 (N, 1, size, size), channels last."""
    images = torch.from_numpy(preprocessing.normalise(pixels)).unsqueeze(1)
    return images.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of one cropped slice with context, to ``size`` x ``size`` pixels."""

    section: AugmentationSection
    size: int

    def __call__(self, pixels: Grey, rng: np.random.Generator, *masks: Grey) -> tuple[Grey, ...]:
        """Augment a slice and masks of 0 and 1, all of shape (C, C), C including the context, to (size, size)."""
        s = self.section
        matrix, size = self._matrix(pixels.shape[0], rng), (self.size, self.size)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        out, *warped = (np.asarray(cv2.warpAffine(m, matrix, size, flags=flags)) for m in (pixels, *masks))
        # Resolution first, then noise and compression, in the order a picture suffers them.
        if rng.random() < s.grey:
            out = cv2.LUT(out, _grey_curve(rng))
        if rng.random() < s.blur:
            out = _blurred(out, rng)
        if rng.random() < s.noise:
            out = _clipped(out + rng.standard_normal(out.shape, dtype=np.float32) * rng.uniform(2, 12))
        if rng.random() < s.jpeg:
            out = _recompressed(out, rng)
        if rng.random() < s.erasing:
            out = _erased(out, rng)
        return np.asarray(out, np.uint8), *warped

    def _matrix(self, side: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Crop, stretch, rotation, mirror and translation in one: from augmented to source pixels."""
        s = self.section
        zoom = 1.0
        if s.smallest_crop < 1:
            zoom = math.sqrt(rng.uniform(s.smallest_crop, 1.0)) * rng.uniform(1.0, 1.0 + CONTEXT / 2)
        stretch = math.exp(rng.uniform(-s.stretch, s.stretch))
        angle = math.radians(rng.uniform(-s.rotation, s.rotation))
        flip = -1.0 if rng.random() < s.mirror else 1.0
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        scale = np.diag([zoom * stretch * flip, zoom / stretch])
        # A smaller crop may lie anywhere inside the slice.
        slack = (1 - zoom) / 2 if zoom < 1 else 0.0
        # Output pixel p shows source pixel linear @ (p - centre) + source centre + shift.
        per_pixel = side / (self.size * (1 + 2 * CONTEXT))
        shift = rng.uniform(-1, 1, 2) * (slack + s.translation) * self.size * per_pixel
        linear = turn @ scale * per_pixel
        offset = (side - 1) / 2 + shift - linear @ np.full(2, (self.size - 1) / 2)
        return np.column_stack([linear, offset]).astype(np.float32)


def shaded(pixels: Grey, rng: np.random.Generator) -> Grey:
    """A slice as another window, reconstruction kernel and JPEG encoder would show it."""
    if rng.random() < 0.8:
        pixels = cv2.LUT(pixels, _grey_curve(rng, strength=1.5))
    if rng.random() < 0.12:
        pixels = cv2.createCLAHE(rng.uniform(1, 4), (8, 8)).apply(pixels)
    if rng.random() < 0.3:
        pixels = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.3, 1.3))
    if rng.random() < 0.5:
        pixels = _clipped(pixels + rng.normal(0, rng.uniform(1, 14), pixels.shape))
    return _recompressed(pixels, rng) if rng.random() < 0.15 else np.asarray(pixels, np.uint8)


def _clipped(values: NDArray[np.floating]) -> Grey:
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)


def _recompressed(pixels: Grey, rng: np.random.Generator) -> Grey:
    _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 92))])
    return np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_GRAYSCALE), np.uint8)


def _grey_curve(rng: np.random.Generator, strength: float = 1.0) -> Grey:
    """Gamma, contrast and a narrower window, as one look-up table."""
    grey = np.linspace(0, 1, 256)
    grey = grey ** math.exp(strength * rng.uniform(-0.35, 0.35))
    low, high = strength * rng.uniform(-0.12, 0.12), 1 + strength * rng.uniform(-0.25, 0.15)
    grey = (grey - low) / (high - low)
    grey = 0.5 + (grey - 0.5) * rng.uniform(0.8, 1.1) + rng.uniform(-0.06, 0.06)
    return _clipped(grey * 255)


def _blurred(pixels: Grey, rng: np.random.Generator) -> Grey:
    """A softer reconstruction kernel, or a picture that was small before it was enlarged."""
    if rng.random() < 0.5:
        return np.asarray(cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.4, 1.2)))
    side = pixels.shape[0]
    small = max(16, round(side * rng.uniform(0.45, 0.9)))
    shrunk = cv2.resize(pixels, (small, small), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(shrunk, (side, side), interpolation=cv2.INTER_LINEAR))


def _erased(pixels: Grey, rng: np.random.Generator) -> Grey:
    """One or two rectangles filled with one grey: no single patch may decide."""
    out = pixels.copy()
    side = pixels.shape[0]
    for _ in range(int(rng.integers(1, 3))):
        height, width = (rng.uniform(0.08, 0.28, 2) * side).astype(int)
        top, left = int(rng.integers(0, side - height)), int(rng.integers(0, side - width))
        out[top : top + height, left : left + width] = rng.integers(0, 256)
    return out


def shares_of(sizes: Mapping[_Source, int], fixed: Mapping[_Source, float]) -> dict[_Source, float]:
    """The share of each source: its ``fixed`` one, or of what these leave one by the square root of its size."""
    roots = {key: math.sqrt(size) for key, size in sizes.items() if key not in fixed}
    rest = max(0.0, 1 - sum(fixed.values())) / (sum(roots.values()) or 1)
    return {key: fixed[key] if key in fixed else roots[key] * rest for key in sizes}


@dataclass(frozen=True)
class SampleKey:
    """One sample of one epoch: its slice, in the lesion-free set or the other, and the seed of all that is random."""

    index: int
    lesion_free: bool
    painted: bool
    seed: tuple[int, int, int]


@dataclass(eq=False)
class EpochBatches(Sampler[list[SampleKey]]):
    """Batches of sample keys, drawn anew for each epoch from (seed, epoch) and nothing else.

    A training that is interrupted and resumed at an epoch's start therefore sees the same samples as one
    that ran through, and every process of a distributed training draws the same batches and takes its share.
    """

    real: int  # number of labelled slices an epoch holds
    # Samples of one batch over all processes; a smaller rest is dropped, as batch statistics of a few samples harm.
    batch_size: int
    seed: int  # of the run
    chances: NDArray[np.float64] | None = None  # how likely each slice is drawn; None: each once
    lesion_free: int = 0  # number of lesion-free slices to draw from
    synthetic: int = 0  # how many of them an epoch holds
    painted: float = 0.0  # share of these that is painted
    rank: int = 0  # number of this process
    world_size: int = 1  # of how many
    shuffled: bool = True  # else in the order in which they were drawn
    epoch: int = 0

    def __len__(self) -> int:
        return max(1, (self.real + self.synthetic) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        chances = self.chances
        chosen = range(self.real) if chances is None else rng.choice(len(chances), self.real, p=chances)
        keys = [(int(index), False, False) for index in chosen]
        if count := self.synthetic:
            drawn = rng.choice(self.lesion_free, count, replace=count > self.lesion_free)
            painted = np.arange(count) < round(count * self.painted)
            keys += [(int(index), True, bool(paint)) for index, paint in zip(drawn, painted, strict=True)]
        order = rng.permutation(len(keys)) if self.shuffled else np.arange(len(keys))
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            mine = order[start : start + self.batch_size][self.rank :: self.world_size]
            yield [SampleKey(*keys[place], (self.seed, self.epoch, place)) for place in map(int, mine)]


class Batch(NamedTuple):
    """What one step is trained on."""

    images: Tensor  # float32 (B, 1, size, size) in channels-last memory
    labels: Tensor  # float32 (B,): 1 COVID, 0 NonCOVID
    lesions: Tensor  # float32 (B, size, size): 1 where a lesion is
    known: Tensor  # float32 (B,): 1 where ``lesions`` is the truth, 0 where it is not known


@dataclass(frozen=True)
class TrainingSamples(Dataset[Batch]):
    """Batches of augmented, normalised slices, their labels and lesions, made from keys."""

    real: CroppedSet  # labelled slices with context
    labels: NDArray[np.float32]  # 1 COVID, 0 NonCOVID, for ``real``
    known: NDArray[np.bool_]  # whether the lesions of each of ``real`` are known
    lesion_free: CroppedSet  # slices with context to paint into
    preprocessing: Preprocessing
    augmentation: Augmentation
    lungs_only: float  # share of the slices of which all but the lungs is blackened
    synthesis: SynthesisSection

    def __getitem__(self, keys: list[SampleKey]) -> Batch:
        size = self.preprocessing.size
        pixels, lesions = (np.empty((len(keys), size, size), np.uint8) for _ in range(2))
        labels, known = (np.empty(len(keys), np.float32) for _ in range(2))
        for row, key in enumerate(keys):
            rng = np.random.default_rng(key.seed)
            if key.lesion_free:
                slices = self.lesion_free
                painted, labels[row], known[row] = self._paint(slices, key, rng)
            else:
                slices, labels[row], known[row] = self.real, self.labels[key.index], self.known[key.index]
                painted = Painted(slices.pixels[key.index], slices.lesions[key.index])
            source = painted.pixels
            lungs = slices.lungs[key.index]
            # Without lungs nothing would be left, but the label.
            if self.lungs_only and rng.random() < self.lungs_only and lungs.any():
                source = np.where(cv2.dilate(lungs.view(np.uint8), _RIM), source, 0).astype(np.uint8)
            pixels[row], lesions[row] = self.augmentation(source, rng, painted.mask.view(np.uint8))
        others = (torch.from_numpy(each) for each in (labels, lesions.astype(np.float32), known))
        return Batch(to_images(pixels, self.preprocessing), *others)

    def _paint(self, slices: CroppedSet, key: SampleKey, rng: np.random.Generator) -> tuple[Painted, float, float]:
        """A lesion-free slice as its key wants it, its label, and whether its lesions are known."""
        pixels, lungs = slices.pixels[key.index], slices.lungs[key.index]
        synthesis = self.synthesis
        if key.painted:
            kind = Kind.GROUND_GLASS
            # Drawn only where there is a choice, so that a recipe without one draws what it always drew.
            if synthesis.ground_glass < 1 and rng.random() >= synthesis.ground_glass:
                kind = _OTHER_KINDS[rng.integers(len(_OTHER_KINDS))]
            painted = paint_lesion(pixels, lungs, kind, rng.uniform(*synthesis.severity), rng)
            if painted.mask.sum() > _LEAST_LESION * lungs.sum():
                return painted, 1.0, 1.0
        elif synthesis.mimics > 0 and rng.random() < synthesis.mimics:
            mimic = paint_mimic(pixels, lungs, _MIMICS[rng.integers(len(_MIMICS))], rng)
            # A shadow of another disease is neither a lesion of COVID-19 nor healthy lung.
            return Painted(mimic.pixels, np.zeros_like(lungs)), 0.0, 0.0
        return Painted(pixels, np.zeros_like(lungs)), 0.0, 1.0


def with_lungs(slices: CroppedSet) -> CroppedSet:
    """The slices in which lungs fill enough of the picture to paint a lesion that can be seen."""
    return slices.take(np.flatnonzero(slices.lungs.mean(axis=(1, 2)) >= _LEAST_LUNG))
