"""What a file is follows from its content; whatever it is, the outcome is a slice or one clear line."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from groundglass.errors import ImageError
from groundglass.imaging.read import read_slice, read_slices
from groundglass.imaging.source import files_below
from groundglass.imaging.window import LUNG


@pytest.fixture
def pixels(chest: NDArray[np.int16]) -> NDArray[np.uint8]:
    return LUNG.apply(chest)


def test_wrong_extensions_do_not_matter(
    tmp_path: Path,
    pixels: NDArray[np.uint8],
    chest: NDArray[np.int16],
    write_dicom: Callable[..., Path],
    write_metaimage: Callable[..., Path],
) -> None:
    Image.fromarray(pixels).save(tmp_path / "picture.dcm", "PNG")
    assert read_slice(tmp_path / "picture.dcm").origin.file_format == "PNG"
    write_dicom(tmp_path / "dicom.png", chest)
    assert read_slice(tmp_path / "dicom.png").origin.file_format == "DICOM"
    write_dicom(tmp_path / "IM0001", chest)
    assert read_slice(tmp_path / "IM0001").origin.file_format == "DICOM"
    write_metaimage(tmp_path / "volume.mha", chest[:, :, None]).rename(tmp_path / "volume.jpg")
    assert read_slice(tmp_path / "volume.jpg").origin.file_format == "MetaImage"


def test_a_dicom_preamble_may_look_like_a_tiff(
    tmp_path: Path, chest: NDArray[np.int16], write_dicom: Callable[..., Path]
) -> None:
    path = write_dicom(tmp_path / "dual.dcm", chest)
    path.write_bytes(b"II*\0" + path.read_bytes()[4:])
    assert read_slice(path).origin.file_format == "DICOM"


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"PK\x03\x04", b"II*\0", b"\x1f\x8b\x08"],
)
@pytest.mark.parametrize("name", ["x.png", "x.dcm", "x.nii.gz", "x.mhd", "x.zip", "x"])
def test_no_image_is_one_line_that_names_the_file(
    tmp_path: Path, content: bytes, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for read in (read_slice, lambda path: list(read_slices(path))):
        with pytest.raises(ImageError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    with pytest.raises(ImageError, match="empty"):
        read_slice(tmp_path / "x.png")


def test_missing_and_unreadable_paths(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file or folder"):
        read_slice(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="holds no image"):
        list(read_slices(tmp_path))
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(ImageError, match="link: a link to nothing"):
        list(read_slices(tmp_path / "link"))
    with pytest.raises(ImageError):
        read_slice(tmp_path / ("x" * 300))
    with pytest.raises(ImageError):
        read_slice("nul\0byte")


def test_folders_are_read_to_the_bottom_in_natural_order(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    for name in ("b/slice10.png", "b/slice9.png", "a/deep/er/x.png", ".hidden/y.png", "__MACOSX/z.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    read = [item.origin.file for item in read_slices(tmp_path)]
    assert read == [str(tmp_path / name) for name in ("a/deep/er/x.png", "b/slice9.png", "b/slice10.png")]


def test_a_bad_file_of_a_folder_is_raised_or_reported(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    Image.fromarray(pixels).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    (tmp_path / "3.dcm").write_bytes(b"certainly no DICOM file")
    Image.fromarray(pixels).save(tmp_path / "4.png")
    with pytest.raises(ImageError, match=r"2\.png: cannot be read"):
        list(read_slices(tmp_path))
    errors: list[ImageError] = []
    read = [Path(item.origin.file).name for item in read_slices(tmp_path, on_error=errors.append)]
    assert read == ["1.png", "4.png"]
    assert sorted(Path(error.path).name for error in errors) == ["2.png", "3.dcm"]


def test_a_folder_holds_volume_and_voxels_as_one(
    tmp_path: Path, chest: NDArray[np.int16], write_metaimage: Callable[..., Path]
) -> None:
    write_metaimage(tmp_path / "scan.mhd", np.stack([chest] * 3, axis=-1), compressed=True)
    assert [item.origin.frame for item in read_slices(tmp_path)] == [0, 1, 2]
    with pytest.raises(ImageError, match=r"scan\.zraw: the voxels of"):
        list(read_slices(tmp_path / "scan.zraw"))


def test_reading_can_stop_early(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    for index in range(3):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    slices = read_slices(tmp_path)
    next(slices)
    slices.close()  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        next(slices)


def test_files_left_out_are_not_even_opened(
    tmp_path: Path, pixels: NDArray[np.uint8], write_dicom: Callable[..., Path], chest: NDArray[np.int16]
) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"damaged")
    write_dicom(tmp_path / "c.dcm", chest)
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "e.png")
    asked: list[str] = []

    def skip(name: str) -> bool:
        asked.append(Path(name).name)
        return not name.endswith("a.png")

    assert [Path(image.origin.file).name for image in read_slices(tmp_path, skip=skip)] == ["a.png"]
    assert asked == ["a.png", "b.png", "c.dcm", "d.zip"]
    assert list(read_slices(tmp_path / "b.png", skip=lambda _: True)) == []
    assert list(read_slices(tmp_path, skip=lambda name: not name.endswith(".zip"))) == []


def test_a_folder_without_images_is_reported_too(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    errors: list[ImageError] = []
    assert list(read_slices(tmp_path, on_error=errors.append)) == []
    assert [error.path for error in errors] == [str(tmp_path)]
    assert "holds no image" in errors[0].reason


def test_a_folder_that_cannot_be_listed_is_reported_and_the_rest_read(
    tmp_path: Path, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
    listed = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    errors: list[ImageError] = []
    assert len(list(read_slices(tmp_path, on_error=errors.append))) == 1
    assert [error.path for error in errors] == [str(tmp_path / "closed")]
    assert "Permission denied" in errors[0].reason
    with pytest.raises(ImageError, match="closed"):
        list(read_slices(tmp_path))


def test_a_file_that_vanishes_while_its_folder_is_read_stops_nothing(
    tmp_path: Path, pixels: NDArray[np.uint8]
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    errors: list[ImageError] = []
    slices = read_slices(tmp_path, on_error=errors.append)
    assert next(slices).origin.file.endswith("a.png")
    (tmp_path / "b.png").unlink()
    assert [Path(image.origin.file).name for image in slices] == ["c.png"]
    assert [Path(error.path).name for error in errors] == ["b.png"]


def test_a_folders_own_files_come_before_those_of_its_folders(tmp_path: Path) -> None:
    names = ("a.png", "a/1.png", "a/10.png", "a/2.png", "a-b/1.png", "a0", "10/x.png", "9.png", "é/ü.png")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "1.png").write_bytes(b"x")
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "linked.png").symlink_to("9.png")
    found = [source.name for source in files_below(tmp_path)]
    own = ("9.png", "a0", "a.png", "linked.png")
    deeper = ("10/x.png", "a/1.png", "a/2.png", "a/10.png", "a-b/1.png", "é/ü.png")
    assert found == [str(tmp_path / name) for name in (*own, *deeper)]


def test_a_folder_is_read_as_it_is_listed(
    tmp_path: Path, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in range(40):
        (tmp_path / str(name % 4)).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / str(name % 4) / f"{name}.png")
    opened: set[Path] = set()
    original = Path.open

    def noting(path: Path, *args: str) -> object:
        opened.add(path)
        return original(path, *args)

    monkeypatch.setattr(Path, "open", noting)
    slices = read_slices(tmp_path)
    next(slices)
    assert len(opened) == 1
    assert len(list(slices)) == 39
    assert len(opened) == 40


HEADS = {
    "a.heic": b"\0\0\0\x18ftypheic", "b.avif": b"\0\0\0\x20ftypavif", "c.webp": b"RIFF\x10\0\0\0WEBPVP8L",
    "d.gif": b"GIF89a", "e.jp2": b"\0\0\0\x0cjP  \r\n\x87\n", "f.j2k": b"\xff\x4f\xff\x51\0\x29", "g.jxl": b"\xff\x0a\xfa",
    "h.exr": b"v/1\x01\2\0", "i.psd": b"8BPS\0\1", "j.npy": b"\x93NUMPY\1\0", "k.mnc": b"\x89HDF\r\n\x1a\n",
    "l.fits": b"SIMPLE  =                    T", "m.hdr": b"\x5c\1\0\0" + bytes(344), "n.tar": bytes(257) + b"ustar\x0000",
    "o.7z": b"7z\xbc\xaf\x27\x1c\0\4", "p.rar": b"Rar!\x1a\x07\1\0", "q.dcm.gz": gzip.compress(b"x"), "r.ima.bz2": bz2.compress(b"x"),
    "s.dcm.xz": lzma.compress(b"x"), "t.nii.zst": b"\x28\xb5\x2f\xfd\0", "u.cab": b"MSCF\0\0\0\0",
}  # fmt: skip
NAMES = ("lone.img", "x.nii.gz", "a.pgm", "b.mgz", "c.IMA", "d.par", "e.iso", "f.dcm.Z", "g.npz", "h.Gif")


@pytest.mark.parametrize("zipped", [False, True])
def test_other_image_formats_and_archives_get_a_row(
    tmp_path: Path, pixels: NDArray[np.uint8], zipped: bool
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "0.png")
    wanted = {**HEADS, **{f"bare-{name[0]}": head for name, head in HEADS.items()}}
    for name, head in wanted.items() | dict.fromkeys(NAMES, b"of some kind").items():
        (folder / name).write_bytes(head + bytes(40))
    silent = {
        "labels.csv.gz": gzip.compress(b"a,b"),
        "notes.txt": b"GI",
        "scan.raw": bytes(40),
        "x.json.xz": lzma.compress(b"{}"),
        "m.img": bytes(40),  # beside its header
    }
    for name, head in silent.items():
        (folder / name).write_bytes(head)
    (folder / "empty.webp").touch()
    path = Path(shutil.make_archive(str(folder), "zip", folder)) if zipped else folder
    errors: list[ImageError] = []
    assert len(list(read_slices(path, on_error=errors.append))) == 1
    reasons = {Path(error.path.rpartition("!")[2]).name: error.reason for error in errors}
    assert set(reasons) == {*wanted, *NAMES, "empty.webp"}
    for name in wanted:
        assert re.search("is not read; (convert it to PNG|unpack it first)", reasons[name]), name
    assert reasons["c.webp"].startswith("a WebP picture")
    assert reasons["bare-q"] == reasons["r.ima.bz2"] == "a compressed file is not read; unpack it first"
    assert reasons["empty.webp"] == "the file is empty"


def test_links_are_followed_once_or_named(tmp_path: Path, pixels: NDArray[np.uint8]) -> None:
    for name in ("in/a/1.png", "in/.store/2.png", "out/x/3.png", "out/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / name)
    links = {
        "in/same": "a", "in/hidden": ".store", "in/one": "../out", "in/two": "../out", "in/three": "../out/x",
        "in/a/loop": "..", "in/up": "../..", "out/x/back": "../../in", "in/gone.txt": "nowhere", "in/circle": "circle",
        "in/5.png": "../out/4.png",
    }  # fmt: skip
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "in" / "pipe.png")
    errors: list[ImageError] = []
    read = [
        str(Path(each.origin.file).relative_to(tmp_path))
        for each in read_slices(tmp_path / "in", on_error=errors.append)
    ]
    assert read == ["in/5.png", "in/a/1.png", "in/hidden/2.png", "in/one/4.png", "in/one/x/3.png"]
    reasons = {Path(error.path).name: error.reason for error in errors}
    assert set(reasons) == {"up", "gone.txt", "circle", "pipe.png"}
    assert reasons["up"].startswith("a link to a folder that holds what is read already")
    assert reasons["gone.txt"] == reasons["circle"] == "a link to nothing"
    assert reasons["pipe.png"] == "neither a file nor a folder"


def test_volumes_without_simpleitk_are_named(
    tmp_path: Path, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    (tmp_path / "6.nrrd").write_bytes(b"NRRD0004\ntype: short\n")
    errors: list[ImageError] = []
    assert len(list(read_slices(tmp_path, on_error=errors.append))) == 1
    assert [(Path(error.path).name, "pip install '.[volumes]'" in error.reason) for error in errors] == [
        ("6.nrrd", True)
    ]


def test_a_pipe_is_read(tmp_path: Path, pixels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes((tmp_path / "a.png").read_bytes()))
    writer.start()
    np.testing.assert_array_equal(read_slice(pipe).pixels, pixels)
    writer.join()
    monkeypatch.setattr("groundglass.imaging.source._WAIT", 0.05)
    with pytest.raises(ImageError, match="pipe: a pipe that nobody writes to"):
        read_slice(pipe)
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ImageError, match="-: standard input holds no file"):
        read_slice("-")


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("zipped", [False, True])
def test_a_series_is_sorted_by_the_headers_alone(
    tmp_path: Path, write_dicom: Callable[..., Path], zipped: bool
) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    for index in range(20):
        place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, -index]}
        write_dicom(folder / f"{index}.dcm", np.full((512, 512), index, np.int16), **place)
    path = folder
    if zipped:
        path = tmp_path / "series.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in folder.iterdir():
                archive.write(file, file.name)
    size = (folder / "0.dcm").stat().st_size
    before = _bytes_read()
    slices = read_slices(path)
    assert (next(slices).pixels == LUNG.apply(np.array([[19]]))).all()
    assert _bytes_read() - before < 20 * 32_768 + 2 * size, "20 headers, and one file whole"
    assert [image.origin.position[2] for image in slices] == [float(-index) for index in range(18, -1, -1)]
    assert _bytes_read() - before < 20 * 65_536 + 20 * size, "no file is read whole twice"


def test_an_archive_without_an_image_is_reported_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "folder" / "texts.zip", "w") as archive:
        archive.writestr("notes.txt", "no image")
    for path in (tmp_path, tmp_path / "folder" / "texts.zip"):
        with pytest.raises(ImageError, match=r"texts\.zip: holds no image"):
            list(read_slices(path))
