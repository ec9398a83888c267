"""Slices that are in a data set twice: the same file, the same pixels, or a copy that somebody worked on."""

from __future__ import annotations

import hashlib
import itertools
import os
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Literal, TypeVar, get_args

import numpy as np

from groundglass.data.candidates import Candidate, Window, hash_candidates, patch_candidates
from groundglass.data.manifest import Record, read_bytes, read_pixels, read_record
from groundglass.data.perceptual import Fingerprint, fingerprint
from groundglass.data.registration import (
    COPY_CORRELATION,
    LOOKALIKE_CORRELATION,
    Affine,
    Registration,
    boxes_start,
    patches_start,
    register,
)
from groundglass.errors import ImageError
from groundglass.imaging.slice import CTSlice, Grey

Kind = Literal["file", "pixels", "copy", "lookalike"]
"""Same content, same pixels in another file, verified copy, or merely very much alike."""

Progress = Callable[[int], None]
"""Told how many more steps are done."""

_KINDS: tuple[Kind, ...] = get_args(Kind)
_WINDOWS: tuple[Window | None, ...] = (None, *get_args(Window))
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# Beyond this number of identical slices each is paired with the first only.
_ALL_PAIRS = 8
_CACHE_BYTES = 256 * 2**20
_AHEAD = 4


@dataclass(frozen=True)
class Trace:
    """What is kept of a slice to find its copies.

    Attributes:
        record: the slice.
        sha256: of its file's content.
        pixels_sha256: of its grey pixels and their shape.
        fingerprint: what it looks like.
    """

    record: Record
    sha256: str
    pixels_sha256: str
    fingerprint: Fingerprint


@dataclass(frozen=True)
class Pair:
    """Two slices that show the same.

    Attributes:
        first: the one.
        second: the other.
        kind: how much they are the same.
        correlation: 1 for the same file or pixels, otherwise as verified (`registration.agreement`).
        registration: how they lie on each other; None for the same file or pixels.
    """

    first: Record
    second: Record
    kind: Kind
    correlation: float
    registration: Registration | None = None

    @property
    def mirrored(self) -> bool:
        """Whether one is the mirror image of the other."""
        return self.registration is not None and self.registration.mirrored

    @property
    def across_parts(self) -> bool:
        """Whether they are in different parts of the data set's split."""
        return (
            self.first.split is not None
            and self.second.split is not None
            and self.first.split != self.second.split
        )

    @property
    def across_labels(self) -> bool:
        """Whether they carry different labels."""
        return (
            self.first.label is not None
            and self.second.label is not None
            and self.first.label is not self.second.label
        )

    @property
    def across_patients(self) -> bool:
        """Whether they are said to be of different patients, or at least one of a patient not known."""
        return self.first.patient_id != self.second.patient_id


_IDENTITIES: tuple[tuple[Kind, Callable[[Trace], str]], ...] = (
    ("file", lambda trace: trace.sha256),
    ("pixels", lambda trace: trace.pixels_sha256),
)


def take_trace(record: Record, image: CTSlice, patches: bool = True) -> Trace:
    """What is kept of a slice.

    Args:
        record: the slice.
        image: the same, read.
        patches: whether crops are to be found as well, which takes four times as long.

    Raises:
        ImageError: the file cannot be read.
    """
    pixels = np.ascontiguousarray(image.pixels)
    shape = np.array(pixels.shape, "<i8").tobytes()
    return Trace(
        record=record,
        sha256=hashlib.sha256(read_bytes(record)).hexdigest(),
        pixels_sha256=hashlib.sha256(shape + pixels.tobytes()).hexdigest(),
        fingerprint=fingerprint(pixels, patches),
    )


def copies_of(
    held_out: Sequence[Record],
    candidates: Sequence[Record],
    *,
    lookalikes: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Pair]:
    """Which of the candidates show a held-out slice: what must not enter a training on the candidates.

    The same files, the same pixels, and copies that were recoded, rescaled, cropped, annotated or mirrored.

    Args:
        held_out: slices to be judged on.
        candidates: slices to be trained on.
        lookalikes: name lookalikes as well: most often neighbouring slices of a held-out patient.
        threads: to read and compare in; as many as there are cores unless given.
        progress: told of each slice read and each pair compared.

    Returns:
        Pairs of a held-out slice (first) and a candidate (second), the surest first. A candidate that cannot
        be read is passed over, as whoever trains on it will say.

    Raises:
        ImageError: a held-out slice cannot be read.
    """
    ours = [_certain(result) for result in read_traces(held_out, threads=threads, progress=progress)]
    read = read_traces(candidates, threads=threads, progress=progress)
    theirs = [result for result in read if isinstance(result, Trace)]
    exact: dict[tuple[int, int], Kind] = {}
    for kind, key in _IDENTITIES:
        for places in _equal([key(trace) for trace in ours], [key(trace) for trace in theirs]):
            exact.setdefault(places, kind)
    prints = [trace.fingerprint for trace in ours], [trace.fingerprint for trace in theirs]
    proposed = itertools.chain(patch_candidates(*prints), hash_candidates(*prints))
    new = (candidate for candidate in proposed if (candidate.first, candidate.second) not in exact)
    pairs = [
        Pair(ours[first].record, theirs[second].record, kind, 1.0) for (first, second), kind in exact.items()
    ]
    pairs += verify(ours, theirs, new, threads=threads, progress=progress)
    return in_order(pair for pair in pairs if lookalikes or pair.kind != "lookalike")


def find_pairs(
    traces: Sequence[Trace],
    *,
    across_parts: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Pair]:
    """Pairs of slices that show the same, the surest first.

    Of slices with the same pixels only one is compared with others. Lookalikes of one patient are left out:
    neighbouring slices of a patient are expected to be alike.

    Args:
        traces: of the slices.
        across_parts: compare only slices of different parts; the same files and pixels are found anyway.
        threads: to compare in; as many as there are cores unless given.
        progress: told of each pair compared.
    """
    pairs: list[Pair] = []
    unlike = list(range(len(traces)))
    for kind, key in _IDENTITIES:
        pairs += _identical([traces[index] for index in unlike], kind, key)
        unlike = list({key(traces[index]): index for index in reversed(unlike)}.values())[::-1]
    kept = [traces[index] for index in unlike]
    prints = [trace.fingerprint for trace in kept]
    patients = [trace.record.patient_id for trace in kept]
    proposed = itertools.chain(
        patch_candidates(prints, None, patients),
        hash_candidates(prints, None),
    )
    splits = [trace.record.split for trace in kept]
    wanted = (
        candidate
        for candidate in proposed
        if not across_parts or splits[candidate.first] != splits[candidate.second]
    )
    for pair in verify(kept, kept, wanted, threads=threads, progress=progress):
        if pair.kind != "lookalike" or pair.across_patients:
            pairs.append(pair)
    return in_order(pairs)


def groups_of(pairs: Iterable[Pair]) -> list[list[Record]]:
    """Slices that show the same, as pairs connect them; groups and slices in the order of the pairs."""
    group: dict[int, list[Record]] = {}
    for pair in pairs:
        first = group.setdefault(id(pair.first), [pair.first])
        second = group.setdefault(id(pair.second), [pair.second])
        if first is not second:
            first += second
            group.update((id(record), first) for record in second)
    return list({id(members): members for members in group.values()}.values())


def verify(
    first: Sequence[Trace],
    second: Sequence[Trace],
    candidates: Iterable[Candidate],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Pair]:
    """The candidates that registration confirms, as copies or lookalikes.

    Args:
        first: what the candidates' first index is about.
        second: what their second index is about.
        candidates: in any order, pairs repeated or not.
        threads: to compare in.
        progress: told of each pair compared.
    """
    pixels = _PixelCache()

    def compare(merged: tuple[int, int, bool, tuple[Window | None, ...]]) -> Pair | None:
        one, other, mirrored, windows = merged
        found = _register(first[one], second[other], mirrored, windows, pixels)
        if found is None or found.correlation < LOOKALIKE_CORRELATION:
            return None
        kind: Kind = "copy" if found.correlation >= COPY_CORRELATION else "lookalike"
        return Pair(first[one].record, second[other].record, kind, found.correlation, found)

    best: Pair | None = None
    for pair in in_threads(compare, _merged(candidates, len(second)), threads):
        if progress is not None:
            progress(1)
        if pair is None:
            continue
        if best is not None and (best.first, best.second) == (pair.first, pair.second):
            best = max(best, pair, key=lambda either: either.correlation)
            continue
        if best is not None:
            yield best
        best = pair
    if best is not None:
        yield best


def in_order(pairs: Iterable[Pair]) -> list[Pair]:
    """Pairs by kind and falling correlation."""
    return sorted(pairs, key=lambda pair: (_KINDS.index(pair.kind), -pair.correlation))


def read_traces(
    records: Sequence[Record],
    *,
    patches: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Trace | ImageError]:
    """What is kept of each slice, or why it cannot be read, in the order of the records."""

    def attempt(record: Record) -> Trace | ImageError:
        try:
            return take_trace(record, read_record(record), patches)
        except ImageError as error:
            return error

    for result in in_threads(attempt, records, threads):
        if progress is not None:
            progress(1)
        yield result


def in_threads(
    function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int | None = None
) -> Iterator[_Result]:
    """``function`` of each item, in order, a few at a time: decoding and filtering leave Python's lock."""
    workers = threads or _cores()
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[_Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _certain(result: Trace | ImageError) -> Trace:
    if isinstance(result, ImageError):
        raise result
    return result


def _identical(traces: Sequence[Trace], kind: Kind, key: Callable[[Trace], str]) -> Iterator[Pair]:
    """Pairs of traces with the same key."""
    same: dict[str, list[Record]] = {}
    for trace in traces:
        same.setdefault(key(trace), []).append(trace.record)
    for records in same.values():
        few = len(records) <= _ALL_PAIRS
        pairs = itertools.combinations(records, 2) if few else ((records[0], other) for other in records[1:])
        yield from (Pair(first, second, kind, 1.0) for first, second in pairs)


def _equal(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Indices of equal keys."""
    places: dict[str, list[int]] = {}
    for index, key in enumerate(first):
        places.setdefault(key, []).append(index)
    for other, key in enumerate(second):
        yield from ((index, other) for index in places.get(key, ()))


def _merged(
    candidates: Iterable[Candidate], width: int
) -> Iterator[tuple[int, int, bool, tuple[Window | None, ...]]]:
    """Each pair once, with all that speaks for it; pairs of one first slice follow each other."""
    keys = array("q")  # a million candidates must not become a million objects
    for candidate in candidates:
        pair = (candidate.first * width + candidate.second) * 2 + candidate.mirrored
        keys.append(pair * len(_WINDOWS) + _WINDOWS.index(candidate.window))
    unique = np.unique(np.frombuffer(keys, np.int64)) if keys else np.zeros(0, np.int64)
    for pair, members in itertools.groupby(unique.tolist(), key=lambda key: key // len(_WINDOWS)):
        first, second = divmod(pair // 2, width)
        yield first, second, bool(pair % 2), tuple(_WINDOWS[key % len(_WINDOWS)] for key in members)


def _register(
    first: Trace, second: Trace, mirrored: bool, windows: Iterable[Window | None], pixels: _PixelCache
) -> Registration | None:
    best: Registration | None = None
    for start in _starts(first.fingerprint, second.fingerprint, mirrored, windows):
        try:
            here, there = pixels.read(first.record), pixels.read(second.record)
        except ImageError:  # gone since it was read first
            return None
        boxes = first.fingerprint.box, second.fingerprint.box
        found = register(here, there, boxes, start, mirrored)
        if found is not None and (best is None or found.correlation > best.correlation):
            best = found
        if best is not None and best.correlation >= COPY_CORRELATION:
            break
    return best


def _starts(
    first: Fingerprint, second: Fingerprint, mirrored: bool, windows: Iterable[Window | None]
) -> Iterator[Affine]:
    patches = patches_start(first, second, mirrored)
    if patches is not None:
        yield patches
    for window in windows:
        if window == "whole":
            yield boxes_start(first.box, second.box, first.shape[1], mirrored)
        elif window == "lungs" and first.lungs is not None and second.lungs is not None:
            yield boxes_start(first.lungs, second.lungs, first.shape[1], mirrored)


class _PixelCache:
    """Pixels of the slices read last, within a bound of memory."""

    def __init__(self) -> None:
        self._held: OrderedDict[int, Grey] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def read(self, record: Record) -> Grey:
        with self._lock:
            if id(record) in self._held:
                self._held.move_to_end(id(record))
                return self._held[id(record)]
        pixels = read_pixels(record)
        with self._lock:
            if id(record) not in self._held:
                self._held[id(record)] = pixels
                self._bytes += pixels.nbytes
            while self._bytes > _CACHE_BYTES and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
        return pixels
