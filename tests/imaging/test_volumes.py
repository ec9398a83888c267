"""Volumes of any orientation come in as axial slices, the patient's right at the image's left."""

from __future__ import annotations

import gzip
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray
from tests.imaging.conftest import CHEST, ITK_VOLUME, VOLUME, write_metaimage

from groundglass.errors import ImageError, NotASliceError
from groundglass.imaging.read import read_slices
from groundglass.imaging.slice import LABELS
from groundglass.imaging.source import DEFAULT_LIMITS, Limits
from groundglass.imaging.window import LUNG
from groundglass.inference.inputs import expand

equal = np.testing.assert_array_equal
# Canonical (RAS) voxels of 0.75 x 0.5 x 2 mm.
AFFINE = np.array([[0.75, 0, 0, -20], [0, 0.5, 0, -15], [0, 0, 2, 100], [0, 0, 0, 1]])


def assert_chest(path: Path, file_format: str, position: tuple[float, float, float] | None = None) -> None:
    read = list(read_slices(path))
    assert [item.origin.frame for item in read] == [0, 1, 2, 3, 4]
    for index, item in enumerate(read):
        expected = np.maximum(CHEST - float(index), -1024)
        equal(item.hounsfield, expected)
        equal(item.pixels, LUNG.apply(expected))
        assert item.origin.file_format == file_format
        assert item.origin.orientation == (1, 0, 0, 0, 1, 0)
        assert item.origin.spacing == (0.5, 0.75)
    if position is not None:
        assert read[0].origin.position == pytest.approx(position, abs=1e-4)


def assert_refused(path: Path, reason: str, limits: Limits = DEFAULT_LIMITS) -> None:
    with pytest.raises(ImageError, match=reason):
        list(read_slices(path, limits))


def write_nifti(path: Path, voxels: NDArray[Any] = VOLUME, order: str = "<", **fields: Any) -> Path:
    """A file as nibabel writes it, with header fields that nibabel would not."""
    image = nib.Nifti1Image(voxels, AFFINE, nib.Nifti1Header(endianness=order))
    image.set_data_dtype(voxels.dtype)
    image.header.set_intent(fields.pop("intent", "none"))
    image.to_filename(path)
    content = bytearray(path.read_bytes())
    if fields:
        header = nib.Nifti1Header(bytes(content[:348]), check=False)
        for field, value in fields.items():
            header[field] = value
        content[:348] = header.binaryblock
        path.write_bytes(content)
    return path


ORIENTATIONS = ["".join(code) for code in itertools.product("LR", "AP", "IS")] + ["SPL", "AIR", "PSR", "SRA"]


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_nifti_of_any_orientation(tmp_path: Path, code: str) -> None:
    target = nib.orientations.axcodes2ornt(tuple(code))
    turn = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), target)
    turned = nib.Nifti1Image(VOLUME, AFFINE).as_reoriented(turn)
    assert nib.aff2axcodes(turned.affine) == tuple(code)
    turned.to_filename(tmp_path / "a.nii")
    # The first pixel is the most rightward and anterior voxel; LPS counts to the left and to the back.
    assert_chest(tmp_path / "a.nii", "NIfTI", (-(-20 + 63 * 0.75), -(-15 + 47 * 0.5), 100))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image, nib.Nifti1Pair, nib.Nifti2Pair])
@pytest.mark.parametrize("packed", ["", ".gz"])
def test_nifti_versions_pairs_and_compression(tmp_path: Path, kind: Any, packed: str) -> None:
    pair = "Pair" in kind.__name__
    path = tmp_path / f"a.{'hdr' if pair else 'nii'}{packed}"
    kind(VOLUME, AFFINE).to_filename(path)
    assert_chest(path, "NIfTI")
    assert len(list(read_slices(tmp_path))) == 5, "a pair's other file is no image of its own"
    assert expand([str(tmp_path / "a.*")]) == [path], "nor where a pattern names it"
    if pair:
        assert_refused(
            tmp_path / f"a.img{packed}", rf"a\.img{packed}: the voxels of .*{path.name}; name that file"
        )
        (tmp_path / f"a.img{packed}").unlink()
        assert_refused(path, r"a\.hdr.*its voxels are missing: no file a\.img")


def test_nifti_of_other_numbers(tmp_path: Path) -> None:
    assert_chest(write_nifti(tmp_path / "a.nii", order=">"), "NIfTI")
    assert_chest(write_nifti(tmp_path / "a.nii", VOLUME.astype(np.float32)), "NIfTI")
    scaled = nib.Nifti1Image(VOLUME.astype(np.float64), AFFINE)
    scaled.set_data_dtype(np.uint16)
    scaled.to_filename(tmp_path / "scaled.nii")
    assert nib.load(tmp_path / "scaled.nii").dataobj.inter != 0
    for index, item in enumerate(read_slices(tmp_path / "scaled.nii")):
        np.testing.assert_allclose(item.hounsfield, np.maximum(CHEST - float(index), -1024), atol=0.1)
    voxels = VOLUME.astype(np.float32)
    voxels[:, -3:, :] = np.nan
    for item in read_slices(write_nifti(tmp_path / "a.nii", voxels)):
        assert (item.hounsfield[:3] == -1024).all(), "missing voxels are air"


@pytest.mark.parametrize("offset", [1024, 2048, 8192, 32768])
def test_hounsfield_units_that_were_made_positive(tmp_path: Path, offset: int) -> None:
    shifted = (VOLUME.astype(int) + offset).astype(np.uint16)
    assert_chest(write_nifti(tmp_path / "a.nii", shifted), "NIfTI")
    shifted[:, -3:] = 0  # a padding
    first = next(read_slices(write_nifti(tmp_path / "padded.nii", shifted)))
    assert (first.hounsfield[:3] == -1024).all()
    equal(first.hounsfield[3:], CHEST[3:])


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
def test_numbers_of_no_known_scale_are_refused(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    changed = change(VOLUME)
    path = write_nifti(
        tmp_path / "a.nii", changed if changed.dtype.kind == "i" else changed.astype(np.float32)
    )
    with pytest.raises(NotASliceError, match=r"a\.nii: its numbers, from .* to .*, fit no known scale"):
        list(read_slices(path))


@pytest.mark.parametrize(("dtype", "maximum"), [(np.uint8, 255), (np.uint16, 4095), (np.float32, 1.0)])
def test_grey_volumes_are_not_taken_for_hounsfield_units(tmp_path: Path, dtype: Any, maximum: float) -> None:
    voxels = (np.linspace(0, 1, 6 * 5 * 4) * maximum).astype(dtype).reshape(6, 5, 4)
    read = list(read_slices(write_nifti(tmp_path / "a.nii", voxels)))
    assert all(item.hounsfield is None for item in read)
    assert min(item.pixels.min() for item in read) == 0
    assert max(item.pixels.max() for item in read) == 255


@pytest.mark.parametrize(
    ("voxels", "reason"),
    [
        (np.zeros((4, 4, 4, 3), np.int16), "4 x 4 x 4 x 3"),
        (np.zeros((4, 4, 4), np.complex64), "not a CT"),
        (np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "not a CT"),
        (np.full((4, 4, 4), np.nan, np.float32), "finite"),
    ],
)
def test_nifti_that_is_no_ct_volume(tmp_path: Path, voxels: NDArray[Any], reason: str) -> None:
    assert_refused(write_nifti(tmp_path / "other.nii", voxels), rf"other\.nii: .*{reason}")


def test_nifti_that_is_damaged_or_asks_for_too_much(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    packed = tmp_path / "packed.nii.gz"
    for path in (write_nifti(tmp_path / "a.nii"), write_nifti(packed)):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert_refused(path, "truncated")
    packed.write_bytes(gzip.compress(b"something else " * 100))
    assert_refused(packed, r"not an image|compressed")
    bomb = write_nifti(tmp_path / "bomb.nii", dim=[3, 30_000, 30_000, 30_000, 1, 1, 1, 1])
    assert_refused(bomb, r"bomb\.nii: .*limit")
    packed.write_bytes(gzip.compress(bomb.read_bytes()) + gzip.compress(bytes(2**20)) * 20_000)
    assert_refused(packed, "limit")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("size", [16, 400, 70_000])
def test_nifti_header_extensions_are_passed_over(tmp_path: Path, size: int) -> None:
    image = nib.Nifti1Image(VOLUME, AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * size))
    for name in ("a.nii", "a.nii.gz"):
        image.to_filename(tmp_path / name)
        assert_chest(tmp_path / name, "NIfTI")


@pytest.mark.parametrize("trailing", [b"", bytes(512), b"garbage"])
def test_nifti_in_several_gzip_members(tmp_path: Path, trailing: bytes) -> None:
    content = write_nifti(tmp_path / "a.nii").read_bytes()
    parts = [gzip.compress(content[start : start + 5000]) for start in range(0, len(content), 5000)]
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"".join([gzip.compress(b""), *parts]) + trailing)
    assert_chest(path, "NIfTI")
    path.write_bytes(b"".join(parts[:-1]))
    assert_refused(path, "truncated")


SIZES_ALONE = {"sform_code": 0, "qform_code": 0}


@pytest.mark.parametrize(
    ("fields", "turned", "spacing"),
    [
        ({"sform_code": 1, "srow_x": 0, "srow_y": 0, "srow_z": 0}, True, (0.5, 0.75)),
        ({"sform_code": 0}, True, (0.5, 0.75)),
        (SIZES_ALONE, False, (0.5, 0.75)),
        ({"sform_code": 2, "srow_x": np.nan, "qform_code": 0}, False, (0.5, 0.75)),
        ({"sform_code": 0, "quatern_b": 9.0}, False, (0.5, 0.75)),
        ({**SIZES_ALONE, "pixdim": [1, 0, 0, 0, 0, 0, 0, 0]}, False, (1, 1)),
        ({**SIZES_ALONE, "pixdim": [7, -0.75, -0.5, np.nan, 0, 0, 0, 0]}, False, (0.5, 0.75)),
    ],
)
def test_nifti_takes_the_first_usable_of_sform_qform_and_sizes(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    fields: dict[str, Any],
    turned: bool,
    spacing: tuple[float, float],
) -> None:
    """The sform that nibabel wrote has columns to the right; half a turn and sizes alone have them to the left."""
    half_a_turn = {"quatern_b": 0.0, "quatern_c": 0.0, "quatern_d": 1.0, "qform_code": 1}
    place = {"qoffset_x": -20, "qoffset_y": -15, "qoffset_z": 100}
    read = list(read_slices(write_nifti(tmp_path / "a.nii", **{**half_a_turn, **place, **fields})))
    assert capfd.readouterr().err == ""
    assert len(read) == 5
    assert read[0].origin.spacing == pytest.approx(spacing)
    equal(read[0].hounsfield, np.maximum(CHEST, -1024)[:: -1 if turned else 1, ::-1])
    if turned:
        assert read[0].origin.position == pytest.approx((20, 15, 100))


@pytest.mark.parametrize("offset", [0, 348, 351, 352.5, -1, np.nan, np.inf, 1e30])
def test_nifti_whose_voxels_begin_nowhere(tmp_path: Path, offset: float) -> None:
    path = write_nifti(tmp_path / "a.nii", vox_offset=offset)
    assert_refused(path, r"a\.nii: its vox_offset, .*; set it to 352")


@pytest.mark.parametrize("slope", [0.0, np.nan, 1.0, 2.0, 0.5])
def test_nifti_slopes(tmp_path: Path, slope: float) -> None:
    path = write_nifti(tmp_path / "a.nii", scl_slope=slope, scl_inter=-24.0)
    if slope == 2.0:
        return assert_refused(path, "fit no known scale")
    expected = nib.load(path).get_fdata()[::-1, ::-1, 0].T
    equal(next(read_slices(path)).hounsfield, np.maximum(expected, -1024))
    return None


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_a_label_map_says_so(tmp_path: Path, dtype: Any) -> None:
    labels = (VOLUME > -500).astype(dtype) * 3
    (first, *_) = read_slices(write_nifti(tmp_path / "a.nii", labels, intent="label"))
    assert first.origin.mode == LABELS
    assert set(np.unique(first.pixels)) == {0, 3}, "they are read, for they may be masks"


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize("compressed", [False, True])
def test_metaimage(tmp_path: Path, suffix: str, compressed: bool) -> None:
    path = write_metaimage(tmp_path / f"a{suffix}", compressed=compressed)
    assert_chest(path, "MetaImage", (-180.5, -170.25, -300))


def test_metaimage_directions_and_byte_order_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    write_metaimage(path, ITK_VOLUME[::-1, ::-1], TransformMatrix="-1 0 0 0 -1 0 0 0 1")
    assert_chest(path, "MetaImage")
    coronal = {"TransformMatrix": "1 0 0 0 0 -1 0 1 0", "ElementSpacing": "0.75 2 0.5"}
    write_metaimage(path, np.ascontiguousarray(ITK_VOLUME.transpose(0, 2, 1)[:, ::-1]), **coronal)
    assert_chest(path, "MetaImage")
    synonyms = {"TransformMatrix": None, "Rotation": "1 0 0 0 1 0 0 0 1", "HeaderSize": -1}
    path = write_metaimage(tmp_path / "b.mhd", BinaryDataByteOrderMSB=True, **synonyms)
    path.with_suffix(".raw").write_bytes(b"a header of its own" + ITK_VOLUME.astype(">i2").tobytes("F"))
    assert_chest(path, "MetaImage")


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
def test_metaimage_that_cannot_be_trusted(tmp_path: Path, fields: dict[str, str], reason: str) -> None:
    folder = tmp_path / "volume"
    folder.mkdir()
    (tmp_path / "secret.raw").write_bytes(ITK_VOLUME.tobytes("F"))
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    assert_refused(write_metaimage(folder / "bad.mhd", **fields), rf"bad\.(mhd|raw): .*{reason}")


@pytest.mark.parametrize(
    "first",
    ["Modality = MET_MOD_CT", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "words", "Offset: 0 0 0", "ID=3"],
)
def test_metaimage_may_begin_with_anything(tmp_path: Path, first: str) -> None:
    path = write_metaimage(tmp_path / "a.mhd")
    path.write_text(f"{first}\n{path.read_text()}")
    assert_chest(path, "MetaImage")
    assert expand([str(tmp_path / "a.*")]) == [path], "the voxels' file is no image of its own"


NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 64 48 5\nspacings: 0.75 0.5 2\nendian: little\nencoding: raw\n"
PARTS = [f"part{number}.raw" for number in range(5)]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.mhd", "\n".join(["LIST", *PARTS])),
        ("a.mhd", "part%d.raw 0 4 1"),
        ("a.nhdr", "\n".join(["LIST 2", *PARTS])),
        ("a.nhdr", "part%d.raw 0 4 1 2"),
    ],
)
def test_voxels_in_several_files(tmp_path: Path, name: str, data: str) -> None:
    path = tmp_path / name
    if name == "a.mhd":
        write_metaimage(path, ElementDataFile=data)
        path.with_suffix(".raw").unlink()
    else:
        path.write_text(f"{NRRD}data file: {data}\n")
    for number, part in enumerate(PARTS):
        (tmp_path / part).write_bytes(ITK_VOLUME[..., number].tobytes("F"))
    assert_chest(path, "MetaImage" if name == "a.mhd" else "NRRD")
    equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T, ITK_VOLUME)


def test_volumes_have_limits(tmp_path: Path) -> None:
    path = write_metaimage(tmp_path / "a.mhd")
    for limits in (Limits(pixels=1000), Limits(file_bytes=1000), Limits(frames=4)):
        assert_refused(path, "limit", limits)


@pytest.mark.parametrize("name", ["a.nrrd", "packed.nrrd", "b.nhdr", "packed.nhdr"])
def test_nrrd(tmp_path: Path, name: str) -> None:
    image = sitk.GetImageFromArray(ITK_VOLUME.T)
    image.SetSpacing((0.75, 0.5, 2))
    image.SetOrigin((-180.5, -170.25, -300))
    sitk.WriteImage(image, str(tmp_path / name), useCompression="packed" in name)
    assert_chest(tmp_path / name, "NRRD", (-180.5, -170.25, -300))
    (data,) = [path for path in tmp_path.iterdir() if path.suffix != ".nhdr"]
    data.write_bytes(data.read_bytes()[:-100])
    assert_refused(tmp_path / name, "fewer voxels")


@pytest.mark.parametrize(
    ("file", "reason"), [("../secret.raw", "out of its own"), ("LIST", "0 files"), ("no.raw", "missing")]
)
def test_nrrd_that_cannot_be_trusted(tmp_path: Path, file: str, reason: str) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "secret.raw").write_bytes(ITK_VOLUME.tobytes("F"))
    (tmp_path / "volume" / "bad.nhdr").write_text(f"{NRRD}data file: {file}\n")
    assert_refused(tmp_path / "volume" / "bad.nhdr", rf"bad\.nhdr: .*{reason}")


def test_without_simpleitk_a_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    write_metaimage(tmp_path / "a.mha")
    write_nifti(tmp_path / "b.nii")
    errors: list[ImageError] = []
    assert len(list(read_slices(tmp_path, on_error=errors.append))) == 5
    ((path, reason),) = [(error.path, error.reason) for error in errors]
    assert path == str(tmp_path / "a.mha")
    assert re.search(r"pip install '\.\[volumes\]'", reason)
