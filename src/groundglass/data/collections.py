"""Public collections as their authors publish them: an adapter for each makes a manifest with slices and masks."""

from __future__ import annotations

import csv
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, count, groupby
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groundglass.data.manifest import Label, Manifest, Record, unknown_patient, write_manifest, write_mask
from groundglass.errors import DataError, ImageError, NotASliceError
from groundglass.files import one_line, printable
from groundglass.imaging.dicom import open_dataset
from groundglass.imaging.read import read_slice, read_slices
from groundglass.imaging.slice import CTSlice, Grey
from groundglass.imaging.source import DEFAULT_LIMITS, FileSource, OnError, files_below, guard, natural_key, reported

_MOST = 20  # slices of a volume that are taken
_LEAST_LUNG = 0.01  # share of a slice
_NII = r"\.nii(?:\.gz)?$"
_PICTURE = r"[^/]+\.(?:png|jpe?g)$"

Mask = NDArray[np.bool_]
_Outlines = dict[str, list[NDArray[np.int32]]]
_Scans = Iterator[Iterable[Record]]  # the slices of one after the other; one that cannot be read is left out
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class _Tree:
    """All files of a collection, absolute and in natural order, and the folder that its slices are written to."""

    name: str
    root: Path
    files: tuple[Path, ...]
    report: OnError
    made: Path  # that folder, until it is complete
    folder: Path  # and then
    numbers: Iterator[int] = field(default_factory=count)  # of the slices written

    def matching(self, pattern: str) -> Iterator[tuple[Path, re.Match[str]]]:
        """The files whose path ends in what a regular expression says, whatever its case."""
        compiled = re.compile(f"/{pattern}", re.IGNORECASE)
        found = ((path, compiled.search(path.as_posix())) for path in self.files)
        return ((path, match) for path, match in found if match)

    def by_name(self, pattern: str) -> dict[str, Path]:
        """Such files by what the pattern's first group matched."""
        return {match[1]: path for path, match in self.matching(pattern)}

    def scans(self, pattern: str) -> Iterator[tuple[re.Match[str], list[Path]]]:
        """Such files, folder by folder, with the match of the first."""
        for _, group in groupby(self.matching(pattern), lambda found: found[0].parent):
            files = list(group)
            yield files[0][1], [path for path, _ in files]

    def record(self, path: Path, label: Label, patient: str = "", grade: str = "", split: str | None = None) -> Record:
        """What the collection says of a picture, or of the slices of a file or folder."""
        patient = patient or unknown_patient(path.relative_to(self.root).as_posix())
        return Record(path, label, patient, self.name, split, grade=grade)

    def written(self, record: Record, pixels: Grey, lungs: Mask | None = None, lesions: Mask | None = None) -> Record:
        """The record of one of these slices, which is written with its masks."""
        name, given = f"{next(self.numbers):06d}", {"lungs": lungs, "lesions": lesions}
        Image.fromarray(pixels).save(self.made / f"{name}.png")
        masks = (write_mask(mask, self.made / f"{name}-{what}.png") for what, mask in given.items())
        lung_mask, lesion_mask = (mask and self.folder / mask.name for mask in masks)
        return replace(record, path=self.folder / f"{name}.png", lung_mask=lung_mask, lesion_mask=lesion_mask)


def import_collection(
    name: str,
    path: Path,
    output: Path,
    on_error: OnError = lambda _: None,
    progress: Callable[[str, int, int | None], None] = lambda *_: None,
) -> Manifest:
    """Write the manifest of one of `COLLECTIONS`, and beside it what has to be cut out of its volumes.

    Slices of volumes become 8-bit PNGs in the lung window and their masks 1-bit PNGs, in a folder that is called
    like the manifest with ``-slices`` added; pictures stay where they are. Both appear whole or not at all.

    Args:
        name: of the collection.
        path: the folder that it was unpacked to, or one above it.
        output: the manifest CSV; neither it nor the folder beside it may exist.
        on_error: called for each file that cannot be used and is left out.
        progress: called with the stage, the slices done since the last call, and None.

    Raises:
        DataError: the collection is not there or laid out otherwise, or the output exists.
    """
    adapter, layout = COLLECTIONS[name]
    output = output.absolute()
    folder = output.with_name(f"{output.stem}-slices")
    if present := [str(target) for target in (output, folder) if target.exists()]:
        raise DataError(f"{present[0]}: exists already; remove it, or name another manifest")
    if output.suffix.lower() not in {".csv", ".tsv"}:
        raise DataError(f"{output}: the name of a manifest ends in .csv; slices go to a folder beside it")
    records, failed = list[Record](), list[ImageError]()
    files = tuple(file.path for file in files_below(path.absolute(), failed.append))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=output.parent) as temporary:
        tree = _Tree(name, path.absolute(), files, failed.append, Path(temporary, folder.name), folder)
        tree.made.mkdir()
        for scan in adapter(tree):
            with reported(failed.append):
                for record in scan:
                    if printable(record.path) != str(record.path):
                        raise ImageError(record.path, "its name is not UTF-8, as a manifest is; rename it")
                    records.append(record)
                    progress("importing", 1, None)
        if not records:
            why = f"{path}: holds no slices of {name}; expected {layout}"
            raise DataError("; ".join([why, *map(str, failed[:1])]))
        list(map(on_error, failed))
        if any(tree.made.iterdir()):
            tree.made.rename(folder)
        try:
            write_manifest(manifest := Manifest(name, output.parent, tuple(records)), output)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return manifest


def _volume(tree: _Tree, record: Record, lungs: Path | None, lesions: Path | None) -> Iterator[Record]:
    """Slices with lung where that is known, else with lesions where they are known, else of the middle half."""
    slices = [replace(each, hounsfield=None) for each in read_slices(record.path)]
    lung_masks, lesion_masks = (each and _masks(each, slices) for each in (lungs, lesions))
    least, known = _LEAST_LUNG if lung_masks else 0.0, lung_masks or lesion_masks
    showing = [index for index, mask in enumerate(known or ()) if mask.mean() > least]
    for index in _thinned(showing if known else _middle(range(len(slices)))):
        lung, lesion = (each[index] if each else None for each in (lung_masks, lesion_masks))
        yield tree.written(record, slices[index].pixels, lung, lesion)


def _masks(path: Path, slices: Sequence[CTSlice]) -> list[Mask]:
    masks = list(read_slices(path))
    alike = len(masks) == len(slices) and all(
        mask.pixels.shape == each.pixels.shape and not mask.lies_apart_from(each)
        for mask, each in zip(masks, slices, strict=True)
    )
    if not alike:
        raise ImageError(path, f"does not lie where its volume {slices[0].origin.file} does; both are left out")
    return [(mask.pixels > 0) & (mask.pixels != 5) for mask in masks]  # 5 is the trachea, in LUNA16


def _thinned(slices: Sequence[_Item]) -> list[_Item]:
    """At most `_MOST` slices, evenly."""
    step = -(-len(slices) // _MOST) or 1
    return list(slices[min(step, len(slices)) // 2 :: step])


def _middle(slices: Sequence[_Item]) -> list[_Item]:
    """The middle half, which shows lung where nothing says which slices do."""
    return list(slices[len(slices) // 4 : len(slices) - len(slices) // 4])


def _series(
    tree: _Tree, files: list[Path], record: Record, infected: NDArray[Any] | None, outlines: _Outlines | None
) -> Iterator[Record]:
    """Slices of a DICOM series: the infected ones, else those with outlines of lesions, else the middle half.

    ``infected`` is in descending slice location; ``outlines`` are by SOP instance. None: not known of any slice.
    """
    ordered = sorted(((*_header(path), path) for path in files), reverse=True)
    drawn = [(path, (outlines or {}).get(instance, [])) for _, instance, path in ordered]
    if infected is not None:
        chosen = list(compress(drawn, infected))
    else:
        chosen = _middle(drawn) if outlines is None else [each for each in drawn if each[1]]
    for path, lesions in _thinned(chosen):
        try:
            pixels = read_slice(path).pixels
        except ImageError as error:
            if not isinstance(error, NotASliceError):  # a localizer
                tree.report(error)
            continue
        mask = None
        if outlines is not None:
            mask = np.any([cv2.fillPoly(np.zeros(pixels.shape, np.uint8), [each], 1) for each in lesions], axis=0)
        yield tree.written(record, pixels, lesions=mask)


def _header(path: Path) -> tuple[float, str]:
    """Slice location in mm, rising to the head, and SOP instance."""
    with guard(str(path), "DICOM with a slice location"):
        tags = ["SOPInstanceUID", "SliceLocation", "ImagePositionPatient"]
        header = open_dataset(FileSource(path), DEFAULT_LIMITS, tags)
        location = header.get("SliceLocation")
        height = float(header.ImagePositionPatient[2] if location is None else location)
        return height, str(header.get("SOPInstanceUID"))


def _mosmeddata(tree: _Tree) -> _Scans:
    masks = tree.by_name(rf"masks/([^/]+)_mask{_NII}")
    for path, match in tree.matching(rf"(CT-[0-4])/([^/]+?){_NII}"):
        label = Label.NON_COVID if match[1].upper() == "CT-0" else Label.COVID
        yield _volume(tree, tree.record(path, label, match[2], match[1].upper()), None, masks.get(match[2]))


def _zenodo_3757476(tree: _Tree) -> _Scans:
    """Copies name a volume's files differently; its last number, such as ``14_85914_0``, is what they share.

    That is case, study and series of Radiopaedia; the case is the patient.
    """
    number = rf"/[^/]*?(\d+(?:_\d+)*)\D*{_NII}"
    lungs, lesions = (tree.by_name(f"{kind}_Mask{number}") for kind in ("Lung", "Infection"))
    for path, match in tree.matching(f"COVID-19-CT-Seg_20cases{number}"):
        case, several, _ = match[1].partition("_")
        record = tree.record(path, Label.COVID, f"radiopaedia-{case}" if several else case)
        yield _volume(tree, record, lungs.get(match[1]), lesions.get(match[1]))


def _luna16(tree: _Tree) -> _Scans:
    lungs = tree.by_name(r"seg-lungs-LUNA16/([^/]+)\.mhd$")
    for path, match in tree.matching(r"subset\d/(?:[^/]+/)?([^/]+)\.mhd$"):
        yield _volume(tree, tree.record(path, Label.NON_COVID, match[1]), lungs.get(match[1]), None)


def _finding_lungs(tree: _Tree) -> _Scans:
    """Its single slices; the volumes of ``3d_images``, and four masks of air outside the chest or one lung, are not."""
    masks = tree.by_name(r"2d_masks/(?!ID_(?:0052|0079|0134|0254)_)([^/]+\.tiff?)$")
    for path, match in tree.matching(r"2d_images/((ID_\d+)[^/]*\.tiff?)$"):
        yield [replace(tree.record(path, Label.NON_COVID, match[2]), lung_mask=masks.get(match[1]))]


def _covid_ct_md(tree: _Tree) -> _Scans:
    labels = _slice_labels(tree)
    for match, files in tree.scans(r"(COVID-19|Cap|Normal) Cases/([^/]+)/[^/]+\.dcm$"):
        label = Label.COVID if match[1].upper() == "COVID-19" else Label.NON_COVID
        record = tree.record(files[0].parent, label, match[2], match[1])
        yield _series(tree, files, record, labels.get(match[2]), None)


def _slice_labels(tree: _Tree) -> dict[str, NDArray[Any]]:
    """Which slices are infected, of the cases of ``Index.csv``, which numbers them with a gap; the array has none."""
    arrays = tree.by_name(r"(Slice-level-labels[^/]*\.npy)$")
    if not arrays:
        return {}
    path = arrays[max(arrays, key=lambda name: ("updated" in name, natural_key(name)))]
    expected = "expected an array of cases by slices without pickles, Index.csv with Folder/ID and Label Index"
    try:
        labels = np.load(path, allow_pickle=False)
        (index,) = tree.by_name(r"(Index\.csv)$").values()
        table = csv.DictReader(index.read_text(encoding="utf-8-sig").splitlines())
        cases = [case for _, case in sorted((int(row["Label Index"]), row["Folder/ID"]) for row in table)]
    except (EOFError, KeyError, OSError, TypeError, ValueError) as error:
        raise DataError(f"{path}: {expected} ({one_line(str(error))})") from error
    if labels.ndim != 2 or len(labels) != len(cases):
        raise DataError(f"{path}: {expected}, not {labels.shape} for {len(cases)} cases")
    return dict(zip(cases, labels, strict=True))


def _ricord_1a(tree: _Tree) -> _Scans:
    outlines = _outlines(tree)
    for match, files in tree.scans(r"(MIDRC-RICORD-1A-\d+-\d+)/(?:[^/]+/)*[^/]+\.dcm$"):
        yield _series(tree, files, tree.record(files[0].parent, Label.COVID, match[1]), None, outlines)


def _outlines(tree: _Tree) -> _Outlines | None:
    """Outlines of infections, int32 (N, 1, 2), x before y, by the SOP instance that they were drawn on."""
    found: _Outlines | None = None
    for path, _ in tree.matching(r"MIDRC-RICORD-1A[^/]*annotations[^/]*\.json$"):
        found = found or {}
        try:
            content = json.loads(path.read_bytes())
            labels = (label for group in content["labelGroups"] for label in group["labels"])
            names = {label["id"]: label["name"] for label in labels}
            for drawn in (each for dataset in content["datasets"] for each in dataset["annotations"]):
                vertices = (drawn.get("data") or {}).get("vertices")
                if vertices and names[drawn["labelId"]].startswith("Infectious"):
                    outline = np.rint(vertices).astype(np.int32).reshape(-1, 1, 2)
                    found.setdefault(drawn["SOPInstanceUID"], []).append(outline)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: expected an export of MD.ai with labelGroups and datasets") from error
    return found


def _cc_ccii(tree: _Tree) -> _Scans:
    """Slices listed to show a lesion; of normal scans, and of all without that list, the middle half."""
    lists = [path.read_text(encoding="utf-8", errors="replace") for path, _ in tree.matching(r"lesions?_slices\.csv$")]
    listed = {tuple(line.strip('" ').split("/")[-4:]) for text in lists for line in text.splitlines()}
    for match, files in tree.scans(rf"(NCP|CP|Normal)/([^/]+)/[^/]+/{_PICTURE}"):
        label = Label.COVID if match[1].upper() == "NCP" else Label.NON_COVID
        about = label, f"{match[1]}-{match[2]}", match[1]
        known = listed and match[1].upper() != "NORMAL"
        chosen = [path for path in files if path.parts[-4:] in listed] if known else _middle(files)
        yield [tree.record(path, *about) for path in _thinned(chosen)]


# What names the patient in the name of a scan: of CNCB, MedSeg's list, TCIA, Radiopaedia, LIDC-IDRI and Stony Brook.
_PERSON = re.compile(
    r"(?:NCP|CP|Normal)_\d+|.*?patient\d+|volume-covid19-A-\d+|radiopaedia[-_]\d+|LIDC-IDRI-\d+|A\d{6}", re.IGNORECASE
)


def _covidx_ct(tree: _Tree) -> _Scans:
    images = tree.by_name(r"\d[AB]_images/([^/]+\.png)$")
    classes, seen = {"0": "normal", "1": "pneumonia", "2": "COVID-19"}, set[str]()
    for path, part in tree.matching(r"(train|val|test)_COVIDx[_-]CT[^/]*\.txt$"):
        text = path.read_text(encoding="utf-8", errors="replace")
        rows = [line.split() for line in text.splitlines() if line.strip()]
        wrong = [row for row in rows if len(row) < 2 or row[1] not in classes or row[0] not in images]
        if wrong:
            line = " ".join(wrong[0])[:80]
            raise DataError(f"{path}: {line!r} is no `file class ...` with a class of 0 to 2 and a picture")
        # Lists of another version, or another copy of them, name the same pictures.
        rows = sorted((row for row in rows if row[0] not in seen), key=lambda row: natural_key(row[0]))
        seen |= {row[0] for row in rows}
        # A file is called after its scan and, last, its slice: NCP_96_1328_0032.png, COVIDCTMD-P001-IM0001.png
        for (scan, kind), group in groupby(rows, lambda row: (re.sub(r"[-_][^-_]*$", "", row[0]), row[1])):
            label = Label.COVID if kind == "2" else Label.NON_COVID
            person = _PERSON.match(scan)
            about = label, person[0] if person else scan, classes[kind], part[1].lower()
            yield [tree.record(images[row[0]], *about) for row in _thinned(list(group))]


def _covid_semiseg(tree: _Tree) -> _Scans:
    """Slices that physicians outlined; pseudo labels and the same slices' multi-class labels are left out.

    Copies of this benchmark were saved with the axes exchanged, so that the patient lies on the side. A chest is more
    like its mirror image than like itself upside down, and the pictures of a folder tell together which is which.
    """
    parts = {"TrainingSet": "train", "TestingSet": "test"}
    for _, files in tree.scans(f"Imgs/{_PICTURE}"):
        folder = files[0].parents[1]
        if folder.name.startswith(("Pseudo", "Multi")):
            continue
        split = next((parts[name] for name in folder.parts if name in parts), None)
        masks = {path.stem: path for path in tree.files if path.parent == folder / "GT"}
        slices = {}
        for path in (each for each in files if each.stem in masks):
            with reported(tree.report):
                slices[path] = read_slice(path).pixels
        lying = bool(slices) and float(np.median([_uprightness(pixels) for pixels in slices.values()])) < 0
        for path, pixels in slices.items():
            yield _outlined(tree, tree.record(path, Label.COVID, split=split), pixels, masks[path.stem], lying)


def _outlined(tree: _Tree, record: Record, pixels: Grey, path: Path, lying: bool) -> Iterator[Record]:
    """One slice and the mask of its lesions, stood up where the patient lies on the side."""
    mask = read_slice(path).pixels > 0
    if mask.shape != pixels.shape:
        raise ImageError(path, f"{mask.shape} pixels for a slice of {pixels.shape}; both are left out")
    if lying:
        yield tree.written(record, pixels.T.copy(), lesions=mask.T.copy())
    else:
        yield replace(record, lesion_mask=path)


def _uprightness(pixels: Grey) -> float:
    """How much more a slice is like its mirror image than like itself upside down, -2 to 2."""
    small = cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32)
    small = (small - small.mean()) / (small.std() + 1e-6)
    return float((small * small[:, ::-1]).mean() - (small * small[::-1]).mean())


def _iq_oth_nccd(tree: _Tree) -> _Scans:
    grades = {"b": "benign", "m": "malignant", "n": "normal"}
    for path, match in tree.matching(rf"(Bengin|Benign|Malignant|Normal) cases/{_PICTURE}"):
        yield [tree.record(path, Label.NON_COVID, "", grades[match[1][0].lower()])]


COLLECTIONS: Mapping[str, tuple[Callable[[_Tree], _Scans], str]] = {
    "mosmeddata": (_mosmeddata, "studies/CT-0/study_0001.nii.gz and so on, masks/study_0255_mask.nii.gz"),
    "covid-ct-md": (_covid_ct_md, "COVID-19 Cases/P001/*.dcm, Cap Cases, Normal Cases, Index.csv"),
    "cc-ccii": (_cc_ccii, "NCP/PATIENT/SCAN/0000.jpg, CP, Normal, lesions_slices.csv"),
    "covidx-ct": (_covidx_ct, "2A_images/*.png and train_, val_ and test_COVIDx_CT-2A.txt"),
    "covid-semiseg": (_covid_semiseg, "a folder Imgs (*.jpg) beside a folder GT (*.png)"),
    "zenodo-3757476": (_zenodo_3757476, "COVID-19-CT-Seg_20cases/*.nii.gz, Lung_Mask, Infection_Mask"),
    "iq-oth-nccd": (_iq_oth_nccd, "Bengin cases/*.jpg, Malignant cases, Normal cases"),
    "finding-lungs": (_finding_lungs, "2d_images/ID_0000_Z_0142.tif and so on, 2d_masks with the same names"),
    "luna16": (_luna16, "subset0/*.mhd and so on, seg-lungs-LUNA16/*.mhd"),
    "ricord-1a": (_ricord_1a, "MIDRC-RICORD-1A-*/STUDY/SERIES/*.dcm, MIDRC-RICORD-1a_annotations*.json"),
}
"""Adapter of each collection, and the layout that it expects."""
