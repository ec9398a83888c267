"""Lung and lesion masks in the geometry of what they were found on: PNG, NIfTI or DICOM SEG."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import chain, groupby
from pathlib import Path

import cv2
import numpy as np

from groundglass.errors import ImageError, PredictionError
from groundglass.files import atomic_path, write_bytes
from groundglass.imaging.dicom import open_dataset
from groundglass.imaging.read import open_source
from groundglass.imaging.slice import VoxelGrid
from groundglass.imaging.source import DEFAULT_LIMITS, guard
from groundglass.inference.bundle import Bundle
from groundglass.inference.prediction import PackedMasks, Prediction
from groundglass.inference.report import picture_stem
from groundglass.inference.writers import file_errors

_LUNGS, _LESIONS = "-lungs", "-lesions"
_LONGEST_UID = 64


class MaskWriter:
    """Writes the masks of predictions into a folder.

    Pictures get two PNG files (0 and 255) at once; a volume or DICOM series gets its files when the next one
    begins, or :meth:`finish` is called: NIfTI with the voxel grid of the file, or one DICOM SEG. What
    has no geometry for either gets PNG files. Memory holds the masks of one volume or series, a bit a pixel, and
    while a volume is written a byte a voxel. The folder is made where it is not there.
    """

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self._folder, self._bundle = folder, bundle
        self._group: str | None = None
        self._slices: list[PackedMasks] = []
        with file_errors(folder):
            folder.mkdir(exist_ok=True)

    def add(self, prediction: Prediction) -> None:
        """Take the masks of one prediction; without evidence it has none.

        A PredictionError where masks cannot be written, or those of a DICOM series without highdicom.
        """
        if prediction.evidence is None:
            return
        masks, group = PackedMasks.of(prediction.evidence), _group_of(prediction)
        if group is None:
            self._write_pictures([masks])
            return
        if group != self._group:
            self.finish()
            if prediction.frame is None and find_spec("highdicom") is None:
                raise PredictionError(
                    f"{prediction.file}: the masks of DICOM series need highdicom; install it with "
                    "`pip install '.[pacs]'` from a clone"
                )
        self._group = group
        self._slices.append(masks)

    def finish(self) -> None:
        """Write the masks of the last volume or series."""
        slices, self._slices, self._group = self._slices, [], None
        if not slices:
            return
        first = slices[0].origin
        if first.frame is not None and first.grid is not None:
            self._write_volume(slices, first.grid)
        elif first.frame is not None or not self._write_series(slices):
            self._write_pictures(slices)

    def _write_pictures(self, slices: Sequence[PackedMasks]) -> None:
        # The first slice's lungs come last: where they are, all is.
        for each in reversed(slices):
            lungs, lesions = each.unpacked()
            for mask, name in ((lesions, _LESIONS), (lungs, _LUNGS)):
                _, content = cv2.imencode(".png", np.where(mask, 255, 0).astype(np.uint8))
                path = self._folder / f"{picture_stem(each.origin.file, each.origin.frame)}{name}.png"
                with file_errors(self._folder):
                    write_bytes(path, content.tobytes())

    def _write_volume(self, slices: Sequence[PackedMasks], grid: VoxelGrid) -> None:
        import nibabel  # noqa: PLC0415 - slow to import

        for index, name in ((1, _LESIONS), (0, _LUNGS)):
            path = self._folder / f"{_volume_stem(slices[0].origin.file)}{name}.nii.gz"
            planes, new = np.zeros((grid.planes, *slices[0].shape), np.uint8), np.zeros((grid.planes, 1, 1), np.uint8)
            for each in slices:
                planes[each.origin.frame], new[each.origin.frame] = each.unpacked()[index], 1
            voxels = grid.voxels(planes)
            if len(slices) < grid.planes and path.is_file():  # of an earlier run, which this one completes
                earlier = np.asarray(nibabel.load(path).dataobj, np.uint8)
                taken = grid.voxels(np.broadcast_to(new, planes.shape))
                voxels = np.where(taken, voxels, earlier) if earlier.shape == voxels.shape else voxels
            image = nibabel.Nifti1Image(voxels, np.array(grid.affine))
            image.header.set_xyzt_units("mm")
            with (
                file_errors(path),
                atomic_path(path) as temporary,
                temporary.open("wb") as target,
                gzip.GzipFile("", "wb", 6, target, mtime=0) as stream,
            ):
                image.to_stream(stream)

    def _write_series(self, slices: Sequence[PackedMasks]) -> bool:
        """Write a DICOM SEG, and say whether the series allows it."""
        from groundglass.inference.dicom_seg import OF_SOURCE, segmentation  # noqa: PLC0415 - an extra

        headers, first = [], slices[0].origin
        try:
            for each in slices:
                with open_source(each.origin.file) as source, guard(source.name, "DICOM"):
                    headers.append(open_dataset(source, DEFAULT_LIMITS, OF_SOURCE))
        except ImageError:  # gone or changed since
            return False
        if (made := segmentation(headers, slices, self._bundle)) is None:
            return False
        path = self._folder / f"{_series_stem(first.series or '', first.file)}.dcm"
        with file_errors(path), atomic_path(path) as temporary:
            made.save_as(stream := io.BytesIO())  # pydicom hides why a disk is full
            temporary.write_bytes(stream.getvalue())
        return True


def without_masks(folder: Path, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """Predictions of an earlier run, in its order, whose masks were not written or not completely."""
    # Otherwise there was no picture, nor anything to mark in it. What Ray classified has no overlay.
    shown = (each for each in predictions if each.overlay is not None or each.label is not None)
    for _, together in groupby(shown, lambda each: _group_of(each) or (each.file, each.frame)):
        first, *others = together
        if not _are_written(folder, [first, *others]):
            yield from (first, *others)


def _group_of(prediction: Prediction) -> str | None:
    """What masks are written together: a series in a folder or zip, the planes of a file; None for a picture."""
    if prediction.frame is not None or prediction.series is None:
        return None if prediction.frame is None else prediction.file
    place = Path(prediction.file.partition("!")[0]).parent
    return f"{prediction.study} {prediction.series} {prediction.stack} {place}"


def _are_written(folder: Path, together: Sequence[Prediction]) -> bool:
    """Whether the last file of a volume or picture is there, or DICOM SEGs that refer to every image of a series."""
    first = together[0]
    pictures = [(folder / f"{picture_stem(each.file, each.frame)}{_LUNGS}.png").is_file() for each in together]
    if any(pictures):
        return all(pictures)
    if first.frame is not None:
        return (folder / f"{_volume_stem(first.file)}{_LUNGS}.nii.gz").is_file()
    paths = [folder / f"{_series_stem(each.series or '', each.file)}.dcm" for each in together]
    referred = chain.from_iterable(_referred_by(path) for path in paths if path.is_file())
    return {each.instance for each in together}.issubset(referred)


def _referred_by(path: Path) -> Iterator[str]:
    """The images that a DICOM SEG refers to; none where it is damaged."""
    with suppress(ImageError), open_source(str(path)) as source, guard(source.name, "DICOM"):
        for series in open_dataset(source, DEFAULT_LIMITS, ["ReferencedSeriesSequence"]).ReferencedSeriesSequence:
            yield from (str(image.ReferencedSOPInstanceUID) for image in series.ReferencedInstanceSequence)


def _volume_stem(file: str) -> str:
    return picture_stem(file, None).replace(".nii-", "-")  # of a .nii.gz


def _series_stem(series: str, first_file: str) -> str:
    """UID, and a digest of the first file: a series that comes in several parts overwrites none."""
    uid = re.sub(r"[^0-9A-Za-z.]+", "_", series)[:_LONGEST_UID].lstrip("._")
    return f"{uid or 'series'}-{picture_stem(first_file, None).rpartition('-')[2]}"
