"""An uploaded file on its way in: in memory while it is small and alone, else on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from groundglass.imaging.source import HEAD_BYTES, FileFormat, MemorySource, identify
from groundglass.serving.scratch import RequestFolder

_HEAVY = 16 * 2**20
"""Bytes above which a file is opened beside few others: it may be held in memory whole."""


@dataclass(frozen=True)
class UploadedFile:
    """One file of a request.

    Attributes:
        name: as the client gave it, which is what its predictions call it.
        source: its bytes, or where it lies.
        size: bytes.
        kind: what its first bytes say it is; None for no image.
    """

    name: str
    source: MemorySource | Path
    size: int
    kind: FileFormat | None

    @property
    def heavy(self) -> bool:
        """Whether reading it may take much memory."""
        return self.size > _HEAVY or self.kind in {FileFormat.ZIP, FileFormat.GZIP}


class Spool:
    """Takes the bytes of one file as they arrive.

    Making and removing a folder and a file costs more than all else that is done to receive one slice, so a
    file that nothing can lie beside stays in memory. Archives are read in place, which needs a file.

    Args:
        folder: of the request.
        name: of the file, a relative path.
        most_held: bytes up to which it is held in memory.
    """

    def __init__(self, folder: RequestFolder, name: str, most_held: int) -> None:
        self.name, self.size = name, 0
        self._folder, self._most_held = folder, most_held
        self._head, self._held = b"", bytearray()
        self._kind: FileFormat | None = None
        self._path: Path | None = None
        self._stream: BinaryIO | None = None

    def write(self, content: memoryview) -> None:
        """Take the next bytes.

        Raises:
            OSError: they cannot be written.
        """
        self.size += len(content)
        if len(self._head) < HEAD_BYTES:
            self._head += content[: HEAD_BYTES - len(self._head)]
        if self._stream is None and self.size > self._most_held:
            self.to_disk()
        if self._stream is None:
            self._held += content
        else:
            self._stream.write(content)

    def to_disk(self) -> None:
        """Put it into a file, where it is not in one already.

        Raises:
            OSError: it cannot be made, or there is one of that name.
        """
        if self._path is not None:
            return
        path = self._folder.path / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("xb")
        self._path = path
        self._stream.write(self._held)
        self._held = bytearray()

    def close(self) -> None:
        """No more bytes come."""
        if self._stream is not None:
            self._stream.close()
        if self._head:
            self._kind, self._head = identify(self._head), b""

    def finished(self) -> UploadedFile:
        """The file, after it was closed.

        Raises:
            OSError: it is an archive and cannot be written to disk.
        """
        if self._kind is FileFormat.ZIP:
            self.to_disk()
            self.close()
        source = self._path or MemorySource(self.name, bytes(self._held))
        return UploadedFile(self.name, source, self.size, self._kind)
