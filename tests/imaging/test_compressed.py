"""A frame that kills its decoder costs an error, never the process."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from time import sleep

import numpy as np
import pydicom
import pytest
from pydicom.encaps import get_frame
from tests.imaging.conftest import CHEST, recompress, write_ct

from groundglass.imaging.compressed import FrameDecoder

JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
LAYOUT = "jpeg8", 1, 48 * 64 * 2


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("lossless") / "a.dcm"
    packed = pydicom.dcmread(recompress(write_ct(path), path, JPEG_LOSSLESS))
    return bytes(get_frame(packed.PixelData, 0, number_of_frames=1))


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_frames_are_decoded_by_one_child_that_ends_with_the_block_or_is_replaced(frame: bytes) -> None:
    before = children()
    with FrameDecoder() as decoder:
        assert children() == before
        for _ in range(3):
            assert decoder.decode(frame, *LAYOUT) == CHEST.tobytes()
            (child,) = children() - before
        os.kill(int(child), signal.SIGKILL)
        while "State:\tZ" not in Path(f"/proc/{child}/status").read_text():
            sleep(0.01)
        assert decoder.decode(frame, *LAYOUT) == CHEST.tobytes()
    assert children() == before


def test_a_damaged_frame_is_an_error_and_the_next_one_is_decoded(frame: bytes) -> None:
    rng, refused = np.random.default_rng(0), 0
    with FrameDecoder() as decoder:
        for _ in range(80):
            damaged = bytearray(frame)
            for position in rng.integers(2, 60, 3):
                damaged[position] = rng.integers(256)
            try:
                decoder.decode(bytes(damaged), *LAYOUT)
            except ValueError:
                refused += 1
        assert decoder.decode(frame, *LAYOUT) == CHEST.tobytes()
    assert refused > 20


def test_a_child_that_takes_too_long_is_ended(frame: bytes) -> None:
    with FrameDecoder(timeout=0.0) as decoder, pytest.raises(ValueError, match="cannot be decoded"):
        decoder.decode(frame, *LAYOUT)
