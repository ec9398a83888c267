"""Small CT files of every kind, made on the spot."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.encaps import encapsulate

from groundglass.imaging.window import LUNG


def _make_chest() -> NDArray[np.int16]:
    """Hounsfield units of a crude chest, shape (48, 64): no two of its flips or transpositions are alike."""
    rows, columns = np.mgrid[0:48, 0:64]
    hounsfield = np.full((48, 64), -1000, np.int16)
    hounsfield[((columns - 32) / 28) ** 2 + ((rows - 24) / 20) ** 2 < 1] = 40
    for centre in (19, 45):
        hounsfield[((columns - centre) / 9) ** 2 + ((rows - 24) / 13) ** 2 < 1] = -850
    hounsfield[8:12, 36:44] = 700  # a bone, in front and on the patient's left
    hounsfield += (rows * 7 + columns * 3).astype(np.int16) % 11
    hounsfield.flags.writeable = False
    return hounsfield


CHEST = _make_chest()
GREY = LUNG.apply(CHEST)
# Hounsfield units with axes right, anterior, superior (RAS), shape (64, 48, 5); plane k is k darker.
VOLUME = np.stack([CHEST[::-1, ::-1].T - k for k in range(5)], axis=-1).astype(np.int16)


def write_ct(path: Path, stored: NDArray[Any] = CHEST, **elements: object) -> Path:
    """Write stored values, shape (rows, columns) or (frames, rows, columns), as a CT file.

    Keyword arguments set elements, None removes one.
    """
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
    if "BitsStored" in dataset:
        dataset.HighBit = dataset.BitsStored - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(path, enforce_file_format=True)
    return path


def pack_frame(path: Path, frame: bytes, syntax: str) -> Path:
    """Give a DICOM file a frame for its pixels, in a UID's or usual UID's last number's compression."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax if "." in syntax else f"1.2.840.10008.1.2.4.{syntax}"
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path, implicit_vr=False, little_endian=True)
    return path


def write_coded(path: Path, syntax: str) -> Path:
    """Write the chest in 12-bit JPEG (51), or High-Throughput JPEG 2000."""
    if syntax == "51":
        stored = np.clip(CHEST + 1024, 0, 4095).astype(np.uint16)
        write_ct(path, stored, RescaleIntercept=-1024, BitsStored=12)
        return pack_frame(path, imagecodecs.jpeg8_encode(stored, level=100, bitspersample=12), syntax)
    return pack_frame(write_ct(path), imagecodecs.htj2k_encode(CHEST.copy()), syntax)


def recompress(source: Path, target: Path, syntax: str) -> Path:
    """Write a DICOM file once more in another transfer syntax, losslessly, by GDCM."""
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


# VOLUME with MetaImage's axes: left, posterior, superior.
ITK_VOLUME = np.ascontiguousarray(VOLUME[::-1, ::-1])


def write_metaimage(
    path: Path, voxels: NDArray[Any] = ITK_VOLUME, *, compressed: bool = False, **fields: object
) -> Path:
    """Write voxels (I, J, K) as ``.mha``, or as ``.mhd`` with its voxels beside it; None removes a field."""
    alone = path.suffix == ".mha"
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
        "ElementType": {"int16": "MET_SHORT", "uint8": "MET_UCHAR"}[voxels.dtype.name],
    }
    last = fields.pop("ElementDataFile", "LOCAL" if alone else data.name)
    lines = [f"{key} = {value}" for key, value in {**header, **fields}.items() if value is not None]
    text = "\n".join([*lines, f"ElementDataFile = {last}", ""]).encode()
    content = zlib.compress(voxels.tobytes("F")) if compressed else voxels.tobytes("F")
    path.write_bytes(text + content if alone else text)
    if not alone:
        data.write_bytes(content)
    return path
