"""What a file is, told by its content and never by its name."""

from __future__ import annotations

import struct
from enum import Enum

HEAD_BYTES = 4096
"""As much of a file's beginning as ``identify`` looks at."""

_BMP_HEADER_SIZES = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
_DICOM_VALUE_REPRESENTATIONS = frozenset({b"UL", b"UI", b"CS", b"SH", b"LO", b"OB", b"DA"})
_META_IMAGE_KEYS = (b"ObjectType", b"NDims", b"Comment", b"ObjectSubType")


class Container(str, Enum):
    """A file format that can be read."""

    PNG = "PNG"
    JPEG = "JPEG"
    TIFF = "TIFF"
    BMP = "BMP"
    DICOM = "DICOM"
    NIFTI = "NIfTI"
    META_IMAGE = "MetaImage"
    GZIP = "gzip"
    ZIP = "zip"


_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", Container.PNG),
    (b"\xff\xd8\xff", Container.JPEG),
    (b"II*\0", Container.TIFF),
    (b"MM\0*", Container.TIFF),
    (b"II+\0", Container.TIFF),
    (b"MM\0+", Container.TIFF),
    (b"PK\x03\x04", Container.ZIP),
    (b"PK\x05\x06", Container.ZIP),
    (b"\x1f\x8b\x08", Container.GZIP),
)

RASTER = frozenset({Container.PNG, Container.JPEG, Container.TIFF, Container.BMP})
"""Picture formats."""


def identify(head: bytes) -> Container | None:
    """The format of a file from its first ``HEAD_BYTES`` bytes, or None where it is none of ``Container``."""
    # A DICOM preamble may hold anything, a TIFF header included: the four letters after it decide.
    magic = next((container for magic, container in _MAGIC if head.startswith(magic)), None)
    if head[128:132] == b"DICM" or (magic is None and _is_bare_dicom(head)):
        return Container.DICOM
    if magic is not None:
        return magic
    if head[344:348] in {b"n+1\0", b"ni1\0"} or head[4:8] in {b"n+2\0", b"ni2\0"}:
        return Container.NIFTI
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADER_SIZES:
        return Container.BMP
    if head.lstrip().startswith(_META_IMAGE_KEYS) and b"=" in head[:256]:
        return Container.META_IMAGE
    return None


def _is_bare_dicom(head: bytes) -> bool:
    """Whether the head looks like a data set without preamble, as old archives hold them."""
    if len(head) < 16:
        return False
    group, element, length = struct.unpack("<HHI", head[:8])
    if group not in {0x0002, 0x0008} or element > 0x0018:
        return False
    return head[4:6] in _DICOM_VALUE_REPRESENTATIONS or length <= 64
