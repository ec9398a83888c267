"""Examples for an input check: lung slices stay lung slices, all else is what it is called, and refusal is measured.

It is measured on a documented set: twenty generated pictures of each of 15 kinds from a fixed seed, sample pictures
that come with installed packages, and real DICOM files of other planes and parts. An input check learns from none of
them: its examples (`groundglass.data.out_of_distribution`) have other seeds, and lack the kinds drawn here alone.
"""

import gzip
import json
import string
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from tests.conftest import Command

from groundglass.data import out_of_distribution as drawn
from groundglass.data.out_of_distribution import Volume, out_of_distribution_examples
from groundglass.imaging.anatomy import Patient
from groundglass.imaging.phantom import Scanner, make_phantom, scan_abdomen
from groundglass.imaging.slice import Grey
from groundglass.imaging.window import LUNG, Window
from groundglass.inference.input_check import OTHER_PART, TURNED

Examples = list[tuple[str, bytes]]
OTHERS = ("abdomen-toshiba", "coronal-ge", "coronal-toshiba-616", "sagittal-ge")
SOFT, WIDE, BRAIN = Window(40, 400), Window(-500, 1400), Window(40, 100)


def severity(rng: Generator) -> float:
    return float(rng.uniform(0, 1)) if rng.random() < 0.5 else 0.0


def windowed(hounsfield: NDArray[np.float32], rng: Generator, *windows: Window) -> Grey:
    return windows[int(rng.integers(len(windows)))].apply(hounsfield)


def abdomen(rng: Generator) -> Grey:
    patient = Patient.draw(rng)
    return windowed(scan_abdomen(patient, Scanner.draw(patient, rng), rng.uniform(0.05, 0.9)), rng, LUNG, SOFT, WIDE)


def reformat(axis: int) -> Callable[[Volume, Generator], Grey]:
    return lambda volume, rng: windowed(volume.view(axis, rng.uniform(0.25, 0.75)), rng, LUNG, SOFT, WIDE)


def x_ray(axis: int) -> Callable[[Volume, Generator], Grey]:
    """Rays through the patient, from the front or the side: bone white, air black."""

    def draw(volume: Volume, rng: Generator) -> Grey:
        density = np.clip(1 + volume.hounsfield / 1000, 0, None)
        density[density < 0.08] = 0
        # Attenuation of water in a beam of some 70 keV, per mm (NIST, X-ray mass attenuation tables).
        film = volume.isotropic(density.sum(axis=axis) * np.float32(volume.spacing * 0.019))
        share = film / max(float(np.quantile(film, 0.995)), 1e-6)
        return drawn._grey(255 * np.clip(share, 0, 1) ** rng.uniform(0.4, 1.0))

    return draw


def blank(rng: Generator) -> Grey:
    """One grey value, or nearly: at times with faint noise or a thin frame."""
    value = int(rng.choice(np.array([0, 255, rng.integers(1, 255)])))
    picture = np.full(drawn._grid(rng)[0].shape, value, np.float32)
    if rng.random() < 0.4:
        picture += rng.normal(0, rng.uniform(0.3, 2.0), picture.shape)
    if rng.random() < 0.3:
        edge = int(rng.integers(1, 6))
        picture[:edge] = picture[-edge:] = picture[:, :edge] = picture[:, -edge:] = 255 - value
    return drawn._grey(picture)


def checkerboard(rng: Generator) -> Grey:
    x, y = drawn._grid(rng)
    cells, shift = rng.uniform(1, 12), rng.uniform(0, 1, 2)
    squares = np.floor(cells * x + shift[0]) + np.floor(cells * y + shift[1])
    return drawn._grey(np.where(squares % 2 == 0, rng.uniform(0, 110), rng.uniform(140, 255)))


def discs(rng: Generator) -> Grey:
    height, width = drawn._grid(rng)[0].shape
    picture = np.full((height, width), rng.integers(256), np.uint8)
    for _ in range(rng.integers(1, 12)):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        radius = int(rng.uniform(0.03, 0.35) * min(height, width))
        thickness = -1 if rng.random() < 0.6 else int(rng.integers(1, 20))
        cv2.circle(picture, centre, radius, int(rng.integers(256)), thickness, cv2.LINE_AA)
    return picture


def words(rng: Generator, letters: int) -> str:
    text = ""
    while len(text) < letters:
        text += "".join(rng.choice(list(string.ascii_lowercase), rng.integers(1, 10))) + " "
    return text[:letters].capitalize()


def page(rng: Generator) -> Grey:
    """Lines of words, dark on bright or the other way round, at times in two columns with a heading."""
    height, width = int(rng.integers(300, 800)), int(rng.integers(250, 700))
    paper, ink = rng.integers(225, 256), rng.integers(0, 60)
    if rng.random() < 0.25:
        paper, ink = ink, paper
    picture = np.full((height, width), paper, np.uint8)
    scale = rng.uniform(0.25, 0.7)
    line = int(scale * rng.uniform(30, 42))
    font = int(rng.choice((0, 2, 3, 4)))
    columns = 2 if width > 400 and rng.random() < 0.5 else 1
    margin = int(rng.uniform(0.04, 0.1) * width)
    top = margin + int(rng.uniform(0, 0.2) * height)

    def write(letters: int, place: tuple[int, int], size: float) -> None:
        cv2.putText(picture, words(rng, letters), place, font, size, int(ink), 1, cv2.LINE_AA)

    write(18, (margin, top - 4), scale * 1.6)
    letters = max(3, int((width - 2 * margin) / columns / (19 * scale)))
    for column in range(columns):
        for y in range(top + line, height - margin, line):
            if rng.random() < 0.9:
                write(letters, (margin + column * (width - margin) // columns, y), scale)
    return picture


KINDS: dict[str, Callable[[Generator], Grey]] = {
    "blank": blank, "gradient": drawn.gradient, "checkerboard": checkerboard, "stripes": drawn.stripes,
    "discs and rings": discs, "noise": drawn.noise, "page of text": page, "chart": drawn.chart,
    "slice turned by 90 degrees": lambda rng: drawn._turn(make_phantom(rng, severity(rng)).slice.pixels, rng),
    "abdomen": abdomen,
    "head": lambda rng: windowed(drawn.scan_head(rng), rng, LUNG, BRAIN, SOFT),
}  # fmt: skip
VIEWS: dict[str, Callable[[Volume, Generator], Grey]] = {
    "frontal X-ray": x_ray(drawn.FRONT),
    "lateral X-ray": x_ray(drawn.SIDE),
    "coronal reformat": reformat(drawn.FRONT),
    "sagittal reformat": reformat(drawn.SIDE),
}


def generated() -> Iterator[tuple[str, str, Grey]]:
    def state(kind: str) -> Generator:
        return np.random.default_rng([0xF0E1, 0, *kind.encode(), index])

    for index in range(20):
        yield from ((kind, f"{index:03d}", draw(state(kind))) for kind, draw in KINDS.items())
        rng = state("volume")
        volume = drawn.scan_volume(rng, 256, severity(rng))
        yield from ((kind, f"{index:03d}", view(volume, rng)) for kind, view in VIEWS.items())


def package_files(package: str, folder: str) -> list[Path]:
    found = find_spec(package)
    place = Path(found.origin).parent / folder if found and found.origin else Path("nowhere")
    return sorted(path for path in place.glob("*") if path.is_file())


def samples() -> Iterator[tuple[str, str, Grey | bytes]]:
    """Sample pictures of installed packages: colour ones as they are, and all of them in grey; scans of other parts."""
    files = package_files("skimage", "data") + package_files("sklearn", "datasets/images")
    for path in [*files, *package_files("matplotlib", "mpl-data/sample_data")]:
        if path.name == "s1045.ima.gz":
            values = np.frombuffer(gzip.decompress(path.read_bytes()), "<u2").reshape(256, 256)
            grey = drawn._grey(255 * np.clip(values / np.quantile(values, 0.995), 0, 1))
            yield "real scan of the head or spine", "s1045", grey
        if path.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
            continue
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        if np.ptp(np.asarray(picture, np.int16), axis=2).max() > 0:
            yield "colour photograph", path.name, path.read_bytes()
        yield "sample picture in grey", f"{path.stem}-grey", np.array(picture.convert("L"))
    for path in package_files("pydicom", "data/test_files"):
        if path.name in {"693_J2KI.dcm", "CT_small.dcm", "J2K_pixelrep_mismatch.dcm"}:
            yield "real scan of the head or spine", path.name, path.read_bytes()


def write_documented_set(folder: Path, dicom: Path) -> list[Path]:
    """Write the set, one folder for each kind; ``dicom`` holds real files of other planes and parts."""
    written = [dicom / f"{name}.dcm" for name in OTHERS]
    for kind, name, content in [*generated(), *samples()]:
        path = folder / kind.replace(" ", "-") / (name if isinstance(content, bytes) else f"{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else cv2.imencode(".png", content)[1].tobytes())
        written.append(path)
    return written


@pytest.fixture(scope="module")
def lungs() -> list[Grey]:
    return [make_phantom(np.random.default_rng(seed), level=0.5, size=160).slice.pixels for seed in range(6)]


@pytest.fixture(scope="module")
def taught(lungs: list[Grey]) -> Examples:
    return [(kind, pixels.tobytes()) for kind, pixels in out_of_distribution_examples(lungs, 0, effort=0.03)]


def test_every_kind_is_taught_and_follows_from_the_seed(lungs: list[Grey], taught: Examples) -> None:
    without_slices = {drawn.TURNED, drawn.OTHER_VIEW, drawn.OTHER_PART, drawn.NO_SCAN}
    assert {kind for kind, _ in taught} == {*without_slices, drawn.INVERTED}
    assert [(kind, pixels.tobytes()) for kind, pixels in out_of_distribution_examples(lungs, 0, effort=0.03)] == taught
    other = {(kind, pixels.tobytes()) for kind, pixels in out_of_distribution_examples([], 1, effort=0.01)}
    assert {kind for kind, _ in other - {*taught}} == without_slices
    assert (drawn.OTHER_PART, drawn.TURNED) == (OTHER_PART, TURNED), "the input check knows these by their names"


@pytest.mark.slow
def test_the_bundle_refuses_it(tmp_path: Path, dicom_samples: Path, taught: Examples, run_command: Command) -> None:
    """348 of 355 (98.0 %), and no picture of the set is among the examples."""
    for package in ("skimage", "matplotlib"):
        pytest.importorskip(package, reason="its sample pictures are part of the set")
    files = write_documented_set(tmp_path, dicom_samples / "mixed")
    assert len(files) == 355
    pictures = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in files if path.suffix == ".png")
    assert {pixels.tobytes() for pixels in pictures}.isdisjoint(pixels for _, pixels in taught)
    _, out, _ = run_command("predict", *files, "--json", "--quiet", "--threads", "1")
    predictions = [json.loads(line) for line in out.splitlines()]
    assert len(predictions) == 355
    refused = Counter(Path(each["file"]).parent.name for each in predictions if each["status"] == "refused")
    assert sum(refused.values()) / 355 == pytest.approx(348 / 355, abs=0.01)
    assert all(refused[kind.replace(" ", "-")] >= 16 for kind in KINDS), refused
