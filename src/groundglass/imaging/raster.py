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
from groundglass.imaging.source import FileFormat, Limits, Source, identify
from groundglass.imaging.window import Scale, find_scale

COLOURED = 32
"""A pixel is coloured where its largest and smallest channel differ by more than this (of 255)."""

COLOURED_SHARE = 0.2
"""Share of coloured among not nearly black pixels above which a picture is a colour photograph.

Of the 746 COVID-CT images, coloured marks and tinted scans included, the most colourful reaches 0.10; of the
fourteen colour photographs that come with scikit-image, scikit-learn and matplotlib the least colourful
reaches 0.38 (``tests/imaging/test_raster.py`` measures both).
"""

_BESIDE = 8.0  # of 255, by which the chroma of a tinted picture's pixels may differ from one hue
_FORMATS = ("PNG", "JPEG", "BMP")
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_GREY, _RGB, _PALETTE, _CMYK, _YCBCR = frozenset({0, 1}), 2, 3, 5, 6  # TIFF's photometric interpretations
_JPEG = frozenset({6, 7})  # TIFF's compressions whose colours tifffile converts
_CHANNELS = 8
_QUIET = logging.NullHandler()  # tifffile logs what it notices; without any handler Python would print that


def read_raster(source: Source, limits: Limits) -> Iterator[CTSlice]:
    """Every page of a picture file as a slice, see :func:`decode_raster`."""
    yield from decode_raster(source.read(limits), source.name, limits)


def decode_raster(content: bytes, name: str, limits: Limits, scale: Scale | None = None) -> Iterator[CTSlice]:
    """Every page of a picture file as a slice; only TIFF has more than one. Transparent pixels lie on black.

    An error where it is damaged, too large, a colour photograph, or holds numbers of no known scale; any but an
    ``ImageError`` is for the caller to guard.

    Args:
        content: of the file.
        name: of the file, as messages should call it.
        limits: what it may ask for.
        scale: what pixels deeper than 8 bits mean, where it is known; `find_scale` finds it out.
    """
    if identify(content[:4]) is FileFormat.TIFF:
        yield from _tiff(content, name, limits, scale)
        return
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(name, f"more pixels than the limit of {limits.pixels:,}") from error
    except UnidentifiedImageError as error:
        raise ImageError(name, "its header is damaged") from error
    limits.check_pixels(*image.size, name)
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


def _deep(
    values: NDArray[Any], origin: Origin, scale: Scale | None, slope: float = 1.0, intercept: float = 0.0
) -> CTSlice:
    found = scale and replace(scale, slope=slope, intercept=intercept)
    found = found or find_scale(values, origin.file, slope, intercept)
    pixels, hounsfield = found.apply(values)
    return CTSlice(pixels, origin, hounsfield)


def _tiff(content: bytes, name: str, limits: Limits, scale: Scale | None) -> Iterator[CTSlice]:
    """Every page that is neither a smaller copy of another one nor a mask, and every plane of ImageJ's stacks."""
    from tifffile import TiffFile  # noqa: PLC0415 - slow to import

    logging.getLogger("tifffile").addHandler(_QUIET)
    with TiffFile(io.BytesIO(content)) as file:
        pages: list[Any] = list(islice(file.pages, limits.frames + 1))
        about = (file.imagej_metadata or {}) if file.is_imagej else {}
        planes = int(about.get("images", 1))
        count = max(len(pages), planes)
        if count > limits.frames:
            raise ImageError(name, f"{count:,} pages are more than the limit of {limits.frames:,}")
        pages = [page for page in pages if not (page.is_reduced or page.is_mask)] or pages
        count = max(len(pages), planes)
        # ImageJ's calibration, where it is a straight line; this is how it keeps the sign of 16 bits.
        line = (float(about["c1"]), float(about["c0"])) if about.get("cf") == 0 else (1.0, 0.0)
        for index in range(count):
            stacked = planes > len(pages)
            page = pages[0 if stacked else index]
            _check_page(page, name, limits)
            values = _plane(content, page, planes, index) if stacked else page.asarray(maxworkers=1)
            origin = Origin(name, "TIFF", frame=index if count > 1 else None)
            yield _tiff_slice(page, values, origin, line, scale)


def _check_page(page: Any, name: str, limits: Limits) -> None:
    """Whether a page can be decoded, and within the limits, before anything of it is."""
    limits.check_pixels(page.imagewidth, page.imagelength, name)
    what = f"TIFF pixels of {page.bitspersample} bits in {page.samplesperpixel} channels"
    if page.dtype is None or page.samplesperpixel > _CHANNELS or page.imagedepth != 1:
        raise ImageError(name, f"{what} are not supported; save it as grey of 8 or 16 bits")
    if len(page.dataoffsets) < prod(page.chunked) or 0 in page.databytecounts:
        raise ImageError(name, "damaged: some of its pixels are missing")
    if prod(page.chunks) > _CHANNELS * limits.pixels:
        raise ImageError(name, f"tiles of {page.chunks} pixels are more than the limit of {limits.pixels:,}")


def _plane(content: bytes, page: Any, planes: int, index: int) -> NDArray[Any]:
    """A plane of ImageJ's stack, whose planes follow the only page's pixels and have no pages of their own."""
    if page.compression != 1 or page.dataoffsets[0] + planes * page.nbytes > len(content):
        raise ValueError(f"ImageJ says that it holds {planes:,} images, but there are fewer")
    dtype = page.dtype.newbyteorder(page.parent.byteorder)
    begin = page.dataoffsets[0] + index * page.nbytes
    return np.frombuffer(content, dtype, prod(page.shape), begin).reshape(page.shape).astype(page.dtype)


def _tiff_slice(
    page: Any, values: NDArray[Any], origin: Origin, line: tuple[float, float], scale: Scale | None
) -> CTSlice:
    bits, photometric, name = page.bitspersample, int(page.photometric), origin.file
    if page.samplesperpixel > 1 and page.planarconfig == 2:
        values = np.moveaxis(values, 0, -1)
    if photometric == _PALETTE:
        shift = 8 if page.colormap.max() > 255 else 0
        index, *opacity = np.moveaxis(values, -1, 0) if values.ndim == 3 else [values]
        values = np.dstack([*(page.colormap >> shift).astype(np.uint8)[:, index], *opacity])
    values = _upright(values, page.tags.valueof(274, 1))
    if photometric in _GREY:
        grey = values if values.ndim == 2 else values[..., 0]
        if photometric == 0 and grey.dtype.kind == "f":
            raise ImageError(name, "floating-point pixels of which zero is white are not supported")
        full = 2**bits - 1
        if photometric == 0:
            grey = ~grey if grey.dtype.kind in "bi" else (full - grey).astype(grey.dtype)
        if grey.dtype not in {np.dtype(np.uint8), np.dtype(np.bool_)}:
            mode = {"f": "F", "i": "I"}.get(grey.dtype.kind, "I;16" if grey.itemsize == 2 else "I")
            return _deep(grey, replace(origin, mode=mode), scale, *line)
        grey = np.asarray(grey * (255 // full), np.uint8)
        values = np.dstack([grey, values[..., 1]]) if 2 in page.extrasamples else grey
    else:
        values = _rgb(page, values, name)
    image = Image.fromarray(np.ascontiguousarray(values))
    mode = "P" if photometric == _PALETTE else "1" if bits == 1 else image.mode
    return CTSlice(_grey(image, name), replace(origin, mode=mode))


def _rgb(page: Any, values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Colours and, where it is not multiplied into them, opacity."""
    photometric = int(page.photometric)
    if values.dtype == np.uint16:
        values = (values >> 8).astype(np.uint8)
    known = photometric in {_RGB, _PALETTE, _CMYK} or (photometric == _YCBCR and page.compression in _JPEG)
    if values.dtype != np.uint8 or not known:
        raise ImageError(name, "TIFF of these colours is not supported; save it as grey or as RGB of 8 bits")
    if photometric == _CMYK:
        inks = 255 - values[..., :4].astype(np.uint16)
        values = inks[..., :3] * inks[..., 3:] // 255
    return values[..., : 4 if 2 in page.extrasamples[:1] else 3].astype(np.uint8)


def _upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The picture turned and mirrored as TIFF's orientation, 1 to 8, says that it is to be shown."""
    values = values.swapaxes(0, 1) if orientation >= 5 else values
    values = values[:, ::-1] if orientation in {2, 3, 6, 7} else values
    return values[::-1] if orientation in {3, 4, 7, 8} else values


def _grey(image: Image.Image, name: str) -> Grey:
    clear = image.mode in _ALPHA_MODES or "transparency" in image.info
    if image.mode in {"1", "L"} and not clear:
        return np.array(image.convert("L"))
    if clear:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != (255, 255):
            black = Image.new("RGBA", image.size, (0, 0, 0, 255))
            black.alpha_composite(image)
            image = black
    elif image.mode != "RGB":
        image = image.convert("RGB")
    channels = np.asarray(image)[..., :3]
    share, grey = _colours(channels)
    if share > COLOURED_SHARE:
        untinted = _untinted(channels)
        if untinted is None:
            reason = f"a colour photograph, not a CT slice: {share:.0%} of its pixels are coloured"
            raise NotASliceError(name, reason)
        return untinted
    # A CT slice in colours hardly ever has any, and then each of its channels is its grey.
    return channels[..., 0].copy() if grey else np.array(image.convert("L"))


def _untinted(rgb: NDArray[np.uint8]) -> Grey | None:
    """The grey picture that one tint was laid over, which dimmed its white; None of one in several colours."""
    brightness, *chroma = (
        channel.astype(np.float32) for channel in cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb))
    )
    red, blue = (channel - 128 for channel in chroma)
    tint = np.array([red.mean(), blue.mean()])
    across, along = tint / max(float(np.linalg.norm(tint)), 1e-6)
    beside = (np.abs(red * along - blue * across) > _BESIDE) | (red * across + blue * along < -_BESIDE)
    if beside.mean() > COLOURED_SHARE / 10:
        return None
    return np.asarray(np.clip(np.rint(brightness * (rgb.max() / brightness.max())), 0, 255), np.uint8)


def coloured_share(rgb: NDArray[np.uint8]) -> float:
    """Share of coloured among not nearly black pixels of an RGB image, shape (H, W, 3); 0 for a black one."""
    return _colours(rgb)[0]


def _colours(rgb: NDArray[np.uint8]) -> tuple[float, bool]:
    """Share of coloured among not nearly black pixels, and whether all channels are the same."""
    red, green, blue = cv2.split(rgb)
    brightest = cv2.max(cv2.max(red, green), blue)
    chroma = cv2.subtract(brightest, cv2.min(cv2.min(red, green), blue))
    visible = np.count_nonzero(brightest > COLOURED)
    share = float(np.count_nonzero(chroma > COLOURED) / visible) if visible else 0.0
    return share, cv2.countNonZero(chroma) == 0
