"""However a file is damaged, the outcome is slices or a ``GroundglassError``; anything else fails."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import make_zip
from tests.imaging.conftest import CHEST, GREY, VOLUME, recompress, write_ct, write_nifti
from tests.imaging.test_dicom import WRITTEN as DICOM
from tests.imaging.test_dicom import write_coloured, write_enhanced
from tests.imaging.test_raster import LAYOUTS, write_pages
from tests.imaging.test_volumes import WRITTEN as VOLUMES

from groundglass.errors import GroundglassError
from groundglass.imaging.compressed import FrameDecoder
from groundglass.imaging.read import read_slices
from groundglass.imaging.source import Limits

# Small, so that a header that asks for more than a machine has costs a test run nothing.
LIMITS = Limits(pixels=2_000_000, file_bytes=50_000_000, archive_bytes=50_000_000)
IMAGE, STACK = Image.fromarray(GREY), np.stack([GREY] * 3)
EXAMPLES, SLOW = int(os.environ.get("GROUNDGLASS_FUZZ", "60")), [HealthCheck.too_slow]  # the former of each test


def write_zip(path: Path) -> None:
    before = ("a.png", "a.jpg", "4.70.dcm", "a.mha")
    make_zip(path, {f"{name}.bin": path.with_name(name).read_bytes() for name in before})


def packed(syntax: str) -> Any:
    return lambda path: recompress(write_ct(path), path, f"1.2.840.10008.1.2.{syntax}")


tiff, ct = (partial(partial, write) for write in (tifffile.imwrite, write_ct))
# What writes one small sound file of every kind.
KINDS: dict[str, Any] = {
    **dict.fromkeys(("a.png", "a.jpg", "a.bmp", "a.tif"), IMAGE.save),
    "deep.png": Image.fromarray((CHEST + 1024).astype(np.uint16)).save,
    **{f"layout-{number}.tif": tiff(data=GREY, **options) for number, options in enumerate(LAYOUTS)},
    "stack.tif": tiff(data=STACK, imagej=True, metadata={"axes": "ZYX"}),
    "float.tif": tiff(data=CHEST / 1.0, compression="zlib", predictor=True),
    "pyramid.tif": write_pages,
    "capture.dcm": ct(stored=STACK, RescaleType="US", WindowCenter=128, WindowWidth=256),
    "tags.dcm": ct(ImageOrientationPatient=[0] * 6, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1500),
    **{f"{kind}.dcm": partial(write_coloured, kind=kind) for kind in ("RGB", "PALETTE 8")},
    **{f"{syntax}.dcm": packed(syntax) for syntax in ("5", "4.70", "4.80", "4.90")},
    "enhanced.dcm": write_enhanced,
    **{f"{name}.dcm": DICOM[name] for name in ("plain", "negative", "4.51", "4.201", "float")},
    **{f"{kind}.dcm": DICOM[f"{kind} from SOPClassUID"] for kind in ("implicit", "explicit", "big-endian")},
    **{name: VOLUMES[name] for name in ("a.nii", "a.nii.gz", "400.nii", "members.nii.gz")},
    "label.nii": partial(write_nifti, voxels=(VOLUME > 0).astype(np.uint8), intent="label"),
    **{name: VOLUMES[name] for name in ("a.mha", "packed.mha", "odd.mha", "a.nrrd", "packed.nrrd")},
    "a.zip": write_zip,
}
GENERATED = list(KINDS)


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Content of one small sound file of every kind."""
    folder = tmp_path_factory.mktemp("sound")
    for name, write in KINDS.items():
        write(folder / name)
    return {name: (folder / name).read_bytes() for name in KINDS}


@st.composite
def damages(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with one to four changes; headers, where damage does most, are hit most often."""
    damaged = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        if len(damaged) < 2:
            break
        start = draw(st.integers(0, min(len(damaged), 600) - 1) | st.integers(0, len(damaged) - 1))
        piece = damaged[start : start + draw(st.sampled_from([1, 1, 2, 40, 400, len(damaged)]))]
        extreme = st.sampled_from([b"\0", b"\xff", b"\x7f\xff", b"\x80\0"])
        overwritten = (draw(extreme | st.binary(min_size=1, max_size=2)) * len(piece))[: len(piece)]
        ways = [overwritten, overwritten, b"", piece + piece[:400], draw(st.binary(max_size=600))]
        damaged[start : start + len(piece)] = draw(st.sampled_from(ways))
    return bytes(damaged)


def fuzz(path: Path, *contents: bytes) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=SLOW)
    @given(st.sampled_from(contents).flatmap(damages))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            assert all(item.pixels.size > 0 for item in read_slices(path, LIMITS, decoder=decoder))
        except GroundglassError as error:
            message = str(error)
            assert message.startswith(str(path))
            assert message.isprintable()

    with FrameDecoder() as decoder:
        check()


@pytest.mark.parametrize("name", GENERATED)
def test_damaged_files_of_every_kind_fail_well(generated: Any, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(generated[name])
    assert list(read_slices(path, LIMITS))
    fuzz(path, generated[name])
