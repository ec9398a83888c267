"""The predictions of an upload: the documents made of them, and a bounded memory of slices behind links."""

from __future__ import annotations

import base64
import io
import secrets
import tempfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.crop import CroppedSlice
from groundglass.imaging.slice import CTSlice, Grey, Origin
from groundglass.imaging.window import LUNG
from groundglass.inference.bundle import CARD, Bundle
from groundglass.inference.output import OutputPlan, open_output
from groundglass.inference.prediction import Evidence, Prediction
from groundglass.inference.series import SERIES_SCORE, Totals
from groundglass.inference.writers import PredictionsWriter
from groundglass.reporting.overlay import AGAINST_COVID, FOR_COVID, OUTLINE
from groundglass.serving.schemas import RESULTS, Layer, Problem
from groundglass.serving.settings import Settings

_OPACITY = 0.62
"""Of the strongest place of a heat map, as in the report's pictures."""


@dataclass(frozen=True)
class KeptSlice:
    """What a prediction was made from, packed: half a megabyte for a slice of 512 x 512 pixels."""

    shape: tuple[int, int]
    grey: Grey | None  # shape (H, W); None where Hounsfield units are kept instead
    hounsfield: NDArray[np.int16] | None  # shape (H, W), rounded; None where the file has none
    lungs: NDArray[np.uint8]  # bits of the mask
    cropped: CroppedSlice  # without its mask
    activation_map: NDArray[np.float32] | None  # shape (h, w); None unless classified

    @classmethod
    def of(cls, evidence: Evidence) -> KeptSlice:
        """Pack what a prediction was made from."""
        units, short = evidence.slice.hounsfield, np.iinfo(np.int16)
        rounded = None if units is None else np.clip(np.rint(units), short.min, short.max).astype(np.int16)
        rows, columns = evidence.slice.pixels.shape
        grey = evidence.slice.pixels if rounded is None else None
        cropped = replace(evidence.cropped, lungs=np.zeros((0, 0), np.bool_))
        packed = np.packbits(evidence.cropped.lungs)
        return cls((rows, columns), grey, rounded, packed, cropped, evidence.activation_map)

    @property
    def size(self) -> int:
        """Bytes."""
        arrays = (self.grey, self.hounsfield, self.lungs, self.cropped.pixels, self.activation_map)
        return sum(array.nbytes for array in arrays if array is not None)

    def evidence(self, file: str = "") -> Evidence:
        """What the prediction was made from, in the lung window, without Hounsfield units."""
        pixels = (
            LUNG.apply(self.hounsfield) if self.grey is None and self.hounsfield is not None else self.grey
        )
        assert pixels is not None  # noqa: S101 - one of the two is kept
        mask = np.unpackbits(self.lungs, count=self.shape[0] * self.shape[1]).reshape(self.shape)
        cropped = replace(self.cropped, lungs=mask.astype(np.bool_))
        return Evidence(CTSlice(pixels, Origin(file, "")), cropped, self.activation_map)

    def layer(self, layer: Layer) -> bytes | None:
        """One of the layers that lie on each other; None where the slice has none of the kind."""
        if layer == "hounsfield.raw":
            return None if self.hounsfield is None else self.hounsfield.astype("<i2").tobytes()
        evidence = self.evidence()
        if layer == "heat_map.png":
            return _heat_map_png(evidence)
        return _png(evidence.slice.pixels) if layer == "picture.png" else _outline_svg(evidence.cropped)


def heat_map_uri(evidence: Evidence) -> str | None:
    """The heat map as ``data:image/png;base64,...``; None unless the slice was classified."""
    png = _heat_map_png(evidence)
    return None if png is None else "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _heat_map_png(evidence: Evidence) -> bytes | None:
    """The activation map on the whole slice, orange for COVID and blue against it, else transparent.

    None unless the slice was classified. What of the crop lies outside the slice is left out.
    """
    if evidence.activation_map is None:
        return None
    shape, (left, top, right, bottom) = evidence.slice.pixels.shape, evidence.cropped.box
    finite = np.nan_to_num(evidence.activation_map, nan=0.0, posinf=0.0, neginf=0.0)
    size = (max(1, right - left), max(1, bottom - top))
    smooth = np.asarray(cv2.resize(finite, size, interpolation=cv2.INTER_CUBIC), np.float32)
    peak = float(np.abs(smooth).max())
    opacity = np.rint(np.abs(smooth) * (255 * _OPACITY / peak if peak > 0 else 0)).astype(np.uint8)
    colours = np.array([AGAINST_COVID[::-1], FOR_COVID[::-1]], np.uint8)[(smooth >= 0).astype(np.intp)]
    picture = np.zeros((*shape, 4), np.uint8)  # blue, green, red, opacity
    rows, columns = slice(max(top, 0), min(bottom, shape[0])), slice(max(left, 0), min(right, shape[1]))
    inside = np.dstack([colours, opacity])[rows.start - top :, columns.start - left :]
    picture[rows, columns] = inside[: rows.stop - rows.start, : columns.stop - columns.start]
    return _png(picture)


def _outline_svg(cropped: CroppedSlice) -> bytes:
    """Outlines of the lungs and of the crop, as lines without a fill."""
    rows, columns = cropped.lungs.shape
    mask = cropped.lungs.astype(np.uint8)
    contours = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    path = " ".join(
        "M" + " L".join(f"{column + 0.5:g},{row + 0.5:g}" for column, row in contour[:, 0, :].tolist()) + " Z"
        for contour in contours
    )
    left, top, right, bottom = cropped.box
    style = f'fill="none" stroke="rgb{OUTLINE}" vector-effect="non-scaling-stroke"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns} {rows}" '
        f'width="{columns}" height="{rows}">'
        f'<path class="lungs" d="{path}" {style} stroke-width="1"/>'
        f'<rect class="crop" x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" '
        f'{style} stroke-width="2"/></svg>'
    ).encode()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    # Level 1 is 4 times as fast as the default, and the files are a tenth larger.
    return bytes(cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())


@dataclass(frozen=True)
class Classified:
    """A prediction ready to be answered; its file is named as the client named it."""

    prediction: Prediction
    kept: KeptSlice | None = None  # with heat_maps=link
    heat_map: str | None = None  # with heat_maps=inline: PNG as data URI


@dataclass
class Result:
    """The predictions of one upload, in the order of reading."""

    id: str  # that nobody can guess; empty where the result is not kept
    bundle: str
    begun: float  # in the clock's seconds
    predictions: list[Prediction] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    heat_maps: list[str | None] = field(default_factory=list)  # with heat_maps=inline
    slices: dict[int, KeptSlice] = field(default_factory=dict)  # by the number of their prediction
    size: int = 0  # bytes of the slices

    @property
    def address(self) -> str:
        """Where it is found while it is kept."""
        return f"{RESULTS}/{self.id}"

    def add(self, classified: Classified) -> None:
        """Take the next prediction."""
        self.predictions.append(classified.prediction)
        self.totals.add(classified.prediction)

    def document(self, seconds_left: float) -> dict[str, Any]:
        """The answer to the upload."""
        series = [{**each.as_document(), "predictions": []} for each in self.totals.summaries()]
        for number, prediction in enumerate(self.predictions):
            index = self.totals.number(prediction)
            if index is not None:
                series[index - 1]["predictions"].append(number)
        names = {
            "self": "",
            "jsonl": "/predictions.jsonl",
            "csv": "/predictions.csv",
            "report": "/report.zip",
        }
        links = {name: self.address + path for name, path in names.items()}
        kept = {"id": self.id, "seconds_left": round(seconds_left), "links": links} if self.id else None
        rows = [prediction.as_row() for prediction in self.predictions]
        for number, row in enumerate(rows):
            if self.id:
                row["image"] = self._image(number)
            if self.heat_maps:
                row["heat_map"] = self.heat_maps[number]
        return {
            "bundle": self.bundle,
            "counts": {"total": self.totals.counts.total, **asdict(self.totals.counts)},
            "series_score": SERIES_SCORE,
            "series": series,
            "predictions": rows,
            "kept": kept,
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
            "heat_map": None if kept.activation_map is None else f"{base}/heat_map.png",
            "hounsfield": None if kept.hounsfield is None else f"{base}/hounsfield.raw",
        }


class Results:
    """Results in memory: at most so many, so large together, and for so long; the oldest go first.

    For one thread, the event loop's.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._kept: OrderedDict[str, Result] = OrderedDict()
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

    def keep_slice(self, result: Result, number: int, kept: KeptSlice) -> bool:
        """Keep the slice of a prediction; False where there is no room for it, even without older results."""
        if result.id not in self._kept:
            return False
        while self.size + kept.size > self._settings.kept_bytes:
            oldest = next(iter(self._kept))
            if oldest == result.id:
                return False
            self.forget(oldest)
        result.slices[number] = kept
        result.size += kept.size
        self.size += kept.size
        return True

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

    def slice(self, key: str, number: int) -> KeptSlice:
        """What a prediction of a kept result was made from.

        Raises:
            Problem: there is no such result, or the slice is not kept.
        """
        try:
            return self.get(key).slices[number]
        except KeyError:
            detail = "The result has no slice of this number, or its pixels are not kept."
            raise Problem("no-such-slice", detail) from None

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


def predictions_file(predictions: Sequence[Prediction], suffix: str) -> bytes:
    """What ``groundglass predict --json`` (``jsonl``) or ``--csv`` (``csv``) prints."""
    stream = io.BytesIO()
    writer = PredictionsWriter("csv" if suffix == "csv" else "jsonl", stream)
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
    plan = OutputPlan(path=folder / "report", command=f"POST {RESULTS.rpartition('/')[0]}/predictions")
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


def card_text(bundle: Bundle) -> str:
    """The model card in Markdown; empty where the bundle has none."""
    try:
        if bundle.path.is_dir():
            return (bundle.path / CARD).read_text(encoding="utf-8")
        with zipfile.ZipFile(bundle.path) as archive:
            return archive.read(CARD).decode("utf-8")
    except (OSError, KeyError, UnicodeDecodeError):
        return ""
