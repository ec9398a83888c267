"""One way in: whatever path a user has to a data set, a manifest comes out."""

from __future__ import annotations

from pathlib import Path

from groundglass.data.covid_ct import load_covid_ct, looks_like
from groundglass.data.folder import label_folders, load_labelled_folder, load_unlabelled_folder
from groundglass.data.manifest import Manifest, read_manifest
from groundglass.errors import DataError


def load_dataset(path: Path) -> Manifest:
    """Read the data set at ``path``.

    A CSV file is a manifest. A folder is, in this order: COVID-CT (clone, extracted or its image folder), a
    folder with a ``manifest.csv``, a folder with ``COVID/`` and ``NonCOVID/``, or a folder of slices without
    labels.

    Raises:
        DataError: if nothing is there, or what is there is none of these or incomplete.
    """
    if path.is_file():
        if path.suffix.lower() == ".csv":
            return read_manifest(path)
        raise DataError(
            f"{path}: a data set is a folder or a manifest CSV, not a {path.suffix or 'single'} file"
        )
    if not path.is_dir():
        raise DataError(f"{path}: no such folder or file")
    try:
        if looks_like(path):
            return load_covid_ct(path)
        if (path / "manifest.csv").is_file():
            return read_manifest(path / "manifest.csv")
        if label_folders(path):
            return load_labelled_folder(path)
        return load_unlabelled_folder(path)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read ({error.strerror})") from error
