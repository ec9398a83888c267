"""Phantoms: synthetic axial CT slices of the chest and below it, healthy or with lesions of known severity and place.

They look like CT to a person and to the readers, come with the truth about lungs and lesions, belong to
nobody, and are the same for the same seed: material for a demonstration and for tests, not for a diagnosis.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from groundglass.files import atomic_path, write_bytes
from groundglass.imaging import anatomy
from groundglass.imaging.anatomy import FAT, MUSCLE, Canvas, Patient, Vessels, cavity, ribbon, skin
from groundglass.imaging.lesions import Kind, paint_lesion, smooth_noise
from groundglass.imaging.slice import CTSlice, Hounsfield, Origin
from groundglass.imaging.window import AIR, LUNG, Window

_THINNEST_BRONCHUS = 1.0  # mm, radius of the artery beside it
# Level and width of the windows that lung slices are published with, in Hounsfield units.
_WINDOWS = ((LUNG.level, LUNG.width), (-600, 1600), (-500, 1500), (-500, 1400), (-300, 1400), (-550, 1200))
# Streams of random numbers that are the same at all levels of a patient.
_STREAM_LESIONS, _STREAM_FAT = 7, 11


@dataclass(frozen=True)
class Scanner:
    """How a synthetic patient was scanned; lengths in mm."""

    spacing: float  # between pixels at 512 pixels
    thickness: float  # of a slice
    blur: float  # standard deviation of the point spread function
    noise: float  # standard deviation in the body, Hounsfield units
    table: int  # 0 none in view, 1 flat, 2 a deep trough
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
    number: int  # of the patient; slices with the same number are of one patient
    instance: int  # 1 for the first slice of a series
    thickness: float  # of the slice, mm

    @property
    def patient_id(self) -> str:
        """``PHANTOM-`` and the patient's number."""
        return f"PHANTOM-{self.number:013d}"


def make_phantom(rng: Generator, severity: float = 0.0, level: float | None = None, size: int = 512) -> Phantom:
    """Draw a patient and scan one slice of ``size`` x ``size`` pixels; the same ``rng`` gives the same phantom.

    ``severity`` is 0 for healthy to 1 for most of the lungs, ``level`` 0 for the apex to 1 for the base of the lungs;
    drawn from where there is lung to see when None.

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
    for instance, level in enumerate(np.linspace(0.0, 1.0, count), 1):
        yield scan(patient, scanner, float(level), severity, size, instance)


def scan(
    patient: Patient, scanner: Scanner, level: float, severity: float = 0, size: int = 512, instance: int = 1
) -> Phantom:
    """Scan one slice of a synthetic patient; what is random follows from the patient's number and the level.

    Raises:
        ValueError: when severity or level lies outside 0..1 or the size is below 64.
    """
    if not 0 <= severity <= 1 or not 0 <= level <= 1 or size < 64:
        raise ValueError(f"severity {severity}, level {level} must lie in 0..1, size {size} be at least 64")
    canvas, body, rng = _scan_body(patient, scanner, level, size)
    canvas.blend(_fat_planes(canvas, patient, level), FAT + 12)
    canvas.paint(cavity(patient, level, margin=2.0), MUSCLE - 25, softness=0.8)
    anatomy.paint_mediastinum(canvas, patient, level)
    anatomy.paint_organs(canvas, patient, level)
    lungs = _paint_lungs(canvas, patient, scanner, level, rng) > 0.5
    anatomy.paint_bones(canvas, patient, level)
    anatomy.paint_airway(canvas, patient, level)
    lesions = _paint_lesions(canvas, lungs, severity, patient)
    hounsfield = _acquire(canvas, scanner, body, level, rng)
    edge = -canvas.spacing * (size - 1) / 2
    origin = Origin(
        file=f"PHANTOM-{patient.number:013d}",
        file_format="DICOM",
        mode="MONOCHROME2",
        series=_uid(patient.number, "series"),
        position=(edge, edge, -level * patient.height),
        orientation=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        spacing=(canvas.spacing, canvas.spacing),
    )
    shown = CTSlice(scanner.window.apply(hounsfield), origin, hounsfield)
    return Phantom(hounsfield, shown, lungs, lesions, patient.number, instance, scanner.thickness)


def scan_abdomen(patient: Patient, scanner: Scanner, depth: float, size: int = 512) -> Hounsfield:
    """Scan one slice of a synthetic patient below the lungs: liver, spleen, kidneys, bowel with gas.

    ``depth``, 0 to 1, is a share of the lungs' height. The same patient has the same organs at all depths.
    """
    level = 1 + depth
    canvas, body, rng = _scan_body(patient, scanner, level, size)
    canvas.paint(cavity(patient, 1.0, margin=-2.0), FAT + 8, softness=1.5)
    anatomy.paint_organs(canvas, patient, level)
    anatomy.paint_bones(canvas, patient, 1.0)
    return _acquire(canvas, scanner, body, level, rng)


def _scan_body(
    patient: Patient, scanner: Scanner, level: float, size: int
) -> tuple[Canvas, NDArray[np.float32], Generator]:
    """A canvas with the table and the body's wall, the body's coverage, and the random numbers of the level."""
    canvas = Canvas(size, scanner.spacing * 512 / size, patient.middle, patient.tilt)
    if scanner.table:
        x = np.linspace(-230, 230, 65)
        y = float(skin(patient, 0.6)[:, 1].max()) + 17 - (13 if scanner.table == 1 else 40) * (x / 230) ** 2
        for lift, half_width, value in ((0, 8.0, -940), (14, 1.2, -180), (34, 0.9, -420)):
            canvas.paint(ribbon(np.stack([x, y + lift], 1), half_width), value)
    body = anatomy.paint_wall(canvas, patient, min(level, 1.0))
    return canvas, body, np.random.default_rng([patient.number, round(level * 1e6)])


def _fat_planes(canvas: Canvas, patient: Patient, level: float) -> NDArray[np.float32]:
    """Coverage of the chest wall by the fat between its muscles: sheets that run around the body."""
    seeded = np.random.default_rng([patient.number, _STREAM_FAT])
    polar = np.roll(smooth_noise((192, 192), 40, seeded), int(40 * level), axis=0)
    axis = np.linspace(-0.5, 0.5, canvas.size, dtype=np.float32) * np.float32(canvas.size * canvas.spacing)
    x, y = np.meshgrid(axis / np.float32(patient.half_width), axis / np.float32(patient.half_depth))
    turn = np.arctan2(np.abs(x), y) * np.float32(13) + 60 + np.float32(5) * np.clip(x, -3, 3)
    depth = np.hypot(x, y) * np.float32(119)
    texture = cv2.remap(polar, turn, depth, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    wall = canvas.mask(skin(patient, level, depth=1.0) * 0.98) - canvas.mask(cavity(patient, level, margin=13))
    return np.asarray(np.clip((texture - 0.75) * 2.5, 0, 0.9) * np.maximum(wall, 0), np.float32)


def _paint_lungs(
    canvas: Canvas, patient: Patient, scanner: Scanner, level: float, rng: Generator
) -> NDArray[np.float32]:
    """Paint lung tissue, vessels and bronchi; returns the lungs' coverage."""
    aerated = anatomy.lung_coverage(canvas, patient, level)
    size = canvas.size
    tissue = patient.lung + 22 * np.linspace(-1, 1, size)[:, None] + 11 * smooth_noise((size, size), 9, rng)
    canvas.blend(aerated, (tissue + 9 * smooth_noise((size, size), size / 6, rng)).astype(np.float32))
    inside = cv2.GaussianBlur(aerated, (0, 0), 0.8 / canvas.spacing) * aerated
    for index, tree in enumerate(patient.vessels):
        cut = tree.cut(level * patient.height, scanner.thickness)
        canvas.blend(cut.draw(canvas, scanner.thickness) * inside, min(patient.blood, 180) - 20)
        if index < 2:  # bronchi run beside arteries: a wall, and a lumen about as wide
            kept = cut.radius > _THINNEST_BRONCHUS
            radius = cut.radius[kept]
            aside = np.array([-0.55, 0.83, 0]) * (1.9 * radius[:, None] + 0.5)
            bronchi = Vessels(cut.start[kept] + aside, cut.end[kept] + aside, 0.8 * radius)
            canvas.blend(bronchi.draw(canvas, scanner.thickness, widen=0.9) * inside * np.float32(0.9), -150)
            canvas.blend(bronchi.draw(canvas, scanner.thickness) * inside, patient.lung - 110)
    return aerated


def _paint_lesions(canvas: Canvas, lungs: NDArray[np.bool_], severity: float, patient: Patient) -> NDArray[np.bool_]:
    """Paint lesions in the lung window and carry the change back to Hounsfield units, where it is linear."""
    # One stream for all levels: neighbouring slices of a series carry neighbouring cuts of their lesions.
    rng = np.random.default_rng([patient.number, _STREAM_LESIONS])
    grey = LUNG.apply(canvas.hounsfield)
    painted = paint_lesion(grey, lungs, Kind.GROUND_GLASS, severity, rng)
    canvas.hounsfield[...] += (painted.pixels.astype(np.float32) - grey) * np.float32(LUNG.width / 255)
    return painted.mask & lungs


def _acquire(canvas: Canvas, scanner: Scanner, body: NDArray[np.float32], level: float, rng: Generator) -> Hounsfield:
    """What the scanner makes of the plane: blur, noise with CT's texture, streaks at the shoulders, field."""
    size, sigma = canvas.size, max(scanner.blur / canvas.spacing, 0.3)
    # Filtered back projection suppresses low frequencies of the noise, the kernel high ones.
    grain = cv2.GaussianBlur(rng.standard_normal((size, size), dtype=np.float32), (0, 0), sigma)
    grain -= cv2.GaussianBlur(grain, (0, 0), 2.5 * sigma)
    columns = rng.standard_normal((size, max(4, size // 40)), dtype=np.float32)
    streaks = cv2.resize(columns, (size, size), interpolation=cv2.INTER_CUBIC)
    streaks *= np.float32((0.15 + 0.9 * max(0.0, 1 - level / 0.25)) / streaks.std())
    middle = np.linspace(-1, 1, size, dtype=np.float32)
    away = middle[:, None] ** 2 + middle[None, :] ** 2
    inside = cv2.resize(cv2.resize(body, (24, 24), interpolation=cv2.INTER_AREA), (size, size))
    noise = grain * (0.35 + inside * (0.75 - 0.25 * away)) / grain.std() + streaks * inside
    image = cv2.GaussianBlur(canvas.hounsfield, (0, 0), sigma) + scanner.noise * noise
    if scanner.round_field:
        image[away > 1] = AIR
    return np.asarray(np.clip(np.rint(image), AIR, 3071), np.float32)


def write_png(phantom: Phantom, path: Path) -> None:
    """Write the grey values, in the window the phantom is shown with, as 8-bit PNG; atomically."""
    write_bytes(path, cv2.imencode(".png", phantom.slice.pixels)[1].tobytes())


def write_dicom(phantom: Phantom, path: Path) -> None:
    """Write Hounsfield units as an uncompressed CT image of a synthetic patient; atomically.

    Study, series, frame of reference and instance UIDs follow from the phantom's number and instance, so that
    the same phantom gives the same file and the slices of a series belong together.
    """
    from pydicom import Dataset  # noqa: PLC0415 - only needed here, and slow to import
    from pydicom.dataset import FileMetaDataset  # noqa: PLC0415
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian  # noqa: PLC0415

    origin, dataset = phantom.slice.origin, Dataset()
    dataset.update({
        "SpecificCharacterSet": "ISO_IR 100", "ImageType": ["DERIVED", "SECONDARY", "AXIAL"], "Modality": "CT",
        "StudyDate": "20200101", "StudyTime": "120000", "StudyID": "1", "SeriesNumber": 1, "AcquisitionNumber": 1,
        "StudyDescription": "Synthetic chest CT", "SeriesDescription": "Phantom, not a patient",
        "Manufacturer": "groundglass", "ManufacturerModelName": "phantom", "PatientName": "PHANTOM",
        "PatientIdentityRemoved": "YES", "DeidentificationMethod": "Synthetic image, no patient exists",
        "BodyPartExamined": "CHEST", "PatientPosition": "HFS", "KVP": "120",
        "WindowCenter": LUNG.level, "WindowWidth": LUNG.width,
        "RescaleIntercept": AIR, "RescaleSlope": 1, "RescaleType": "HU",
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": _uid(phantom.number, f"instance {phantom.instance}"),
        "StudyInstanceUID": _uid(phantom.number, "study"), "SeriesInstanceUID": origin.series,
        "FrameOfReferenceUID": _uid(phantom.number, "frame of reference"), "PatientID": phantom.patient_id,
        "ImagePositionPatient": [round(value, 6) for value in origin.position or ()],
        "ImageOrientationPatient": list(origin.orientation or ()),
        "PixelSpacing": [round(value, 6) for value in origin.spacing or ()],
        "SliceThickness": phantom.thickness, "InstanceNumber": phantom.instance,
        # Required to be there, and empty where they are not known.
        "AccessionNumber": "", "ReferringPhysicianName": "", "PatientBirthDate": "", "PatientSex": "",
        "PositionReferenceIndicator": "",
    })  # fmt: skip
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    # 12 bits, Hounsfield units plus 1024, so that no value is negative.
    stored = np.clip(np.rint(phantom.hounsfield - AIR), 0, 4095).astype(np.uint16)
    dataset.set_pixel_data(stored, "MONOCHROME2", bits_stored=12, generate_instance_uid=False)
    with atomic_path(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)


def _uid(number: int, what: str) -> str:
    """A DICOM UID that follows from the patient's number: a UUID under 2.25 (DICOM PS3.5, annex B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'groundglass phantom {number} {what}').int}"
