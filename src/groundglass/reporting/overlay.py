"""Pictures of slices for people: a slice with its outlines in layers, lesion maps, outlines drawn."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""Red, green, blue, shape (H, W, 3)."""
_Mask = NDArray[np.bool_]
_Spacing = tuple[float, float] | None

LESION, OTHER, OUTLINE = (255, 124, 31), (64, 156, 255), (255, 221, 87)
"""Colours that stay apart on grey for colour-blind readers."""

_STRENGTH, _LONGEST, _QUALITY = 0.62, 512, 90
_SVG = re.compile(
    r'<svg xmlns="http://www\.w3\.org/2000/svg" viewBox="0 0 (\d+) (\d+)"[^<>]*><image [^<>]*'
    r'href="data:image/jpeg;base64,([\w+/=]+)"/>'
    r'<path class="lesions" d="([MLZ\d., ]*)"[^<>]*/><path class="lungs" d="([MLZ\d., ]*)"[^<>]*/></svg>',
    re.ASCII,
)


@dataclass(frozen=True)
class Layers:
    """A slice with what was found on it, in layers that can be shown and hidden; nothing is stretched."""

    width: int  # of the slice in pixels
    height: int  # the same, stretched where the slice's pixels are no squares
    picture: str  # the slice as JPEG in base64, its longer side at most 512 pixels
    lesions: str  # their outlines as data of an SVG path, in pixels of the slice; empty where there are none
    lungs: str  # the same of the lungs

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], lungs: _Mask, lesions: _Mask, spacing: _Spacing) -> Layers:
        """Those of grey pixels and masks, shape (H, W) each, with mm between rows and between columns, where known."""
        rows, width = pixels.shape
        tall = min(max(spacing[0] / spacing[1], 0.1), 10) if spacing and all(spacing) else 1.0
        picture = jpeg(pixels, min(_LONGEST, max(pixels.shape)), _QUALITY)
        outlines = (_contours(mask, tall) for mask in (lesions, lungs))
        return cls(width, max(1, round(rows * tall)), picture, *outlines)

    @classmethod
    def read(cls, text: str) -> Layers | None:
        """Those that :meth:`svg` wrote, and nothing else; None where the text is damaged."""
        found = _SVG.fullmatch(text.strip())
        return None if found is None else cls(int(found[1]), int(found[2]), *found.group(3, 4, 5))

    def svg(self) -> str:
        """A file that any browser shows."""
        size = f'width="{self.width}" height="{self.height}"'
        style = 'stroke-width="1.5" vector-effect="non-scaling-stroke"'
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" {size} '
            f'style="background:#000"><image {size} preserveAspectRatio="none" '
            f'href="data:image/jpeg;base64,{self.picture}"/><path class="lesions" d="{self.lesions}" '
            f'fill="rgb{LESION}" fill-opacity="0.25" fill-rule="evenodd" stroke="rgb{LESION}" {style}/>'
            f'<path class="lungs" d="{self.lungs}" fill="none" stroke="rgb{OUTLINE}" {style}/></svg>\n'
        )

    def small(self, side: int) -> Layers:
        """The same with a picture of at most ``side`` pixels; ValueError where it is damaged."""
        content = np.frombuffer(base64.b64decode(self.picture), np.uint8)
        pixels = cv2.imdecode(content, cv2.IMREAD_GRAYSCALE) if len(content) else None
        if pixels is None:
            raise ValueError("the picture is damaged")
        grey = np.asarray(pixels, np.uint8)
        return replace(self, picture=jpeg(grey, min(side, max(grey.shape)), _QUALITY - 15))


def jpeg(pixels: NDArray[np.uint8], side: int, quality: int) -> str:
    """Grey pixels (H, W) as JPEG in base64, resized so that the longer side has ``side`` pixels."""
    _, encoded = cv2.imencode(".jpg", fit(pixels, side), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return base64.b64encode(encoded.tobytes()).decode("ascii")


def grey_picture(pixels: NDArray[np.uint8]) -> Picture:
    """Grey pixels (H, W) as a picture (H, W, 3)."""
    return np.asarray(np.repeat(pixels[:, :, None], 3, axis=2), np.uint8)


def map_layer(lesion_map: NDArray[np.floating]) -> NDArray[np.uint8]:
    """A lesion map, logits (H, W), as a layer, the more opaque the surer: blue, green, red, opacity, (H, W, 4)."""
    known = np.nan_to_num(lesion_map.astype(np.float32), nan=-80.0)
    layer = np.empty((*known.shape, 4), np.uint8)
    layer[..., :3] = LESION[::-1]
    layer[..., 3] = np.rint(255 * _STRENGTH / (1 + np.exp(np.minimum(-known, 80))))
    return layer


def outline_svg(lungs: _Mask, lesions: _Mask) -> str:
    """Outlines of lungs and lesions (H, W) as an SVG of that size: lines, no fill."""
    rows, columns = lungs.shape
    shapes = (
        f'<path class="{name}" d="{_contours(mask)}" stroke="rgb{colour}" vector-effect="non-scaling-stroke"/>'
        for name, mask, colour in (("lungs", lungs, OUTLINE), ("lesions", lesions, LESION))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns} {rows}" width="{columns}" height="{rows}" '
        f'fill="none">{"".join(shapes)}</svg>'
    )


def _contours(mask: _Mask, tall: float = 1) -> str:
    """Closed polygons around a mask's parts and holes, rows ``tall`` apart, for the attribute ``d`` of a path."""
    found = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]
    lines = (" L".join(f"{x + 0.5:g},{tall * (y + 0.5):g}" for x, y in each[:, 0].tolist()) for each in found)
    return " ".join(f"M{line} Z" for line in lines)


def outline_mask(picture: Picture, mask: _Mask, colour: tuple[int, int, int] = OUTLINE) -> Picture:
    """A copy of the picture with the outline of a mask (H, W) drawn onto it."""
    outlines = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    return np.asarray(cv2.drawContours(picture.copy(), outlines, -1, colour, 1, cv2.LINE_AA), np.uint8)


def fit(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Grey pixels (H, W) or a picture (H, W, 3) resized so that the longer side has ``side`` pixels."""
    scale = side / max(pixels.shape[:2])
    size = [max(1, round(each * scale)) for each in pixels.shape[1::-1]]
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, size, interpolation=interpolation), np.uint8)


def png_data_uri(picture: Picture) -> str:
    """A picture as ``data:image/png;base64,...``."""
    encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1]
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
