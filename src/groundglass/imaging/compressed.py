"""Compressed DICOM frames, all decoded by GDCM in one process that may die of a damaged one.

GDCM ends its process on some damaged frames, which must not be the reader's. So this file is also a script,
``python -I -S compressed.py FOLDER`` with the folder that holds GDCM: without ``site`` and the package it starts in
a tenth of a second. It reads a JSON line (``length`` and the layout) and ``length`` bytes for each frame, and
answers with eight bytes, the little-endian length of the pixels or 0 for a failure, and the pixels.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Timer
from typing import Any

_MEMORY = 4 * 2**30


@dataclass(frozen=True)
class FrameLayout:
    """What is known of a compressed frame."""

    transfer_syntax: str  # UID
    rows: int
    columns: int
    samples: int
    bits_allocated: int  # 8, 16 or 32
    bits_stored: int
    signed: bool  # two's complement


class FrameDecoder:
    """Decodes frames in a child process that starts with the first one and ends with the ``with`` block.

    A frame that kills the child, or takes more seconds than ``timeout``, costs a ``ValueError``; the next frame gets
    a new child. Not thread-safe.
    """

    def __init__(self, timeout: float = 60.0) -> None:
        self._timeout = timeout
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> FrameDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def decode(self, frame: bytes, layout: FrameLayout) -> bytes:
        """Stored values, little-endian, ``rows`` times ``columns`` times ``samples``.

        Raises:
            ValueError: the frame is damaged or contradicts its layout, or GDCM is not installed.
        """
        child = self._start()
        assert child.stdin is not None and child.stdout is not None  # noqa: S101, PT018 - both are pipes
        watchdog = Timer(self._timeout, child.kill)
        watchdog.start()
        pixels = b""
        with suppress(BrokenPipeError):
            child.stdin.write(json.dumps({"length": len(frame), **asdict(layout)}).encode() + b"\n" + frame)
            child.stdin.flush()
            answer = child.stdout.read(8)
            pixels = child.stdout.read(int.from_bytes(answer, "little"))
        watchdog.cancel()
        if len(pixels) * 8 != layout.rows * layout.columns * layout.samples * layout.bits_allocated:
            self._stop()  # it may have died, and even a frame that it only refused is rare
            raise ValueError("the compressed pixel data cannot be decoded")
        return pixels

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._stop()
            found = importlib.util.find_spec("gdcm")
            if found is None or found.origin is None:
                raise ValueError("python-gdcm, which decodes this compression, is not installed")
            self._child = subprocess.Popen(  # noqa: S603 - nothing of the command comes from outside
                [sys.executable, "-I", "-S", __file__, str(Path(found.origin).parent)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()  # closes the pipes
            self._child = None


def _answer_requests() -> None:
    """The child's work, until its input ends."""
    sys.path.append(sys.argv[1])
    gdcm = importlib.import_module("gdcm")
    with suppress(ImportError):  # not on Windows
        resource = importlib.import_module("resource")
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the codecs print must not fall between the answers
    for line in iter(sys.stdin.buffer.readline, b""):
        request = json.loads(line)
        frame = sys.stdin.buffer.read(request.pop("length"))
        pixels = _decode(gdcm, frame, FrameLayout(**request))
        answers.write(len(pixels).to_bytes(8, "little") + pixels)
        answers.flush()


def _decode(gdcm: Any, frame: bytes, layout: FrameLayout) -> bytes:
    """Pixels of one frame, or nothing where GDCM cannot decode it."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((layout.columns, layout.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation
    image.SetPhotometricInterpretation(kind(kind.GetPIType("MONOCHROME2" if layout.samples == 1 else "RGB")))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(layout.transfer_syntax)))
    bits = layout.bits_stored
    image.SetPixelFormat(
        gdcm.PixelFormat(layout.samples, layout.bits_allocated, bits, bits - 1, int(layout.signed))
    )
    try:
        # GDCM hands bytes out as str.
        pixels: bytes = image.GetBuffer().encode("utf-8", "surrogateescape")
    except (RuntimeError, UnicodeError, MemoryError):
        return b""
    return pixels


if __name__ == "__main__":
    _answer_requests()
