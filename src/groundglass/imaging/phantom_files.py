"""Phantoms as files: grey PNG, and CT Image Storage objects that any DICOM reader takes for a series."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from groundglass.atomic import atomic_path, write_bytes
from groundglass.imaging.phantom import Phantom, uid
from groundglass.imaging.window import LUNG

_INTERCEPT = -1024


def write_png(phantom: Phantom, path: Path) -> None:
    """Write the grey values, in the window the phantom is shown with, as 8-bit PNG; atomically."""
    encoded, content = cv2.imencode(".png", phantom.slice.pixels)
    if not encoded:
        raise OSError(f"{path}: the PNG encoder refused the slice")
    write_bytes(path, content.tobytes())


def write_dicom(phantom: Phantom, path: Path) -> None:
    """Write Hounsfield units as an uncompressed CT image of an invented patient; atomically.

    Study, series, frame of reference and instance UIDs follow from the phantom's number and instance, so that
    the same phantom gives the same file and the slices of a series belong together.
    """
    from pydicom import FileDataset, dcmwrite  # noqa: PLC0415 - only needed here, and slow to import
    from pydicom.dataset import FileMetaDataset  # noqa: PLC0415
    from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian  # noqa: PLC0415

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = UID(uid(phantom.number, f"instance {phantom.instance}"))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    for keyword, value in {**_who(phantom), **_where(phantom), **_pixels(phantom)}.items():
        setattr(dataset, keyword, value)
    with atomic_path(path) as temporary:
        dcmwrite(temporary, dataset, enforce_file_format=True)


def _who(phantom: Phantom) -> dict[str, object]:
    """Patient, study, series and equipment: nobody, invented, and said so."""
    return {
        "SpecificCharacterSet": "ISO_IR 100",
        "ImageType": ["DERIVED", "SECONDARY", "AXIAL"],
        "StudyDate": "20200101",
        "StudyTime": "120000",
        "SeriesDate": "20200101",
        "ContentDate": "20200101",
        "ContentTime": "120000",
        "AccessionNumber": "",
        "Modality": "CT",
        "Manufacturer": "groundglass",
        "ManufacturerModelName": "phantom",
        "ReferringPhysicianName": "",
        "StudyDescription": "Invented chest CT",
        "SeriesDescription": "Phantom, not a patient",
        "PatientName": "PHANTOM",
        "PatientID": phantom.patient_id,
        "PatientBirthDate": "",
        "PatientSex": "",
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": "Synthetic image, no patient exists",
        "StudyInstanceUID": uid(phantom.number, "study"),
        "SeriesInstanceUID": phantom.slice.origin.series,
        "FrameOfReferenceUID": uid(phantom.number, "frame of reference"),
        "StudyID": "1",
        "SeriesNumber": 1,
        "AcquisitionNumber": 1,
        "PositionReferenceIndicator": "",
        "LossyImageCompression": "00",
    }


def _where(phantom: Phantom) -> dict[str, object]:
    """Geometry: where the slice lies in the patient."""
    origin = phantom.slice.origin
    if origin.position is None or origin.orientation is None or origin.spacing is None:
        raise ValueError("a phantom's slice must know its position, orientation and spacing")
    return {
        "BodyPartExamined": "CHEST",
        "PatientPosition": "HFS",
        "InstanceNumber": phantom.instance,
        "ImagePositionPatient": [_decimal(value) for value in origin.position],
        "ImageOrientationPatient": [_decimal(value) for value in origin.orientation],
        "PixelSpacing": [_decimal(value) for value in origin.spacing],
        "SliceThickness": _decimal(phantom.thickness),
        "SliceLocation": _decimal(origin.position[2]),
        "KVP": "120",
    }


def _pixels(phantom: Phantom) -> dict[str, object]:
    """Stored values: 12 bits, Hounsfield units plus 1024, so that no value is negative."""
    stored = np.clip(np.rint(phantom.hounsfield) - _INTERCEPT, 0, 4095).astype("<u2")
    return {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "WindowCenter": _decimal(LUNG.level),
        "WindowWidth": _decimal(LUNG.width),
        "RescaleIntercept": str(_INTERCEPT),
        "RescaleSlope": "1",
        "RescaleType": "HU",
        "PixelData": stored.tobytes(),
    }


def _decimal(value: float) -> str:
    """A DICOM decimal string: at most 16 characters."""
    return f"{value:.6f}".rstrip("0").rstrip(".")
