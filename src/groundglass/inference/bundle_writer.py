"""Bundles as they are written; the files in them that groundglass makes itself."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from groundglass.errors import BundleError
from groundglass.files import atomic_path, write_bytes
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.lungs import LungSegmenter
from groundglass.imaging.slice import Grey
from groundglass.inference.bundle import FORMAT, INFO, BundleInfo, Engine, first_fault, identity, tested


def write_bundle(path: Path, fields: Mapping[str, Any], contents: Mapping[str, bytes]) -> None:
    """Write a bundle: a zip where the name ends in ``.zip``, else a folder, whose files are replaced one by one.

    ``fields`` are those of ``bundle.json``, which comes last, but ``format``, ``id`` and ``files``; ``contents`` the
    other files by name. A BundleError where fields are incomplete or out of range.
    """
    files = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in sorted(contents.items())
    }
    document = {"format": FORMAT, **fields, "files": files}
    document["id"] = identity(document)
    try:
        BundleInfo.model_validate(document)
    except ValidationError as error:
        raise BundleError(f"{path}: {first_fault(error)}") from None
    info = (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    everything = {**contents, INFO: info}
    if path.suffix.lower() != ".zip":
        for name, content in everything.items():
            write_bytes(path / name, content)
        return
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in everything.items():
            # A fixed time: the same bundle gives the same zip.
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content)


def save_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as the content of an ``.npz`` file without pickled objects."""
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def self_test(engine: Engine, lungs: LungSegmenter, preprocessing: Preprocessing, pixels: Grey) -> bytes:
    """Content of ``selftest.npz``: a slice, uint8, shape (H, W), its share of lung and the model's logit."""
    share, logit = tested(engine, lungs, preprocessing, pixels)
    return save_arrays({"slice": pixels, "lung": np.asarray(share), "logit": np.asarray(logit)})
