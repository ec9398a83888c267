"""Counting what is refused."""

from __future__ import annotations

from groundglass.evaluation.refusal import refused_share, together
from groundglass.inference.finding import Finding, Status


def _finding(status: Status, reason: str | None = None, flags: tuple[str, ...] = ()) -> Finding:
    return Finding(status, "a.png", "bundle", reason=reason, flags=flags)


FINDINGS = [
    _finding(Status.REFUSED, "not recognised as a slice; looks like a head (score 3.1, limit 0.9)"),
    _finding(Status.REFUSED, "not recognised as a slice; looks like a head (score 1.1, limit 0.9)"),
    _finding(Status.REFUSED, "blank: nearly all of it is one grey"),
    _finding(Status.FAILED, "damaged"),
    _finding(Status.OK, flags=("low-resolution", "one-lung-found")),
    _finding(Status.OK, flags=("low-resolution",)),
]


def test_refused_failed_and_flagged_are_counted_apart() -> None:
    share = refused_share("pictures", FINDINGS)
    assert (share.refused.count, share.refused.total, share.failed) == (3, 6, 1)
    assert share.reasons == {"not recognised as a slice; looks like a head": 2, "blank": 1}
    assert share.flags == {"low-resolution": 2, "one-lung-found": 1}


def test_groups_together_count_every_picture_once() -> None:
    first, second = refused_share("a", FINDINGS, taught=True), refused_share("b", FINDINGS[:2])
    both = together("both", [first, second])
    assert (both.refused.count, both.refused.total, both.failed, both.taught) == (5, 8, 1, False)
    assert both.reasons["not recognised as a slice; looks like a head"] == 4


def test_nothing_was_judged() -> None:
    assert refused_share("none", []).refused.value is None
    assert together("none", []).refused.total == 0
