"""Framed slices, made once, cached on disk and held in memory as 8-bit grey."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from groundglass.atomic import atomic_path
from groundglass.data.manifest import Record, read_bytes, read_pixels
from groundglass.imaging.framing import Framing, resize_box

# Raised whenever framing or the layout of the cache changes, so that old files are not used.
_CACHE_VERSION = 2


@dataclass(frozen=True)
class FramedSet:
    """Slices framed with some context around the frame.

    Attributes:
        pixels: uint8, shape (N, C, C).
        lungs: bool, shape (N, C, C): the lung fields within ``pixels``.
        sha256: of each file's content, in order.
    """

    pixels: NDArray[np.uint8]
    lungs: NDArray[np.bool_]
    sha256: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)


def cache_folder() -> Path:
    """Where framed slices are kept: ``$GROUNDGLASS_CACHE``, else the user's cache folder."""
    chosen = os.environ.get("GROUNDGLASS_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "groundglass"


def load_framed(
    records: Sequence[Record], framing: Framing, context: float, cache: Path | None = None
) -> FramedSet:
    """Frame the slices of ``records``, or take them from the cache.

    The cache is keyed by the content of the files, the framing's geometry and the context; normalisation
    happens later and is no part of it.

    Args:
        records: which slices.
        framing: how they are framed.
        context: share of the frame's side kept on every side beyond the frame; 0 gives the frame itself.
        cache: folder of the cache; the default is :func:`cache_folder`.

    Raises:
        ImageError: a slice cannot be read.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        hashes = tuple(pool.map(_sha256, records))
    geometry = {key: value for key, value in asdict(framing).items() if key != "normalisation"}
    key = json.dumps([_CACHE_VERSION, geometry, context, hashes])
    path = (cache or cache_folder()) / f"framed-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    if (stored := _stored(path, len(records))) is not None:
        return FramedSet(*stored, hashes)
    side = round(framing.size * (1 + 2 * context))
    pixels = np.empty((len(records), side, side), np.uint8)
    lungs = np.empty((len(records), side, side), np.bool_)
    for index, record in enumerate(records):
        pixels[index], lungs[index] = _frame(read_pixels(record), framing, context, side)
    with atomic_path(path) as temporary:
        np.savez(temporary, pixels=pixels, lungs=np.packbits(lungs))
    return FramedSet(pixels, lungs, hashes)


def _sha256(record: Record) -> str:
    return hashlib.sha256(read_bytes(record)).hexdigest()


def _stored(path: Path, count: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]] | None:
    """What the cache holds, or None; a damaged file is as good as none."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pixels = arrays["pixels"]
            lungs = np.unpackbits(arrays["lungs"], count=pixels.size).astype(np.bool_).reshape(pixels.shape)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    return (pixels, lungs) if len(pixels) == count else None


def _frame(
    pixels: NDArray[np.uint8], framing: Framing, context: float, side: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    framed = framing.frame(pixels)
    left, top, right, bottom = framed.box
    dx, dy = round((right - left) * context), round((bottom - top) * context)
    box = (left - dx, top - dy, right + dx, bottom + dy)
    # Beyond the picture its edge is repeated, but no lung continues there.
    lungs = np.pad(framed.lungs.astype(np.uint8), ((max(dy, 0) + 1,) * 2, (max(dx, 0) + 1,) * 2))
    shifted = (box[0] + dx + 1, box[1] + dy + 1, box[2] + dx + 1, box[3] + dy + 1)
    return resize_box(pixels, box, side), resize_box(lungs, shifted, side)
