"""However a file is damaged, the outcome is slices or a ``GroundglassError``; anything else fails."""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from groundglass.errors import GroundglassError
from groundglass.imaging.read import read_slices
from groundglass.imaging.slice import CTSlice
from groundglass.imaging.source import Limits
from groundglass.imaging.window import LUNG

# Small, so that a header that asks for more than a machine has costs a test run nothing.
LIMITS = Limits(pixels=2_000_000, file_bytes=50_000_000, archive_bytes=50_000_000)
COMPRESSED = {
    "rle": "1.2.840.10008.1.2.5",
    "jpeg-lossless": "1.2.840.10008.1.2.4.70",
    "jpeg-ls": "1.2.840.10008.1.2.4.80",
    "jpeg2000": "1.2.840.10008.1.2.4.90",
}
DICOM_KINDS: dict[str, dict[str, object]] = {
    "dicom-capture": {"RescaleType": "US", "WindowCenter": 128, "WindowWidth": 256},
    "dicom-padding": {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1500},
    "dicom-bad-tags": {
        "ImageOrientationPatient": [0] * 6,
        "RescaleSlope": 0,
        "PhotometricInterpretation": None,
    },
    "dicom-inverse": {
        "PhotometricInterpretation": "MONOCHROME1",
        "RescaleSlope": None,
        "RescaleIntercept": "",
    },
    "dicom-colours": {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0},
    "dicom-palette": {
        "PhotometricInterpretation": "PALETTE COLOR",
        **{f"{name}PaletteColorLookupTableDescriptor": [256, 0, 8] for name in ("Red", "Green", "Blue")},
        **{f"{name}PaletteColorLookupTableData": bytes(range(256)) for name in ("Red", "Green", "Blue")},
    },
}
BARE = {"dicom-implicit": (True, True), "dicom-explicit": (False, True), "dicom-big-endian": (False, False)}
TIFF_KINDS: dict[str, dict[str, Any]] = {
    "tiff-tiled": {"tile": (16, 32), "compression": "lzw", "predictor": True},
    "tiff-big": {"bigtiff": True, "byteorder": ">"},
    "tiff-inverse": {"photometric": "miniswhite", "compression": "packbits"},
    "tiff-jpeg": {"compression": "jpeg"},
    "tiff-zstd": {"compression": "zstd"},
    "tiff-stack": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "tiff-float": {"compression": "zlib", "predictor": True},
    "tiff-colours": {"photometric": "rgb", "planarconfig": "separate"},
}
GENERATED = [
    *TIFF_KINDS,
    *("tiff-pyramid", "nifti-extension", "nifti-members", "nifti-label", "metaimage-key"),
    *("png", "png-alpha", "png-palette", "png-16", "jpeg", "bmp"),
    *("tiff", "tiff-lzw", "tiff-deflate", "tiff-pages", "dicom", "dicom-frames", *COMPRESSED),
    *("dicom-enhanced", "dicom-deflated", "jpeg-12-bit", "htj2k", *DICOM_KINDS, *BARE),
    *("nifti", "nifti-gz", "metaimage", "metaimage-packed", "nrrd", "nrrd-packed", "zip"),
]


@pytest.fixture(scope="module")
def generated(
    tmp_path_factory: pytest.TempPathFactory,
    chest: NDArray[np.int16],
    volume: NDArray[np.int16],
    write_dicom: Callable[..., Path],
    write_metaimage: Callable[..., Path],
    recompress: Callable[[Path, Path, str], Path],
    write_coded: Callable[[Path, str], NDArray[np.int16]],
) -> dict[str, bytes]:
    """Content of one small sound file of every kind."""
    folder = tmp_path_factory.mktemp("sound")
    image = Image.fromarray(LUNG.apply(chest))
    image.save(folder / "png", "PNG")
    image.convert("RGBA").save(folder / "png-alpha", "PNG")
    image.convert("P").save(folder / "png-palette", "PNG", transparency=3)
    Image.fromarray((chest + 1024).astype(np.uint16)).save(folder / "png-16", "PNG")
    image.save(folder / "jpeg", "JPEG")
    image.save(folder / "bmp", "BMP")
    image.save(folder / "tiff", "TIFF")
    image.save(folder / "tiff-lzw", "TIFF", compression="tiff_lzw")
    image.save(folder / "tiff-deflate", "TIFF", compression="tiff_adobe_deflate")
    image.save(folder / "tiff-pages", "TIFF", save_all=True, append_images=[image, image])
    plain = write_dicom(folder / "dicom", chest)
    write_dicom(folder / "dicom-frames", np.stack([chest] * 3))
    for name, syntax in COMPRESSED.items():
        recompress(plain, folder / name, syntax)
    write_coded(folder / "jpeg-12-bit", "51")
    write_coded(folder / "htj2k", "201")
    grey = LUNG.apply(chest)
    stored = {
        "dicom-capture": np.stack([grey] * 3),
        "dicom-colours": np.stack([grey] * 3, -1),
        "dicom-palette": grey,
    }
    for name, elements in DICOM_KINDS.items():
        size = {"Rows": 48, "Columns": 64, "NumberOfFrames": 3 if name == "dicom-capture" else 1}
        write_dicom(folder / name, stored.get(name, chest), **elements, **size)
    dataset = pydicom.dcmread(plain)
    frames = [pydicom.Dataset() for _ in range(3)]
    for height, frame in enumerate(frames):
        (position := pydicom.Dataset()).ImagePositionPatient = [0, 0, -height]
        (values := pydicom.Dataset()).RescaleIntercept = -height
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [values]
    dataset.PerFrameFunctionalGroupsSequence, dataset.NumberOfFrames = frames, 3
    dataset.PixelData *= 3
    dataset.save_as(folder / "dicom-enhanced")
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    dataset.save_as(folder / "dicom-deflated")
    dataset = pydicom.dcmread(plain)
    for name, (implicit, little) in BARE.items():
        bare = pydicom.Dataset()
        bare.update(dataset)
        bare.save_as(folder / name, implicit_vr=implicit, little_endian=little)
    _write_odd_kinds(folder, chest, volume)
    write_metaimage(folder / "k.mha", volume).rename(folder / "metaimage-key")
    key = (folder / "metaimage-key").read_bytes()
    (folder / "metaimage-key").write_bytes(b"Modality = MET_MOD_CT\nwords\n" + key)
    nib.Nifti1Image(volume, np.eye(4)).to_filename(folder / "a.nii")
    nib.Nifti1Image(volume, np.eye(4)).to_filename(folder / "a.nii.gz")
    (folder / "a.nii").rename(folder / "nifti")
    (folder / "a.nii.gz").rename(folder / "nifti-gz")
    write_metaimage(folder / "a.mha", volume).rename(folder / "metaimage")
    write_metaimage(folder / "b.mha", volume, compressed=True).rename(folder / "metaimage-packed")
    for name in ("nrrd", "nrrd-packed"):
        sitk.WriteImage(sitk.GetImageFromArray(volume.T), str(folder / "a.nrrd"), "packed" in name)
        (folder / "a.nrrd").rename(folder / name)
    with zipfile.ZipFile(folder / "zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("png", "jpeg", "jpeg-lossless", "metaimage"):
            archive.write(folder / name, f"{name}.bin")
    return {name: (folder / name).read_bytes() for name in GENERATED}


def _write_odd_kinds(folder: Path, chest: NDArray[np.int16], volume: NDArray[np.int16]) -> None:
    """Kinds of TIFF and NIfTI that other software writes."""
    grey = LUNG.apply(chest)
    for name, options in TIFF_KINDS.items():
        shaped = {
            "tiff-stack": np.stack([grey] * 3),
            "tiff-colours": np.stack([grey] * 3),
            "tiff-float": chest / 1.0,
        }
        tifffile.imwrite(folder / name, shaped.get(name, grey), **options)
    with tifffile.TiffWriter(folder / "tiff-pyramid") as file:
        file.write(grey, subifds=1)
        file.write(grey[::2, ::2], subfiletype=1)
        file.write(grey)
    nifti = nib.Nifti1Image(volume, np.eye(4))
    nifti.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 400))
    nifti.to_filename(folder / "a.nii")
    (folder / "a.nii").rename(folder / "nifti-extension")
    content = (folder / "nifti-extension").read_bytes()
    parts = [content[start : start + 4000] for start in range(0, len(content), 4000)]
    (folder / "nifti-members").write_bytes(b"".join(map(gzip.compress, parts)))
    labels = nib.Nifti2Image((volume > 0).astype(np.uint8), np.eye(4))
    labels.header.set_intent("label")
    labels.to_filename(folder / "a.nii")
    (folder / "a.nii").rename(folder / "nifti-label")


def _place(draw: st.DrawFn, size: int) -> int:
    """A position in a file; headers, where damage does most, are hit most often."""
    return draw(st.one_of(st.integers(0, min(size, 600) - 1), st.integers(0, size - 1)))


@st.composite
def damages(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with one to four changes: bytes replaced, bits flipped, cut off, cut out, doubled, blanked."""
    damaged = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        if len(damaged) < 2:
            break
        start = _place(draw, len(damaged))
        end = min(len(damaged), start + draw(st.integers(1, 400)))
        kind = draw(st.sampled_from(["replace", "flip", "extreme", "cut off", "cut out", "double", "blank"]))
        if kind == "replace":
            damaged[start] = draw(st.integers(0, 255))
        elif kind == "flip":
            damaged[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "extreme":
            damaged[start : start + 2] = draw(st.sampled_from([b"\xff\xff", b"\0\0", b"\x7f\xff", b"\x80\0"]))
        elif kind == "cut off":
            del damaged[start:]
        elif kind == "cut out":
            del damaged[start:end]
        elif kind == "double":
            damaged[start:start] = damaged[start:end]
        else:
            damaged[start:end] = bytes([draw(st.sampled_from([0, 255]))]) * (end - start)
    return bytes(damaged)


def _read(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        for item in read_slices(path, LIMITS):
            assert isinstance(item, CTSlice)
            assert item.pixels.size > 0
    except GroundglassError as error:
        message = str(error)
        assert message.startswith(str(path))
        assert "\n" not in message
        assert message.isprintable()


_SETTINGS = settings(
    max_examples=int(os.environ.get("GROUNDGLASS_FUZZ", "60")),  # of each test
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("name", GENERATED)
def test_sound_files_are_read(generated: dict[str, bytes], tmp_path: Path, name: str) -> None:
    path = tmp_path / "sound"
    path.write_bytes(generated[name])
    assert list(read_slices(path, LIMITS))


@pytest.mark.parametrize("name", GENERATED)
def test_damaged_files_are_slices_or_an_error(generated: dict[str, bytes], tmp_path: Path, name: str) -> None:
    @_SETTINGS
    @given(damages(generated[name]))
    def check(content: bytes) -> None:
        _read(tmp_path / "damaged", content)

    check()


@pytest.mark.parametrize("name", ["dicom/compressed/1-130.dcm", "dicom/mixed/axial-ge.dcm"])
def test_damaged_real_dicom_files_are_slices_or_an_error(
    dicom_samples: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    content = (dicom_samples.parent / name).read_bytes()

    @_SETTINGS
    @given(damages(content))
    def check(content: bytes) -> None:
        _read(tmp_path / "damaged", content)

    check()
    assert capfd.readouterr().err == ""


def test_damaged_real_pictures_are_slices_or_an_error(
    covid_ct: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = sorted((covid_ct / "Images-processed").glob("*/*"))[::93]

    @_SETTINGS
    @given(st.sampled_from(paths).flatmap(lambda path: damages(path.read_bytes())))
    def check(content: bytes) -> None:
        _read(tmp_path / "damaged", content)

    check()
    assert capfd.readouterr().err == ""


@_SETTINGS
@given(
    prefix=st.sampled_from(
        [
            *(
                b"",
                b"\x89PNG\r\n\x1a\n",
                b"\xff\xd8\xff",
                b"II*\0",
                b"MM\0*",
                b"BM",
                b"PK\x03\x04",
                b"\x1f\x8b\x08",
            ),
            *(bytes(128) + b"DICM", bytes(344) + b"n+1\0", b"ObjectType = Image\n", b"NDims = 3\nDimSize = "),
        ]
    ),
    rest=st.binary(max_size=600),
)
def test_noise_is_an_error(tmp_path_factory: pytest.TempPathFactory, prefix: bytes, rest: bytes) -> None:
    _read(tmp_path_factory.getbasetemp() / "noise", prefix + rest)
