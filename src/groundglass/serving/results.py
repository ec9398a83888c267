"""The predictions of an upload: the documents made of them, and a bounded memory of slices behind links."""

from __future__ import annotations

import secrets
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.crop import CroppedSlice, in_slice
from groundglass.imaging.slice import CTSlice, Grey
from groundglass.imaging.window import LUNG
from groundglass.inference.bundle import Bundle
from groundglass.inference.output import OutputPlan, open_output
from groundglass.inference.prediction import Evidence, PackedMasks, Prediction
from groundglass.inference.series import SERIES_SCORE, Totals
from groundglass.reporting.overlay import map_layer, outline_svg
from groundglass.serving.security import Problem
from groundglass.serving.settings import MIB, Settings

RESULTS = "/v2/results"
Layer = Literal["picture.png", "outline.svg", "lesions.png", "hounsfield.raw"]
Plane = Literal["coronal", "sagittal"]
PlaneLayer = Literal["outline.svg", "hounsfield.raw"]
_FEWEST_PLANES, _UNEVEN, _UNLIKE, _SHIFTED = 8, 0.1, 0.01, 1.0
"""Slices of a volume at least, and most by which gaps (as a share), directions and spacings, and places (mm) differ."""
_MOST_RESULTS = 100  # kept at the same time
_LINKS = {"self": "", "jsonl": "/predictions.jsonl", "csv": "/predictions.csv", "report": "/report.zip"}


@dataclass(frozen=True)
class KeptSlice:
    """What a prediction was made from, packed: half a megabyte for a slice of 512 x 512 pixels."""

    pixels: Grey | NDArray[np.int16]  # (H, W): rounded Hounsfield units, or grey where the file has none
    masks: PackedMasks  # of lungs and lesions; their origin is without identifiers
    cropped: CroppedSlice  # without its mask
    lesion_map: NDArray[np.float32] | None  # (h, w); None unless classified

    @classmethod
    def of(cls, evidence: Evidence) -> KeptSlice:
        """Pack what a prediction was made from."""
        pixels: Grey | NDArray[np.int16] = evidence.slice.pixels
        if evidence.slice.hounsfield is not None:
            short = np.iinfo(np.int16)
            pixels = np.clip(np.rint(evidence.slice.hounsfield), short.min, short.max).astype(np.int16)
        masks = PackedMasks.of(evidence)
        masks = replace(masks, origin=replace(masks.origin, patient=None, grid=None))
        none = np.zeros((0, 0), np.uint8)
        cropped = replace(evidence.cropped, pixels=none, lungs=none.view(np.bool_), whole=none)
        return cls(pixels, masks, cropped, evidence.lesion_map)

    @property
    def size(self) -> int:
        """Bytes."""
        arrays = (self.pixels, self.masks.bits, self.lesion_map)
        return sum(array.nbytes for array in arrays if array is not None)

    def evidence(self, file: str = "") -> Evidence:
        """What the prediction was made from, in the lung window, without Hounsfield units."""
        grey = LUNG.apply(self.pixels) if self.has("hounsfield.raw") else np.asarray(self.pixels, np.uint8)
        cropped = replace(self.cropped, lungs=self.masks.unpacked()[0])
        return Evidence(CTSlice(grey, replace(self.masks.origin, file=file)), cropped, self.lesion_map)

    def line(self, plane: Plane, index: int) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]:
        """Pixels, lungs and lesions of one row for the coronal, one column for the sagittal plane."""
        rows, columns = self.pixels.shape
        at = index * columns + np.arange(columns) if plane == "coronal" else np.arange(rows) * columns + index
        lungs, lesions = self.masks.bits[:, at >> 3] >> (at & 7) & 1 > 0
        return self.pixels.reshape(-1)[at], lungs, lesions

    def has(self, layer: Layer) -> bool:
        """Whether the slice has a layer of the kind."""
        some = {"lesions.png": self.lesion_map is not None, "hounsfield.raw": self.pixels.dtype == np.int16}
        return some.get(layer, True)

    def links(self, base: str) -> dict[str, Any]:
        """The slice's size, how it lies, and addresses of its layers."""
        layers: tuple[Layer, ...] = get_args(Layer)
        links = {layer.partition(".")[0]: f"{base}/{layer}" if self.has(layer) else None for layer in layers}
        rows, columns = self.pixels.shape
        place = {name: getattr(self.masks.origin, name) for name in ("spacing", "orientation", "thickness")}
        return {"rows": rows, "columns": columns, **place, **links}

    def layer(self, layer: Layer) -> bytes:
        """One of the layers that lie on each other, which the slice has."""
        if layer == "hounsfield.raw":
            return self.pixels.astype("<i2").tobytes()
        if layer == "outline.svg":
            lungs, lesions = self.masks.unpacked()
            return outline_svg(lungs, lesions).encode()
        if layer == "lesions.png" and self.lesion_map is not None:
            pixels = map_layer(in_slice(self.lesion_map, self.evidence().cropped))
        else:
            pixels = self.evidence().slice.pixels
        # Level 1 is 4 times as fast as the default, and the files are a tenth larger.
        return bytes(cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())


class Volume(NamedTuple):
    """Slices of a series that fill a volume, for other planes: alike, complete, evenly spaced, in Hounsfield units."""

    numbers: tuple[int, ...]  # of the slices' predictions, from the head to the feet
    slices: tuple[KeptSlice, ...]  # in this order
    gap: float  # mm between two of them

    @classmethod
    def of(cls, slices: Mapping[int, KeptSlice], numbers: Sequence[int]) -> Volume | None:
        """The volume of predictions with these numbers; None where they make none."""
        kept = [slices[number] for number in numbers if number in slices]
        lying = [
            (origin.height, *origin.position, *origin.orientation, *origin.spacing)
            for origin in (each.masks.origin for each in kept if each.has("hounsfield.raw"))
            if origin.position and origin.orientation and origin.spacing
        ]
        shapes = {each.pixels.shape for each in kept}
        if len(lying) < max(_FEWEST_PLANES, len(numbers)) or len(shapes) > 1:
            return None
        places = np.array(lying)
        order = np.argsort(places[:, 0])[::-1].tolist()
        gaps = -np.diff(places[order, 0])
        gap, unlike = float(np.median(gaps)), np.ptp(places[:, 4:], axis=0).max()
        # Within their own plane, as those of a tilted gantry are.
        shifted = np.ptp(places[:, 1:4] @ places[0, 4:10].reshape(2, 3).T, axis=0).max()
        if shifted > _SHIFTED or gap <= 0 or np.abs(gaps - gap).max() > _UNEVEN * gap or unlike > _UNLIKE:
            return None
        return cls(tuple(numbers[at] for at in order), tuple(kept[at] for at in order), round(gap, 4))

    def layer(self, plane: Plane, index: int, layer: PlaneLayer) -> bytes:
        """A layer of a plane, its first row towards the head; empty where the volume has no plane of that index."""
        if index >= self.slices[0].pixels.shape[0 if plane == "coronal" else 1]:
            return b""
        lines = zip(*(each.line(plane, index) for each in self.slices), strict=True)
        pixels, lungs, lesions = map(np.stack, lines)
        outlined = layer == "outline.svg"
        return outline_svg(lungs, lesions).encode() if outlined else pixels.astype("<i2").tobytes()


@dataclass
class Result:
    """The predictions of one upload, in the order of reading."""

    id: str  # that nobody can guess; empty where the result is not kept
    bundle: str
    ends: float  # when it is forgotten, in the clock's seconds
    totals: Totals
    predictions: list[Prediction] = field(default_factory=list)
    slices: dict[int, KeptSlice] = field(default_factory=dict)  # by the number of their prediction
    size: int = 0  # bytes of the slices

    @property
    def address(self) -> str:
        """Where it is found while it is kept."""
        return f"{RESULTS}/{self.id}"

    def volume(self, series: int) -> Volume | None:
        """The volume of a series by its number from 0; None where it makes none."""
        summaries = self.totals.summaries()
        return Volume.of(self.slices, sorted(summaries[series].members)) if series < len(summaries) else None

    def document(self) -> dict[str, Any]:
        """The answer to the upload."""
        series = [{**each.to_dict(), "predictions": sorted(each.members)} for each in self.totals.summaries()]
        rows = [prediction.to_dict() for prediction in self.predictions]
        if self.id:
            for each in series:
                numbers = each["predictions"]
                kept = [self.slices[number] for number in numbers if number in self.slices]
                volume = Volume.of(self.slices, numbers)
                each["description"] = kept[0].masks.origin.description if kept else None
                each["volume"] = volume and {"predictions": volume.numbers, "gap": volume.gap}
            for number, row in enumerate(rows):
                found = self.slices.get(number)
                image = found and found.links(f"{self.address}/slices/{number}")
                row |= {"image": image, "overlay": image and image["lesions"]}
        links = {name: self.address + path for name, path in _LINKS.items()}
        left = max(0, round(self.ends - time.monotonic()))
        return {
            "bundle": self.bundle,
            "counts": {"total": self.totals.counts.total, **asdict(self.totals.counts)},
            "series_score": SERIES_SCORE,
            "series": series,
            "predictions": rows,
            "kept": {"id": self.id, "seconds_left": left, "links": links} if self.id else None,
        }


class Results:
    """Results in memory, for one thread: at most so many, so large together, and for so long; the oldest go first."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kept: dict[str, Result] = {}

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size(self) -> int:
        """Bytes of all slices."""
        return sum(result.size for result in self._kept.values())

    def begin(self, bundle: Bundle, *, keep: bool) -> Result:
        """A new result, found at its address from now on where it is to be kept."""
        key, ends = secrets.token_urlsafe(16) if keep else "", time.monotonic() + self._settings.keep_seconds
        result = Result(key, bundle.id, ends, Totals(bundle.info.series))
        if keep:
            self._kept[result.id] = result
        return result

    def add(self, result: Result, prediction: Prediction, kept: KeptSlice | None) -> Prediction:
        """Take the next prediction of a result; keep its slice where there is room, of older results if need be.

        Gives what counts: another prediction where the slice is a copy of an earlier one.
        """
        prediction, result.ends = result.totals.add(prediction), time.monotonic() + self._settings.keep_seconds
        while len(self._kept) > _MOST_RESULTS:
            self.forget(next(iter(self._kept)))
        if kept is not None and not prediction.is_copy and result.id in self._kept:
            room = self._settings.keep_mib * MIB - kept.size
            while self.size > room >= 0 and result.id != next(iter(self._kept)):
                self.forget(next(iter(self._kept)))
            if self.size <= room:
                result.slices[len(result.predictions)] = kept
                result.size += kept.size
        result.predictions.append(prediction)
        return prediction

    def get(self, key: str) -> Result:
        """A result that is kept.

        Raises:
            Problem: there is none of that id, or no more.
        """
        self.expire()
        if key not in self._kept:
            seconds = self._settings.keep_seconds
            detail = f"No result of this id is kept; results are kept for {seconds:g} seconds, or less when "
            raise Problem("no-such-result", f"{detail}memory is full. Send the files again.")
        return self._kept[key]

    def forget(self, key: str) -> None:
        """Forget a result and its pixels, where it is kept."""
        result = self._kept.pop(key, None)
        if result is not None:
            result.slices.clear()
            result.id = ""

    def expire(self) -> None:
        """Forget what has been kept long enough since its last prediction."""
        now = time.monotonic()
        for key in [key for key, result in self._kept.items() if result.predictions and result.ends <= now]:
            self.forget(key)


def report_zip(
    bundle: Bundle, predictions: Sequence[Prediction], slices: Mapping[int, KeptSlice], parent: Path
) -> IO[bytes]:
    """The folder that ``groundglass predict --output`` writes, zipped: report.html, tables, pictures.

    Made in a folder of ``parent``. The file has no name, and is gone when it is closed.
    """
    packed = tempfile.TemporaryFile(dir=parent)  # noqa: SIM115 - closed by whoever sends it
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        with open_output(OutputPlan(path=folder / "report", command="POST /v2/predictions"), bundle) as output:
            for number, prediction in enumerate(predictions):
                kept = slices.get(number)
                shown = None if kept is None else kept.evidence(prediction.file)
                output.add(replace(prediction, evidence=shown))
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                archive.write(path, path.relative_to(folder))
    packed.seek(0)
    return packed
