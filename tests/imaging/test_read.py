"""What a file is follows from its content; whatever it is, and in whatever zip, the outcome is slices or one line."""

import gzip
import io
import os
import re
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from tests.conftest import Patch, make_zip
from tests.imaging.conftest import CHEST, GREY, assert_refused, read_all, write_ct, write_metaimage

from groundglass.data.manifest import file_hash
from groundglass.errors import ImageError
from groundglass.imaging.read import read_bytes, read_slice, read_slices
from groundglass.imaging.source import Limits, MemorySource, files_below, split_member

pytestmark = pytest.mark.usefixtures("quiet")
PICTURE = io.BytesIO()
Image.fromarray(GREY).save(PICTURE, "PNG")
PNG = PICTURE.getvalue()
CLAIMING = """
    a.heic b.avif c.webp d.gif e.jp2 f.jxl g.exr h.psd i.npy j.mnc k.fits l.hdr m.tar n.7z o.rar p.dcm.gz q.ima.bz2 r.dcm.xz
    s.nii.zst t.img u.nii.gz v.pgm w.IMA x.dcm.Z y.Gif z.png
"""
LINK = zipfile.ZipInfo("link.png")
LINK.external_attr = (stat.S_IFLNK | 0o777) << 16
UNPACK = "packed by another method than Deflate; unpack it first"
LEADING_OUT = ["../e.png", "/etc/e.png", "a/../../e.png", "C:\\e.png", "..\\e.png", "\\e.png", "c:e.png"]
LEADING_OUT += ["CT/../x.png", "a/b/..", "../readme.txt"]


def save(folder: Path, *names: str, content: bytes = PNG) -> None:
    """Files of these names, PNG pictures whatever they end in."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


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


def test_missing_and_unreadable_paths(tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    nothing = "no such file or folder"
    for name, reason in [("a.png", nothing), ("link", "link: a link to nothing"), ("x" * 300, nothing)]:
        assert_refused(tmp_path / name, reason)
    assert_refused("nul\0byte", nothing)
    save(tmp_path, "notes", content=b"hello")
    assert_refused(tmp_path / "notes", "notes: not an image that can be read .*; convert or unpack it")
    save(tmp_path / "all", "open/a.png", "closed/a.png")
    listed = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert read_all(tmp_path / "all") == (["open/a.png"], {"closed": "not accessible: Permission denied"})
    assert_refused(tmp_path / "all", "closed")


def test_files_left_out_are_not_even_opened(tmp_path: Path) -> None:
    save(tmp_path, "a.png")
    save(tmp_path, "b.png", content=b"damaged")
    write_ct(tmp_path / "c.dcm")
    make_zip(tmp_path / "d.zip", {"e.png": PNG})
    skip = Mock(side_effect=lambda name: not name.endswith("a.png"))
    assert [Path(image.origin.file).name for image in read_slices(tmp_path, skip=skip)] == ["a.png"]
    assert [Path(asked.args[0]).name for asked in skip.call_args_list] == ["a.png", "b.png", "c.dcm", "d.zip"]
    assert list(read_slices(tmp_path / "b.png", skip=lambda _: True)) == []
    assert list(read_slices(tmp_path, skip=lambda name: not name.endswith(".zip"))) == [], "e.png within it"


@pytest.mark.parametrize("zipped", [False, True])
def test_what_holds_no_image_is_reported_wherever_it_lies(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / ("texts.zip" if zipped else "texts")
    make_zip(path, {"notes.txt": b"no image"}) if zipped else save(path, "notes.txt", content=b"no image")
    files, reasons = read_all(tmp_path if zipped else path)
    assert (files, list(reasons)) == ([], ["texts.zip" if zipped else ""])
    assert_refused(tmp_path if zipped else path, rf"{path.name}: holds no image")


def test_own_files_come_before_those_of_folders_in_natural_order_without_junk(tmp_path: Path) -> None:
    folder, own = tmp_path / "folder", ("9.png", "a0", "a.png", "linked.png")
    deeper = ("10/x.png", "a/1.png", "a/2.png", "a/10.png", "a/deep/er/x.png", "a-b/1.png", "é/ü.png")
    save(folder, *own[:-1], *deeper, ".hidden/1.png", "__MACOSX/1.png")
    (folder / "linked.png").symlink_to("9.png")
    assert [source.name for source in files_below(folder)] == [str(folder / name) for name in (*own, *deeper)]
    assert read_all(folder) == ([*own, *deeper], {})
    junk = ["__MACOSX/CT/._2.png", "PaxHeader/2.png", "CT/PaxHeaders/x.png", "CT/.h.png", "CT/Thumbs.db"]
    members = dict.fromkeys(["CT/10.png", "CT/2.png", *junk], PNG)
    path = make_zip(tmp_path / "a.zip", members | {"CT/read.txt": b"text"})
    assert read_all(path) == (["CT/2.png", "CT/10.png"], {})
    assert {*tmp_path.iterdir()} == {folder, path}, "zips are read in place"


def test_a_folder_is_read_as_it_is_listed(tmp_path: Path) -> None:
    save(tmp_path, *(f"{name % 4}/{name}.png" for name in range(40)))
    asked: list[str] = []
    slices = read_slices(tmp_path, skip=asked.append)
    next(slices)
    assert len(asked) == 1
    assert (len(list(slices)), len(asked)) == (39, 40)


@pytest.mark.parametrize("zipped", [False, True])
def test_other_image_formats_and_archives_get_a_row(tmp_path: Path, zipped: bool) -> None:
    folder = tmp_path / "folder"
    save(folder, "0.png")
    save(folder, "empty.webp", content=b"")
    save(folder, *CLAIMING.split(), "notes.txt", "x.json.xz", "scan.raw", content=b"of some kind" + bytes(40))
    save(folder, "p.dcm.gz", "u.nii.gz", "labels.csv.gz", content=gzip.compress(b"x"))
    make_zip(folder / "report.docx", {"word/media/1.png": PNG})
    files, reasons = read_all(Path(shutil.make_archive(str(folder), "zip", folder)) if zipped else folder)
    assert files == ["0.png"]
    assert reasons.pop("empty.webp") == "the file is empty"
    assert set(reasons) == set(CLAIMING.split())
    for reason in reasons.values():
        assert re.search("not an image that can be read .*; convert or unpack it", reason)


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
    files, reasons = read_all(tmp_path / "in")
    assert files == ["5.png", "a/1.png", "hidden/2.png", "one/4.png", "three/3.png"]
    assert reasons.pop("up").startswith("a link to a folder that holds what is read already")
    assert "save what comes out of a pipe as a file" in reasons.pop("pipe.png")
    assert reasons == dict.fromkeys(("gone.txt", "circle"), "a link to nothing")


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
    size, before, slices = (folder / "0.dcm").stat().st_size, bytes_read(), read_slices(path)
    assert next(slices).origin.position[2] == -19
    assert bytes_read() - before < 20 * 32_768 + 2 * size, "20 headers, and one file whole"
    assert [image.origin.position[2] for image in slices] == [float(-index) for index in range(18, -1, -1)]
    assert bytes_read() - before < 20 * 65_536 + 20 * size, "no file is read whole twice"


@pytest.mark.parametrize(
    ("odd", "content", "header", "reason"),
    [
        *((name, PNG, None, "leads out of the archive") for name in LEADING_OUT),
        (LINK, b"/etc/passwd", None, "a link; links in archives are not followed"),
        ("bomb.png", bytes(40_000_000), None, "taken for a decompression bomb"),
        *(("big.dcm", PNG, header, UNPACK) for header in ((8, 9), (8, 12), (8, 14))),
        ("big.dcm", PNG, (6, 1), "encrypted; unpack the archive with its password and read the folder"),
    ],
)
def test_an_odd_member_is_left_out(tmp_path: Path, odd: Any, content: Any, header: Any, reason: str) -> None:
    path = make_zip(tmp_path / "a.zip", {"good.png": PNG, odd: content})
    if header:  # a byte of the member's header, and of its entry in the directory, where it is two later
        archive, (at, value) = bytearray(path.read_bytes()), header
        archive[archive.rindex(b"PK\x03\x04") + at] = archive[archive.rindex(b"PK\x01\x02") + at + 2] = value
        path.write_bytes(archive)
    name = odd if isinstance(odd, str) else odd.filename
    for source in (path, MemorySource("a", path.read_bytes())):
        files, reasons = read_all(source)
        assert (files, list(reasons)) == (["good.png"], [name])
        assert reason in reasons[name]
    assert_refused(path, re.escape(reason))
    assert read_bytes(f"{path}!good.png") == PNG
    for each in (read_bytes, file_hash):
        with pytest.raises(ImageError, match=re.escape(reason)):
            each(Path(f"{path}!{name}"))


def test_a_colon_is_no_reason_not_to_read_an_image_and_an_archive_within_one_is_named(tmp_path: Path) -> None:
    members = {"12:30:05.png": PNG, "12:30/x.png": PNG, "12:30:06": b"text", "y": b"text"}
    files, reasons = read_all(make_zip(tmp_path / "a.zip", {**members, "really.png": b"PK\5\6" + bytes(18)}))
    assert (len(files), list(reasons)) == (2, ["12:30:06", "really.png"])
    assert reasons["really.png"] == "an archive within an archive; unpack it first"


def test_members_whose_names_differ_in_white_space_are_several(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", dict.fromkeys(("a b.png", "a  b.png", "a\u3000b.png"), PNG))
    names = {each.origin.file for each in read_slices(path)}
    assert len(names) == len([read_slice(name) for name in names]) == 3


def test_one_member_by_its_path_and_limits(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a!b.zip", {"CT/x.png": PNG, "CT/y.png": b"damaged", "z.png": PNG})
    assert_refused(make_zip(tmp_path / "long.zip", {"x" * 5000: PNG}), "its name is too long; shorten it")
    np.testing.assert_array_equal(read_slice(f"{path}!CT/x.png").pixels, GREY)
    assert_refused(f"{path}!CT/y.png", r"!CT/y\.png: not an image")
    for each in (read_slice, read_bytes):
        with pytest.raises(ImageError, match="no such member"):
            each(f"{path}!CT/z.png")
    with pytest.raises(ImageError, match="more than the limit"):
        read_bytes(f"{path}!CT/x.png", Limits(file_bytes=10))
    for source, limits, reason in (
        (path, Limits(members=2), r"a!b\.zip: 3 members"),
        (path, Limits(archive_bytes=2 * len(PNG)), r"a!b\.zip: unpacks to"),
        (path, Limits(file_bytes=10), "bytes are more than the limit"),
        (MemorySource("a", path.read_bytes()), Limits(file_bytes=100), "bytes are more than the limit"),
    ):
        assert_refused(source, reason, limits)


def test_a_member_that_is_longer_than_its_archive_says_is_an_error(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"x.png": PNG + bytes(5000)})
    content = bytearray(path.read_bytes())
    for offset in (22, content.index(b"PK\x01\x02") + 24):
        content[offset : offset + 4] = len(PNG).to_bytes(4, "little")
    path.write_bytes(content)
    assert_refused(path, r"a\.zip!x\.png: ")


def test_what_is_a_member_and_what_a_file_follows_from_what_there_is(tmp_path: Path) -> None:
    save(tmp_path, "in!side.zip", "disguised.dat", "a.zip!b.png")
    assert split_member(tmp_path / "in!side.zip!x!y.png") == (tmp_path / "in!side.zip", "x!y.png")
    assert split_member(tmp_path / "disguised.dat!x.png") == (tmp_path / "disguised.dat", "x.png")
    assert split_member(tmp_path / "gone.zip!d/b.png") == (tmp_path / "gone.zip", "d/b.png")
    assert [split_member(tmp_path / name) for name in ("a.zip!b.png", "wow!.png")] == [None, None]
