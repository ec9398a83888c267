"""Cut lung slices out of series and volumes, as 8-bit pictures that name no patient."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import groupby
from os import PathLike
from pathlib import Path

from PIL import Image

from groundglass.files import atomic_path
from groundglass.imaging.lungs import shipped
from groundglass.imaging.read import lying_in, read_slices
from groundglass.imaging.slice import Origin, is_uid
from groundglass.imaging.source import OnError

_NAME_DIGITS, _LEAST_LUNGS = 16, 0.05


def cut_slices(
    path: str | PathLike[str], output: Path, every: int = 10, on_error: OnError | None = None
) -> Iterator[Path]:
    """Write slices of every series and volume below a path as grey PNGs in the lung window.

    They are called ``<series>_<index>.png``. The series' name is a digest of its first such slice's
    pixels: the same for the same input, and nothing of the patient, file or study can be read from it or
    guessed at by digesting likely names. The files carry no metadata.

    The path of each picture is yielded once it is written; files of its name in the folder ``output``, of which nothing
    is read, are replaced.

    Of ``every`` so many slices the first is taken, if it is axial and at least a twentieth of the picture is lung.

    Raises:
        ImageError: a file cannot be read and there is no ``on_error`` to be called with this instead.
    """
    find_lungs = shipped()
    slices = read_slices(path, on_error=on_error, skip=lying_in(output))
    for _, series in groupby(slices, key=lambda image: _series(image.origin)):
        name = None
        for index, image in enumerate(series):
            if index % every or not image.origin.is_axial or find_lungs(image.pixels).mean() < _LEAST_LUNGS:
                continue
            name = name or hashlib.sha256(image.pixels.tobytes()).hexdigest()[:_NAME_DIGITS]
            target = output / f"{name}_{index:04d}.png"
            with atomic_path(target) as temporary:
                Image.fromarray(image.pixels).save(temporary, "PNG")
            yield target


def _series(origin: Origin) -> tuple[str | None, ...]:
    """What the series of a slice is known by."""
    if origin.stack is None or (origin.series is None and origin.frame is not None):
        return (origin.file,)
    return origin.study, origin.series, origin.stack, None if is_uid(origin.series) else os.path.dirname(origin.file)
