"""What evaluated slices share with the training, and what else makes figures look better than they are."""

from __future__ import annotations

from collections.abc import Sequence

from groundglass.data.manifest import Manifest
from groundglass.errors import ImageError
from groundglass.evaluation.part import Part, content_hash
from groundglass.evaluation.protocol import TrainedRun


def part_warnings(run: TrainedRun, manifest: Manifest, part: Part, hashes: Sequence[str]) -> tuple[str, ...]:
    """What a reader must know of these slices before trusting their figures, most serious first.

    A slice was trained on if its file has the same content as a training slice's, wherever it lies now. A
    patient was trained on if any of the data set's slices of that patient was.

    Args:
        run: the trained network; ``run.info["training_sha256"]`` names the content of its training slices.
        manifest: the data set.
        part: its slices that are evaluated.
        hashes: of the content of each slice of the part.
    """
    trained = frozenset(run.info.get("training_sha256", ()))
    warnings = []
    if not trained:
        warnings.append(
            "The run does not say which slices it was trained on: whether they are among these is not known."
        )
    seen = sum(sha256 in trained for sha256 in hashes)
    patients = _trained_patients(manifest, part, hashes, trained)
    if seen == len(hashes):
        warnings.append(
            "The network was trained on these very slices: the figures say how well it remembers, not how "
            "well it recognises."
        )
    elif seen:
        warnings.append(
            f"{seen} of {len(hashes)} slices have the same content as a slice that the network was trained "
            "on: the figures are too good."
        )
    known = frozenset(record.patient_id for record in part.records if record.patient_known)
    if shared := known & patients:
        slices = sum(record.patient_id in shared for record in part.records)
        warnings.append(
            f"{slices} of {len(hashes)} slices belong to {len(shared)} patients of whom the network was "
            "trained on a slice: the figures are too good."
        )
    if part.name == "val" and part.split == run.split_spec:
        warnings.append(
            "The validation part serves the choice of recipe and weights: its figures are optimistic."
        )
    return (*warnings, *_gaps(part))


def _gaps(part: Part) -> list[str]:
    warnings = []
    if part.unlabelled:
        warnings.append(f"{part.unlabelled} slices without a label were left out.")
    unknown = sum(not record.patient_known for record in part.records)
    if unknown:
        warnings.append(
            f"The patient of {unknown} of {len(part.records)} slices is not known; each of these slices "
            "counts as a patient of its own, so that intervals may be too narrow."
        )
    return warnings


def _trained_patients(
    manifest: Manifest, part: Part, hashes: Sequence[str], trained: frozenset[str]
) -> frozenset[str]:
    """Known patients of the data set's slices that were trained on."""
    if not trained:
        return frozenset()
    known = dict(zip(part.records, hashes, strict=True))
    patients = set()
    for record in manifest.records:
        if not record.patient_known or record.patient_id in patients:
            continue
        try:
            sha256 = known[record] if record in known else content_hash(record)
        except ImageError:
            continue  # It lies outside the part, and what cannot be read was not trained on.
        if sha256 in trained:
            patients.add(record.patient_id)
    return frozenset(patients)
