"""Pictures come in as grey slices whatever their mode; photographs do not."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageOps
from sklearn.datasets import load_sample_image
from tests.imaging.conftest import CHEST, GREY, assert_refused

from groundglass.errors import ImageError, NotASliceError
from groundglass.imaging.raster import COLOURED_SHARE, coloured_share
from groundglass.imaging.read import read_slice, read_slices
from groundglass.imaging.slice import CTSlice
from groundglass.imaging.source import Limits
from groundglass.imaging.window import LUNG

equal = np.testing.assert_array_equal
IMAGE, SIGNED = Image.fromarray(GREY), (GREY.astype(int) - 128).astype(np.int8)
FORMATS = {".png": "PNG", ".tif": "TIFF", ".bmp": "BMP"}
WINDOWED = np.clip((CHEST + 1350) / 1500, 0, 1) * 4095
WINDOWED[:4] = 0  # air and black margin lie where soft tissue and air do with 1024 added to Hounsfield units
DEEP = [*((np.linspace(0, white, 64), white) for white in (65535, 4095, 255)), (WINDOWED, 4095)]
DEEP.append((np.full(8, 65535), 65535))
HOUNSFIELD = {kind: CHEST.astype(kind) for kind in ("i2", "i4", "f2", "f4", "f8")}
HOUNSFIELD |= {f"u2 +{plus}": (CHEST.astype(int) + plus).astype("u2") for plus in (1024, 2048, 8192, 32768)}
PAGES = [np.roll(GREY, shift, axis=1) for shift in (0, 3, 9)]
NOISY = GREY + np.random.default_rng(0).integers(0, 9, GREY.shape, np.uint8)
TINTED = [colormaps[name](NOISY, bytes=True)[..., :3] for name in ("jet", "hsv", "hot", "Blues")]
PHOTOGRAPHS = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
LAYOUTS: list[dict[str, Any]] = [
    *({"byteorder": ">"}, {"bigtiff": True}, {"rowsperstrip": 5}, {"tile": (16, 32)}),
    *({"compression": name} for name in ("lzw", "zlib", "packbits", "zstd", "lzma")),
    *({"compression": "lzw", "predictor": True, "tile": (32, 16)}, {"photometric": "miniswhite"}),
]


def read(path: Path, picture: Image.Image | np.ndarray, **options: Any) -> CTSlice:
    """The slice of a picture that is saved there, an array as TIFF by tifffile."""
    if isinstance(picture, np.ndarray):
        tifffile.imwrite(path, picture, **options)
    else:
        picture.save(path, **options)
    return read_slice(path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_modes_of_equal_content_give_equal_pixels(tmp_path: Path, mode: str, suffix: str) -> None:
    image = IMAGE.convert("RGB" if (suffix, mode) == (".bmp", "LA") else mode)
    slice_ = read(tmp_path / f"slice{suffix}", image)
    equal(slice_.pixels, np.array(image.convert("L")) if mode == "1" else GREY)
    assert slice_.hounsfield is None
    assert slice_.origin.file == str(tmp_path / f"slice{suffix}")
    assert slice_.origin.file_format == FORMATS[suffix]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_lie_on_black(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (4, 1), "white")
    image.putalpha(Image.fromarray(np.uint8([[0, 128, 255, 255]])))
    equal(read(tmp_path / "slice.png", image).pixels, [[0, 128, 255, 255]])
    image = Image.new("P", (2, 1), 1)
    image.putpalette([255, 255, 255, 90, 90, 90])
    image.putpixel((0, 0), 0)
    equal(read(tmp_path / "slice.png", image, transparency=0).pixels, [[0, 90]])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("values", "white"), DEEP)
def test_sixteen_bits_keep_their_scale(tmp_path: Path, suffix: str, values: np.ndarray, white: int) -> None:
    stored = values.astype(np.uint16).reshape(-1, 8)
    slice_ = read(tmp_path / f"slice{suffix}", Image.fromarray(stored))
    np.testing.assert_allclose(slice_.pixels, stored * (255 / white), atol=0.51)
    assert (slice_.hounsfield, slice_.origin.mode[0]) == (None, "I")


@pytest.mark.parametrize("options", LAYOUTS)
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "f2", "f4", "f8"])
def test_tiff_of_any_layout_and_depth(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    full = 1 if dtype[0] == "f" else np.iinfo(dtype).max
    values = (GREY / 255 * full).round(0 if full > 1 else 9).astype(dtype)
    if "photometric" in options and full == 1:
        tifffile.imwrite(tmp_path / "slice.tif", values, **options)
        assert_refused(tmp_path / "slice.tif", r"slice\.tif: floating-point pixels of which zero is white")
        return
    slice_ = read(tmp_path / "slice.tif", full - values if "photometric" in options else values, **options)
    equal(slice_.pixels, GREY)
    assert (slice_.hounsfield, slice_.origin.frame) == (None, None)


@pytest.mark.parametrize("kind", HOUNSFIELD)
def test_hounsfield_units_maybe_made_positive(tmp_path: Path, kind: str) -> None:
    stored = HOUNSFIELD[kind]
    slice_ = read(tmp_path / "slice.tif", stored, byteorder=">")
    equal(slice_.hounsfield, CHEST)
    equal(slice_.pixels, LUNG.apply(CHEST))
    if stored.dtype.kind == "u":
        equal(read(tmp_path / "slice.png", Image.fromarray(stored)).hounsfield, CHEST)
    equal(read(tmp_path / "slice.tif", SIGNED).pixels, GREY, "signed, but grey")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", [".png u1", ".png u2", ".tif u2", ".jpg u1"])
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    suffix, dtype = kind.split()
    white = np.iinfo(dtype).max // 255
    image, exif = Image.fromarray(GREY.astype(dtype) * white), Image.Exif()
    exif[0x0112] = image.getexif()[0x0112] = orientation
    pixels = read(tmp_path / f"slice{suffix}", image, exif=exif, quality=95).pixels
    image.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image)) // white
    assert np.abs(pixels - 1.0 * upright).mean() <= (4 if suffix == ".jpg" else 0)


def write_pages(path: Path) -> Path:
    """A TIFF of three pages, smaller copies and a mask."""
    with tifffile.TiffWriter(path) as file:
        file.write(GREY[::2, ::2], subfiletype=1)
        file.write(PAGES[0], subifds=1)
        file.write(GREY[::4, ::4], subfiletype=1)
        for page in PAGES[1:]:
            file.write(page)
        file.write(GREY > 100, subfiletype=4)
    return path


def test_every_page_of_a_tiff_but_smaller_copies_and_masks_is_a_slice(tmp_path: Path) -> None:
    path = write_pages(tmp_path / "a.tif")
    slices = list(read_slices(path))
    assert [item.origin.frame for item in slices] == [0, 1, 2]
    equal([item.pixels for item in slices], PAGES)
    with pytest.raises(ImageError, match="several slices"):
        read_slice(path)
    assert_refused(path, "more pages than the limit of 2", Limits(frames=2))
    Image.new("L", (1, 20_000)).save(tmp_path / "long.png")
    assert_refused(tmp_path / "long.png", "more than the limit of 64,000,000")
    tifffile.imwrite(tmp_path / "a.ome.tif", np.stack(PAGES), ome=True)
    assert len(list(read_slices(tmp_path / "a.ome.tif"))) == 3


def test_tiff_that_is_no_slice(tmp_path: Path) -> None:
    for data, options, patch, reason in (
        (GREY.astype(np.complex64), {}, {}, "complex"),
        (SIGNED.astype(np.int16), {}, {}, r"from -\d+ to \d+, fit no known scale"),
        (np.dstack([GREY] * 4), {"photometric": "separated"}, {}, "not supported"),
        (np.dstack([GREY] * 9), {"planarconfig": "contig"}, {}, "9 channels are not supported"),
        (np.stack([GREY] * 2), {"volumetric": True, "tile": (2, 16, 16)}, {}, "not supported"),
        (GREY, {"description": "ImageJ=1.54f\nimages=8\n"}, {}, "ImageJ's stack of 8 images in one page"),
        (GREY, {"rowsperstrip": 24}, {"StripByteCounts": [512, 0]}, "damaged: some of its pixels are"),
        (GREY, {}, {"ImageWidth": 0}, "an image of 0 x 48 pixels"),
    ):
        tifffile.imwrite(tmp_path / "other.tif", data, **options)
        with tifffile.TiffFile(tmp_path / "other.tif", mode="r+b") as file:
            for tag, value in patch.items():
                file.pages[0].tags[tag].overwrite(value)
        assert_refused(tmp_path / "other.tif", rf"other\.tif: .*{reason}")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_photographs_and_tints_are_refused_and_coloured_marks_are_not(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"holiday{suffix}"
    for colours in [*TINTED, *PHOTOGRAPHS]:
        with pytest.raises(NotASliceError, match=rf"holiday{suffix}: a colour photograph or tinted scan"):
            read(path, Image.fromarray(colours))
    marked = IMAGE.convert("RGB")
    ImageDraw.Draw(marked).rectangle((10, 10, 18, 14), fill="red")
    np.testing.assert_allclose(read(path, marked).pixels[24:], GREY[24:], atol=40 if suffix == ".jpg" else 0)


def test_every_real_picture_is_accepted_with_room_to_spare(covid_ct: Path, luna_slices: Path) -> None:
    paths = [path for path in (covid_ct / "Images-processed").rglob("*.*") if path.is_file()]
    assert len(paths) == 746
    for path in paths:
        assert read_slice(path).pixels.size
        image = Image.open(path)
        if image.mode != "L":
            assert coloured_share(np.asarray(image.convert("RGB"))) < COLOURED_SHARE / 1.5
    assert sum(1 for _ in read_slices(luna_slices)) == 1000


@pytest.mark.parametrize(("side", "reason"), [(40_000, "limit"), (9_000, "9000 x 9000 pixels are more than")])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, side: int, reason: str) -> None:
    IMAGE.save(path := tmp_path / "bomb.png")
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    assert_refused(path, rf"bomb\.png: .*{reason}")
    IMAGE.save(path := tmp_path / "scans.jpg")
    path.write_bytes(path.read_bytes() + b"\xff\xda" * 101)  # each costs a pass over all pixels
    assert_refused(path, r"scans\.jpg: more scans than a picture has")
