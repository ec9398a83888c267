"""Volumes of any orientation come in as axial slices, the patient's right at the image's left."""

from __future__ import annotations

import gzip
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from groundglass.errors import ImageError, NotASliceError
from groundglass.imaging.read import read_slices
from groundglass.imaging.slice import LABELS
from groundglass.imaging.source import Limits
from groundglass.imaging.window import LUNG
from groundglass.inference.inputs import expand

Voxels = NDArray[np.int16]
WriteMetaImage = Callable[..., Path]

# Canonical (RAS) voxels of 0.75 x 0.5 x 2 mm.
AFFINE = np.array([[0.75, 0, 0, -20], [0, 0.5, 0, -15], [0, 0, 2, 100], [0, 0, 0, 1]])


def _assert_chest(path: Path, chest: NDArray[np.int16], file_format: str) -> None:
    read = list(read_slices(path))
    assert [item.origin.frame for item in read] == [0, 1, 2, 3, 4]
    for index, item in enumerate(read):
        expected = np.maximum(chest - float(index), -1024)
        np.testing.assert_array_equal(item.hounsfield, expected)
        np.testing.assert_array_equal(item.pixels, LUNG.apply(expected))
        assert item.origin.file_format == file_format
        assert item.origin.orientation == (1, 0, 0, 0, 1, 0)
        assert item.origin.spacing == (0.5, 0.75)


ORIENTATIONS = ["".join(code) for code in itertools.product("LR", "AP", "IS")] + ["SPL", "AIR", "PSR", "SRA"]


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_nifti_of_any_orientation(
    tmp_path: Path, volume: Voxels, chest: NDArray[np.int16], code: str
) -> None:
    image = nib.Nifti1Image(volume, AFFINE)
    target = nib.orientations.axcodes2ornt(tuple(code))
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(AFFINE), target))
    assert nib.aff2axcodes(turned.affine) == tuple(code)
    turned.to_filename(tmp_path / "a.nii")
    _assert_chest(tmp_path / "a.nii", chest, "NIfTI")
    first = next(read_slices(tmp_path / "a.nii")).origin
    # The first pixel is the most rightward and anterior voxel; LPS counts to the left and to the back.
    assert first.position == pytest.approx((-(-20 + 63 * 0.75), -(-15 + 47 * 0.5), 100), abs=1e-4)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_versions_and_compression(
    tmp_path: Path, volume: Voxels, chest: NDArray[np.int16], kind: Any, suffix: str
) -> None:
    kind(volume, AFFINE).to_filename(tmp_path / f"a{suffix}")
    _assert_chest(tmp_path / f"a{suffix}", chest, "NIfTI")


def test_nifti_with_slope_and_with_floating_point(
    tmp_path: Path, volume: Voxels, chest: NDArray[np.int16]
) -> None:
    image = nib.Nifti1Image((volume + 1024) * 2, AFFINE)
    image.header.set_slope_inter(0.5, -1024)
    nib.Nifti1Image(((volume + 1024) * 2).astype(np.int16), AFFINE, image.header)
    raw = nib.Nifti1Image(volume.astype(np.float32), AFFINE)
    raw.to_filename(tmp_path / "float.nii")
    _assert_chest(tmp_path / "float.nii", chest, "NIfTI")
    scaled = nib.Nifti1Image(volume.astype(np.float64), AFFINE)
    scaled.set_data_dtype(np.uint16)
    scaled.to_filename(tmp_path / "scaled.nii")
    assert nib.load(tmp_path / "scaled.nii").dataobj.inter != 0
    for index, item in enumerate(read_slices(tmp_path / "scaled.nii")):
        np.testing.assert_allclose(item.hounsfield, np.maximum(chest - float(index), -1024), atol=0.1)


def test_missing_voxels_are_air(tmp_path: Path, volume: Voxels) -> None:
    voxels = volume.astype(np.float32)
    voxels[:, -3:, :] = np.nan
    nib.Nifti1Image(voxels, AFFINE).to_filename(tmp_path / "a.nii")
    for item in read_slices(tmp_path / "a.nii"):
        assert item.hounsfield is not None
        assert (item.hounsfield[:3] == -1024).all()


@pytest.mark.parametrize("offset", [1024, 2048, 8192, 32768])
def test_hounsfield_units_that_were_made_positive(
    tmp_path: Path, volume: Voxels, chest: NDArray[np.int16], offset: int
) -> None:
    shifted = (volume.astype(int) + offset).astype(np.uint16)
    _assert_chest(_nifti(tmp_path / "a.nii", shifted), chest, "NIfTI")
    padded = shifted.copy()
    padded[:, -3:] = 0
    (first, *_) = read_slices(_nifti(tmp_path / "padded.nii", padded))
    assert first.hounsfield is not None
    assert (first.hounsfield[:3] == -1024).all()
    np.testing.assert_array_equal(first.hounsfield[3:], chest[3:])


@pytest.mark.parametrize(
    "change",
    [
        lambda volume: np.clip(volume / 1000, -1, 1),
        lambda volume: volume / 1000,
        lambda volume: (volume - volume.mean()) / volume.std(),
        lambda volume: volume / volume.std() + 5,
        lambda volume: volume * 10.0,
        lambda volume: np.clip(volume, -160, 240),
        lambda volume: (volume + 1024) / 40.96,
        lambda volume: volume.astype(np.int32) * 1_000_000,
    ],
)
def test_numbers_of_no_known_scale_are_refused(
    tmp_path: Path, volume: Voxels, change: Callable[[Voxels], NDArray[Any]]
) -> None:
    changed = change(volume)
    nib.Nifti1Image(
        changed.astype(changed.dtype if changed.dtype.kind == "i" else np.float32), AFFINE
    ).to_filename(tmp_path / "a.nii")
    with pytest.raises(NotASliceError, match=r"a\.nii: its numbers, from .* to .*, fit no known scale"):
        list(read_slices(tmp_path / "a.nii"))


@pytest.mark.parametrize(("dtype", "maximum"), [(np.uint8, 255), (np.uint16, 4095), (np.float32, 1.0)])
def test_grey_volumes_are_not_taken_for_hounsfield_units(tmp_path: Path, dtype: Any, maximum: float) -> None:
    voxels = (np.linspace(0, 1, 6 * 5 * 4) * maximum).astype(dtype).reshape(6, 5, 4)
    nib.Nifti1Image(voxels, np.diag([1.0, 1, 1, 1])).to_filename(tmp_path / "a.nii")
    read = list(read_slices(tmp_path / "a.nii"))
    assert all(item.hounsfield is None for item in read)
    assert read[0].pixels.min() == 0
    assert read[-1].pixels.max() == 255


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nib.Nifti1Image(np.zeros((4, 4, 4, 3), np.int16), np.eye(4)), "4 x 4 x 4 x 3"),
        (lambda: nib.Nifti1Image(np.zeros((4, 4, 4), np.complex64), np.eye(4)), "not a CT"),
        (
            lambda: nib.Nifti1Image(np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4)),
            "not a CT",
        ),
        (lambda: nib.Nifti1Image(np.full((4, 4, 4), np.nan, np.float32), np.eye(4)), "finite"),
    ],
)
def test_nifti_that_is_no_ct_volume(tmp_path: Path, make: Callable[[], Any], reason: str) -> None:
    make().to_filename(tmp_path / "other.nii")
    with pytest.raises(ImageError, match=rf"other\.nii: .*{reason}"):
        list(read_slices(tmp_path / "other.nii"))


def test_damaged_nifti(tmp_path: Path, volume: Voxels, capfd: pytest.CaptureFixture[str]) -> None:
    whole, packed = tmp_path / "a.nii", tmp_path / "a.nii.gz"
    nib.Nifti1Image(volume, AFFINE).to_filename(whole)
    nib.Nifti1Image(volume, AFFINE).to_filename(packed)
    for path in (whole, packed):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(ImageError, match="truncated"):
            list(read_slices(path))
    packed.write_bytes(gzip.compress(b"something else " * 100))
    with pytest.raises(ImageError, match=r"not an image|compressed"):
        list(read_slices(packed))
    assert capfd.readouterr().err == ""


def test_a_nifti_header_that_asks_for_too_much(tmp_path: Path, volume: Voxels) -> None:
    path = tmp_path / "bomb.nii"
    nib.Nifti1Image(volume, AFFINE).to_filename(path)
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([30_000, 30_000, 30_000], "<i2").tobytes()
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"bomb\.nii: .*limit"):
        list(read_slices(path))
    gzip_path = tmp_path / "bomb.nii.gz"
    gzip_path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ImageError, match="limit"):
        list(read_slices(gzip_path))


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_nifti_pair(
    tmp_path: Path, volume: Voxels, chest: NDArray[np.int16], kind: Any, suffix: str
) -> None:
    kind(volume, AFFINE).to_filename(tmp_path / f"a.hdr{suffix}")
    _assert_chest(tmp_path / f"a.hdr{suffix}", chest, "NIfTI")
    assert len(list(read_slices(tmp_path))) == 5, "the voxels' file is no image of its own"
    assert expand([str(tmp_path / "a.*")]) == [tmp_path / f"a.hdr{suffix}"], "nor where a pattern names it"
    with pytest.raises(ImageError, match=rf"a\.img{suffix}: the voxels of .*a\.hdr{suffix}; name that file"):
        list(read_slices(tmp_path / f"a.img{suffix}"))
    (tmp_path / f"a.img{suffix}").unlink()
    with pytest.raises(ImageError, match=r"a\.hdr.*its voxels are missing: no file a\.img"):
        list(read_slices(tmp_path / f"a.hdr{suffix}"))


def _nifti(path: Path, voxels: NDArray[Any], order: str = "<", **fields: Any) -> Path:
    """A file as nibabel writes it, with header fields that nibabel would not."""
    image = nib.Nifti1Image(voxels, AFFINE, nib.Nifti1Header(endianness=order))
    image.header.set_intent(fields.pop("intent", "none"))
    image.to_filename(path)
    content = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for field, value in fields.items():
        header[field] = value
    content[:348] = header.binaryblock
    path.write_bytes(content)
    return path


def test_nifti_of_the_other_byte_order(tmp_path: Path, volume: Voxels, chest: NDArray[np.int16]) -> None:
    _assert_chest(_nifti(tmp_path / "a.nii", volume, order=">"), chest, "NIfTI")


@pytest.mark.parametrize("size", [16, 400, 70_000])
def test_nifti_header_extensions_are_passed_over(
    tmp_path: Path, volume: Voxels, chest: NDArray[np.int16], size: int
) -> None:
    image = nib.Nifti1Image(volume, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * size))
    for name in ("a.nii", "a.nii.gz"):
        image.to_filename(tmp_path / name)
        _assert_chest(tmp_path / name, chest, "NIfTI")


@pytest.mark.parametrize("trailing", [b"", bytes(512), b"garbage"])
def test_nifti_in_several_gzip_members(
    tmp_path: Path, volume: Voxels, chest: NDArray[np.int16], trailing: bytes
) -> None:
    content = _nifti(tmp_path / "a.nii", volume).read_bytes()
    parts = [content[start : start + 5000] for start in range(0, len(content), 5000)]
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"".join(gzip.compress(part) for part in [b"", *parts]) + trailing)
    _assert_chest(path, chest, "NIfTI")
    path.write_bytes(b"".join(gzip.compress(part) for part in parts[:-1]))
    with pytest.raises(ImageError, match="truncated"):
        list(read_slices(path))
    bomb = _nifti(tmp_path / "bomb.nii", volume, dim=[3, 30_000, 30_000, 5, 1, 1, 1, 1]).read_bytes()
    path.write_bytes(gzip.compress(bomb) + gzip.compress(bytes(2**20)) * 20_000)
    with pytest.raises(ImageError, match="limit"):
        list(read_slices(path))


_QUATERNION = {"quatern_b": 0.0, "quatern_c": 0.0, "quatern_d": 1.0}  # half a turn around the body's axis


@pytest.mark.parametrize(
    ("fields", "position", "spacing"),
    [
        (
            {"sform_code": 1, "srow_x": 0, "srow_y": 0, "srow_z": 0},
            (-20 - 63 * 0.75, -15 - 47 * 0.5),
            (0.5, 0.75),
        ),
        ({"sform_code": 0}, (-20 - 63 * 0.75, -15 - 47 * 0.5), (0.5, 0.75)),
        ({"sform_code": 0, "qform_code": 0}, None, (0.5, 0.75)),
        ({"sform_code": 2, "srow_x": np.nan, "qform_code": 0}, None, (0.5, 0.75)),
        ({"sform_code": 0, "quatern_b": 9.0}, None, (0.5, 0.75)),
        ({"sform_code": 0, "qform_code": 0, "pixdim": [1, 0, 0, 0, 0, 0, 0, 0]}, None, (1, 1)),
        (
            {"sform_code": 0, "qform_code": 0, "pixdim": [7, -0.75, -0.5, np.nan, 0, 0, 0, 0]},
            None,
            (0.5, 0.75),
        ),
    ],
)
def test_nifti_takes_the_first_usable_of_sform_qform_and_sizes(
    tmp_path: Path,
    volume: Voxels,
    chest: NDArray[np.int16],
    capfd: pytest.CaptureFixture[str],
    fields: dict[str, Any],
    position: tuple[float, float] | None,
    spacing: tuple[float, float],
) -> None:
    fields = {"qform_code": 1, "qoffset_x": -20, "qoffset_y": -15, "qoffset_z": 100, **_QUATERNION, **fields}
    read = list(read_slices(_nifti(tmp_path / "a.nii", volume, **fields)))
    assert capfd.readouterr().err == ""
    assert len(read) == 5
    assert read[0].origin.spacing == pytest.approx(spacing)
    # The sform that nibabel wrote has columns to the right; half a turn and sizes alone have them to the left.
    assert read[0].hounsfield is not None
    turned = np.maximum(chest, -1024)[:, ::-1]
    np.testing.assert_array_equal(read[0].hounsfield, turned if position is None else turned[::-1])
    if position is not None:
        assert read[0].origin.position == pytest.approx((-max(-20, position[0]), -max(-15, position[1]), 100))


@pytest.mark.parametrize("offset", [0, 348, 351, 352.5, -1, np.nan, np.inf, 1e30])
def test_nifti_whose_voxels_begin_nowhere(tmp_path: Path, volume: Voxels, offset: float) -> None:
    path = _nifti(tmp_path / "a.nii", volume, vox_offset=offset)
    with pytest.raises(ImageError, match=r"a\.nii: its vox_offset, .*; set it to 352"):
        list(read_slices(path))


@pytest.mark.parametrize("slope", [0.0, np.nan, 1.0, 2.0, 0.5])
def test_nifti_slopes(tmp_path: Path, volume: Voxels, slope: float) -> None:
    path = _nifti(tmp_path / "a.nii", volume, scl_slope=slope, scl_inter=-24.0)
    expected = nib.load(path).get_fdata()[::-1, ::-1, 0].T
    if slope == 2.0:
        with pytest.raises(ImageError, match="fit no known scale"):
            list(read_slices(path))
        return
    np.testing.assert_array_equal(next(read_slices(path)).hounsfield, np.maximum(expected, -1024))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_a_label_map_says_so(tmp_path: Path, volume: Voxels, dtype: Any) -> None:
    labels = (volume > -500).astype(dtype) * 3
    (first, *_) = read_slices(_nifti(tmp_path / "a.nii", labels, intent="label"))
    assert first.origin.mode == LABELS
    assert set(np.unique(first.pixels)) == {0, 3}, "they are read, for they may be masks"


@pytest.fixture
def itk(volume: Voxels) -> Voxels:
    """The same voxels with MetaImage's axes: left, posterior, superior."""
    return np.ascontiguousarray(volume[::-1, ::-1])


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_metaimage(
    tmp_path: Path,
    itk: Voxels,
    chest: NDArray[np.int16],
    write_metaimage: WriteMetaImage,
    suffix: str,
    compressed: bool,
) -> None:
    path = write_metaimage(tmp_path / f"a{suffix}", itk, compressed=compressed)
    _assert_chest(path, chest, "MetaImage")
    assert next(read_slices(path)).origin.position == pytest.approx((-180.5, -170.25, -300))


def test_metaimage_directions_are_followed(
    tmp_path: Path, itk: Voxels, chest: NDArray[np.int16], write_metaimage: WriteMetaImage
) -> None:
    flipped = write_metaimage(tmp_path / "a.mha", itk[::-1, ::-1], TransformMatrix="-1 0 0 0 -1 0 0 0 1")
    _assert_chest(flipped, chest, "MetaImage")
    coronal = write_metaimage(
        tmp_path / "b.mha",
        np.ascontiguousarray(itk.transpose(0, 2, 1)[:, ::-1]),
        TransformMatrix="1 0 0 0 0 -1 0 1 0",
        ElementSpacing="0.75 2 0.5",
    )
    _assert_chest(coronal, chest, "MetaImage")


def test_metaimage_byte_order_synonyms_and_header_size(
    tmp_path: Path, itk: Voxels, chest: NDArray[np.int16], write_metaimage: WriteMetaImage
) -> None:
    path = write_metaimage(
        tmp_path / "a.mhd", itk, TransformMatrix=None, Rotation="1 0 0 0 1 0 0 0 1", HeaderSize=-1
    )
    raw = itk.astype(">i2").tobytes("F")
    path.with_suffix(".raw").write_bytes(b"a header of its own" + raw)
    path.write_text(path.read_text().replace("ByteOrderMSB = False", "ByteOrderMSB = True"))
    _assert_chest(path, chest, "MetaImage")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"ElementDataFile": "../secret.raw"}, "out of its own folder"),
        ({"ElementDataFile": "/etc/hostname"}, "out of its own folder"),
        ({"ElementDataFile": "C:\\secret.raw"}, "out of its own folder"),
        ({"ElementDataFile": "sub\\..\\..\\secret.raw"}, "out of its own folder"),
        ({"ElementDataFile": "link.raw"}, "out of its own folder"),
        ({"ElementDataFile": "missing.raw"}, "voxels are missing"),
        ({"ElementDataFile": "LIST"}, "0 files"),
        ({"ElementDataFile": "LIST\n../secret.raw"}, "out of its own folder"),
        ({"ElementDataFile": "../%d.raw 1 5 1"}, "out of its own folder"),
        ({"ElementDataFile": "slice%03d.raw 1 5 1"}, "no file 'slice001.raw'"),
        ({"ElementDataFile": "slice%03d.raw 1 999999999 1"}, "20,001 files"),
        ({"ElementDataFile": "%999999999d.raw 1 5 1"}, "voxels are missing"),
        ({"BinaryData": "False"}, r"BinaryData = False"),
        ({"DimSize": "60000 60000 5"}, "more than the limit"),
        ({"DimSize": "64 48 6"}, "fewer voxels"),
        ({"DimSize": "64 48"}, "damaged"),
        ({"DimSize": "64 48 -5"}, "limit"),
        ({"DimSize": "many 48 5"}, "damaged"),
        ({"ElementType": "MET_STRING"}, "not a CT"),
        ({"ElementType": None}, "has no ElementType"),
        ({"DimSize": None}, "has no DimSize"),
        ({"ElementNumberOfChannels": "3"}, "not a CT"),
        ({"TransformMatrix": "0 0 0 0 0 0 0 0 0"}, "damaged"),
        ({"TransformMatrix": "1 0 0 1"}, "damaged"),
        ({"ElementSpacing": "nan nan nan"}, "damaged"),
        ({"CompressedData": "True"}, "damaged"),
    ],
)
def test_metaimage_that_cannot_be_trusted(
    tmp_path: Path, itk: Voxels, write_metaimage: WriteMetaImage, fields: dict[str, str], reason: str
) -> None:
    folder = tmp_path / "volume"
    folder.mkdir()
    (tmp_path / "secret.raw").write_bytes(itk.tobytes("F"))
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    path = write_metaimage(folder / "bad.mhd", itk, **fields)
    with pytest.raises(ImageError, match=rf"bad\.(mhd|raw): .*{reason}"):
        list(read_slices(path))


@pytest.mark.parametrize(
    "first",
    ["Modality = MET_MOD_CT", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "words", "Offset: 0 0 0", "ID=3"],
)
def test_metaimage_may_begin_with_anything(
    tmp_path: Path, itk: Voxels, chest: NDArray[np.int16], write_metaimage: WriteMetaImage, first: str
) -> None:
    path = write_metaimage(tmp_path / "a.mhd", itk)
    path.write_text(f"{first}\n{path.read_text()}")
    _assert_chest(path, chest, "MetaImage")
    assert expand([str(tmp_path / "a.*")]) == [path], "the voxels' file is no image of its own"


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ("a.mhd", "ElementDataFile = LIST\n" + "\n".join(f"part{number}.raw" for number in range(5))),
        ("a.mhd", "ElementDataFile = part%d.raw 0 4 1"),
        ("a.nhdr", "data file: LIST 2\n" + "\n".join(f"part{number}.raw" for number in range(5))),
        ("a.nhdr", "data file: part%d.raw 0 4 1 2"),
    ],
)
def test_voxels_in_several_files(
    tmp_path: Path,
    itk: Voxels,
    chest: NDArray[np.int16],
    write_metaimage: WriteMetaImage,
    header: str,
    data: str,
) -> None:
    path = tmp_path / header
    if path.suffix == ".mhd":
        text = write_metaimage(path, itk).read_text()
        path.write_text(text.replace("ElementDataFile = a.raw", data))
    else:
        about = (
            "type: short\ndimension: 3\nsizes: 64 48 5\nspacings: 0.75 0.5 2\nendian: little\nencoding: raw"
        )
        path.write_text(f"NRRD0004\n{about}\n{data}\n")
    for number in range(5):
        (tmp_path / f"part{number}.raw").write_bytes(itk[..., number].tobytes("F"))
    _assert_chest(path, chest, "NRRD" if path.suffix == ".nhdr" else "MetaImage")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T, itk)


def test_volumes_have_limits(tmp_path: Path, itk: Voxels, write_metaimage: WriteMetaImage) -> None:
    path = write_metaimage(tmp_path / "a.mhd", itk)
    for limits in (Limits(pixels=1000), Limits(file_bytes=1000), Limits(frames=4)):
        with pytest.raises(ImageError, match="limit"):
            list(read_slices(path, limits))


@pytest.mark.parametrize("name", ["a.nrrd", "packed.nrrd", "b.nhdr", "packed.nhdr"])
def test_nrrd(tmp_path: Path, itk: Voxels, chest: NDArray[np.int16], name: str) -> None:
    image = sitk.GetImageFromArray(itk.T)
    image.SetSpacing((0.75, 0.5, 2))
    image.SetOrigin((-180.5, -170.25, -300))
    sitk.WriteImage(image, str(tmp_path / name), useCompression="packed" in name)
    _assert_chest(tmp_path / name, chest, "NRRD")
    assert next(read_slices(tmp_path / name)).origin.position == pytest.approx((-180.5, -170.25, -300))
    (data,) = [path for path in tmp_path.iterdir() if path.suffix != ".nhdr"]
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(ImageError, match="fewer voxels"):
        list(read_slices(tmp_path / name))


@pytest.mark.parametrize(
    ("file", "reason"), [("../secret.raw", "out of its own"), ("LIST", "0 files"), ("no.raw", "missing")]
)
def test_nrrd_that_cannot_be_trusted(tmp_path: Path, itk: Voxels, file: str, reason: str) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "secret.raw").write_bytes(itk.tobytes("F"))
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 64 48 5\nendian: little\nencoding: raw\n"
    (tmp_path / "volume" / "bad.nhdr").write_text(f"{header}data file: {file}\n")
    with pytest.raises(ImageError, match=rf"bad\.nhdr: .*{reason}"):
        list(read_slices(tmp_path / "volume" / "bad.nhdr"))


def test_without_simpleitk_a_line_says_how_to_get_it(
    tmp_path: Path, itk: Voxels, write_metaimage: WriteMetaImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(ImageError, match=r"a\.mha: .*pip install '\.\[volumes\]'"):
        list(read_slices(write_metaimage(tmp_path / "a.mha", itk)))
