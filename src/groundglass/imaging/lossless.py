"""JPEG Lossless and JPEG-LS frames, decoded in a process that may die of a damaged one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

_START_OF_FRAME = frozenset({0xC3, 0xF7})
_WITHOUT_LENGTH = frozenset({0x01, 0xFF, *range(0xD0, 0xDA)})


@dataclass(frozen=True)
class FrameLayout:
    """What a DICOM header says of a compressed frame of one sample per pixel.

    Attributes:
        transfer_syntax: its UID.
        bits_allocated: 8 or 16.
        bits_stored: at most ``bits_allocated``.
        signed: whether the samples are two's complement.
    """

    transfer_syntax: str
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool


class LosslessDecoder:
    """Decodes frames in a child process that starts with the first one and ends with the ``with`` block.

    A frame that kills the child costs a ``ValueError``; the next frame gets a new child. Not thread-safe.

    Args:
        timeout: seconds that one frame may take.
    """

    def __init__(self, timeout: float = 60.0) -> None:
        self._timeout = timeout
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LosslessDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def decode(self, frame: bytes, layout: FrameLayout) -> NDArray[np.integer]:
        """Stored values of shape (rows, columns), sign-extended where they are signed.

        Raises:
            ValueError: the frame is damaged or contradicts its layout.
        """
        precision = _check_frame_header(frame, layout)
        if layout.bits_allocated not in {8, 16} or not 2 <= layout.bits_stored <= layout.bits_allocated:
            raise ValueError(f"{layout.bits_stored} bits stored in {layout.bits_allocated}")
        allocated = 8 if precision <= 8 else 16
        pixels = self._ask(frame, layout, allocated)
        if len(pixels) * 8 != layout.rows * layout.columns * allocated:
            raise ValueError("the compressed pixel data cannot be decoded")
        stored = np.frombuffer(pixels, f"<{'i' if layout.signed else 'u'}{allocated // 8}")
        if layout.signed and layout.bits_stored < allocated:
            unused = allocated - layout.bits_stored
            stored = (stored << unused) >> unused
        return stored.reshape(layout.rows, layout.columns)

    def _ask(self, frame: bytes, layout: FrameLayout, allocated: int) -> bytes:
        request = {
            "length": len(frame),
            "transfer_syntax": layout.transfer_syntax,
            "rows": layout.rows,
            "columns": layout.columns,
            "bits_allocated": allocated,
            "bits_stored": min(layout.bits_stored, allocated),
            "signed": int(layout.signed),
        }
        child = self._start()
        assert child.stdin is not None  # noqa: S101 - both are pipes
        assert child.stdout is not None  # noqa: S101
        watchdog = Timer(self._timeout, child.kill)
        watchdog.start()
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n" + frame)
            child.stdin.flush()
            answer = child.stdout.read(8)
            size = int.from_bytes(answer, "little")
            pixels = child.stdout.read(size)
            alive = len(answer) == 8 and len(pixels) == size
        except BrokenPipeError:
            pixels, alive = b"", False
        finally:
            watchdog.cancel()
        if not alive:
            self._stop()
        return pixels

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._stop()
            found = importlib.util.find_spec("gdcm")
            if found is None or found.origin is None:
                raise ValueError("python-gdcm, which decodes this compression, is not installed")
            command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("lossless_worker.py"))]
            self._child = subprocess.Popen(  # noqa: S603 - nothing of the command comes from outside
                [*command, str(Path(found.origin).parent)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        child.wait()


def _check_frame_header(frame: bytes, layout: FrameLayout) -> int:
    """Bits per sample of a JPEG bit stream, after a check that it is of the size the DICOM header says.

    Raises:
        ValueError: no JPEG Lossless or JPEG-LS stream of one component and that size.
    """
    if frame[:2] != b"\xff\xd8":
        raise ValueError("the compressed pixel data is no JPEG stream")
    position = 2
    while position + 4 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker in _START_OF_FRAME and position + 10 <= len(frame):
            rows = int.from_bytes(frame[position + 5 : position + 7], "big")
            columns = int.from_bytes(frame[position + 7 : position + 9], "big")
            if (rows, columns) != (layout.rows, layout.columns) or frame[position + 9] != 1:
                raise ValueError(
                    f"compressed pixel data of {columns} x {rows} do not fit the header's "
                    f"{layout.columns} x {layout.rows}"
                )
            return frame[position + 4]
        if marker in _WITHOUT_LENGTH:
            position += 1 if marker == 0xFF else 2
        else:
            position += 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    raise ValueError("the compressed pixel data hold no JPEG frame header")
