"""Going on where an earlier prediction stopped: what its findings say is done."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from groundglass.atomic import atomic_path
from groundglass.errors import PredictionError
from groundglass.inference.finding import Finding, Status
from groundglass.inference.findings_file import file_errors, finding_of, lines_of, readable

_TAIL = 2**16


@dataclass
class Done:
    """What needs no finding any more.

    Attributes:
        findings: how many there are.
        files: names of files of one slice.
        frames: file and frame of the slices of others. Such a file is read again, for only its end tells
            whether it is done.
    """

    findings: int = 0
    files: set[str] = field(default_factory=set)
    frames: set[tuple[str, int]] = field(default_factory=set)

    def has_file(self, file: str) -> bool:
        """Whether nothing in a file needs a finding."""
        return readable(file) in self.files

    def has_slice(self, file: str, frame: int | None) -> bool:
        """Whether a slice needs no finding."""
        return frame is not None and (readable(file), frame) in self.frames

    def add(self, finding: Finding) -> None:
        """Take a finding in; what failed is tried again."""
        self.findings += 1
        if finding.status is Status.FAILED:
            return
        if finding.frame is None:
            self.files.add(finding.file)
        else:
            self.frames.add((finding.file, finding.frame))


def load_done(path: Path, bundle: str, *, keep_identifiers: bool) -> Done:
    """Read the findings of an earlier run, after cutting off a line that it did not finish.

    Raises:
        PredictionError: they are of another bundle, keep identifiers where these do not or the other way
            round, or are damaged.
    """
    _mend(path)
    done = Done()
    for number, line in enumerate(lines_of(path), 1):
        finding = finding_of(path, number, line)
        if finding.bundle != bundle:
            raise PredictionError(
                f"{path}: these findings are of bundle {finding.bundle}, not of {bundle}; go on with that "
                "bundle and precision, or choose another output"
            )
        if (finding.patient is not None) != keep_identifiers:
            advice = "without" if keep_identifiers else "with"
            raise PredictionError(
                f"{path}: these findings were made {advice} --keep-identifiers; go on in the same way, or "
                "choose another output"
            )
        done.add(finding)
    return done


def _mend(path: Path) -> None:
    """End the file with a whole line: a killed process may have left the beginning of one."""
    with file_errors(path), path.open("r+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        position, tail = size, b""
        while position > 0 and b"\n" not in tail:
            step = min(_TAIL, position)
            position -= step
            stream.seek(position)
            tail = stream.read(step) + tail
        whole = position + tail.rfind(b"\n") + 1
        if whole == size:
            return
        try:
            finding_of(path, 0, tail[tail.rfind(b"\n") + 1 :])
        except PredictionError:
            stream.truncate(whole)
        else:
            stream.seek(size)
            stream.write(b"\n")


def settle(path: Path) -> None:
    """Leave out the failures that later findings have overtaken: the file could be read after all.

    A failure of a folder or zip is overtaken by any later finding of what lies in it.
    """
    overtaken = _overtaken(path)
    if not overtaken:
        return
    with file_errors(path), atomic_path(path) as temporary, temporary.open("wb") as target:
        for number, line in enumerate(lines_of(path), 1):
            if number not in overtaken:
                target.write(line)


def _overtaken(path: Path) -> set[int]:
    failed: dict[str, int] = {}
    overtaken = set()
    for number, line in enumerate(lines_of(path), 1):
        finding = finding_of(path, number, line)
        if failed:
            overtaken |= {failed.pop(place) for place in _within(finding.file) if place in failed}
        if finding.status is Status.FAILED:
            failed[finding.file] = number
    return overtaken


def _within(file: str) -> Iterator[str]:
    """A file, and every folder and archive that it lies in."""
    yield file
    for index, character in enumerate(file):
        if character in "/\\!":
            yield file[:index] or file[: index + 1]


@contextlib.contextmanager
def appending(path: Path) -> Iterator[BinaryIO]:
    """A file of JSON lines, open for more of them, and for nobody else meanwhile.

    Raises:
        PredictionError: another process is writing to it, or it cannot be written.
    """
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("ab", buffering=0)
    with stream:
        _lock(stream, path)
        yield stream


def _lock(stream: BinaryIO, path: Path) -> None:
    try:
        import fcntl  # noqa: PLC0415 - not on Windows
    except ModuleNotFoundError:
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PredictionError(f"{path}: another process is writing to it") from None
    except OSError:
        return  # a file system without locks
