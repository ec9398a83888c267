"""Volumes of any orientation come in as axial slices, the patient's right at the image's left."""

import gzip
import itertools
import sys
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZIP_BZIP2, ZipFile

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from tests.imaging.conftest import CHEST, ITK_VOLUME, VOLUME, assert_refused, itk_image, write_metaimage, write_nifti

from groundglass.errors import NotASliceError
from groundglass.imaging.read import read_slices
from groundglass.imaging.slice import LABELS
from groundglass.imaging.source import Limits
from groundglass.imaging.window import LUNG
from groundglass.inference.inputs import expand

equal = np.testing.assert_array_equal
METRES = [7.5e-4, 0, 0, -0.02], [0, 5e-4, 0, -0.015], [0, 0, 2e-3, 0.1]
ALONE = {"sform_code": 0, "qform_code": 0}
OUTSIDE = ["../secret.raw", "/etc/hostname", "C:\\secret.raw", "sub\\..\\..\\secret.raw", "link.raw"]
SEVERAL = ["LIST\nslice.raw", "LIST\n../secret.raw", "slice%03d.raw 1 5 1", "../%d.raw 1 5 1", "%999999999d.raw 1 5 1"]
OFF_SCALE = [
    *(np.clip(VOLUME / 1000, -1, 1), VOLUME / 1000, (VOLUME - VOLUME.mean()) / VOLUME.std()),
    *(VOLUME / VOLUME.std() + 5, VOLUME * 10.0, np.clip(VOLUME, -160, 240), (VOLUME + 1024) / 40.96),
]
SCALE, COLOURS = "its numbers, from .* to .*, fit no known scale", [("R", "u1"), ("G", "u1"), ("B", "u1")]
OFFSETS = [0, 348, 351, 352.5, -1, np.nan, np.inf, 1e30]


def write_turned(path: Path, code: str) -> None:
    image, target = nib.load(write_nifti(path)), nib.orientations.axcodes2ornt(tuple(code))
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), target)
    nib.Nifti1Image(VOLUME, image.affine).as_reoriented(turn).to_filename(path)
    assert nib.aff2axcodes(nib.load(path).affine) == tuple(code)


def write_members(path: Path, trailing: bytes = b"") -> None:
    """A volume in several gzip members, the first of them empty."""
    content = gzip.decompress(write_nifti(path).read_bytes())
    parts = [b"", *(content[start : start + 5000] for start in range(0, len(content), 5000))]
    path.write_bytes(b"".join(map(gzip.compress, parts)) + trailing)


def write_begun(path: Path, line: str) -> None:
    """A MetaImage that begins with this line."""
    path.write_bytes(line.encode() + b"\n" + write_metaimage(path).read_bytes())


def write_raw(path: Path) -> None:
    """A MetaImage of other words, whose voxels have a header of their own."""
    synonyms = {"TransformMatrix": None, "Rotation": "1 0 0 0 1 0 0 0 1", "HeaderSize": -1}
    write_metaimage(path, BinaryDataByteOrderMSB=True, **synonyms)
    path.with_suffix(".raw").write_bytes(b"a header of its own" + ITK_VOLUME.astype(">i2").tobytes("F"))


def write_nrrd(path: Path) -> None:
    sitk.WriteImage(itk_image(), str(path), useCompression="packed" in path.name)


nifti, meta = (partial(partial, write) for write in (write_nifti, write_metaimage))
CODES = [*itertools.product("LR", "AP", "IS"), "SPL", "AIR", "PSR", "SRA"]
PLUS = {plus: (VOLUME.astype(int) + plus).astype(np.uint16) for plus in (1024, 2048, 8192, 32768)}
MIRRORED, MIRROR = ITK_VOLUME[::-1, ::-1], "-1 0 0 0 -1 0 0 0 1"
TURNED, CORONAL = ITK_VOLUME.transpose(0, 2, 1)[:, ::-1], "1 0 0 0 0 -1 0 1 0"
BEGUN = ["Modality = MET_MOD_CT", "TransformMatrix = 1 0 0 0 1 0 0 0 1", "words", "Offset: 0 0 0", "ID=3"]
# What writes the same volume, by file name.
WRITTEN: dict[str, Any] = {
    **{f"{''.join(code)}.nii": partial(write_turned, code="".join(code)) for code in CODES},
    **dict.fromkeys(("a.nii", "a.nii.gz"), write_nifti),
    **dict.fromkeys(("b.nii", "b.nii.gz"), nifti(kind=nib.Nifti2Image)),
    "big-endian.nii": nifti(order=">"),
    **{f"slope-{no}.nii": nifti(scl_slope=no, scl_inter=-24.0) for no in (0.0, np.nan)},
    "intercept.nii": nifti(voxels=VOLUME + np.int16(24), scl_slope=1.0, scl_inter=-24.0),
    "slope.nii": nifti(voxels=VOLUME * np.int16(2) + np.int16(48), scl_slope=0.5, scl_inter=-24.0),
    "metres.nii": nifti(xyzt_units=1, srow_x=METRES[0], srow_y=METRES[1], srow_z=METRES[2]),
    **{f"plus-{plus}.nii": nifti(voxels=voxels) for plus, voxels in PLUS.items()},
    **{f"{size}.nii": nifti(extension=b"x" * size) for size in (16, 400, 70_000)},
    **{f"{size}.nii.gz": nifti(extension=b"x" * size) for size in (16, 70_000)},
    "members.nii.gz": write_members,
    "garbage.nii.gz": partial(write_members, trailing=b"garbage"),
    **dict.fromkeys(("a.mha", "a.mhd"), write_metaimage),
    **dict.fromkeys(("packed.mha", "packed.mhd"), meta(compressed=True)),
    "mirrored.mha": meta(voxels=MIRRORED, TransformMatrix=MIRROR),
    "coronal.mha": meta(voxels=TURNED, TransformMatrix=CORONAL, ElementSpacing="0.75 2 0.5"),
    "raw.mhd": write_raw,
    **{f"odd-{at}.mhd": partial(write_begun, line=line) for at, line in enumerate(BEGUN)},
    "odd.mha": partial(write_begun, line="Modality = MET_MOD_CT\nwords"),
    **dict.fromkeys(("a.nrrd", "packed.nrrd"), write_nrrd),
}
FORMATS = {"mha": "MetaImage", "mhd": "MetaImage", "nrrd": "NRRD"}
# The first pixel is the most rightward and anterior voxel; LPS counts to the left and to the back.
NIFTI_PLACE, ITK_PLACE = (-(-20 + 63 * 0.75), -(-15 + 47 * 0.5), 100), (-180.5, -170.25, -300)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_volume_is_the_same_however_it_is_written(tmp_path: Path, name: str) -> None:
    path, (stem, _, suffix) = tmp_path / name, name.partition(".")
    WRITTEN[name](path)
    slices = list(read_slices(tmp_path))
    assert [item.origin.frame for item in slices] == [0, 1, 2, 3, 4], "other files are no images of their own"
    for index, (item, alone) in enumerate(zip(slices, read_slices(path), strict=True)):
        expected = np.maximum(CHEST - float(index), -1024)
        equal([item.hounsfield, alone.hounsfield], [expected, expected])
        equal(item.pixels, LUNG.apply(expected))
        assert item.origin.orientation + item.origin.spacing == pytest.approx((1, 0, 0, 0, 1, 0, 0.5, 0.75))
        assert item.origin.file_format == FORMATS.get(suffix, "NIfTI")
    if stem not in {"mirrored", "coronal"}:
        place = ITK_PLACE if suffix in FORMATS else NIFTI_PLACE
        assert slices[0].origin.position == pytest.approx(place, abs=1e-4)
    assert expand([str(tmp_path / f"{stem}.*")]) == [path], "nor where a pattern names them"


@pytest.mark.parametrize("offset", [0, 1024, 32768])
def test_padding_and_missing_voxels_are_air(tmp_path: Path, offset: int) -> None:
    voxels = PLUS[offset].copy() if offset else VOLUME.astype(np.float32)
    voxels[:, -3:] = 0 if offset else np.nan
    first = next(read_slices(write_nifti(tmp_path / "a.nii", voxels)))
    assert (first.hounsfield[:3] == -1024).all()
    equal(first.hounsfield[3:], CHEST[3:])


@pytest.mark.parametrize(("dtype", "maximum"), [(np.uint8, 255), (np.uint16, 4095), (np.float32, 1.0)])
def test_grey_volumes_are_not_taken_for_hounsfield_units(tmp_path: Path, dtype: Any, maximum: float) -> None:
    voxels = (np.linspace(0, 1, 6 * 5 * 4) * maximum).astype(dtype).reshape(6, 5, 4)
    read = list(read_slices(write_nifti(tmp_path / "a.nii", voxels)))
    assert all(item.hounsfield is None for item in read)
    assert (min(item.pixels.min() for item in read), max(item.pixels.max() for item in read)) == (0, 255)
    if dtype is np.uint8:  # the same, signed, with an intercept that says so
        signed = (voxels.astype(np.int16) - 128).astype(np.int8)
        mask = np.where(voxels == 255, -1, voxels > 99).astype(np.int8)
        assert {*np.unique([item.pixels for item in read_slices(write_nifti(tmp_path / "m.nii", mask))])} == {0, 2}
        shifted = read_slices(write_nifti(tmp_path / "b.nii", signed, scl_slope=1.0, scl_inter=128.0))
        equal([item.pixels for item in shifted], [item.pixels for item in read])


def test_nifti_that_is_no_ct_volume(tmp_path: Path) -> None:
    for fields, reason in (
        *(({"voxels": voxels.astype(np.float32)}, SCALE) for voxels in OFF_SCALE),
        ({"voxels": VOLUME.astype(np.int32) * 1_000_000}, SCALE),
        ({"scl_slope": 2.0, "scl_inter": -24.0}, SCALE),
        ({"voxels": np.zeros((4, 4, 4, 3), np.int16)}, "4 x 4 x 4 x 3"),
        *(({"voxels": np.zeros((4, 4, 4), kind)}, "not a CT") for kind in (np.complex64, COLOURS)),
        ({"voxels": np.full((4, 4, 4), np.nan, np.float32)}, "finite"),
        ({"dim": [3, 30_000, 30_000, 30_000, 1, 1, 1, 1]}, "limit"),
        *(({"vox_offset": offset}, "its vox_offset, .*; set it to 352") for offset in OFFSETS),
    ):
        path = write_nifti(tmp_path / "other.nii", **fields)
        assert isinstance(assert_refused(path, rf"other\.nii: .*{reason}"), NotASliceError) == (reason == SCALE)


@pytest.mark.usefixtures("quiet")
def test_nifti_that_is_damaged_or_asks_for_too_much(tmp_path: Path) -> None:
    packed = tmp_path / "packed.nii.gz"
    write_members(tmp_path / "members.nii.gz")
    for path in (write_nifti(tmp_path / "a.nii"), write_nifti(packed), tmp_path / "members.nii.gz"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert_refused(path, "truncated")
    packed.write_bytes(gzip.compress(b"something else " * 100))
    assert_refused(packed, r"not an image|compressed")
    bomb = write_nifti(tmp_path / "bomb.nii", dim=[3, 30_000, 30_000, 30_000, 1, 1, 1, 1])
    packed.write_bytes(gzip.compress(bomb.read_bytes()) + gzip.compress(bytes(2**20)) * 20_000)
    assert_refused(packed, "limit")


@pytest.mark.usefixtures("quiet")
def test_the_first_of_sform_qform_and_sizes(tmp_path: Path) -> None:
    """The sform that nibabel wrote has columns to the right; half a turn and sizes alone have them to the left."""
    half_a_turn = {"quatern_b": 0.0, "quatern_c": 0.0, "quatern_d": 1.0, "qform_code": 1}
    place = {"qoffset_x": -20, "qoffset_y": -15, "qoffset_z": 100}
    for fields, turned, spacing in (
        ({"sform_code": 1, "srow_x": 0, "srow_y": 0, "srow_z": 0}, True, (0.5, 0.75)),
        ({"sform_code": 0}, True, (0.5, 0.75)),
        (ALONE, False, (0.5, 0.75)),
        ({"sform_code": 2, "srow_x": np.nan, "qform_code": 0}, False, (0.5, 0.75)),
        ({"sform_code": 0, "quatern_b": 9.0}, False, (0.5, 0.75)),
        ({**ALONE, "pixdim": [1, 0, 0, 0, 0, 0, 0, 0]}, False, (1, 1)),
        ({**ALONE, "pixdim": [7, -0.75, -0.5, np.nan, 0, 0, 0, 0]}, False, (0.5, 0.75)),
    ):
        first, *others = read_slices(write_nifti(tmp_path / "a.nii", **{**half_a_turn, **place, **fields}))
        assert len(others) == 4
        assert first.origin.spacing == pytest.approx(spacing)
        equal(first.hounsfield, np.maximum(CHEST, -1024)[:: -1 if turned else 1, ::-1])
        assert first.origin.position == pytest.approx((20, 15, 100)) or not turned


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_a_label_map_says_so(tmp_path: Path, dtype: Any) -> None:
    labels = (VOLUME > -500).astype(dtype) * 3
    first = next(read_slices(write_nifti(tmp_path / "a.nii", labels, intent="label")))
    assert (first.origin.mode, {*first.pixels.flat}) == (LABELS, {0, 3}), "read, for they may be masks"


def test_headers_that_cannot_be_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "volume"
    folder.mkdir()
    (tmp_path / "secret.raw").write_bytes(ITK_VOLUME.tobytes("F"))
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    for fields, reason in (
        *(({"ElementDataFile": name}, "out of its own folder") for name in OUTSIDE),
        ({"ElementDataFile": "missing.raw"}, "voxels are missing"),
        *(({"ElementDataFile": name}, "voxels in several files are not read; save it as one .mha") for name in SEVERAL),
        *(({"Comment": f"{end}ElementDataFile = /etc/hostname"}, "names the voxels twice") for end in "\r\v\f"),
        ({"BinaryData": "False"}, r"BinaryData = False"),
        ({"DimSize": "60000 60000 5"}, "more than the limit"),
        ({"DimSize": "64 48 6"}, "fewer voxels"),
        ({"NDims": "1000"}, "has no NDims"),  # MetaIO has room for ten
        *(({"DimSize": size}, "damaged") for size in ("64 48", "many 48 5")),
        *(({"TransformMatrix": numbers}, "damaged") for numbers in ("0 0 0 0 0 0 0 0 0", "1 0 0 1")),
        *(({key: None}, f"has no {key}") for key in ("DimSize", "ElementType")),
        ({"ElementSpacing": "nan nan nan"}, "damaged"),
    ):
        assert_refused(write_metaimage(folder / "bad.mhd", **fields), rf"bad\.(mhd|raw): .*{reason}")


def test_volumes_have_limits_all_their_voxels_and_one_file(tmp_path: Path) -> None:
    header = write_metaimage(tmp_path / "a.mhd")
    for limits in (Limits(pixels=1000), Limits(file_bytes=1000), Limits(frames=4)):
        assert_refused(header, "limit", limits)
    (tmp_path / "caf\udce9.mhd").write_bytes(b"ElementDataFile = caf\xe9.raw")
    (tmp_path / "caf\udce9.raw").write_bytes(b"voxels of that header")
    assert len(list(read_slices(tmp_path, on_error=lambda error: None))) == 5
    (tmp_path / "a.raw").write_bytes(bytes(50_000))
    assert_refused(header, r"a\.raw: 50,000 bytes are more than the limit", Limits(file_bytes=40_000))
    for path in (tmp_path / "a.nrrd", tmp_path / "packed.nrrd"):
        write_nrrd(path)
        path.write_bytes(path.read_bytes()[:-100])
        assert_refused(path, "fewer voxels")
    text = "NRRD0004\ntype: short\ndimension: 3\nsizes: 64 48 5\nendian: little\n"
    elsewhere = "data file: /etc/hostname", "Data File: LIST", "#\rdatafile:a.raw"
    said = r"a\.nhdr: .*(voxels in other files, at its end or packed by bzip2 .*; save it|more than 500 letters)"
    for line in (*elsewhere, "byte skip: -1", "encoding: bzip2", f"content: {'a' * 1100}"):
        (tmp_path / "a.nhdr").write_text(f"{text}{line}\n\n")
        assert_refused(tmp_path / "a.nhdr", said)
    for kind in (nib.Nifti1Pair, nib.Nifti2Pair):
        pair = write_nifti(tmp_path / "b.hdr.gz", kind=kind)
        assert_refused(pair, r"b\.hdr\.gz: the header of a \.hdr and \.img pair; save both as one \.nii file")


def test_voxels_in_a_zip_pass_its_guards(tmp_path: Path) -> None:
    write_metaimage(tmp_path / "a.mhd")
    with ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, method in (("a.mhd", None), ("a.raw", ZIP_BZIP2), ("./b/a.mhd", None), ("./b/a.raw", None)):
            archive.write(tmp_path / name[-5:], name, method)
    assert_refused(f"{tmp_path}/a.zip!a.mhd", r"a\.raw: packed by another method than Deflate")
    assert len(list(read_slices(tmp_path / "a.zip", on_error=lambda error: None))) == 5


def test_without_simpleitk_a_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_metaimage(tmp_path / "a.mha")
    write_nifti(tmp_path / "b.nii")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    assert_refused(tmp_path / "a.mha", r"a\.mha: .*pip install '\.\[volumes\]'")
    assert len(list(read_slices(tmp_path, on_error=lambda _: None))) == 5
