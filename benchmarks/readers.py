"""What the readers make of other projects' test files, beside SimpleITK: the test files of pydicom and nibabel."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
import typer
from numpy.typing import NDArray

from groundglass.errors import ImageError
from groundglass.imaging.read import read_slices
from groundglass.imaging.slice import CTSlice
from groundglass.imaging.source import HEAD_BYTES, identify
from groundglass.imaging.window import AIR
from record import RESULTS, Goal, Table, report

COLLECTIONS = {"pydicom": "data/test_files", "data_store": "data", "nibabel": "tests/data"}
"""Packages, pydicom-data's ``data_store`` among them, and where their test files lie."""

OUTCOMES = ("equal", "equal as CT", "different", "refused", "only here", "neither")
"""What is refused for its modality is read once more as if it were CT: only then are its values compared."""

NO_FILE = frozenset({".py", ".pyc", ".json", ".txt", ".md", ".dump", ".rst", ".m"})
KNOWN = dict.fromkeys(
    ("OBXXXX1A_expb.dcm", "OBXXXX1A_expb_2frame.dcm"),
    "pydicom does not swap the bytes of a big-endian palette, which no CT has; ",
)
"""Why values differ where the values do not say it themselves."""

EQUAL = 0.01
"""Hounsfield units by which equal values may differ: both readers calculate in single precision, or one does."""


@dataclass(frozen=True)
class Comparison:
    """One file.

    Attributes:
        file: its collection and path there.
        outcome: one of `OUTCOMES`.
        difference: largest in Hounsfield units; 0 for grey, where each value must have one grey, in their order.
        reason: of anything but ``equal``.
    """

    file: str
    outcome: str
    difference: float | None = None
    reason: str = ""


def main(
    data: Annotated[list[Path] | None, typer.Option(help="Folders of further files, for example dicom/mixed.")] = None,
    quick: Annotated[bool, typer.Option(help="A smoke test: ten files, no record unless --output.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder of the record.")] = None,
) -> None:
    """Read other projects' test files and compare every value with SimpleITK's."""
    warnings.simplefilter("ignore")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    compared = [_compare(name, path) for name, path in list(_files(data or []))[: 10 if quick else None]]
    rows = []
    for collection in dict.fromkeys(each.file.partition("/")[0] for each in compared):
        own = [each for each in compared if each.file.partition("/")[0] == collection]
        count = Counter(each.outcome for each in own)
        both = [each.difference for each in own if each.difference is not None]
        outcomes = (str(count[outcome]) for outcome in OUTCOMES)
        rows.append((collection, str(len(own)), *outcomes, max(both, default=0.0)))
    listed = [each for each in compared if each.outcome in {"different", "refused", "only here"}]
    reasons = Counter((each.outcome, each.reason) for each in compared if each.outcome in {"equal as CT", "neither"})
    tables = [
        Table("Beside SimpleITK", ("test files of", "files", *OUTCOMES, "largest difference, HU"), rows),
        Table(
            "Disagreements",
            ("file", "outcome", "largest difference", "reason"),
            [(f"`{each.file}`", each.outcome, _shown(each.difference), each.reason) for each in listed],
        ),
        Table(
            "Neither reads, or only as CT",
            ("outcome", "reason", "files"),
            [(*about, str(count)) for about, count in sorted(reasons.items())],
        ),
    ]
    largest = max((each.difference or 0.0 for each in compared), default=0.0)
    goals = [Goal("largest difference of Hounsfield units", EQUAL, True, largest)]
    report("readers", output or (None if quick else RESULTS), [asdict(each) for each in compared], goals, tables)


def _shown(difference: float | None) -> str | float:
    return "" if difference is None else difference


def _files(folders: list[Path]) -> Iterator[tuple[str, Path]]:
    """Test files that either reader could take for an image: DICOM, NIfTI and whatever it is that is read here."""
    roots = {folder.name: folder for folder in folders}
    for package, where in COLLECTIONS.items():
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise typer.BadParameter(f"no package {package}; run pip install pydicom-data nibabel pydicom")
        roots["pydicom-data" if package == "data_store" else package] = Path(found.origin).parent / where
    for name, root in roots.items():
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                known = identify(file.read(HEAD_BYTES)) is not None
            if path.suffix not in NO_FILE and (known or path.suffix == ".dcm"):
                yield f"{name}/{path.relative_to(root)}", path


def _compare(name: str, path: Path) -> Comparison:
    slices, reason = _by_us(path)
    theirs = _by_itk(path)
    if not reason.startswith("modality "):
        return _beside(name, slices, theirs, reason)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "ct.dcm")
        dataset = pydicom.dcmread(path)
        dataset.Modality, dataset.SOPClassUID = "CT", pydicom.uid.CTImageStorage
        dataset.save_as(copy)
        slices, other = _by_us(copy)
        found = _beside(name, slices, theirs, f"{reason}; as CT: {other}")
    return replace(found, outcome="equal as CT", reason=reason) if found.outcome == "equal" else found


def _by_us(path: Path) -> tuple[list[CTSlice], str]:
    """The slices of a file, or none and the reason."""
    try:
        return list(read_slices(path)), ""
    except ImageError as error:
        return [], error.reason


def _beside(name: str, slices: list[CTSlice], theirs: NDArray[Any] | None, reason: str) -> Comparison:
    if not slices:
        return Comparison(name, "neither" if theirs is None else "refused", None, reason)
    if theirs is None:
        return Comparison(name, "only here", None, "SimpleITK cannot read it")
    return _values(name, slices, theirs)


def _values(name: str, slices: list[CTSlice], theirs: NDArray[Any]) -> Comparison:
    if slices[0].origin.file_format == "DICOM":  # sorted along the normal here, in the file's order there
        slices.sort(key=lambda each: each.origin.frame or 0)
    shape = (len(slices), *slices[0].pixels.shape)
    if theirs.shape[:3] != shape:
        return Comparison(name, "different", None, f"shape {shape} here, {theirs.shape} there")
    if theirs.ndim == 4 and (theirs != theirs[..., :1]).any():
        return _colours(name, slices, theirs)
    theirs = theirs.reshape(*shape, -1)[..., 0]
    if slices[0].hounsfield is None:
        same = _same_order(slices, theirs)
        return Comparison(name, "equal" if same else "different", 0.0, "" if same else "greys in another order")
    ours = np.stack([each.hounsfield for each in slices if each.hounsfield is not None])
    differences = np.abs(ours - np.maximum(theirs, AIR))
    largest = float(differences.max())
    if largest <= EQUAL:
        return Comparison(name, "equal", largest)
    where = differences > EQUAL
    share, at = float(where.mean()), np.unique(theirs[where])
    values = f"{at[0]:g}" if len(at) == 1 else f"{at[0]:g} to {at[-1]:g}"
    air = ", read as air here (padding)" if (ours[where] == AIR).all() else ""
    return Comparison(name, "different", largest, f"{share:.1%} of the values, {values} there{air}")


def _colours(name: str, slices: list[CTSlice], theirs: NDArray[Any]) -> Comparison:
    """Grey made of colours here, against the brightness of the colours there."""
    grey = np.stack([cv2.cvtColor(plane.astype(np.uint8), cv2.COLOR_RGB2GRAY) for plane in theirs])
    beside = np.abs(np.stack([each.pixels for each in slices]).astype(int) - grey)
    if beside.max() <= 2:
        return Comparison(name, "equal", 0.0)
    return Comparison(name, "different", None, f"colours: up to {beside.max()} of 255 levels, mean {beside.mean():.1f}")


def _by_itk(path: Path) -> NDArray[Any] | None:
    """Values as SimpleITK reads them, shape (planes, rows, columns[, channels]); None where it cannot."""
    silenced, shown = os.open(os.devnull, os.O_WRONLY), os.dup(2)
    os.dup2(silenced, 2)
    try:
        image = sitk.ReadImage(str(path))
        if image.GetDimension() == 3 and path.name.endswith((".nii", ".nii.gz", ".hdr", ".img")):
            image = sitk.DICOMOrient(image, "LPS")
        values = sitk.GetArrayFromImage(image)
        channels = image.GetNumberOfComponentsPerPixel() > 1
        return values[None] if values.ndim - channels == 2 else values
    except RuntimeError:
        return None
    finally:
        os.dup2(shown, 2)
        os.close(silenced)
        os.close(shown)


def _same_order(slices: list[CTSlice], theirs: NDArray[Any]) -> bool:
    """Whether each value has one grey, and larger values never darker ones (or, of MONOCHROME1, brighter ones)."""
    greys = np.stack([each.pixels for each in slices]).astype(int).ravel()
    order = np.lexsort((greys, theirs.ravel()))
    steps = np.diff(greys[order])
    same = np.diff(theirs.ravel()[order]) == 0
    return not steps[same].any() and bool((steps >= 0).all() or (steps <= 0).all())


if __name__ == "__main__":
    typer.run(main)
