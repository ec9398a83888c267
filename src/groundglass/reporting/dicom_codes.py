"""Coded concepts in DICOM reports: SNOMED CT and DICOM where they have one, this project's own otherwise."""

from __future__ import annotations

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept

SCHEME = "99GROUNDGLASS"


def _own(value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value, SCHEME, meaning)


FINDINGS = {
    "COVID": CodedConcept("882784691000119100", "SCT", "Pneumonia caused by SARS-CoV-2"),
    "NonCOVID": _own("NONCOVID", "Anything but COVID-19 pneumonia"),
    "uncertain": _own("UNCERTAIN", "Uncertain whether COVID-19 pneumonia"),
}
"""What is found of a slice, by label."""

PROBABILITY = _own("PROBABILITY", "Probability of COVID-19 pneumonia, calibrated")
STUDY_SCORE = _own("STUDY_SCORE", "Study score: mean of the highest probabilities")
NOT_RULED_OUT = _own("NOT_RULED_OUT", "Cannot be ruled out")
OUTCOME = _own("OUTCOME", "Outcome of a slice")
OUTCOMES = {
    "refused": _own("REFUSED", "Refused: no axial lung CT slice"),
    "failed": _own("FAILED", "Failed: could not be fetched or read"),
}
COUNTS = {
    "classified": _own("CLASSIFIED", "Slices classified"),
    "refused": _own("SLICES_REFUSED", "Slices refused"),
    "failed": _own("SLICES_FAILED", "Slices failed"),
    "in_score": _own("SLICES_IN_SCORE", "Slices in the study score"),
}
SLICES = CodedConcept("{slices}", "UCUM", "slices")
NO_UNITS = CodedConcept("1", "UCUM", "no units")
CT_CHEST = CodedConcept("24627-2", "LN", "CT Chest")
COMMENT = CodedConcept("121106", "DCM", "Comment")


def coding_scheme() -> CodingSchemeIdentificationItem:
    """Says in an object what its codes of :data:`SCHEME` are."""
    return CodingSchemeIdentificationItem(
        designator=SCHEME, name="groundglass", responsible_organization="The groundglass maintainers"
    )
