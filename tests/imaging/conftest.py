"""Small CT files of every kind, made on the spot."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gdcm
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from groundglass.errors import ImageError
from groundglass.imaging.read import read_slices
from groundglass.imaging.source import DEFAULT_LIMITS, Limits, MemorySource
from groundglass.imaging.window import LUNG


def assert_refused(path: Any, reason: str, limits: Limits = DEFAULT_LIMITS) -> ImageError:
    """That nothing can be read of a path, for a reason that this pattern is found in; returns the error."""
    with pytest.raises(ImageError, match=reason) as caught:
        list(read_slices(path, limits))
    return caught.value


def read_all(path: Path | MemorySource) -> tuple[list[str], dict[str, str]]:
    """Files within a folder or zip of each slice, in their order, and reasons for those left out, by name."""
    errors: list[ImageError] = []
    start = len(path.name if isinstance(path, MemorySource) else str(path)) + 1
    files = [item.origin.file[start:] for item in read_slices(path, on_error=errors.append)]
    return files, {error.path[start:]: error.reason for error in errors}


@pytest.fixture
def quiet(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Libraries write nothing to standard error."""
    yield
    assert capfd.readouterr().err == ""


# Hounsfield units of a crude chest, shape (48, 64): no two of its flips or transpositions are alike.
ROWS, COLUMNS = np.mgrid[0:48, 0:64]
CHEST = np.full((48, 64), -1000, np.int16)
CHEST[((COLUMNS - 32) / 28) ** 2 + ((ROWS - 24) / 20) ** 2 < 1] = 40
for centre in (19, 45):
    CHEST[((COLUMNS - centre) / 9) ** 2 + ((ROWS - 24) / 13) ** 2 < 1] = -850
CHEST[8:12, 36:44] = 700  # a bone, in front and on the patient's left
CHEST += (ROWS * 7 + COLUMNS * 3).astype(np.int16) % 11
CHEST.flags.writeable = False
GREY = LUNG.apply(CHEST)
# Hounsfield units with axes right, anterior, superior (RAS), shape (64, 48, 5); plane k is k darker.
VOLUME = np.stack([CHEST[::-1, ::-1].T - k for k in range(5)], axis=-1).astype(np.int16)
# Canonical (RAS) voxels of 0.75 x 0.5 x 2 mm.
AFFINE = np.array([[0.75, 0, 0, -20], [0, 0.5, 0, -15], [0, 0, 2, 100], [0, 0, 0, 1]])
# VOLUME with MetaImage's axes: left, posterior, superior.
ITK_VOLUME = np.ascontiguousarray(VOLUME[::-1, ::-1])


def write_ct(path: Path, stored: np.ndarray = CHEST, **elements: object) -> Path:
    """Write values, (rows, columns) or (frames, rows, columns), as a CT file; of its elements None leaves one out."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = instance = generate_uid()
    bits = stored.dtype.itemsize * 8
    usual = {
        "SOPClassUID": CTImageStorage, "SOPInstanceUID": instance, "SeriesInstanceUID": "1.2.3.4", "Modality": "CT",
        "PatientName": "Doe^Jane", "PatientID": "secret", "PhotometricInterpretation": "MONOCHROME2", "SamplesPerPixel": 1,
        "Rows": stored.shape[-2], "Columns": stored.shape[-1], "BitsAllocated": bits, "BitsStored": bits,
        "NumberOfFrames": len(stored) if stored.ndim == 3 else None, "RescaleSlope": 1, "RescaleIntercept": 0,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "PixelData": stored.astype(stored.dtype.newbyteorder("<")).tobytes(),
    }  # fmt: skip
    for keyword, value in {**usual, **elements}.items():
        if value is not None:
            setattr(dataset, keyword, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OW"
    if "BitsStored" in dataset and "HighBit" not in elements:
        dataset.HighBit = dataset.BitsStored - 1
    dataset.save_as(path, enforce_file_format=True)
    return path


def recompress(source: Path, target: Path, syntax: str) -> Path:
    """Write a DICOM file once more in another transfer syntax, losslessly, by GDCM."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(source))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return target


def write_nifti(path: Path, voxels: np.ndarray = VOLUME, extension: bytes = b"", **fields: Any) -> Path:
    """A file as nibabel writes it, with header fields that nibabel would not."""
    kind, order = fields.pop("kind", nib.Nifti1Image), fields.pop("order", "<")
    image = kind(voxels, AFFINE, kind.header_class(endianness=order))
    image.set_data_dtype(voxels.dtype)
    image.header.set_intent(fields.pop("intent", "none"))
    if extension:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", extension))
    image.to_filename(path)
    if fields:
        content, size = path.read_bytes(), kind.header_class.template_dtype.itemsize
        header = kind.header_class(content[:size], check=False)
        for field, value in fields.items():
            header[field] = value
        path.write_bytes(header.binaryblock + content[size:])
    return path


def itk_image(voxels: np.ndarray = ITK_VOLUME) -> sitk.Image:
    """Voxels (I, J, K) in their place."""
    image = sitk.GetImageFromArray(voxels.T)
    image.SetSpacing((0.75, 0.5, 2))
    image.SetOrigin((-180.5, -170.25, -300))
    return image


def write_metaimage(path: Path, voxels: Any = ITK_VOLUME, compressed: bool = False, **fields: object) -> Path:
    """A file as ITK writes it, with header fields that ITK would not; None leaves one out."""
    sitk.WriteImage(itk_image(voxels), str(path), useCompression=compressed)
    header, last, rest = path.read_bytes().partition(b"ElementDataFile = ")
    if data := fields.pop("ElementDataFile", None):
        rest = f"{data}\n".encode()
    about = {**dict(line.split(" = ", 1) for line in header.decode().splitlines()), **fields}
    lines = [f"{key} = {value}\n" for key, value in about.items() if value is not None]
    path.write_bytes("".join(lines).encode() + last + rest)
    return path
