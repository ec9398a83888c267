"""Tell a bundle where its training data lie, after it was exported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from groundglass.data.load import load_dataset
from groundglass.data.manifest import read_pixels
from groundglass.errors import BundleError, DataError
from groundglass.evaluation.part import Part, content_hash, select_part
from groundglass.imaging.framing import Framing
from groundglass.inference.bundle import (
    CARD,
    MODELS,
    Bundle,
    Precision,
    read_contents,
    with_references,
    write_bundle,
)
from groundglass.inference.reference import FEWEST, Described, Reference, describe_slices, embed
from groundglass.reporting.model_card import render_card


def add_reference(path: Path, data: Path, output: Path) -> tuple[Precision, ...]:
    """Write a bundle again with a reference of each of its models; the models stay what they are.

    Args:
        path: of the bundle, folder or zip.
        data: the data set it was trained on.
        output: the new bundle, a folder or a name that ends in ``.zip``.

    Returns:
        The models that got one.

    Raises:
        BundleError: the bundle is damaged, or does not say what it was trained on.
        DataError: the data are not those it was trained on, or hold too few validation slices.
        ImageError: a slice cannot be read.
    """
    info, contents = read_contents(path)
    bundles = {name: Bundle.open(path, name) for name, file in MODELS.items() if file in contents}
    framing = next(iter(bundles.values())).framing
    train, val = (_describe(framing, part) for part in _parts(path, info.training, data))
    references = {}
    for name, bundle in bundles.items():
        reference = Reference.fit(*(embed(bundle.engine(), framing, slices) for slices in (train, val)))
        if reference is None:
            raise DataError(
                f"{data}: fewer than {FEWEST} validation slices are of patients outside the training part, "
                "too few to say how far other data lie"
            )
        references[name] = reference.as_arrays()
    fields = info.model_dump(mode="json", exclude={"format", "id", "files"})
    files = with_references(path, contents, references)
    if files.pop(CARD, None) is not None:
        files[CARD] = render_card(fields, files).encode()
    write_bundle(output, fields, files)
    return tuple(references)


def _parts(path: Path, training: Mapping[str, Any], data: Path) -> tuple[Part, Part]:
    """The training and the validation part, as the bundle's training had them."""
    if not training.get("split") or not training.get("sha256"):
        raise BundleError(f"{path}: does not say which slices it was trained on")
    manifest, seed = load_dataset(data), int(training.get("seed") or 0)
    train, val = (select_part(manifest, training["split"], name, seed) for name in ("train", "val"))
    if {content_hash(record) for record in train.records} != set(training["sha256"]):
        raise DataError(f"{data}: not the data that {path} was trained on")
    return train, val


def _describe(framing: Framing, part: Part) -> Described:
    patients = [record.patient_id for record in part.records]
    return describe_slices(framing, map(read_pixels, part.records), patients)
