"""The table on a terminal: columns stay in place, nothing is wider than the terminal, nothing acts on it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.cells import cell_len

from groundglass.cli.screen import PredictionsTable
from groundglass.inference.prediction import COPY, Prediction, Status

OK = Prediction(
    Status.OK, "series/1.dcm", "b", None, 0.12345, "NonCOVID", ("NonCOVID",), ("one-lung-found",),
    series="1.2", position=-312.55,
)  # fmt: skip
REFUSED = Prediction(
    Status.REFUSED,
    "p.png",
    "b",
    "a colour photograph or a chart, and in any case not an axial CT slice of the chest",
)


def lines(table: PredictionsTable, *predictions: Prediction) -> list[str]:
    return [line.plain for prediction in predictions for line in table.lines(prediction)]


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize(
    "file", ["1.dcm", "a/very/long/path/" * 20 + "1-001.dcm", "扫描/切片-" * 20 + "1.png"]
)
def test_columns_stay_in_place_and_within_the_terminal(width: int, file: str) -> None:
    header, first, second, *rest = lines(
        PredictionsTable(width), replace(OK, file=file), replace(REFUSED, file=file)
    )
    assert all(cell_len(line) <= width for line in (header, first, second, *rest))
    values = {"Position": "-312.6 mm", "Status": "ok", "Prob.": "0.123", "Flags": "one-lung-found"}
    for title, value in values.items():
        assert cell_len(first[: first.index(value)]) == header.index(title)
    assert cell_len(second[: second.index("refused")]) == header.index("Status")
    assert " ".join([second, *rest]).split("refused")[1].split() == str(REFUSED.reason).split()
    assert file[-9:].strip() in first


@pytest.mark.parametrize("width", [80, 120])
def test_words_are_never_split(width: int) -> None:
    flags = ("one-lung-found", "soft-tissue-window", "low-resolution", "upside-down")
    uid = "1.2.826.0.1.3680043.8.498." + "1" * 38
    reason = f"refers to /a/folder/of-some-length/{'x' * 40}.raw, of {uid} and nothing else"
    _, *rows = lines(PredictionsTable(width), replace(OK, flags=flags), replace(REFUSED, reason=reason))
    assert all(cell_len(row) <= width for row in rows)
    words = " ".join(rows).replace(",", " ").split()
    assert {*flags, "refers", "to", "of", "and", "nothing", "else"} <= set(words)
    (path,) = [word for word in words if word.startswith("/a")]
    assert path.endswith(".raw")


def test_what_is_refused_for_one_reason_is_summed_up_on_a_terminal_alone() -> None:
    reason = "outside the lungs: no lung (score {}.5, limit 2.0)"
    many = [replace(REFUSED, file=f"{n}.png", reason=reason.format(n)) for n in range(30)]
    copy = replace(REFUSED, reason=f"{COPY} of a.dcm, which counts")
    table = PredictionsTable(80)
    failed = replace(REFUSED, status=Status.FAILED)
    shown = "\n".join(lines(table, many[0], OK, *many[1:], failed, copy, copy))
    assert shown.count("outside the lungs") == 1
    assert shown.count(".png") == 3  # the first of each reason
    assert list(table.repeated()) == ["30 refused: outside the lungs: no lung", "2 refused: a copy"]
    table = PredictionsTable(None)
    assert "\n".join(lines(table, *many)).count("outside the lungs") == 30
    assert list(table.repeated()) == []


@pytest.mark.parametrize("name", ["\x1b[2Jb", "a\nb", "a\rb", "a\u202eb", "a\udcffb", "\x07", "[red]x[/red]"])
def test_names_do_nothing_to_the_terminal(name: str) -> None:
    for prediction in (replace(OK, file=name), replace(REFUSED, file=name, reason=name)):
        for width in (80, None):
            found = lines(PredictionsTable(width), prediction)
            assert all(line.isprintable() for line in found)
            assert (name in found[1]) is name.isprintable()
