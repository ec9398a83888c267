"""How often pictures are refused, by group: lung slices that should pass and foreign ones that should not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from groundglass.data.foreign import ForeignPicture
from groundglass.evaluation.alterations import Alteration
from groundglass.evaluation.proportion import Proportion
from groundglass.imaging.slice import CTSlice, Grey, Origin
from groundglass.inference.classifier import Classifier
from groundglass.inference.finding import Finding, Status


@dataclass(frozen=True)
class RefusedShare:
    """What became of a group of pictures.

    Attributes:
        group: what they are.
        taught: whether the gate's lessons hold these very pictures (lung slices) or that kind (foreign ones).
        refused: share refused.
        failed: files that could not be read; they count as pictures, not as refused.
        reasons: how often each reason was given, without the numbers in it.
        flags: how often each flag was raised on what was not refused.
        accepted: names of foreign files that were not refused; of lung slices none are kept.
    """

    group: str
    taught: bool
    refused: Proportion
    failed: int
    reasons: Mapping[str, int]
    flags: Mapping[str, int]
    accepted: tuple[str, ...] = ()


def refused_share(group: str, findings: Iterable[Finding], taught: bool = False) -> RefusedShare:
    """Count a group's findings."""
    refused, reasons, flags, failed = [], Counter[str](), Counter[str](), 0
    for finding in findings:
        refused.append(finding.status is Status.REFUSED)
        failed += finding.status is Status.FAILED
        if finding.status is Status.REFUSED:
            reasons[kind_of_reason(finding.reason or "")] += 1
        elif finding.status is Status.OK:
            flags.update(finding.flags)
    share = Proportion.of(np.array(refused, np.bool_))
    return RefusedShare(group, taught, share, failed, dict(reasons.most_common()), dict(flags.most_common()))


def refused_foreign(classifier: Classifier, pictures: Sequence[ForeignPicture]) -> list[RefusedShare]:
    """Judge a set of foreign pictures as files, and count them by kind, in the order of the set."""
    kinds: dict[str, list[Finding]] = {}
    taught: dict[str, bool] = {}
    for picture in pictures:
        kinds.setdefault(picture.kind, []).extend(classifier.predict_all([picture.path]))
        taught[picture.kind] = taught.get(picture.kind, False) or picture.taught
    return [
        replace(
            refused_share(kind, findings, taught[kind]),
            accepted=tuple(_short(each.file) for each in findings if each.status is Status.OK),
        )
        for kind, findings in kinds.items()
    ]


def refused_files(
    classifier: Classifier, group: str, files: Iterable[Path], taught: bool = False
) -> RefusedShare:
    """Judge files of lung slices."""
    return refused_share(group, classifier.predict_all(files), taught)


def refused_altered(
    classifier: Classifier, slices: Sequence[Grey], alterations: Mapping[str, Alteration]
) -> list[RefusedShare]:
    """Judge lung slices after each alteration."""
    origin = Origin("altered", "array")
    return [
        refused_share(name, classifier.predict_slices(CTSlice(alter(pixels), origin) for pixels in slices))
        for name, alter in alterations.items()
    ]


def together(group: str, shares: Sequence[RefusedShare]) -> RefusedShare:
    """Several groups as one."""
    count, total = sum(each.refused.count for each in shares), sum(each.refused.total for each in shares)
    reasons, flags = Counter[str](), Counter[str]()
    for each in shares:
        reasons.update(each.reasons)
        flags.update(each.flags)
    return RefusedShare(
        group,
        all(each.taught for each in shares),
        Proportion.of(np.arange(total) < count),
        sum(each.failed for each in shares),
        dict(reasons.most_common()),
        dict(flags.most_common()),
        tuple(name for each in shares for name in each.accepted),
    )


def _short(file: str) -> str:
    """A file's name and the folder it lies in."""
    return "/".join(Path(file).parts[-2:])


def kind_of_reason(reason: str) -> str:
    """Why a slice was refused, without what is particular to it."""
    return reason.partition(" (")[0].partition(":")[0]
