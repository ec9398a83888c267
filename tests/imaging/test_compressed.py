"""A frame that kills GDCM costs an error, never the process."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from time import sleep

import numpy as np
import pytest

from groundglass.imaging.compressed import FrameDecoder, FrameLayout

JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"


@pytest.fixture(scope="module")
def stored() -> np.ndarray:
    rows, columns = np.mgrid[0:40, 0:56]
    return ((rows - 20) * 37 + columns * columns // 3 - 500).astype(np.int16)


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory, stored: np.ndarray, write_dicom, recompress) -> bytes:
    import pydicom
    from pydicom.encaps import get_frame

    folder = tmp_path_factory.mktemp("lossless")
    packed = recompress(write_dicom(folder / "a.dcm", stored), folder / "b.dcm", JPEG_LOSSLESS)
    content: bytes = get_frame(pydicom.dcmread(packed).PixelData, 0, number_of_frames=1)
    return content


@pytest.fixture
def layout() -> FrameLayout:
    return FrameLayout(
        JPEG_LOSSLESS, rows=40, columns=56, samples=1, bits_allocated=16, bits_stored=16, signed=True
    )


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_frames_are_decoded_by_one_child_that_ends_with_the_block(
    frame: bytes, layout: FrameLayout, stored: np.ndarray
) -> None:
    before = _children()
    with FrameDecoder() as decoder:
        assert _children() == before
        for _ in range(3):
            assert decoder.decode(frame, layout) == stored.tobytes()
            assert len(_children() - before) == 1
    assert _children() == before


def test_the_next_frame_after_a_killed_child_is_decoded(
    frame: bytes, layout: FrameLayout, stored: np.ndarray
) -> None:
    before = _children()
    with FrameDecoder() as decoder:
        decoder.decode(frame, layout)
        (child,) = _children() - before
        os.kill(int(child), signal.SIGKILL)
        while "State:\tZ" not in Path(f"/proc/{child}/status").read_text():
            sleep(0.01)
        assert decoder.decode(frame, layout) == stored.tobytes()


def test_a_frame_that_ends_gdcm_is_an_error(frame: bytes, layout: FrameLayout, stored: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    before, seen = _children(), set()
    with FrameDecoder() as decoder:
        for _ in range(80):
            damaged = bytearray(frame)
            for position in rng.integers(2, 60, 3):
                damaged[position] = rng.integers(256)
            with suppress(ValueError):
                decoder.decode(bytes(damaged), layout)
            seen |= _children() - before
        assert decoder.decode(frame, layout) == stored.tobytes()
    assert len(seen) > 1, "GDCM survived everything: a process of its own may no longer be needed"


def test_a_child_that_takes_too_long_is_ended(frame: bytes, layout: FrameLayout) -> None:
    with FrameDecoder(timeout=0.0) as decoder, pytest.raises(ValueError, match="cannot be decoded"):
        decoder.decode(frame, layout)
