"""Phantoms: synthetic axial CT slices of the chest and below it, healthy or with lesions of known severity and place.

They look like CT to a person and to the readers, come with the truth about lungs and lesions, belong to
nobody, and are the same for the same seed: material for a demonstration and for tests, not for a diagnosis.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from groundglass.files import atomic_path, write_bytes
from groundglass.imaging.anatomy import (
    FAT,
    FLUID,
    GAS,
    KIDNEY,
    LIVER,
    MUSCLE,
    SPLEEN,
    Canvas,
    Patient,
    Vessels,
    cavity,
    ellipse,
    lung_coverage,
    paint_airway,
    paint_bones,
    paint_domes,
    paint_mediastinum,
    paint_wall,
    ribbon,
    skin,
)
from groundglass.imaging.lesions import Kind, paint_lesion, smooth_noise
from groundglass.imaging.slice import CTSlice, Hounsfield, Origin
from groundglass.imaging.window import LUNG, Window

_BRONCHI_GENERATIONS = 6
# Level and width of the windows that lung slices are published with, in Hounsfield units.
_WINDOWS = ((LUNG.level, LUNG.width), (-600, 1600), (-500, 1500), (-500, 1400), (-300, 1400), (-550, 1200))
# Streams of random numbers that are the same at all levels of a patient.
_STREAM_LESIONS, _STREAM_FAT, _STREAM_CLOTH, _STREAM_ABDOMEN = 7, 11, 13, 17
_INTERCEPT = -1024


@dataclass(frozen=True)
class Scanner:
    """How a synthetic patient was scanned; lengths in mm."""

    spacing: float  # between pixels at 512 pixels
    thickness: float  # of a slice
    blur: float  # standard deviation of the point spread function
    noise: float  # standard deviation in the body, Hounsfield units
    table: int  # 0 none in view, 1 a flat mattress on a curved plate, 2 a deep trough
    round_field: bool  # pixels outside the inscribed circle were not reconstructed
    window: Window  # what the slice is shown with

    @classmethod
    def draw(cls, patient: Patient, rng: Generator) -> Scanner:
        """Draw a scanner whose field of view fits the patient, more or less tightly."""
        breadth = 2 * float(np.abs(skin(patient, 0.6)[:, 0]).max())
        sharp = rng.random() < 0.4
        level, width = _WINDOWS[rng.integers(len(_WINDOWS))]
        return cls(
            spacing=breadth * rng.uniform(0.98, 1.22) / 512,
            thickness=float(rng.choice([1.25, 2.0, 2.5, 5.0])),
            blur=rng.uniform(0.32, 0.45) if sharp else rng.uniform(0.5, 0.72),
            noise=rng.uniform(24, 48) if sharp else rng.uniform(10, 24),
            table=int(rng.integers(0, 3)),
            round_field=bool(rng.random() < 0.7),
            window=Window(level + rng.normal(0, 30), width * rng.uniform(0.92, 1.08)),
        )


@dataclass(frozen=True)
class Phantom:
    """One synthetic slice and the truth about it; arrays have the shape (H, W)."""

    hounsfield: Hounsfield = field(repr=False)
    slice: CTSlice = field(repr=False)  # the same, its grey values in the scanner's window
    lungs: NDArray[np.bool_] = field(repr=False)  # aerated lung, vessels and lesions inside it included
    lesions: NDArray[np.bool_] = field(repr=False)  # where a lesion was painted
    severity: float  # 0 healthy to 1
    level: float  # 0 at the apex of the lungs to 1 at their base
    number: int  # of the patient; slices with the same number are of one patient
    instance: int  # 1 for the first slice of a series
    thickness: float  # of the slice, mm

    @property
    def patient_id(self) -> str:
        """``PHANTOM-`` and the patient's number."""
        return f"PHANTOM-{self.number:013d}"


def make_phantom(
    rng: Generator, severity: float = 0.0, level: float | None = None, size: int = 512
) -> Phantom:
    """Draw a patient and scan one slice.

    Args:
        rng: draws everything; the same state gives the same phantom.
        severity: 0 healthy to 1, most of the lungs.
        level: 0 apex to 1 base of the lungs; drawn from where there is lung to see when None.
        size: pixels along each side.

    Raises:
        ValueError: when severity or level lies outside 0..1 or the size is below 64.
    """
    patient = Patient.draw(rng)
    scanner = Scanner.draw(patient, rng)
    return scan(patient, scanner, rng.uniform(0.12, 0.9) if level is None else level, severity, size)


def make_series(rng: Generator, count: int = 40, severity: float = 0.0, size: int = 512) -> Iterator[Phantom]:
    """Draw a patient and scan ``count`` slices, one after another, from the lungs' apex to their base."""
    patient = Patient.draw(rng)
    scanner = Scanner.draw(patient, rng)
    for index, level in enumerate(np.linspace(0.0, 1.0, count)):
        yield scan(patient, scanner, float(level), severity, size, instance=index + 1)


def scan(
    patient: Patient, scanner: Scanner, level: float, severity: float = 0, size: int = 512, instance: int = 1
) -> Phantom:
    """Scan one slice of a synthetic patient; what is random follows from the patient's number and the level.

    Raises:
        ValueError: when severity or level lies outside 0..1 or the size is below 64.
    """
    if not 0 <= severity <= 1 or not 0 <= level <= 1 or size < 64:
        raise ValueError(
            f"severity {severity} and level {level} must lie in 0..1, size {size} be at least 64"
        )
    rng = np.random.default_rng([patient.number, round(level * 1e6)])
    spacing = scanner.spacing * 512 / size
    scanner = replace(scanner, spacing=spacing)
    canvas = Canvas(size, spacing, patient.middle, patient.tilt)
    body = _paint_body(canvas, patient, scanner, level)
    lungs = _paint_lungs(canvas, patient, scanner, level, rng) > 0.5
    lesions = _paint_lesions(canvas, lungs, severity, patient)
    hounsfield = _acquire(canvas, scanner, body, level, rng)
    edge = -spacing * (size - 1) / 2
    origin = Origin(
        file=f"PHANTOM-{patient.number:013d}",
        file_format="DICOM",
        mode="MONOCHROME2",
        series=_uid(patient.number, "series"),
        position=(edge, edge, -level * patient.height),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        spacing=(spacing, spacing),
    )
    shown = CTSlice(scanner.window.apply(hounsfield), origin, hounsfield)
    return Phantom(
        hounsfield, shown, lungs, lesions, severity, level, patient.number, instance, scanner.thickness
    )


def scan_abdomen(patient: Patient, scanner: Scanner, depth: float, size: int = 512) -> Hounsfield:
    """Scan one slice of a synthetic patient below the lungs: liver, spleen, kidneys, bowel with gas.

    Args:
        patient: whose; the same patient gives the same organs at all depths.
        scanner: how.
        depth: below the base of the lungs, 0 to 1, as a share of the lungs' height.
        size: pixels along each side.

    Returns:
        float32, shape (size, size).
    """
    canvas = Canvas(size, scanner.spacing * 512 / size, patient.middle, patient.tilt)
    _paint_table(canvas, patient, scanner)
    body = paint_wall(canvas, patient, 1.0)
    canvas.paint(cavity(patient, 1.0, margin=-2.0), FAT + 8, softness=1.5)
    _paint_organs(canvas, patient, depth)
    _paint_bowel(canvas, patient, depth)
    paint_bones(canvas, patient, 1.0)
    rng = np.random.default_rng([patient.number, _STREAM_ABDOMEN, round(depth * 1e6)])
    return _acquire(canvas, scanner, body, 1.0, rng)


def _paint_organs(canvas: Canvas, patient: Patient, depth: float) -> None:
    """Liver, spleen, kidneys and great vessels; the upper organs shrink with depth, the kidneys come and go."""
    w, d = patient.half_width, patient.half_depth
    enhanced = 0.35 * max(0.0, patient.blood - 45)
    upper = max(0.0, 1 - depth / 0.75) ** 0.5
    lower = float(np.exp(-(((depth - 0.45) / 0.3) ** 2)))
    if upper > 0.1:
        for x, y, a, b, angle, tissue in (
            (-0.45, -0.12, 0.50, 0.78, 0.12, LIVER),
            (-0.05, -0.45, 0.40, 0.30, 0.20, LIVER),
            (0.66, 0.22, 0.22, 0.45, 0.30, SPLEEN),
        ):
            organ = ellipse(x * w, y * d, a * w * upper, b * d * upper, angle)
            canvas.paint(organ, tissue + enhanced, softness=2.0)
    for side in (-1, 1):
        a, b = 0.19 * w * lower + 0.1, 0.26 * d * lower + 0.1
        kidney = ellipse(side * 0.40 * w, 0.42 * d, a, b, side * 0.4)
        canvas.paint(kidney, KIDNEY + 1.5 * enhanced, softness=1.0)
        pelvis = ellipse(side * 0.36 * w, 0.42 * d, 0.06 * w * lower + 0.1, 0.08 * d * lower + 0.1)
        canvas.paint(pelvis, FAT + 10)
        canvas.paint(ellipse(side * 0.20 * w, 0.55 * d, 0.10 * w, 0.16 * d), MUSCLE, softness=1.0)
    canvas.paint(ellipse(0.05 * w, 0.25 * d, 9.5, 9.5), patient.blood, softness=0.8)
    canvas.paint(ellipse(-0.14 * w, 0.24 * d, 11, 8), 0.8 * patient.blood + 8, softness=0.8)


def _paint_bowel(canvas: Canvas, patient: Patient, depth: float) -> None:
    """Loops of bowel filled with fluid, some with gas in front; they drift with depth."""
    rng = np.random.default_rng([patient.number, _STREAM_ABDOMEN])
    w, d = patient.half_width, patient.half_depth
    for _ in range(16):
        x, y = rng.uniform(-0.75, 0.8) * w, rng.uniform(-0.75, 0.15) * d
        start, length = rng.uniform(-0.2, 1), rng.uniform(0.2, 0.6)
        a, b = rng.uniform(9, 24, 2)
        gas, content = rng.random() < 0.35, FLUID + rng.uniform(0, 40)
        present = 1 - ((depth - start) / length - 0.5) ** 2 * 4
        hidden_by_liver = x < 0 and depth < 0.5
        if present <= 0.1 or hidden_by_liver:
            continue
        a, b = a * present**0.5, b * present**0.5
        canvas.paint(ellipse(x, y, a + 2, b + 2), MUSCLE - 10, softness=0.8)
        canvas.paint(ellipse(x, y, a, b), content, softness=0.8)
        if gas:
            canvas.paint(ellipse(x, y - 0.35 * b, 0.8 * a, 0.5 * b), GAS, softness=0.8)


def _paint_body(canvas: Canvas, patient: Patient, scanner: Scanner, level: float) -> NDArray[np.float32]:
    """Paint everything but the lungs; returns the body's coverage."""
    _paint_table(canvas, patient, scanner)
    _paint_blanket(canvas, patient, level)
    body = paint_wall(canvas, patient, level)
    canvas.blend(_fat_planes(canvas, patient, level), FAT + 12)
    canvas.paint(cavity(patient, level, margin=2.0), MUSCLE - 25, softness=0.8)
    paint_mediastinum(canvas, patient, level)
    paint_domes(canvas, patient, level)
    return body


def _fat_planes(canvas: Canvas, patient: Patient, level: float) -> NDArray[np.float32]:
    """Coverage of the chest wall by the fat between its muscles: sheets that run around the body."""
    side = 192
    seeded = np.random.default_rng([patient.number, _STREAM_FAT])
    polar = smooth_noise((side, side), 26, seeded) + 0.5 * smooth_noise((side, side), 60, seeded)
    polar = np.roll(polar, int(40 * level), axis=0)
    axis = (np.arange(side, dtype=np.float32) / (side - 1) - 0.5) * np.float32(canvas.size * canvas.spacing)
    x, y = np.meshgrid(axis / np.float32(patient.half_width), axis / np.float32(patient.half_depth))
    turn = np.arctan2(np.abs(x), y) * np.float32(side * 0.22 / np.pi) + 60 + np.float32(5) * np.clip(x, -3, 3)
    depth = np.sqrt(x**2 + y**2) * np.float32(side * 0.62)
    texture = cv2.remap(polar, turn, depth, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    texture = cv2.resize(texture, (canvas.size, canvas.size), interpolation=cv2.INTER_CUBIC)
    plane = np.zeros((canvas.size, canvas.size), np.uint8)
    canvas.fill(plane, skin(patient, level, depth=1.0) * 0.98, 255)
    canvas.fill(plane, cavity(patient, level, margin=13), 0)
    return np.asarray(np.clip((texture - 0.75) * 2.5, 0, 0.9) * (plane > 0), np.float32)


def _paint_lungs(
    canvas: Canvas, patient: Patient, scanner: Scanner, level: float, rng: Generator
) -> NDArray[np.float32]:
    """Paint lung tissue, vessels, bronchi, then bones and airway over them; returns the lungs' coverage."""
    aerated = lung_coverage(canvas, patient, level)
    size = canvas.size
    rows = np.linspace(-1, 1, size, dtype=np.float32)[:, None]
    tissue = patient.lung + 22 * rows + 11 * smooth_noise((size, size), 9, rng)
    tissue += 9 * smooth_noise((size, size), size / 6, rng)
    canvas.blend(aerated, tissue.astype(np.float32))
    inside = cv2.GaussianBlur(aerated, (0, 0), 0.8 / canvas.spacing) * aerated
    for index, tree in enumerate(patient.vessels):
        cut = tree.cut(level * patient.height, scanner.thickness)
        canvas.blend(cut.draw(canvas) * inside, min(patient.blood, 180) - 20)
        if index < 2:
            _paint_bronchi(canvas, cut, inside, patient.lung)
    _paint_fissures(canvas, patient, level, inside)
    paint_bones(canvas, patient, level)
    paint_airway(canvas, patient, level)
    return aerated


def _paint_bronchi(canvas: Canvas, cut: Vessels, inside: NDArray[np.float32], lung: float) -> None:
    """Bronchi beside the arteries they run with: a wall and a lumen about as wide as the artery."""
    kept = cut.generation < _BRONCHI_GENERATIONS
    radius, share = cut.radius[kept], np.asarray(cut.share)[kept]
    aside = np.array([-0.55, 0.83]) * (1.9 * radius[:, None] + 0.5)
    start, end = cut.start[kept] + aside, cut.end[kept] + aside
    bronchi = Vessels(start, end, radius * 0.8, cut.generation[kept], share)
    canvas.blend(bronchi.draw(canvas, widen=0.9) * inside * np.float32(0.9), -150)
    canvas.blend(bronchi.draw(canvas) * inside, lung - 110)


def _paint_fissures(canvas: Canvas, patient: Patient, level: float, inside: NDArray[np.float32]) -> None:
    """The thin bright line of the oblique fissure, which moves forwards from level to level."""
    if not 0.2 < level < 0.9:
        return
    y = np.interp(level, [0.2, 0.9], [0.55, -0.75]) * patient.half_depth
    x = np.linspace(0.1, 1.0, 24)
    slope = (0.12 + 0.3 * level) * patient.half_depth * (x - 0.5) * (1 if level > 0.5 else -0.4)
    rise = y + slope + 3 * np.sin(5 * x)
    for side in (-1, 1):
        line = ribbon(np.stack([side * x * patient.half_width, rise], axis=1), 0.35)
        canvas.paint(line, -100, softness=0.5, opacity=0.28, within=inside)


def _paint_lesions(
    canvas: Canvas, lungs: NDArray[np.bool_], severity: float, patient: Patient
) -> NDArray[np.bool_]:
    """Paint lesions in the lung window and carry the change back to Hounsfield units, where it is linear."""
    # One stream for all levels: neighbouring slices of a series carry neighbouring cuts of their lesions.
    rng = np.random.default_rng([patient.number, _STREAM_LESIONS])
    grey = LUNG.apply(canvas.hounsfield)
    painted = paint_lesion(grey, lungs, Kind.GROUND_GLASS, severity, rng)
    change = painted.pixels.astype(np.float32) - grey
    canvas.hounsfield[...] += change * np.float32(LUNG.width / 255)
    return painted.mask & lungs


def _acquire(
    canvas: Canvas, scanner: Scanner, body: NDArray[np.float32], level: float, rng: Generator
) -> Hounsfield:
    """What the scanner makes of the plane: blur, noise with CT's texture, streaks at the shoulders, field."""
    size = canvas.size
    sigma = scanner.blur / canvas.spacing
    image = cv2.GaussianBlur(canvas.hounsfield, (0, 0), max(sigma, 0.3))
    white = rng.standard_normal((size, size), dtype=np.float32)
    # Filtered back projection suppresses low frequencies of the noise, the kernel high ones.
    grain = cv2.GaussianBlur(white, (0, 0), max(0.85 * sigma, 0.3))
    grain -= cv2.GaussianBlur(grain, (0, 0), 2.2 * max(sigma, 0.5))
    grain *= np.float32(scanner.noise / _deviation(grain))
    middle = np.linspace(-1, 1, size, dtype=np.float32)
    small = cv2.resize(body, (size // 8, size // 8), interpolation=cv2.INTER_AREA)
    inside = cv2.resize(cv2.GaussianBlur(small, (0, 0), size / 192), (size, size))
    image += grain * (0.35 + inside * (0.75 - 0.25 * (middle[:, None] ** 2 + middle[None, :] ** 2)))
    streaks = scanner.noise * (0.25 + 1.5 * max(0.0, 1 - level / 0.25))
    columns = rng.standard_normal((size, max(4, size // 40)), dtype=np.float32)
    horizontal = cv2.resize(columns, (size, size), interpolation=cv2.INTER_CUBIC)
    image += horizontal * inside * np.float32(0.6 * streaks / _deviation(horizontal))
    if scanner.round_field:
        image[middle[:, None] ** 2 + middle[None, :] ** 2 > 1] = -1024
    return np.asarray(np.clip(np.rint(image), -1024, 3071), np.float32)


def _deviation(values: NDArray[np.float32]) -> float:
    return max(float(cv2.meanStdDev(values)[1].item()), 1e-6)


def _paint_table(canvas: Canvas, patient: Patient, scanner: Scanner) -> None:
    """Mattress and table under the patient, at the same height for every level."""
    if scanner.table == 0:
        return
    back = float(skin(patient, 0.6)[:, 1].max()) + 5
    x = np.linspace(-230, 230, 65)
    curve = -(26 if scanner.table == 1 else 60) * (x / 230) ** 2
    for lift, bend, half_width, value, softness in (
        (12, 0.5, 8.0, -940, 1.0),
        (26, 1.0, 1.2, -180, 0.5),
        (46, 1.2, 0.9, -420, 0.5),
    ):
        canvas.paint(ribbon(np.stack([x, back + lift + bend * curve], 1), half_width), value, softness)


def _paint_blanket(canvas: Canvas, patient: Patient, level: float) -> None:
    """A fold of cloth above the chest, faint."""
    rng = np.random.default_rng([patient.number, _STREAM_CLOTH])
    faintness, reach, lift = rng.uniform(0.0, 0.5), rng.uniform(0.4, 0.9), rng.uniform(8, 22)
    folds = smooth_noise((4, 128), 22, rng)[0] + 0.6 * smooth_noise((4, 128), 60, rng)[0]
    x = np.linspace(-reach, reach, 128)
    top = float(skin(patient, level)[:, 1].min())
    line = np.stack([x * patient.half_width * 1.2, top - lift + 2.2 * folds + 34 * x**2], axis=1)
    canvas.paint(ribbon(line, 0.45), -830, opacity=faintness)


def write_png(phantom: Phantom, path: Path) -> None:
    """Write the grey values, in the window the phantom is shown with, as 8-bit PNG; atomically."""
    write_bytes(path, cv2.imencode(".png", phantom.slice.pixels)[1].tobytes())


def write_dicom(phantom: Phantom, path: Path) -> None:
    """Write Hounsfield units as an uncompressed CT image of a synthetic patient; atomically.

    Study, series, frame of reference and instance UIDs follow from the phantom's number and instance, so that
    the same phantom gives the same file and the slices of a series belong together.
    """
    from pydicom import FileDataset, dcmwrite  # noqa: PLC0415 - only needed here, and slow to import
    from pydicom.dataset import FileMetaDataset  # noqa: PLC0415
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian  # noqa: PLC0415

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(_uid(phantom.number, f"instance {phantom.instance}"))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    for keyword, value in {**_CONSTANT, **_varying(phantom)}.items():
        setattr(dataset, keyword, value)
    # 12 bits, Hounsfield units plus 1024, so that no value is negative.
    stored = np.clip(np.rint(phantom.hounsfield) - _INTERCEPT, 0, 4095).astype(np.uint16)
    dataset.set_pixel_data(stored, "MONOCHROME2", bits_stored=12, generate_instance_uid=False)
    with atomic_path(path) as temporary:
        dcmwrite(temporary, dataset, enforce_file_format=True)


_CONSTANT: dict[str, object] = {
    "SpecificCharacterSet": "ISO_IR 100",
    "ImageType": ["DERIVED", "SECONDARY", "AXIAL"],
    "StudyDate": "20200101",
    "StudyTime": "120000",
    "Modality": "CT",
    "Manufacturer": "groundglass",
    "ManufacturerModelName": "phantom",
    "StudyDescription": "Synthetic chest CT",
    "SeriesDescription": "Phantom, not a patient",
    "PatientName": "PHANTOM",
    "PatientIdentityRemoved": "YES",
    "DeidentificationMethod": "Synthetic image, no patient exists",
    "StudyID": "1",
    "SeriesNumber": 1,
    "AcquisitionNumber": 1,
    "BodyPartExamined": "CHEST",
    "PatientPosition": "HFS",
    "KVP": "120",
    "WindowCenter": LUNG.level,
    "WindowWidth": LUNG.width,
    "RescaleIntercept": _INTERCEPT,
    "RescaleSlope": 1,
    "RescaleType": "HU",
    # Required to be there, and empty where they are not known.
    "AccessionNumber": "",
    "ReferringPhysicianName": "",
    "PatientBirthDate": "",
    "PatientSex": "",
    "PositionReferenceIndicator": "",
}


def _varying(phantom: Phantom) -> dict[str, object]:
    origin = phantom.slice.origin
    if origin.position is None or origin.orientation is None or origin.spacing is None:
        raise ValueError("a phantom's slice must know its position, orientation and spacing")
    return {
        "PatientID": phantom.patient_id,
        "StudyInstanceUID": _uid(phantom.number, "study"),
        "SeriesInstanceUID": origin.series,
        "FrameOfReferenceUID": _uid(phantom.number, "frame of reference"),
        "InstanceNumber": phantom.instance,
        "ImagePositionPatient": [round(value, 6) for value in origin.position],
        "ImageOrientationPatient": list(origin.orientation),
        "PixelSpacing": [round(value, 6) for value in origin.spacing],
        "SliceThickness": phantom.thickness,
        "SliceLocation": round(origin.position[2], 6),
    }


def _uid(number: int, what: str) -> str:
    """A DICOM UID that follows from the patient's number: a UUID under 2.25 (DICOM PS3.5, annex B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'groundglass phantom {number} {what}').int}"
