"""Compressed DICOM frames, all decoded by imagecodecs in one process that may die of a damaged one.

A damaged frame may cost its decoder minutes, gigabytes or its life, never the reader's. So this file is also a
script, ``python -I -S compressed.py FOLDERS`` with the folders to import from: without ``site`` and the package it
starts at once. It reads a line (length, codec and samples per pixel) and the bytes of each frame, and answers with
eight bytes, the little-endian length of the pixels or 0 for a failure, and the pixels.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from contextlib import suppress
from threading import Timer

_MEMORY = 4 * 2**30


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

    def decode(self, frame: bytes, codec: str, samples: int, size: int) -> bytes:
        """Stored values of a compressed frame, ``size`` bytes, little-endian, of so many ``samples`` a pixel.

        ``codec`` is imagecodecs': ``jpeg8`` (of any precision), ``jpegls`` or ``jpeg2k``.

        Raises:
            ValueError: the frame is damaged, or of another size.
        """
        child = self._start()
        assert child.stdin is not None and child.stdout is not None  # noqa: S101, PT018 - both are pipes
        watchdog = Timer(self._timeout, child.kill)
        watchdog.start()
        answer = pixels = b""
        try:
            child.stdin.write(f"{len(frame)} {codec} {samples}\n".encode() + frame)
            child.stdin.flush()
            answer = child.stdout.read(8)
            pixels = child.stdout.read(size) if int.from_bytes(answer, "little") == size else b""
        except BrokenPipeError:
            pass
        finally:  # after an interruption too, or the process would wait for the timer
            watchdog.cancel()
        if len(answer) < 8 or len(pixels) != int.from_bytes(answer, "little"):
            self._stop()
        if len(pixels) != size:
            raise ValueError("the compressed pixel data cannot be decoded")
        return pixels

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._stop()
            self._child = subprocess.Popen(  # noqa: S603 - nothing of the command comes from outside
                [sys.executable, "-I", "-S", __file__, *filter(None, sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # NumPy's threads would reserve much of the memory that it may have.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        return self._child

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()  # closes the pipes
            self._child = None


def _answer_requests() -> None:
    """The child's work, until its input ends."""
    sys.path.extend(sys.argv[1:])
    codecs = importlib.import_module("imagecodecs")
    with suppress(ImportError, ValueError, OSError):  # not on Windows, nor below a lower limit
        resource = importlib.import_module("resource")
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the codecs print must not fall between the answers
    for line in iter(sys.stdin.buffer.readline, b""):
        length, codec, samples = line.decode().split()
        # Colours stay as they are coded: the file says better than the frame which they are.
        coded = (codec, samples) == ("jpeg8", "3")
        options = {"colorspace": "YCBCR", "outcolorspace": "YCBCR"} if coded else {}
        frame, pixels = sys.stdin.buffer.read(int(length)), b""
        with suppress(RuntimeError, ValueError, MemoryError):
            pixels = getattr(codecs, f"{codec}_decode")(frame, **options).tobytes()
        answers.write(len(pixels).to_bytes(8, "little") + pixels)
        answers.flush()


if __name__ == "__main__":
    _answer_requests()
