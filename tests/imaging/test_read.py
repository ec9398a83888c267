"""What a file is follows from its content; whatever it is, the outcome is a slice or one clear line."""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.imaging.conftest import CHEST, GREY, write_ct, write_metaimage

from groundglass.errors import ImageError
from groundglass.imaging.read import read_slice, read_slices
from groundglass.imaging.source import files_below

pytestmark = pytest.mark.usefixtures("quiet")


def picture(file_format: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, file_format)
    return stream.getvalue()


PNG = picture("PNG")


def save(folder: Path, *names: str, content: bytes = PNG) -> None:
    """Files of these names, PNG pictures whatever they end in."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def read(path: Path) -> tuple[list[str], dict[str, str]]:
    """Files within a path that are read, in their order, and reasons for those that are not, by name."""
    errors: list[ImageError] = []
    files = [Path(item.origin.file) for item in read_slices(path, on_error=errors.append)]
    files = [file.relative_to(path) if path in file.parents else file for file in files]
    return list(map(str, files)), {Path(error.path.rpartition("!")[2]).name: error.reason for error in errors}


def test_wrong_extensions_do_not_matter(tmp_path: Path) -> None:
    save(tmp_path, "picture.dcm")
    dicom = dict.fromkeys(("dicom.png", "IM0001", "preamble.tif"), "DICOM")
    for name in dicom:
        write_ct(tmp_path / name)
    content = (tmp_path / "preamble.tif").read_bytes()
    (tmp_path / "preamble.tif").write_bytes(b"II*\0" + content[4:])
    write_metaimage(tmp_path / "volume.mha", CHEST[:, :, None]).rename(tmp_path / "volume.jpg")
    formats = {Path(item.origin.file).name: item.origin.file_format for item in read_slices(tmp_path)}
    assert formats == {**dicom, "picture.dcm": "PNG", "volume.jpg": "MetaImage"}


BROKEN = [
    b"",
    b"\0",
    b"hello",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"PK\x03\x04",
    b"II*\0",
    b"\x1f\x8b\x08",
]
for whole in map(picture, ("PNG", "JPEG", "BMP", "TIFF")):
    BROKEN += [whole[: int(len(whole) * share)] for share in (0.02, 0.3, 0.6)]


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize("name", ["x.png", "x.dcm", "x.nii.gz", "x.mhd", "x.zip", "x"])
def test_no_image_is_one_line_that_names_the_file(tmp_path: Path, content: bytes, name: str) -> None:
    save(tmp_path, name, content=content)
    with pytest.raises(ImageError) as caught:
        read_slice(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)
    assert content or caught.value.reason == "the file is empty"


def test_missing_and_unreadable_paths(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no image"):
        list(read_slices(tmp_path))
    (tmp_path / "link").symlink_to("nowhere")
    nothing = "no such file or folder"
    for name, reason in {
        "missing.png": nothing,
        "link": "link: a link to nothing",
        "x" * 300: nothing,
    }.items():
        with pytest.raises(ImageError, match=reason):
            read_slice(tmp_path / name)
    with pytest.raises(ImageError):
        read_slice("nul\0byte")


def test_files_left_out_are_not_even_opened(tmp_path: Path) -> None:
    save(tmp_path, "a.png", "z/e.png")
    save(tmp_path, "b.png", content=b"damaged")
    write_ct(tmp_path / "c.dcm")
    shutil.make_archive(str(tmp_path / "d"), "zip", tmp_path / "z")
    asked: list[str] = []

    def skip(name: str) -> bool:
        asked.append(Path(name).name)
        return not name.endswith("a.png")

    assert [Path(image.origin.file).name for image in read_slices(tmp_path, skip=skip)] == ["a.png"]
    assert asked == ["a.png", "b.png", "c.dcm", "d.zip", "e.png"]
    assert list(read_slices(tmp_path / "b.png", skip=lambda _: True)) == []
    assert list(read_slices(tmp_path, skip=lambda name: not name.endswith(".zip"))) == [], "e.png within it"


@pytest.mark.parametrize("zipped", [False, True])
def test_what_holds_no_image_is_reported_wherever_it_lies(tmp_path: Path, zipped: bool) -> None:
    save(tmp_path, "texts/notes.txt", content=b"no image")
    if zipped:
        shutil.make_archive(str(tmp_path / "texts"), "zip", tmp_path / "texts")
        shutil.rmtree(tmp_path / "texts")
    name = "texts.zip" if zipped else tmp_path.name
    files, reasons = read(tmp_path)
    assert (files, list(reasons)) == ([], [name])
    with pytest.raises(ImageError, match=rf"{name}: holds no image"):
        list(read_slices(tmp_path))


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "open/a.png", "closed/a.png")
    listed = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert read(tmp_path) == (["open/a.png"], {"closed": "not accessible: Permission denied"})
    with pytest.raises(ImageError, match="closed"):
        list(read_slices(tmp_path))


def test_a_folders_own_files_come_before_those_of_its_folders_in_natural_order(tmp_path: Path) -> None:
    own = ("9.png", "a0", "a.png", "linked.png")
    deeper = ("10/x.png", "a/1.png", "a/2.png", "a/10.png", "a/deep/er/x.png", "a-b/1.png", "é/ü.png")
    save(tmp_path, *own[:-1], *deeper, ".hidden/1.png", "__MACOSX/1.png")
    (tmp_path / "linked.png").symlink_to("9.png")
    assert [source.name for source in files_below(tmp_path)] == [str(tmp_path / n) for n in (*own, *deeper)]
    assert read(tmp_path) == ([*own, *deeper], {})


def test_a_folder_is_read_as_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, *(f"{name % 4}/{name}.png" for name in range(40)))
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


CLAIMING = """
    a.heic b.avif c.webp d.gif e.jp2 f.jxl g.exr h.psd i.npy j.mnc k.fits l.hdr m.tar n.7z o.rar p.dcm.gz q.ima.bz2 r.dcm.xz
    s.nii.zst t.img u.nii.gz v.pgm w.IMA x.dcm.Z y.Gif z.png
"""


@pytest.mark.parametrize("zipped", [False, True])
def test_other_image_formats_and_archives_get_a_row(tmp_path: Path, zipped: bool) -> None:
    folder = tmp_path / "folder"
    save(folder, "0.png")
    save(folder, "empty.webp", content=b"")
    for name in (*CLAIMING.split(), "labels.csv.gz", "notes.txt", "x.json.xz", "scan.raw"):
        save(
            folder, name, content=gzip.compress(b"x") if name.endswith("gz") else b"of some kind" + bytes(40)
        )
    files, reasons = read(Path(shutil.make_archive(str(folder), "zip", folder)) if zipped else folder)
    assert len(files) == 1
    assert reasons.pop("empty.webp") == "the file is empty"
    assert set(reasons) == set(CLAIMING.split())
    assert all(
        re.search("not an image that can be read .*; convert or unpack it", each) for each in reasons.values()
    )


def test_links_are_followed_once_or_named(tmp_path: Path) -> None:
    save(tmp_path, "in/a/1.png", "in/.store/2.png", "out/x/3.png", "out/4.png")
    links = {
        "in/same": "a", "in/hidden": ".store", "in/one": "../out", "in/two": "../out", "in/three": "../out/x",
        "in/a/loop": "..", "in/up": "../..", "out/x/back": "../../in", "in/gone.txt": "nowhere", "in/circle": "circle",
        "in/5.png": "../out/4.png",
    }  # fmt: skip
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "in" / "pipe.png")
    files, reasons = read(tmp_path / "in")
    assert files == ["5.png", "a/1.png", "hidden/2.png", "one/4.png", "three/3.png"]
    assert reasons.pop("up").startswith("a link to a folder that holds what is read already")
    nothing = dict.fromkeys(("gone.txt", "circle"), "a link to nothing")
    assert "save what comes out of a pipe as a file" in reasons.pop("pipe.png")
    assert reasons == nothing


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("zipped", [False, True])
def test_a_series_is_sorted_by_the_headers_alone(tmp_path: Path, zipped: bool) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(-1000, 1000, (512, 512), np.int16)  # which a zip cannot pack
    for index in range(20):
        place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, -index]}
        write_ct(folder / f"{index}.dcm", noise, **place)
    path = Path(shutil.make_archive(str(folder), "zip", folder)) if zipped else folder
    size = (folder / "0.dcm").stat().st_size
    before = bytes_read()
    slices = read_slices(path)
    assert next(slices).origin.position[2] == -19
    assert bytes_read() - before < 20 * 32_768 + 2 * size, "20 headers, and one file whole"
    assert [image.origin.position[2] for image in slices] == [float(-index) for index in range(18, -1, -1)]
    assert bytes_read() - before < 20 * 65_536 + 20 * size, "no file is read whole twice"
