"""The table on a terminal: columns stay in place, nothing is wider than the terminal, nothing acts on it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.cells import cell_len

from groundglass.cli.screen import PredictionsTable, series_lines, shorten_middle, where
from groundglass.inference.prediction import COPY, Prediction, Status
from groundglass.inference.series import Totals

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
    for title, value in (
        ("Position", "-312.6 mm"),
        ("Status", "ok"),
        ("Prob.", "0.123"),
        ("Flags", "one-lung-found"),
    ):
        assert cell_len(first[: first.index(value)]) == header.index(title)
    assert cell_len(second[: second.index("refused")]) == header.index("Status")
    assert " ".join([second, *rest]).split("refused")[1].split() == str(REFUSED.reason).split(), (
        "none of it is lost"
    )
    assert file[-9:].strip() in first


@pytest.mark.parametrize("width", [80, 120])
def test_words_are_never_split(width: int) -> None:
    flags = ("one-lung-found", "soft-tissue-window", "low-resolution", "upside-down")
    uid = "1.2.826.0.1.3680043.8.498." + "1" * 38
    odd = replace(
        REFUSED, reason=f"refers to /a/folder/of-some-length/{'x' * 40}.raw, of {uid} and nothing else"
    )
    _, *rows = lines(PredictionsTable(width), replace(OK, flags=flags), odd)
    assert all(cell_len(row) <= width for row in rows)
    words = " ".join(rows).replace(",", " ").split()
    assert set(flags) <= set(words)
    for word in ("refers", "to", "of", "and", "nothing", "else"):
        assert word in words
    (path,) = [word for word in words if word.startswith("/a")]
    assert path.endswith(".raw")


def test_what_is_refused_for_one_reason_is_summed_up_on_a_terminal_alone() -> None:
    many = [
        replace(
            REFUSED, file=f"{number}.png", reason=f"outside the lungs: no lung (score {number}.5, limit 2.0)"
        )
        for number in range(30)
    ]
    copy = replace(REFUSED, reason=f"{COPY} of a.dcm, which counts")
    table = PredictionsTable(80)
    shown = "\n".join(
        lines(table, many[0], OK, *many[1:], replace(REFUSED, status=Status.FAILED), copy, copy)
    )
    assert shown.count("outside the lungs") == 1
    assert shown.count(".png") == 3  # the first of each reason
    assert list(table.repeated()) == ["30 refused: outside the lungs: no lung", "2 refused: a copy"]
    table = PredictionsTable(None)
    assert "\n".join(lines(table, *many)).count("outside the lungs") == 30
    assert list(table.repeated()) == []


def test_a_pipe_gets_everything_unshortened() -> None:
    long = replace(OK, file="a/very/long/path/" * 20 + "1-001.dcm")
    table = PredictionsTable(None)
    _, short, first, second = lines(table, OK, long, replace(REFUSED, reason="word " * 100))
    assert long.file in first
    assert second.count("word") == 100
    assert short.split() == ["series/1.dcm", "-312.6", "mm", "ok", "0.123", "NonCOVID", "one-lung-found"]
    assert cell_len(second[: second.index("refused")]) == cell_len(first[: first.index("ok ")])


@pytest.mark.parametrize(
    "name", ["a\x1b[2Jb.png", "a\nb.png", "a\rb.png", "a\u202eb.png", "a\udcffb.png", "a\x07b"]
)
def test_names_do_nothing_to_the_terminal(name: str) -> None:
    for prediction in (replace(OK, file=name), replace(REFUSED, file=name, reason=name)):
        for width in (80, None):
            for line in lines(PredictionsTable(width), prediction):
                assert line.isprintable()


def test_a_markup_in_a_name_is_a_name() -> None:
    assert "[red]x[/red].png" in lines(PredictionsTable(80), replace(OK, file="[red]x[/red].png"))[1]


@pytest.mark.parametrize(
    ("prediction", "words"),
    [
        (OK, "-312.6 mm"),
        (replace(OK, position=-1650.04), "-1650 mm"),
        (replace(OK, position=0.0), "0.0 mm"),
        (replace(OK, position=-0.04), "0.0 mm"),
        (replace(OK, position=None, frame=12), "#12"),
        (replace(OK, position=None), ""),
    ],
)
def test_where(prediction: Prediction, words: str) -> None:
    assert where(prediction) == words


def test_more_is_kept_of_the_end_than_of_the_beginning() -> None:
    short = shorten_middle("/data/hospital/series-17/IM-0001-0042.dcm", 24)
    assert len(short) == 24
    assert short.endswith("-0001-0042.dcm"[1:])
    assert short.startswith("/data")
    assert shorten_middle("abc", 3) == "abc"


def test_a_series_in_a_few_lines() -> None:
    totals = Totals()
    for z in range(30):
        totals.add(replace(OK, file=f"d/{z}.dcm", position=float(z), probability=z / 30))
    (summary,) = totals.summaries()
    text = list(series_lines(summary, 80))
    assert text[0] == "d, series 1.2"
    assert "30 slices: 30 classified" in text[1]
    assert "series score 0.883" in text[2]
    assert "no diagnosis" in text[2]
    assert text[3].startswith("  0.0 mm ▁")
    assert text[3].endswith("█ 29.0 mm, highest 0.967")
    assert all(len(line) <= 80 for line in text)


def test_a_long_series_uid_and_folder_fit() -> None:
    totals = Totals()
    totals.add(replace(OK, file="folder/" * 30 + "1.dcm", series="1." + "2" * 62))
    for line in series_lines(totals.summaries()[0], 80):
        assert len(line) <= 80
