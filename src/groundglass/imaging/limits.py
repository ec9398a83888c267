"""How much a single input may ask for, so that no file can exhaust memory or time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds that are checked before anything is allocated or decompressed.

    Attributes:
        pixels: per image or plane, rows times columns.
        file_bytes: of one file or archive member, after decompression.
        archive_bytes: of all members of an archive together, after decompression.
        ratio: of decompressed to compressed size of an archive member larger than ``RATIO_FROM`` bytes.
        members: files in an archive.
        frames: images, frames or planes in one file.
    """

    pixels: int = 64_000_000
    file_bytes: int = 4 * 2**30
    archive_bytes: int = 32 * 2**30
    ratio: float = 200.0
    members: int = 100_000
    frames: int = 20_000


DEFAULT_LIMITS = Limits()
"""Generous for every CT that a scanner makes, far below what a decompression bomb wants."""

RATIO_FROM = 16 * 2**20
"""Members up to this size may compress as well as they like: an empty picture does, and harms nobody."""
