"""The measurements of trust as Markdown tables and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from groundglass.atomic import write_json, write_text
from groundglass.evaluation.deletion import DRAWS, SHARE, Deletion, Mean
from groundglass.evaluation.dose_response import STEPS, Correlation, DoseResponse
from groundglass.evaluation.markdown import section, table
from groundglass.evaluation.prediction_sets import CalibrationReport, PredictionSets
from groundglass.evaluation.refusal import RefusedShare
from groundglass.evaluation.trust import TrustReport

JSON, MARKDOWN = "trust.json", "trust.md"
BEGIN, END = "<!-- trust:begin -->", "<!-- trust:end -->"


def write_trust(report: TrustReport, output: Path) -> None:
    """Write ``trust.json`` and ``trust.md``."""
    write_json(output / JSON, report.as_json())
    write_text(output / MARKDOWN, trust_tables(report))


def trust_tables(report: TrustReport) -> str:
    """All tables, one section each; intervals are 95 %."""
    lines = [
        f"Bundle `{report.bundle}` on {report.data}, split `{report.split}`, seed {report.seed}; "
        f"groundglass {report.versions['groundglass']}. Intervals are 95 %: Wilson's for shares, else a "
        "bootstrap.",
        "",
        *section("Prediction sets", _sets(report.sets)),
        *section("Calibration", _calibration(report.calibration)),
        *section("Refusal of foreign pictures", _refused((*report.foreign_together, *report.foreign))),
        *_accepted(report.foreign_together),
        *section("Refusal of lung slices", _refused(report.lungs)),
        *section("Refusal of altered test slices: still to be judged", _refused(report.harmless)),
        *section("Refusal of altered test slices: spoilt", _refused(report.spoilt)),
        *section("Dose-response", _dose(report.dose)),
        *section("Deletion", _deletion(report.deletions)),
    ]
    return "\n".join(lines)


def _sets(sets: PredictionSets) -> Iterator[str]:
    rows = [
        (f"Coverage, stated {100 * sets.stated:.0f} % for each label", sets.coverage),
        ("Coverage of COVID slices", sets.coverage_covid),
        ("Coverage of NonCOVID slices", sets.coverage_non_covid),
        ("One label", sets.single),
        ("Both labels (uncertain)", sets.both),
        ("No label (uncertain)", sets.empty),
        ("Right where there is one label", sets.single_right),
    ]
    yield from table(
        [f"Part {sets.part}", "Share", "Slices"],
        [(title, share, f"{share.count} of {share.total}") for title, share in rows],
    )


def _calibration(reports: Sequence[CalibrationReport]) -> Iterator[str]:
    rows = [
        (
            f"{each.part} ({each.slices} slices)" + (", fitted here" if each.part == "val" else ""),
            name,
            f"{agreement.calibration_error:.3f}",
            f"{agreement.brier:.3f}",
            f"{agreement.log_loss:.3f}",
        )
        for each in reports
        for name, agreement in (("1", each.before), (f"{each.temperature:g}", each.after))
    ]
    yield from table(["Part", "Temperature", "Calibration error", "Brier score", "Log loss"], rows)


def _refused(shares: Iterable[RefusedShare]) -> Iterator[str]:
    rows = [
        (
            each.group,
            "yes" if each.taught else "no",
            f"{each.refused.count} of {each.refused.total}",
            each.refused,
            _counts(each.reasons, 3),
            _counts(each.flags, 3),
        )
        for each in shares
    ]
    yield from table(
        [
            "Group",
            "In the gate's lessons",
            "Refused",
            "Share",
            "Most frequent reasons",
            "Flags of those accepted",
        ],
        rows,
    )


def _accepted(together: Sequence[RefusedShare]) -> Iterator[str]:
    """The foreign pictures that passed, by name."""
    if together and together[0].accepted:
        yield f"Accepted wrongly: {', '.join(f'`{name}`' for name in together[0].accepted)}."
        yield ""


def _counts(counts: Mapping[str, int], most: int) -> str:
    """The most frequent; of the gate's reason what the picture looks like, of others their first part."""
    named = [(name.split("; "), count) for name, count in list(counts.items())[:most]]
    return "; ".join(
        f"{parts[-1] if parts[-1].startswith('looks like') else parts[0]}: {count}" for parts, count in named
    )


def _dose(dose: DoseResponse) -> Iterator[str]:
    yield f"{dose.phantoms} phantoms, each a patient of its own, severity uniform over 0 to 1:"
    yield ""
    rows = [
        ("Spearman's correlation of severity and probability", _correlated(dose.correlation)),
        ("of painted share of the lung and probability", _correlated(dose.painted_share)),
        ("Refused", f"{dose.refused.count} of {dose.refused.total}"),
    ]
    yield from table(["", ""], rows)
    yield ""
    yield from table(
        ["Severity", "Phantoms", "Mean probability", "Mean logit"],
        [
            (
                f"{each.low:.1f} to {each.high:.1f}",
                each.phantoms,
                _number(each.mean_probability),
                _number(each.mean_logit),
            )
            for each in dose.bins
        ],
    )
    yield ""
    severities = ", ".join(f"{severity:g}" for severity in STEPS)
    yield f"{dose.patients} patients, each scanned at one level with severities {severities}:"
    yield ""
    rows = [
        ("Logit higher at full severity than healthy", str(dose.rising_patients)),
        ("Logit rises from one severity to the next", str(dose.rising_steps)),
        ("Mean correlation within a patient", f"{dose.within_patients:.3f}"),
        ("Mean probability at each severity", ", ".join(f"{mean:.2f}" for mean in dose.mean_by_step)),
        ("Refused", f"{dose.refused_of_patients.count} of {dose.refused_of_patients.total}"),
    ]
    yield from table(["", ""], rows)


def _deletion(deletions: Sequence[Deletion]) -> Iterator[str]:
    first = deletions[0]
    yield (
        f"{first.slices} COVID slices of {first.patients} patients; {first.removed} of {first.cells} cells "
        f"({SHARE:.0%}) removed; random cells drawn {DRAWS} times per slice. Fall of the logit:"
    )
    yield ""
    yield from table(
        [
            "Painted with",
            "Hottest cells",
            "Random cells",
            "Coldest cells",
            "Hottest less random",
            "Hottest falls more than the mean of random",
            "than 95 % of random",
        ],
        [
            (
                each.paint,
                *(_mean(value) for value in (each.hottest, each.random, each.coldest, each.difference)),
                each.beaten,
                each.beaten_most,
            )
            for each in deletions
        ],
    )


def _mean(mean: Mean) -> str:
    return f"{mean.value:.2f} ({mean.low:.2f}–{mean.high:.2f})".replace("-", "−")


def _correlated(correlation: Correlation) -> str:
    return f"{correlation.value:.3f} ({correlation.low:.3f}–{correlation.high:.3f})".replace("-", "−")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")
