"""The predictions of an upload: the documents made of them, and a bounded memory of slices behind links."""

from __future__ import annotations

import io
import secrets
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.crop import CroppedSlice
from groundglass.imaging.slice import CTSlice, Grey, Origin
from groundglass.imaging.window import LUNG
from groundglass.inference.bundle import Bundle
from groundglass.inference.output import OutputPlan, open_output
from groundglass.inference.prediction import Evidence, Prediction
from groundglass.inference.series import SERIES_SCORE, Totals
from groundglass.inference.writers import PredictionsWriter
from groundglass.reporting.overlay import map_layer, outline_svg
from groundglass.serving.problems import Problem
from groundglass.serving.settings import Settings

RESULTS = "/v2/results"
Layer = Literal["picture.png", "outline.svg", "heat_map.png", "hounsfield.raw"]
_LINKS = {"self": "", "jsonl": "/predictions.jsonl", "csv": "/predictions.csv", "report": "/report.zip"}


@dataclass(frozen=True)
class KeptSlice:
    """What a prediction was made from, packed: half a megabyte for a slice of 512 x 512 pixels."""

    shape: tuple[int, int]
    pixels: (
        Grey | NDArray[np.int16]
    )  # shape (H, W): rounded Hounsfield units, or grey where the file has none
    lungs: NDArray[np.uint8]  # bits of the mask
    cropped: CroppedSlice  # without its mask
    lesion_map: NDArray[np.float32] | None  # shape (h, w); None unless classified

    @classmethod
    def of(cls, evidence: Evidence) -> KeptSlice:
        """Pack what a prediction was made from."""
        units, short = evidence.slice.hounsfield, np.iinfo(np.int16)
        rows, columns = evidence.slice.pixels.shape
        pixels = evidence.slice.pixels
        if units is not None:
            pixels = np.clip(np.rint(units), short.min, short.max).astype(np.int16)
        cropped = replace(evidence.cropped, lungs=np.zeros((0, 0), np.bool_))
        return cls((rows, columns), pixels, np.packbits(evidence.cropped.lungs), cropped, evidence.lesion_map)

    @property
    def has_hounsfield(self) -> bool:
        """Whether the pixels are Hounsfield units."""
        return self.pixels.dtype == np.int16

    @property
    def size(self) -> int:
        """Bytes."""
        arrays = (self.pixels, self.lungs, self.cropped.pixels, self.lesion_map)
        return sum(array.nbytes for array in arrays if array is not None)

    def evidence(self, file: str = "") -> Evidence:
        """What the prediction was made from, in the lung window, without Hounsfield units."""
        grey = LUNG.apply(self.pixels) if self.has_hounsfield else np.asarray(self.pixels, np.uint8)
        mask = np.unpackbits(self.lungs, count=self.shape[0] * self.shape[1]).reshape(self.shape)
        cropped = replace(self.cropped, lungs=mask.astype(np.bool_))
        return Evidence(CTSlice(grey, Origin(file, "")), cropped, self.lesion_map)

    def layer(self, layer: Layer) -> bytes | None:
        """One of the layers that lie on each other; None where the slice has none of the kind."""
        if layer == "hounsfield.raw":
            return self.pixels.astype("<i2").tobytes() if self.has_hounsfield else None
        evidence = self.evidence()
        if layer == "outline.svg":
            return outline_svg(evidence.cropped.lungs, evidence.cropped.box).encode()
        if layer == "picture.png":
            return _png(evidence.slice.pixels)
        if self.lesion_map is None:
            return None
        return _png(map_layer(self.lesion_map, evidence.cropped.box, self.shape))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    # Level 1 is 4 times as fast as the default, and the files are a tenth larger.
    return bytes(cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())


class Classified(NamedTuple):
    """A prediction ready to be answered, its file named as the client named it, and its slice where it is kept."""

    prediction: Prediction
    kept: KeptSlice | None


@dataclass
class Result:
    """The predictions of one upload, in the order of reading."""

    id: str  # that nobody can guess; empty where the result is not kept
    bundle: str
    begun: float  # in the clock's seconds
    predictions: list[Prediction] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    slices: dict[int, KeptSlice] = field(default_factory=dict)  # by the number of their prediction
    size: int = 0  # bytes of the slices

    @property
    def address(self) -> str:
        """Where it is found while it is kept."""
        return f"{RESULTS}/{self.id}"

    def document(self, seconds_left: float) -> dict[str, Any]:
        """The answer to the upload."""
        series = [{**each.as_document(), "predictions": []} for each in self.totals.summaries()]
        for number, prediction in enumerate(self.predictions):
            index = self.totals.number(prediction)
            if index is not None:
                series[index - 1]["predictions"].append(number)
        links = {name: self.address + path for name, path in _LINKS.items()}
        rows = [prediction.as_row() for prediction in self.predictions]
        if self.id:
            rows = [{**row, "image": self._image(number)} for number, row in enumerate(rows)]
        return {
            "bundle": self.bundle,
            "counts": {"total": self.totals.counts.total, **asdict(self.totals.counts)},
            "series_score": SERIES_SCORE,
            "series": series,
            "predictions": rows,
            "kept": {"id": self.id, "seconds_left": round(seconds_left), "links": links} if self.id else None,
        }

    def _image(self, number: int) -> dict[str, Any] | None:
        kept, base = self.slices.get(number), f"{self.address}/slices/{number}"
        if kept is None:
            return None
        return {
            "rows": kept.shape[0],
            "columns": kept.shape[1],
            "picture": f"{base}/picture.png",
            "outline": f"{base}/outline.svg",
            "heat_map": None if kept.lesion_map is None else f"{base}/heat_map.png",
            "hounsfield": f"{base}/hounsfield.raw" if kept.has_hounsfield else None,
        }


class Results:
    """Results in memory: at most so many, so large together, and for so long; the oldest go first.

    For one thread, the event loop's.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._kept: dict[str, Result] = {}
        self.size = 0

    def __len__(self) -> int:
        return len(self._kept)

    def begin(self, bundle: str, *, keep: bool) -> Result:
        """A new result, found at its address from now on where it is to be kept."""
        result = Result(secrets.token_urlsafe(16) if keep else "", bundle, self._clock())
        if keep:
            self.expire()
            while len(self._kept) >= self._settings.kept_results:
                self.forget(next(iter(self._kept)))
            self._kept[result.id] = result
        return result

    def add(self, result: Result, classified: Classified) -> None:
        """Take the next prediction of a result, and keep its slice where there is room."""
        if classified.kept is not None and self._make_room(result, classified.kept.size):
            result.slices[len(result.predictions)] = classified.kept
        result.predictions.append(classified.prediction)
        result.totals.add(classified.prediction)

    def _make_room(self, result: Result, size: int) -> bool:
        """Set bytes aside; False where there is no room for them, even without older results."""
        while result.id in self._kept and self.size + size > self._settings.kept_bytes:
            oldest = next(iter(self._kept))
            if oldest == result.id:
                return False
            self.forget(oldest)
        if result.id in self._kept:
            result.size += size
            self.size += size
        return result.id in self._kept

    def get(self, key: str) -> Result:
        """A result that is kept.

        Raises:
            Problem: there is none of that id, or no more.
        """
        self.expire()
        if key not in self._kept:
            seconds = self._settings.kept_seconds
            detail = f"No result of this id is kept; results are kept for {seconds:g} seconds, or less when "
            raise Problem("no-such-result", f"{detail}memory is full. Send the files again.")
        return self._kept[key]

    def forget(self, key: str) -> None:
        """Forget a result and its pixels, where it is kept."""
        result = self._kept.pop(key, None)
        if result is not None:
            self.size -= result.size
            result.slices.clear()

    def seconds_left(self, result: Result) -> float:
        """How long a result will be kept at most."""
        return max(0.0, result.begun + self._settings.kept_seconds - self._clock())

    def expire(self) -> None:
        """Forget what has been kept long enough."""
        for key in [key for key, result in self._kept.items() if not self.seconds_left(result)]:
            self.forget(key)


def predictions_file(predictions: Sequence[Prediction], file_format: Literal["jsonl", "csv"]) -> bytes:
    """What ``groundglass predict`` prints with ``--json`` or ``--csv``."""
    stream = io.BytesIO()
    writer = PredictionsWriter(file_format, stream)
    for prediction in predictions:
        writer.write(prediction)
    writer.close()
    return stream.getvalue()


def report_zip(
    bundle: Bundle, predictions: Sequence[Prediction], slices: Mapping[int, KeptSlice], folder: Path
) -> IO[bytes]:
    """The folder that ``groundglass predict --output`` writes, zipped: report.html, tables, pictures.

    Made in an empty ``folder``. The file has no name, and is gone when it is closed.
    """
    plan = OutputPlan(path=folder / "report", command="POST /v2/predictions")
    with open_output(plan, bundle) as output:
        for number, prediction in enumerate(predictions):
            kept = slices.get(number)
            output.add(replace(prediction, evidence=None if kept is None else kept.evidence(prediction.file)))
    packed = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by whoever sends it
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(path for path in (folder / "report").rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(folder))
    packed.seek(0)
    return packed
