"""Pictures come in as grey slices whatever their mode; photographs do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import tifffile
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from groundglass.errors import ImageError, NotASliceError
from groundglass.imaging.raster import COLOURED_SHARE, coloured_share
from groundglass.imaging.read import read_slice, read_slices
from groundglass.imaging.source import Limits
from groundglass.imaging.window import LUNG


@pytest.fixture
def grey(chest: NDArray[np.int16]) -> NDArray[np.uint8]:
    return LUNG.apply(chest)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "PA"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_modes_of_equal_content_give_equal_pixels(
    tmp_path: Path, grey: NDArray[np.uint8], mode: str, suffix: str
) -> None:
    if (mode, suffix) == ("PA", ".png"):
        pytest.skip("PNG has no such mode")
    image = Image.fromarray(grey)
    image = image.convert("RGB").quantize(256).convert("PA") if mode == "PA" else image.convert(mode)
    path = tmp_path / f"slice{suffix}"
    image.save(path)
    read = read_slice(path)
    expected = np.array(image.convert("L")) if mode in {"1", "PA"} else grey
    np.testing.assert_array_equal(read.pixels, expected)
    assert read.hounsfield is None
    assert read.origin.file_format == ("PNG" if suffix == ".png" else "TIFF")
    assert read.origin.file == str(path)


def test_bmp_and_jpeg(tmp_path: Path, grey: NDArray[np.uint8]) -> None:
    Image.fromarray(grey).save(tmp_path / "slice.bmp")
    np.testing.assert_array_equal(read_slice(tmp_path / "slice.bmp").pixels, grey)
    Image.fromarray(grey).save(tmp_path / "slice.jpg", quality=95)
    read = read_slice(tmp_path / "slice.jpg")
    assert read.origin.file_format == "JPEG"
    assert np.abs(read.pixels.astype(int) - grey).mean() < 4


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_lie_on_black(tmp_path: Path, mode: str) -> None:
    pixels = Image.new(mode, (8, 8), "white")
    pixels.putalpha(Image.fromarray(np.repeat(np.uint8([[0, 128, 255, 255]]), 8, 0)).resize((8, 8), 0))
    pixels.save(tmp_path / "slice.png")
    read = read_slice(tmp_path / "slice.png").pixels
    assert (read[:, :2] == 0).all()
    assert (read[:, 2:4] == 128).all()
    assert (read[:, 4:] == 255).all()


def test_a_transparent_palette_entry_lies_on_black(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 255, 255, 90, 90, 90])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "slice.png", transparency=0)
    read = read_slice(tmp_path / "slice.png").pixels
    assert read[0, 0] == 0
    assert read[1, 1] == 90


@pytest.mark.parametrize(
    ("suffix", "maximum"), [(".png", 65535), (".tif", 65535), (".png", 4095), (".png", 255)]
)
def test_sixteen_bit_pictures_keep_their_scale(tmp_path: Path, suffix: str, maximum: int) -> None:
    values = np.linspace(0, maximum, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / f"slice{suffix}")
    read = read_slice(tmp_path / f"slice{suffix}")
    np.testing.assert_allclose(read.pixels, values * (255 / maximum), atol=0.51)
    assert read.origin.mode.startswith("I")


def _tiff(path: Path, values: NDArray[Any], **options: Any) -> Path:
    tifffile.imwrite(path, values, **options)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"byteorder": ">"},
        {"bigtiff": True},
        {"rowsperstrip": 5},
        {"tile": (16, 32)},
        {"photometric": "miniswhite"},
        *({"compression": name} for name in ("lzw", "zlib", "packbits", "zstd", "lzma")),
        {"compression": "lzw", "predictor": True, "tile": (32, 16)},
    ],
)
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "f2", "f4", "f8"])
def test_tiff_of_any_layout_and_depth(
    tmp_path: Path, grey: NDArray[np.uint8], dtype: str, options: dict[str, Any]
) -> None:
    full = 1 if dtype[0] == "f" else np.iinfo(dtype).max
    values = (grey / 255 * full).round(0 if full > 1 else 9).astype(dtype)
    if "photometric" in options:
        values = full - values
    path = _tiff(tmp_path / "slice.tif", values.astype(dtype), **options)
    if dtype[0] == "f" and "photometric" in options:
        with pytest.raises(ImageError, match=r"slice\.tif: floating-point pixels of which zero is white"):
            read_slice(path)
        return
    read = read_slice(path)
    np.testing.assert_array_equal(read.pixels, grey)
    assert read.hounsfield is None
    assert read.origin.frame is None


@pytest.mark.parametrize("dtype", ["i2", "i4", "f2", "f4", "f8"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "lzw"}, {"byteorder": ">"}])
def test_tiff_in_hounsfield_units(
    tmp_path: Path, chest: NDArray[np.int16], dtype: str, options: dict[str, Any]
) -> None:
    read = read_slice(_tiff(tmp_path / "slice.tif", chest.astype(dtype), **options))
    np.testing.assert_array_equal(read.hounsfield, chest)
    np.testing.assert_array_equal(read.pixels, LUNG.apply(chest))


@pytest.mark.parametrize("offset", [1024, 2048, 8192, 32768])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_hounsfield_units_that_were_made_positive(
    tmp_path: Path, chest: NDArray[np.int16], suffix: str, offset: int
) -> None:
    path = tmp_path / f"slice{suffix}"
    Image.fromarray((chest.astype(int) + offset).astype(np.uint16)).save(path)
    read = read_slice(path)
    np.testing.assert_array_equal(read.hounsfield, chest)


def test_a_lung_window_of_twelve_bits_is_no_hounsfield_units(
    tmp_path: Path, chest: NDArray[np.int16]
) -> None:
    """Though its air and black margin lie where soft tissue and air do with 1024 added."""
    windowed = (np.clip((chest + 1350) / 1500, 0, 1) * 4095).astype(np.uint16)
    windowed[:4] = 0
    Image.fromarray(windowed).save(tmp_path / "slice.png")
    read = read_slice(tmp_path / "slice.png")
    assert read.hounsfield is None
    np.testing.assert_allclose(read.pixels, windowed * (255 / 4095), atol=0.51)


def test_signed_pixels_are_read_as_stated(tmp_path: Path, grey: NDArray[np.uint8]) -> None:
    signed = (grey.astype(int) - 128).astype(np.int8)
    np.testing.assert_array_equal(read_slice(_tiff(tmp_path / "a.tif", signed)).pixels, grey)
    with pytest.raises(NotASliceError, match=r"from -\d+ to \d+, fit no known scale"):
        read_slice(_tiff(tmp_path / "b.tif", signed.astype(np.int16)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures_of_any_depth_are_turned_upright(
    tmp_path: Path, grey: NDArray[np.uint8], orientation: int, suffix: str, dtype: Any
) -> None:
    image = Image.fromarray(grey.astype(dtype) * (np.iinfo(dtype).max // 255))
    path = tmp_path / f"slice{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    image.getexif()[0x0112] = orientation
    turned = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read_slice(path).pixels, turned // (np.iinfo(dtype).max // 255))


@pytest.mark.parametrize("axes", ["ZYX", "TZYX", "TZCYX"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_plane_of_an_imagej_stack_is_a_slice(
    tmp_path: Path, grey: NDArray[np.uint8], axes: str, dtype: Any
) -> None:
    """ImageJ writes large stacks behind one page, and so does tifffile."""
    planes = [np.roll(grey, shift, axis=1).astype(dtype) * (np.iinfo(dtype).max // 255) for shift in range(8)]
    stack = np.stack(planes).reshape(*{3: (8,), 4: (2, 4), 5: (2, 2, 2)}[len(axes)], *grey.shape)
    path = _tiff(tmp_path / "stack.tif", stack, imagej=True, metadata={"axes": axes})
    assert len(Image.open(path).tag_v2) > 0
    read = list(read_slices(path))
    assert [item.origin.frame for item in read] == list(range(8))
    for index, item in enumerate(read):
        np.testing.assert_array_equal(item.pixels, np.roll(grey, index, axis=1))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"images=8", b"images=9"))
    with pytest.raises(ImageError, match=r"stack\.tif: .*says that it holds 9 images, but there are fewer"):
        list(read_slices(path))
    with pytest.raises(ImageError, match="9 pages"):
        list(read_slices(path, Limits(frames=5)))


def test_imagej_keeps_the_sign_of_sixteen_bits_in_a_calibration(
    tmp_path: Path, chest: NDArray[np.int16]
) -> None:
    about = {"cf": 0, "c0": -3000.0, "c1": 0.5, "vunit": "HU"}
    stored = (chest.astype(int) * 2 + 6000).astype(np.uint16)
    path = _tiff(tmp_path / "a.tif", np.stack([stored] * 2), imagej=True, metadata={"axes": "ZYX", **about})
    assert [np.array_equal(item.hounsfield, chest) for item in read_slices(path)] == [True, True]


def test_smaller_copies_and_masks_in_a_tiff_are_no_slices(tmp_path: Path, grey: NDArray[np.uint8]) -> None:
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(grey[::2, ::2], subfiletype=1)
        file.write(grey, subifds=1)
        file.write(grey[::4, ::4], subfiletype=1)
        file.write(np.roll(grey, 3, axis=1))
        file.write(grey > 100, subfiletype=4)
    read = list(read_slices(tmp_path / "pyramid.tif"))
    assert [item.origin.frame for item in read] == [0, 1]
    np.testing.assert_array_equal(read[1].pixels, np.roll(grey, 3, axis=1))
    _tiff(tmp_path / "a.ome.tif", np.stack([grey] * 3), ome=True)
    assert len(list(read_slices(tmp_path / "a.ome.tif"))) == 3


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda grey: {"data": grey.astype(np.complex64)}, "complex"),
        (lambda grey: {"data": np.dstack([grey / 255] * 3), "photometric": "rgb"}, "not supported"),
        (lambda grey: {"data": np.dstack([grey] * 3), "photometric": "cielab"}, "not supported"),
        (
            lambda grey: {"data": np.dstack([grey] * 9), "planarconfig": "contig"},
            "9 channels are not supported",
        ),
        (
            lambda grey: {"data": np.stack([grey] * 2), "volumetric": True, "tile": (2, 16, 16)},
            "not supported",
        ),
    ],
)
def test_what_tiff_can_hold_beyond_slices_is_called_so(
    tmp_path: Path, grey: NDArray[np.uint8], make: Callable[[NDArray[np.uint8]], dict[str, Any]], reason: str
) -> None:
    options = make(grey)
    path = _tiff(tmp_path / "other.tif", options.pop("data"), **options)
    with pytest.raises(ImageError, match=rf"other\.tif: .*{reason}"):
        read_slice(path)


def test_a_tiff_without_all_its_pixels_is_damaged(tmp_path: Path, grey: NDArray[np.uint8]) -> None:
    path = _tiff(tmp_path / "a.tif", grey, rowsperstrip=8)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["StripByteCounts"].overwrite([512, 512, 0, 512, 512, 512])
    with pytest.raises(ImageError, match=r"a\.tif: damaged: some of its pixels are missing"):
        read_slice(path)


@pytest.mark.parametrize("tint", [(0.6, 0.8, 1.0), (1.0, 0.85, 0.6), (0.2, 1.0, 0.3)])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_tinted_slice_is_read(
    tmp_path: Path, grey: NDArray[np.uint8], tint: tuple[float, ...], suffix: str
) -> None:
    coloured = np.rint(grey[..., None] * np.array(tint)).astype(np.uint8)
    Image.fromarray(coloured).save(tmp_path / f"slice{suffix}", quality=95)
    pixels = read_slice(tmp_path / f"slice{suffix}").pixels
    difference = np.abs(pixels.astype(int) - grey)
    assert difference.max() <= 2 if suffix == ".png" else difference.mean() < 8


@pytest.mark.parametrize("scale", ["jet", "hsv", "hot"])
def test_a_slice_in_many_colours_is_none(tmp_path: Path, grey: NDArray[np.uint8], scale: str) -> None:
    coloured = colormaps[scale](grey + np.random.default_rng(0).integers(0, 9, grey.shape, np.uint8))
    Image.fromarray((coloured[..., :3] * 255).astype(np.uint8)).save(tmp_path / "slice.png")
    with pytest.raises(NotASliceError, match=r"slice\.png: a colour photograph"):
        read_slice(tmp_path / "slice.png")


def test_every_page_of_a_tiff_is_a_slice(tmp_path: Path, grey: NDArray[np.uint8]) -> None:
    pages = [Image.fromarray(np.roll(grey, shift, axis=1)) for shift in (0, 5, 9)]
    pages[0].save(tmp_path / "series.tif", save_all=True, append_images=pages[1:])
    read = list(read_slices(tmp_path / "series.tif"))
    assert [item.origin.frame for item in read] == [0, 1, 2]
    for item, page in zip(read, pages, strict=True):
        np.testing.assert_array_equal(item.pixels, np.array(page))
    with pytest.raises(ImageError, match="several slices"):
        read_slice(tmp_path / "series.tif")
    with pytest.raises(ImageError, match="3 pages"):
        list(read_slices(tmp_path / "series.tif", Limits(frames=2)))


def test_coloured_marks_are_fine(tmp_path: Path, grey: NDArray[np.uint8]) -> None:
    image = Image.fromarray(grey).convert("RGB")
    ImageDraw.Draw(image).rectangle((10, 10, 18, 14), fill="red")
    image.save(tmp_path / "marked.png")
    read = read_slice(tmp_path / "marked.png").pixels
    assert read.shape == grey.shape
    np.testing.assert_array_equal(read[20:], grey[20:])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_a_colour_photograph_is_refused(tmp_path: Path, photograph: Image.Image, suffix: str) -> None:
    photograph.save(tmp_path / f"holiday{suffix}")
    with pytest.raises(ImageError, match=rf"holiday{suffix}: a colour photograph"):
        read_slice(tmp_path / f"holiday{suffix}")


def _matplotlib_photograph() -> Path:
    from matplotlib import get_data_path

    return Path(get_data_path()) / "sample_data" / "grace_hopper.jpg"


def _sklearn_photographs() -> list[Path]:
    import sklearn.datasets

    return sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))


def test_photographs_of_other_projects_are_refused_with_room_to_spare() -> None:
    photographs = [_matplotlib_photograph(), *_sklearn_photographs()]
    assert len(photographs) == 3
    for path in photographs:
        with pytest.raises(ImageError, match="colour photograph"):
            read_slice(path)
        assert coloured_share(np.asarray(Image.open(path).convert("RGB"))) > 1.5 * COLOURED_SHARE


def test_every_covid_ct_image_is_accepted_with_room_to_spare(covid_ct: Path) -> None:
    paths = sorted(path for path in (covid_ct / "Images-processed").rglob("*.*") if path.is_file())
    assert len(paths) == 746
    for path in paths:
        assert read_slice(path).pixels.size
        image = Image.open(path)
        if image.mode != "L":
            assert coloured_share(np.asarray(image.convert("RGB"))) < COLOURED_SHARE / 1.5


def test_luna_slices_are_accepted(luna_slices: Path) -> None:
    assert sum(1 for _ in read_slices(luna_slices)) == 1000


def test_a_picture_takes_a_few_milliseconds(tmp_path: Path, grey: NDArray[np.uint8]) -> None:
    Image.fromarray(grey).resize((512, 512)).save(tmp_path / "slice.png")
    read_slice(tmp_path / "slice.png")
    times = []
    for _ in range(10):
        start = perf_counter()
        read_slice(tmp_path / "slice.png")
        times.append(perf_counter() - start)
    assert min(times) < 0.02


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_header(40_000, 40_000))
    start = perf_counter()
    with pytest.raises(ImageError, match=r"bomb\.png: .*limit"):
        read_slice(path)
    assert perf_counter() - start < 1
    path.write_bytes(_png_header(9_000, 9_000))
    with pytest.raises(ImageError, match="9000 x 9000 pixels are more than the limit"):
        read_slice(path)


def _png_header(width: int, height: int) -> bytes:
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in (header, body)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_a_truncated_picture_is_one_line_that_names_the_file(
    tmp_path: Path, grey: NDArray[np.uint8], suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"slice{suffix}"
    Image.fromarray(grey).save(path)
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.6):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError) as caught:
            read_slice(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_jpeg_is_turned_upright_as_its_exif_says(tmp_path: Path, grey: NDArray[np.uint8]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey).save(tmp_path / "slice.jpg", exif=exif, quality=95)
    read = read_slice(tmp_path / "slice.jpg").pixels
    assert np.abs(read.astype(int) - np.rot90(grey, -1)).mean() < 4


def test_reading_leaves_the_file_as_it_is(tmp_path: Path, write_dicom: Callable[..., Path]) -> None:
    path = write_dicom(tmp_path / "slice.dcm", np.zeros((8, 8), np.int16))
    before = path.read_bytes()
    read_slice(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
