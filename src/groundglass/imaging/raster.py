"""CT slices from picture files: PNG, JPEG, TIFF and BMP."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from groundglass.errors import ImageError, NotASliceError
from groundglass.imaging.slice import CTSlice, Grey, Origin
from groundglass.imaging.source import (
    DEFAULT_LIMITS,
    FileFormat,
    Limits,
    Source,
    guarded,
    identify,
    without_stderr,
)
from groundglass.imaging.window import extent, interpret

COLOURED = 32
"""A pixel is coloured where its largest and smallest channel differ by more than this (of 255)."""

COLOURED_SHARE = 0.2
"""Share of coloured among not nearly black pixels above which a picture is a colour photograph.

Of the 746 COVID-CT images, coloured marks and tinted scans included, the most colourful reaches 0.10; of the
fourteen colour photographs that come with scikit-image, scikit-learn and matplotlib the least colourful
reaches 0.38 (``tests/imaging/test_raster.py`` measures both).
"""

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_DEEP_MODES = frozenset({"I", "F"})
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


@guarded("picture")
def read_raster(source: Source, limits: Limits = DEFAULT_LIMITS) -> Iterator[CTSlice]:
    """Every page of a picture file as a slice; only TIFF has more than one.

    Transparent pixels lie on black. 16-bit, 32-bit and floating-point pixels are Hounsfield units where they
    reach below any grey value, else they are scaled by their depth.

    Raises:
        ImageError: damaged, larger than ``limits`` allow, or a colour photograph.
    """
    yield from decode_raster(source.read(limits), source.name, limits)


def decode_raster(content: bytes, name: str, limits: Limits) -> Iterator[CTSlice]:
    """As ``read_raster``, from bytes, and not guarded against a decoder's exceptions."""
    # libtiff tells file descriptor 2 of every damage, whatever Python does about it.
    quiet = without_stderr if identify(content[:4]) is FileFormat.TIFF else nullcontext
    with quiet():
        image = _open(content, name, limits)
        file_format = "JPEG" if image.format == "MPO" else str(image.format)
        pages = getattr(image, "n_frames", 1) if file_format == "TIFF" else 1
    if pages > limits.frames:
        raise ImageError(name, f"{pages:,} pages are more than the limit of {limits.frames:,}")
    for page in range(pages):
        with quiet():
            if page:
                image.seek(page)
            _check_size(image, name, limits)
            following = _slice(image, name, file_format, page if pages > 1 else None)
        yield following


def _open(content: bytes, name: str, limits: Limits) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(name, f"more pixels than the limit of {limits.pixels:,}") from error
    except UnidentifiedImageError as error:
        raise ImageError(name, "its header is damaged") from error


def _check_size(image: Image.Image, name: str, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.pixels:
        raise ImageError(name, f"{width} x {height} pixels are more than the limit of {limits.pixels:,}")


def _slice(image: Image.Image, name: str, file_format: str, page: int | None) -> CTSlice:
    origin = Origin(file=name, file_format=file_format, mode=image.mode, frame=page)
    if image.mode in _DEEP_MODES or image.mode.startswith("I;16"):
        values = np.asarray(image)
        pixels, hounsfield = interpret(values, *extent(values))
        return CTSlice(pixels, origin, hounsfield)
    if file_format != "TIFF":  # Pillow turns TIFF upright by itself
        ImageOps.exif_transpose(image, in_place=True)
    return CTSlice(_grey(image, name), origin)


def _grey(image: Image.Image, name: str) -> Grey:
    clear = image.mode in _ALPHA_MODES or "transparency" in image.info
    if image.mode in {"1", "L"} and not clear:
        return np.array(image.convert("L"))
    if clear:
        image = _on_black(image)
    elif image.mode != "RGB":
        image = image.convert("RGB")
    channels = cv2.split(np.asarray(image))[:3]
    brightest, chroma = _brightest_and_chroma(channels)
    share = _coloured_share(brightest, chroma)
    if share > COLOURED_SHARE:
        raise NotASliceError(
            name, f"a colour photograph, not a CT slice: {share:.0%} of its pixels are coloured"
        )
    # A CT slice in colours hardly ever has any, and then each of its channels is its grey.
    return np.array(image.convert("L")) if cv2.countNonZero(chroma) else np.asarray(channels[0], np.uint8)


def _on_black(image: Image.Image) -> Image.Image:
    """The picture as RGBA, what is transparent in it over black."""
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() == (255, 255):
        return image
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    black.alpha_composite(image)
    return black


def coloured_share(rgb: NDArray[np.uint8]) -> float:
    """Share of coloured among not nearly black pixels of an RGB image, shape (H, W, 3); 0 for a black one."""
    return _coloured_share(*_brightest_and_chroma(cv2.split(rgb)))


def _brightest_and_chroma(channels: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Each pixel's largest channel, and how far its smallest lies below, from red, green and blue."""
    red, green, blue = channels
    brightest = cv2.max(cv2.max(red, green), blue)
    return brightest, cv2.subtract(brightest, cv2.min(cv2.min(red, green), blue))


def _coloured_share(brightest: NDArray[Any], chroma: NDArray[Any]) -> float:
    visible = np.count_nonzero(brightest > COLOURED)
    return float(np.count_nonzero(chroma > COLOURED) / visible) if visible else 0.0
