"""Decodes JPEG Lossless and JPEG-LS frames with GDCM; runs as a script of its own, see ``lossless.py``.

GDCM ends the whole process on some damaged frames (an uncaught C++ exception), which must not be the
reader's process. Started as ``python -I -S lossless_worker.py FOLDER`` with the folder that holds GDCM, so
that neither ``site`` nor this package is imported and the start takes a tenth of a second.

Protocol: a JSON line (``length`` and the layout of the frame), ``length`` bytes; answered by eight bytes, the
little-endian length of the pixels or 0 for a failure, and the pixels.
"""

import importlib
import json
import os
import sys
from typing import Any

_MEMORY = 4 * 2**30


def main() -> None:
    """Answer requests until the input ends."""
    sys.path.append(sys.argv[1])
    gdcm = importlib.import_module("gdcm")
    _limit_memory()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the codecs print must not fall between the answers
    requests = sys.stdin.buffer
    for line in iter(requests.readline, b""):
        layout = json.loads(line)
        pixels = _decode(gdcm, requests.read(layout["length"]), layout)
        answers.write(len(pixels).to_bytes(8, "little") + pixels)
        answers.flush()


def _limit_memory() -> None:
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _decode(gdcm: Any, frame: bytes, layout: dict[str, Any]) -> bytes:
    """Pixels of one monochrome frame, or nothing where GDCM says no."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((layout["columns"], layout["rows"], 1))
    image.SetDataElement(element)
    photometric = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(photometric))
    syntax = gdcm.TransferSyntax.GetTSType(layout["transfer_syntax"])
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    bits = layout["bits_stored"]
    image.SetPixelFormat(gdcm.PixelFormat(1, layout["bits_allocated"], bits, bits - 1, layout["signed"]))
    try:
        # GDCM hands bytes out as str.
        pixels: bytes = image.GetBuffer().encode("utf-8", "surrogateescape")
    except (RuntimeError, UnicodeError, MemoryError):
        return b""
    return pixels


if __name__ == "__main__":
    main()
