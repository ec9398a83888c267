"""Tables and numbers of Markdown."""

from __future__ import annotations

import pytest

from groundglass.evaluation.markdown import minus, section, signed, table


def test_a_section_with_its_table() -> None:
    lines = section("Title", table(["a", "b"], [(1, "x"), (2.5, "")]), level=2)
    assert lines == ["## Title", "", "| a | b |", "|---|---|", "| 1 | x |", "| 2.5 |  |", ""]


@pytest.mark.parametrize(
    ("value", "plain", "with_sign"),
    [
        (1.26, "1.3", "+1.3"),
        (-1.26, "−1.3", "−1.3"),
        (0.0, "0.0", "0.0"),
        (-0.01, "0.0", "0.0"),
        (0.01, "0.0", "0.0"),
    ],
)
def test_numbers_and_their_signs(value: float, plain: str, with_sign: str) -> None:
    assert minus(value, 1) == plain
    assert signed(value, 1) == with_sign
