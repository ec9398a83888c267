"""CT slices from picture files: PNG, JPEG, TIFF and BMP."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from math import prod
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from groundglass.errors import ImageError, NotASliceError
from groundglass.imaging.slice import CTSlice, Grey, Origin
from groundglass.imaging.source import Limits, Source, identify
from groundglass.imaging.window import Scale, find_scale

COLOURED = 32
"""A pixel is coloured where its largest and smallest channel differ by more than this (of 255)."""

COLOURED_SHARE = 0.2
"""Share of coloured among not nearly black pixels above which a picture is a colour photograph.

Of the 746 COVID-CT images, coloured marks and tinted scans included, the most colourful reaches 0.10; of the
fourteen colour photographs that come with scikit-image, scikit-learn and matplotlib the least colourful
reaches 0.38 (``tests/imaging/test_raster.py`` measures both).
"""

_FORMATS = ("PNG", "JPEG", "BMP")
_GREY, _RGB, _PALETTE = frozenset({0, 1}), 2, 3  # TIFF's photometric interpretations
_CHANNELS = 8
_MOST_SCANS = 100  # of a progressive JPEG, each of which costs a pass over all its pixels
# None, CCITT, LZW, Deflate, PackBits, LZMA, Zstandard. Pictures within a TIFF may be of any size, whatever it says.
_PACKED = frozenset({1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000})
_QUIET = logging.NullHandler()  # tifffile logs what it notices; without any handler Python would print that


def read_raster(source: Source, limits: Limits, scale: Scale | None = None) -> Iterator[CTSlice]:
    """Every page of a picture file as a slice; only TIFF has more than one. Transparent pixels lie on black.

    ``scale`` is what pixels deeper than 8 bits mean, where that is known. An error where it is damaged, too large, a
    colour photograph, or holds numbers of no known scale; any but an ``ImageError`` is for the caller to guard.
    """
    content, name = source.read(limits), source.name
    if identify(content[:4]) == "TIFF":
        yield from _tiff(content, name, limits, scale)
        return
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(name, f"more pixels than the limit of {limits.pixels:,}") from error
    except UnidentifiedImageError as error:
        raise ImageError(name, "its header is damaged") from error
    limits.check_pixels(*image.size, name)
    if image.format in {"JPEG", "MPO"} and content.count(b"\xff\xda") > _MOST_SCANS:
        raise ImageError(name, "more scans than a picture has")
    yield read_picture(image, name, "JPEG" if image.format == "MPO" else str(image.format), scale)


def read_picture(image: Image.Image, name: str, file_format: str, scale: Scale | None = None) -> CTSlice:
    """An open picture as a slice; it is turned upright in place.

    Raises:
        NotASliceError: a colour photograph, or numbers of no known scale.
    """
    origin = Origin(name, file_format, image.mode)
    ImageOps.exif_transpose(image, in_place=True)
    deep = image.mode in {"I", "F"} or image.mode.startswith("I;16")
    return _deep(np.asarray(image), origin, scale) if deep else CTSlice(_grey(image, name), origin)


def _deep(values: NDArray[Any], origin: Origin, scale: Scale | None) -> CTSlice:
    pixels, hounsfield = (scale or find_scale(values, origin.file)).apply(values)
    return CTSlice(pixels, origin, hounsfield)


class _Counted(io.BytesIO):
    """A file that is read about once: its tags may name the same bytes again and again."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._left = 3 * len(content) + 2**20

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self._left -= len(content)
        if self._left < 0:
            raise ValueError("its tags name the same bytes again and again")
        return content


def _tiff(content: bytes, name: str, limits: Limits, scale: Scale | None) -> Iterator[CTSlice]:
    """Every page that is neither a smaller copy of another one nor a mask."""
    from tifffile import TiffFile  # noqa: PLC0415 - slow to import

    logging.getLogger("tifffile").addHandler(_QUIET)
    # Their pages may be many times the file.
    with TiffFile(_Counted(content), is_scanimage=False, is_lsm=False, is_ndpi=False) as file:
        pages: list[Any] = list(islice(file.pages, limits.frames + 1))
        if len(pages) > limits.frames:
            raise ImageError(name, f"more pages than the limit of {limits.frames:,}")
        planes = int((file.imagej_metadata or {}).get("images", 1)) if file.is_imagej else 1
        if planes > len(pages):
            raise ImageError(name, f"ImageJ's stack of {planes:,} images in one page; save each as a page or file")
        pages = [page for page in pages if not (page.is_reduced or page.is_mask)] or pages
        for index, page in enumerate(pages):
            origin = Origin(name, "TIFF", frame=index if len(pages) > 1 else None)
            yield _page(page, origin, limits, scale)


def _check_page(page: Any, name: str, limits: Limits) -> None:
    """Whether a page can be decoded, and within the limits, before anything of it is."""
    limits.check_pixels(page.imagewidth, page.imagelength, name)
    kind = f"TIFF pixels of {page.bitspersample} bits, packed by method {int(page.compression)},"
    readable = page.compression in _PACKED and page.dtype is not None
    if not readable or page.samplesperpixel > _CHANNELS or page.imagedepth != 1:
        channels = f"in {page.samplesperpixel} channels are not supported"
        raise ImageError(name, f"{kind} {channels}; save it as grey of 8 or 16 bits")
    if len(page.dataoffsets) < prod(page.chunked) or 0 in page.databytecounts:
        raise ImageError(name, "damaged: some of its pixels are missing")
    if prod(page.chunks) > _CHANNELS * limits.pixels:
        raise ImageError(name, f"tiles of {page.chunks} pixels are more than the limit of {limits.pixels:,}")


def _page(page: Any, origin: Origin, limits: Limits, scale: Scale | None) -> CTSlice:
    photometric, name = int(page.photometric), origin.file
    _check_page(page, name, limits)
    values = page.asarray(maxworkers=1)
    if page.samplesperpixel > 1 and page.planarconfig == 2:
        values = np.moveaxis(values, 0, -1)
    values = _upright(values, page.tags.valueof(274, 1))
    opaque = 2 not in page.extrasamples[:1]  # opacity that is not multiplied into the colours
    if photometric in _GREY:
        grey = values if values.ndim == 2 else values[..., 0]
        full = 2**page.bitspersample - 1
        if photometric == 0 and grey.dtype.kind == "f":
            raise ImageError(name, "floating-point pixels of which zero is white are not supported")
        if photometric == 0:
            grey = ~grey if grey.dtype.kind in "bi" else (full - grey).astype(grey.dtype)
        if grey.dtype not in {np.dtype(np.uint8), np.dtype(np.bool_)}:
            mode = {"f": "F", "i": "I"}.get(grey.dtype.kind, "I;16" if grey.itemsize == 2 else "I")
            return _deep(grey, replace(origin, mode=mode), scale)
        grey = np.asarray(grey * (255 // full), np.uint8)
        values = grey if opaque else np.dstack([grey, values[..., 1]])
    elif photometric == _PALETTE and values.ndim == 2:
        values = (page.colormap >> (8 if page.colormap.max() > 255 else 0)).astype(np.uint8).T[values.astype(np.uint16)]
    elif photometric == _RGB and values.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        values = (values >> 8 * (values.itemsize - 1)).astype(np.uint8)[..., : 3 if opaque else 4]
    else:
        raise ImageError(name, "TIFF of these colours is not supported; save it as grey or as RGB of 8 bits")
    image = Image.fromarray(np.ascontiguousarray(values))
    mode = {_PALETTE: "P"}.get(photometric, "1" if page.bitspersample == 1 else image.mode)
    return CTSlice(_grey(image, name), replace(origin, mode=mode))


def _upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The picture turned and mirrored as TIFF's orientation, 1 to 8, says that it is to be shown."""
    values = values.swapaxes(0, 1) if orientation >= 5 else values
    values = values[:, ::-1] if orientation in {2, 3, 6, 7} else values
    return values[::-1] if orientation in {3, 4, 7, 8} else values


def _grey(image: Image.Image, name: str) -> Grey:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            black = Image.new("RGBA", image.size, (0, 0, 0, 255))
            black.alpha_composite(image)
            image = black
    elif image.mode not in {"1", "L", "RGB"}:
        image = image.convert("RGB")
    if image.mode not in {"1", "L"} and (share := coloured_share(np.asarray(image)[..., :3])) > COLOURED_SHARE:
        reason = f"{share:.0%} of its pixels are coloured; save a scan in one tint as grey"
        raise NotASliceError(name, f"a colour photograph or tinted scan: {reason}")
    return np.array(image.convert("L"))


def coloured_share(rgb: NDArray[np.uint8]) -> float:
    """Share of coloured among not nearly black pixels of an RGB image, shape (H, W, 3); 0 for a black one."""
    red, green, blue = cv2.split(rgb)
    brightest = cv2.max(cv2.max(red, green), blue)
    chroma = cv2.subtract(brightest, cv2.min(cv2.min(red, green), blue))
    visible = np.count_nonzero(brightest > COLOURED)
    return float(np.count_nonzero(chroma > COLOURED) / visible) if visible else 0.0
