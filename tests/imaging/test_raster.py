"""Pictures come in as grey slices whatever their mode; photographs do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from groundglass.errors import ImageError
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


def test_big_endian_sixteen_bit_tiff(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    Image.frombytes("I;16B", (8, 8), values.astype(">u2").tobytes()).save(tmp_path / "slice.tif")
    np.testing.assert_allclose(read_slice(tmp_path / "slice.tif").pixels, values * (255 / 65535), atol=0.51)


def test_a_tiff_that_reaches_below_any_grey_value_is_in_hounsfield_units(
    tmp_path: Path, chest: NDArray[np.int16]
) -> None:
    Image.fromarray(chest.astype(np.float32)).save(tmp_path / "slice.tif")
    read = read_slice(tmp_path / "slice.tif")
    assert read.hounsfield is not None
    np.testing.assert_array_equal(read.hounsfield, chest)
    np.testing.assert_array_equal(read.pixels, LUNG.apply(chest))


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
