"""What Python holds in memory, as slices: arrays, pictures, data sets, volumes, and the content of files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from groundglass.errors import ImageError, NotASliceError
from groundglass.imaging.raster import read_picture
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.imaging.source import MemorySource, Source, guard, guard_each
from groundglass.imaging.volume import in_mm, itk_voxels, slices_of_voxels
from groundglass.imaging.window import Scale, find_scale


def from_object(thing: Any, number: int | None = None, *, hu: bool = False) -> Source | Iterator[CTSlice]:
    """An object as a file to be read, or as slices that are made when they are asked for.

    Args:
        thing: a Pillow image; a pydicom data set; a nibabel or SimpleITK image; a file's content as bytes, or an
            open file; or whatever NumPy makes an array of: (H, W), (N, H, W) from the feet to the head, or in
            colour (H, W, 3 or 4).
        number: of the object in a list, for its name.
        hu: arrays are Hounsfield units.

    Raises:
        ImageError: a data set cannot be written down.
        TypeError: it is none of these.
    """
    if hasattr(thing, "read"):
        thing = thing.read()
    content = isinstance(thing, bytes | bytearray | memoryview)
    modules = {kind.__module__.partition(".")[0] for kind in type(thing).__mro__}
    kind = next(iter(modules & {"pydicom", "nibabel", "SimpleITK", "PIL"}), "bytes" if content else "array")
    file = getattr(thing, "filename", None)
    name = file if isinstance(file, str) and file else kind if number is None else f"{kind}[{number}]"
    if content:
        return MemorySource(name, bytes(thing))
    if kind == "pydicom":
        with guard(name, "DICOM"):
            return MemorySource(name, _content(thing))
    if kind == "array" and not hasattr(thing, "__array__"):
        raise TypeError(f"{type(thing).__name__}: no slice; give a path, array, image, data set or a list of these")
    return guard_each(_slices(thing, Origin(name, kind), hu), name, kind)


def _content(dataset: Any) -> bytes:
    """A data set as a file's content; the data set itself stays as it is."""
    from pydicom import uid  # noqa: PLC0415 - slow to import
    from pydicom.dataset import FileMetaDataset  # noqa: PLC0415 - slow to import

    implicit, little = dataset.original_encoding
    syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
    syntax = uid.ExplicitVRBigEndian if little is False else syntax
    whole, stream = copy(dataset), io.BytesIO()
    whole.preamble, whole.file_meta = b"\0" * 128, FileMetaDataset()
    whole.file_meta.TransferSyntaxUID = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", syntax)
    whole.save_as(stream)
    return stream.getvalue()


def _slices(thing: Any, origin: Origin, hu: bool) -> Iterator[CTSlice]:
    if origin.file_format == "nibabel":
        if thing.affine is None:
            raise ImageError(origin.file, "it has no affine; give it one, or its array instead")
        affine = in_mm(thing.affine, thing.header) if hasattr(thing.header, "get_xyzt_units") else thing.affine
        yield from slices_of_voxels(np.asanyarray(thing.dataobj), affine, origin)
    elif origin.file_format == "SimpleITK":
        yield from slices_of_voxels(*itk_voxels(thing), origin)
    elif origin.file_format == "PIL" and not hu and min(thing.size):
        yield read_picture(thing.copy(), origin.file, thing.format or "PIL")
    else:
        yield from _of_array(np.asarray(thing), origin, hu)


def _of_array(values: np.ndarray[Any, Any], origin: Origin, hu: bool) -> Iterator[CTSlice]:
    if values.size == 0:
        raise NotASliceError(origin.file, f"an array of shape {values.shape}, without a pixel")
    if values.ndim == 3 and values.shape[2] in {1, 3, 4}:
        if values.dtype == np.uint8 and values.shape[2] > 1:
            values = read_picture(Image.fromarray(values), origin.file, "array").pixels
        elif (values[..., :3] != values[..., :1]).any():
            raise NotASliceError(origin.file, "a picture in colour, not a CT slice")
        else:
            values = values[..., 0]
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.dtype.kind not in "buif":
        shape = f"an array of {values.dtype}, shape {values.shape}"
        raise ImageError(origin.file, f"{shape}; a slice is numbers of shape (H, W), a volume (N, H, W)")
    scale = Scale(offset=0.0) if hu else None
    if not hu and values.dtype != np.uint8:
        scale = find_scale(values, origin.file)
    for number, plane in enumerate(values):
        pixels, hounsfield = scale.apply(plane) if scale else (np.ascontiguousarray(plane), None)
        yield CTSlice(pixels, replace(origin, frame=number if len(values) > 1 else None), hounsfield)
