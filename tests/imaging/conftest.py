"""Small CT files of every kind, made on the spot."""

from __future__ import annotations

import warnings
import zlib
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

WriteDicom = Callable[..., Path]


@pytest.fixture(scope="session")
def chest() -> NDArray[np.int16]:
    """Hounsfield units of a crude chest, shape (48, 64): no two of its flips or transpositions are alike."""
    rows, columns = np.mgrid[0:48, 0:64]
    hounsfield = np.full((48, 64), -1000, np.int16)
    hounsfield[((columns - 32) / 28) ** 2 + ((rows - 24) / 20) ** 2 < 1] = 40
    for centre in (19, 45):
        hounsfield[((columns - centre) / 9) ** 2 + ((rows - 24) / 13) ** 2 < 1] = -850
    hounsfield[8:12, 36:44] = 700  # a bone, in front and on the patient's left
    hounsfield += (rows * 7 + columns * 3).astype(np.int16) % 11
    return hounsfield


@pytest.fixture(scope="session")
def write_dicom() -> WriteDicom:
    """A function that writes stored values (rows, columns) or (frames, rows, columns) as a CT file.

    Keyword arguments set elements; None removes one.
    """
    return write_ct


def write_ct(path: Path, stored: NDArray[Any], **elements: object) -> Path:
    """Write stored values as a CT file; keyword arguments set elements, None removes one."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = "1.2.3.4"
    dataset.Modality = "CT"
    dataset.PatientName = "Doe^Jane"
    dataset.PatientID = "secret"
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.SamplesPerPixel = 1
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.BitsAllocated = dataset.BitsStored = stored.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    if stored.ndim == 3:
        dataset.NumberOfFrames = len(stored)
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    dataset["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(path, enforce_file_format=True)
    return path


# Each 8 times the squared distance from a centre; made by imagecodecs, which encodes both.
_TWELVE_BIT_JPEG = """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB
AQEBAQH/wQALDAAYACABAREA/8QAFwAAAwEAAAAAAAAAAAAAAAAACg0ODP/EACcQAAADBQgDAQAAAAAAAAAAAAUHCQAMGTdVBAYIJCgpR2UKQ2EL
/9oACAEBAAA/AAf349ea5R6I8r7uBmBMA8uThSqjvaNO/wD+pA81yj0R7ETuBmBMC9PJwpVbX2jD/wDgBPNco9EeJTcDMCYF3+ThSq2ftGfADlzP
Nco9EeSg3AzAmAS3JwpVQTtGx/78e4klHojyvufMCYB5e0Uqo79ad/8A9SDEko9EexE58wJgXp9opVbX9Yf/AMALEko9EeJTPmBMC7/tFKrZ/rPg
By5sSSj0R5KDPmBMAlvaKVUE+s0AH49d3RR6I8r7oaMCYB5cdilVHeuad/8A9SB3dFHoj2InQ0YEwL08dilVtfXMP/4ATu6KPRHiU0NGBMC7/HYp
VbP1zPgBy5nd0UeiPJQaGjAmAS3HYpVQTrm//9k="""
_HIGH_THROUGHPUT = """
/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABjwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQkJCQ
iIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAO0AAf+TwAAlcAGHdAAAwAATQAATAJH9Awd0ANf+Aod0AMAAFVAABOD/f9822/4BQrQA
k5zkAKI0AMAAFrQAAWqA/3//f/98xzvv/v9/8e4Az+YwALG4AP9//3//f/9f5549e/4CT3MAADG4AMAALtoAAXdA/3//f/9//3//eMOnz/9//3//f/9/
f/zw6fP/f/9//3//fx8/fPr8Gdr9ZfO1+suIIsYkMb8A/3//f/9//3//f/9//3//f/9//3//fx8+fvj44eOHjx8+fvj44eOHjwAAACCAAAMf16/WXJDG
JDGyAf/Z"""


@pytest.fixture(scope="session")
def pack_frame() -> Callable[[Path, bytes, str], Path]:
    """A function that gives a DICOM file a frame for its pixels, in a UID's or usual UID's last number's compression."""
    return _pack_frame


def _pack_frame(path: Path, frame: bytes, syntax: str) -> Path:
    import pydicom
    from pydicom.encaps import encapsulate

    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax if "." in syntax else f"1.2.840.10008.1.2.4.{syntax}"
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, implicit_vr=False, little_endian=True)
    return path


@pytest.fixture(scope="session")
def write_coded() -> Callable[[Path, str], NDArray[np.int16]]:
    """A function that writes a CT file in 12-bit JPEG or HTJ2K, and returns its Hounsfield units."""

    def write(path: Path, syntax: str) -> NDArray[np.int16]:
        step = 1 if syntax == "51" else 2
        rows, columns = np.mgrid[0:24:step, 0:32:step]
        hounsfield = (8 * ((rows - 12) ** 2 + (columns - 16) ** 2) - 1000).astype(np.int16)
        if syntax == "51":
            stored, bits = (hounsfield + 1024).astype(np.uint16), {"BitsStored": 12, "HighBit": 11}
            write_ct(path, stored, RescaleIntercept=-1024, **bits)
        else:
            write_ct(path, hounsfield)
        _pack_frame(path, b64decode(_TWELVE_BIT_JPEG if syntax == "51" else _HIGH_THROUGHPUT), syntax)
        return hounsfield

    return write


@pytest.fixture(scope="session")
def recompress() -> Callable[[Path, Path, str], Path]:
    """A function that writes a DICOM file once more in another transfer syntax, losslessly, by GDCM."""

    def write(source: Path, target: Path, syntax: str) -> Path:
        import gdcm

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

    return write


@pytest.fixture(scope="session")
def volume(chest: NDArray[np.int16]) -> NDArray[np.int16]:
    """Hounsfield units with axes right, anterior, superior (RAS), shape (64, 48, 5); plane k is k darker."""
    upright = chest[::-1, ::-1].T
    return np.stack([upright - index for index in range(5)], axis=-1).astype(np.int16)


@pytest.fixture(scope="session")
def write_metaimage() -> Callable[..., Path]:
    """A function that writes voxels (I, J, K) as ``.mha``, or as ``.mhd`` with its voxels beside it.

    Keyword arguments set header fields; None removes one.
    """
    types = {"int16": "MET_SHORT", "uint8": "MET_UCHAR", "float32": "MET_FLOAT"}

    def write(path: Path, voxels: NDArray[Any], *, compressed: bool = False, **fields: object) -> Path:
        content = voxels.tobytes("F")
        content = zlib.compress(content) if compressed else content
        data = path.with_suffix(".zraw" if compressed else ".raw")
        header: dict[str, object] = {
            "ObjectType": "Image",
            "NDims": voxels.ndim,
            "BinaryData": "True",
            "BinaryDataByteOrderMSB": "False",
            "CompressedData": compressed,
            "TransformMatrix": "1 0 0 0 1 0 0 0 1",
            "Offset": "-180.5 -170.25 -300",
            "ElementSpacing": "0.75 0.5 2",
            "DimSize": " ".join(map(str, voxels.shape)),
            "ElementType": types[voxels.dtype.name],
        }
        header["ElementDataFile"] = "LOCAL" if path.suffix == ".mha" else data.name
        header.update(fields)
        last = header.pop("ElementDataFile")
        lines = [f"{key} = {value}" for key, value in header.items() if value is not None]
        text = "\n".join([*lines, f"ElementDataFile = {last}", ""]).encode()
        path.write_bytes(text + content if path.suffix == ".mha" else text)
        if path.suffix != ".mha":
            data.write_bytes(content)
        return path

    return write


@pytest.fixture(scope="session")
def photograph() -> Image.Image:
    """A colour picture the way nature makes them: saturated areas, smooth changes, some noise."""
    rows, columns = np.mgrid[0:120, 0:160] / 120
    noise = np.random.default_rng(0).normal(0, 8, (120, 160))
    channels = [90 + 120 * rows, 140 - 60 * columns, 60 + 150 * (1 - rows)]
    colours = np.stack([channel + noise for channel in channels], axis=-1)
    return Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
