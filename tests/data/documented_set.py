"""The documented set of pictures that are no axial lung CT slices, on which refusal is measured.

Twenty generated pictures of each of 15 kinds from a fixed seed, sample pictures that come with installed packages,
and real DICOM files of other planes and parts. An input check learns from none of them: its examples
(`groundglass.data.out_of_distribution`) have other seeds, and lack the kinds that are drawn here alone.
"""

from __future__ import annotations

import gzip
import io
import string
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groundglass.data import out_of_distribution as drawn
from groundglass.data.out_of_distribution import Volume
from groundglass.imaging.anatomy import Patient
from groundglass.imaging.phantom import Scanner, make_phantom, scan_abdomen
from groundglass.imaging.window import LUNG, Window

Grey = NDArray[np.uint8]
Generator = np.random.Generator

OTHERS = ("abdomen-toshiba", "coronal-ge", "coronal-toshiba-616", "sagittal-ge")
SOFT, WIDE, BRAIN = Window(40, 400), Window(-500, 1400), Window(40, 100)
FONTS = (0, 2, 3, 4)  # of OpenCV: simplex, duplex, complex, triplex


def write_documented_set(folder: Path, dicom: Path) -> list[Path]:
    """Write the set, one folder for each kind; ``dicom`` holds real files of other planes and parts."""
    written = [dicom / f"{name}.dcm" for name in OTHERS]
    for kind, name, content in [*_generated(), *_samples()]:
        path = folder / kind.replace(" ", "-") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written.append(path)
    return written


def _generated() -> Iterator[tuple[str, str, bytes]]:
    for index in range(20):
        name = f"{index:03d}.png"
        yield from ((kind, name, _png(draw(_rng(kind, index)))) for kind, draw in KINDS.items())
        state = _rng("volume", index)
        volume = drawn.scan_volume(state, severity=_severity(state))
        yield from ((kind, name, _png(view(volume, state))) for kind, view in VIEWS.items())


def _rng(kind: str, index: int) -> Generator:
    return np.random.default_rng([0xF0E1, 0, *kind.encode(), index])


def _samples() -> Iterator[tuple[str, str, bytes]]:
    """Sample pictures of installed packages: colour ones as they are, and all of them in grey; scans of other parts."""
    files = _package_files("skimage", "data") + _package_files("sklearn", "datasets/images")
    for path in [*files, *_package_files("matplotlib", "mpl-data/sample_data")]:
        if path.name == "s1045.ima.gz":
            values = np.frombuffer(gzip.decompress(path.read_bytes()), "<u2").reshape(256, 256)
            grey = np.rint(255 * np.clip(values / np.quantile(values, 0.995), 0, 1)).astype(np.uint8)
            yield "real scan of the head or spine", "s1045.png", _png(grey)
        if path.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
            continue
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        if np.ptp(np.asarray(picture, np.int16), axis=2).max() > 0:
            yield "colour photograph", path.name, path.read_bytes()
        yield "sample picture in grey", f"{path.stem}-grey.png", _png(np.array(picture.convert("L")))
    for path in _package_files("pydicom", "data/test_files"):
        if path.name in {"693_J2KI.dcm", "CT_small.dcm", "J2K_pixelrep_mismatch.dcm"}:
            yield "real scan of the head or spine", path.name, path.read_bytes()


def _package_files(package: str, folder: str) -> list[Path]:
    found = find_spec(package)
    if found is None or found.origin is None:
        return []
    return sorted(path for path in (Path(found.origin).parent / folder).glob("*") if path.is_file())


def _png(picture: Grey) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _severity(rng: Generator) -> float:
    return float(rng.uniform(0, 1)) if rng.random() < 0.5 else 0.0


def _windowed(hounsfield: NDArray[np.float32], rng: Generator, *windows: Window) -> Grey:
    return windows[int(rng.integers(len(windows)))].apply(hounsfield)


def _turned(rng: Generator) -> Grey:
    return np.ascontiguousarray(np.rot90(make_phantom(rng, _severity(rng)).slice.pixels, rng.choice([1, 3])))


def _abdomen(rng: Generator) -> Grey:
    patient = Patient.draw(rng)
    scanner = Scanner.draw(patient, rng)
    return _windowed(scan_abdomen(patient, scanner, rng.uniform(0.05, 0.9)), rng, LUNG, SOFT, WIDE)


def _head(rng: Generator) -> Grey:
    return _windowed(drawn.scan_head(rng), rng, LUNG, BRAIN, SOFT)


def _reformat(plane: Callable[[Volume, float], NDArray[np.float32]]) -> Callable[[Volume, Generator], Grey]:
    return lambda volume, rng: _windowed(plane(volume, rng.uniform(0.25, 0.75)), rng, LUNG, SOFT, WIDE)


def _x_ray(axis: int) -> Callable[[Volume, Generator], Grey]:
    """Rays through the patient, from the front (axis 1) or the side: bone white, air black."""

    def draw(volume: Volume, rng: Generator) -> Grey:
        density = np.clip(1 + volume.hounsfield / 1000, 0, None)
        density[density < 0.08] = 0
        # Attenuation of water in a beam of some 70 keV, per mm (NIST, X-ray mass attenuation tables).
        film = volume.isotropic(density.sum(axis=axis) * np.float32(volume.spacing * 0.019))
        share = film / max(float(np.quantile(film, 0.995)), 1e-6)
        return np.asarray(np.rint(255 * np.clip(share, 0, 1) ** rng.uniform(0.4, 1.0)), np.uint8)

    return draw


def _shape(rng: Generator) -> tuple[int, int]:
    width = int(rng.integers(200, 640))
    return int(np.clip(width * rng.uniform(0.6, 1.3), 200, 640)), width


def _blank(rng: Generator) -> Grey:
    """One grey value, or nearly: at times with faint noise or a thin frame."""
    value = int(rng.choice(np.array([0, 255, rng.integers(1, 255)])))
    picture = np.full(_shape(rng), value, np.float32)
    if rng.random() < 0.4:
        picture += rng.normal(0, rng.uniform(0.3, 2.0), picture.shape)
    if rng.random() < 0.3:
        edge = int(rng.integers(1, 6))
        picture[:edge] = picture[-edge:] = picture[:, :edge] = picture[:, -edge:] = 255 - value
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _checkerboard(rng: Generator) -> Grey:
    height, width = _shape(rng)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    cells, shift = rng.uniform(1, 12), rng.uniform(0, 1, 2)
    squares = np.floor(cells * x + shift[0]) + np.floor(cells * y + shift[1])
    return np.rint(np.where(squares % 2 == 0, rng.uniform(0, 110), rng.uniform(140, 255))).astype(np.uint8)


def _discs(rng: Generator) -> Grey:
    height, width = _shape(rng)
    picture = np.full((height, width), rng.integers(256), np.uint8)
    for _ in range(rng.integers(1, 12)):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        radius = int(rng.uniform(0.03, 0.35) * min(height, width))
        thickness = -1 if rng.random() < 0.6 else int(rng.integers(1, 20))
        cv2.circle(picture, centre, radius, int(rng.integers(256)), thickness, cv2.LINE_AA)
    return picture


def _words(rng: Generator, letters: int) -> str:
    text = ""
    while len(text) < letters:
        text += "".join(rng.choice(list(string.ascii_lowercase), rng.integers(1, 10))) + " "
    return text[:letters].capitalize()


def _page(rng: Generator) -> Grey:
    """Lines of words, dark on bright or the other way round, at times in two columns with a heading."""
    height, width = int(rng.integers(300, 800)), int(rng.integers(250, 700))
    paper, ink = (rng.integers(225, 256), rng.integers(0, 60))
    if rng.random() < 0.25:
        paper, ink = ink, paper
    picture = np.full((height, width), paper, np.uint8)
    scale = rng.uniform(0.25, 0.7)
    line = int(scale * rng.uniform(30, 42))
    font = int(rng.choice(FONTS))
    columns = 2 if width > 400 and rng.random() < 0.5 else 1
    margin = int(rng.uniform(0.04, 0.1) * width)
    top = margin + int(rng.uniform(0, 0.2) * height)

    def write(letters: int, place: tuple[int, int], size: float) -> None:
        cv2.putText(picture, _words(rng, letters), place, font, size, int(ink), 1, cv2.LINE_AA)

    write(18, (margin, top - 4), scale * 1.6)
    letters = max(3, int((width - 2 * margin) / columns / (19 * scale)))
    for column in range(columns):
        for y in range(top + line, height - margin, line):
            if rng.random() < 0.9:
                write(letters, (margin + column * (width - margin) // columns, y), scale)
    return picture


KINDS: dict[str, Callable[[Generator], Grey]] = {
    "blank": _blank,
    "gradient": drawn.gradient,
    "checkerboard": _checkerboard,
    "stripes": drawn.stripes,
    "discs and rings": _discs,
    "noise": drawn.noise,
    "page of text": _page,
    "chart": drawn.chart,
    "slice turned by 90 degrees": _turned,
    "abdomen": _abdomen,
    "head": _head,
}
VIEWS: dict[str, Callable[[Volume, Generator], Grey]] = {
    "frontal X-ray": _x_ray(1),
    "lateral X-ray": _x_ray(2),
    "coronal reformat": _reformat(Volume.coronal),
    "sagittal reformat": _reformat(Volume.sagittal),
}
