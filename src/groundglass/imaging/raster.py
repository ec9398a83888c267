"""CT slices from picture files: PNG, JPEG, TIFF and BMP."""

from __future__ import annotations

import io
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from groundglass.errors import ImageError, NotASliceError
from groundglass.imaging.slice import CTSlice, Grey, Origin
from groundglass.imaging.source import DEFAULT_LIMITS, Limits, Source, guarded
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
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(name, f"more pixels than the limit of {limits.pixels:,}") from error
    except UnidentifiedImageError as error:
        raise ImageError(name, "its header is damaged") from error
    file_format = "JPEG" if image.format == "MPO" else str(image.format)
    pages = getattr(image, "n_frames", 1) if file_format == "TIFF" else 1
    if pages > limits.frames:
        raise ImageError(name, f"{pages:,} pages are more than the limit of {limits.frames:,}")
    for page in range(pages):
        if page:
            image.seek(page)
        width, height = image.size
        if width * height > limits.pixels:
            raise ImageError(name, f"{width} x {height} pixels are more than the limit of {limits.pixels:,}")
        yield read_picture(image, name, file_format, page if pages > 1 else None)


def read_picture(image: Image.Image, name: str, file_format: str, page: int | None = None) -> CTSlice:
    """An open picture as a slice; it may be turned upright in place.

    Raises:
        NotASliceError: a colour photograph.
    """
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
        reason = f"a colour photograph, not a CT slice: {share:.0%} of its pixels are coloured"
        raise NotASliceError(name, reason)
    # A CT slice in colours hardly ever has any, and then each of its channels is its grey.
    return channels[..., 0].copy() if grey else np.array(image.convert("L"))


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
