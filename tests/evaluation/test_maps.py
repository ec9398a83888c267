"""Maps judged end to end: networks whose maps are honest, blind or lying are told apart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.evaluation.conftest import draw
from tests.inference.conftest import tiny_parts
from typer.testing import CliRunner, Result

from groundglass.cli.main import app
from groundglass.data.load import load_dataset
from groundglass.errors import DataError
from groundglass.evaluation.map_answers import RISE, ask
from groundglass.evaluation.map_figures import EVERYTHING
from groundglass.evaluation.maps import GroupReport, MapsJob, MapsReport, measure_maps
from groundglass.evaluation.model_rows import ModelRow
from groundglass.evaluation.painted_slices import PaintedSlice, paint_records
from groundglass.evaluation.part import content_hash
from groundglass.imaging.framing import Framing
from groundglass.inference.bundle import write_bundle

GRID = 8


@dataclass
class HazeRun:
    """Its map is the haze between lung and tissue in each cell, or the reverse of it where it lies."""

    path: Path
    honest: bool = True
    second: bool = False
    info: dict[str, Any] = field(default_factory=lambda: {"finished": True})
    seed: int = 0
    split_spec: str = "official"
    framing: Framing = field(default_factory=lambda: Framing(size=64))
    recipe: Any = field(
        default_factory=lambda: SimpleNamespace(name="haze", network=SimpleNamespace(name="haze"))
    )

    @property
    def record_folder(self) -> None:
        return None

    def history(self) -> list[dict[str, float]]:
        return []

    def predict(self, slices: Iterable[NDArray[np.uint8]]) -> Any:
        framed = np.array([self.framing.frame(pixels).pixels for pixels in slices])
        haze = ((framed > 60) & (framed < 185)).astype(np.float32)
        heat = np.stack([cv2.resize(each, (GRID, GRID), interpolation=cv2.INTER_AREA) for each in haze])
        logit = 20 * (heat.mean(axis=(1, 2)) - 0.3)
        said = 1 / (1 + np.exp(-logit))
        shown = heat if self.honest else heat.max() - heat
        answer = SimpleNamespace(logit=logit, probability=said, activation_map=shown, framed=framed)
        if self.second:
            answer.opacity_logit, answer.opacity, answer.opacity_map = logit, said, heat
        return answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten healthy slices of five series: a bright body with two dark lungs."""
    folder = tmp_path_factory.mktemp("maps") / "untouched"
    for number in range(10):
        draw(folder / f"series{number // 2}_{number}.png", 40, number)
    return folder


def _row(path: Path, name: str, *runs: HazeRun) -> ModelRow:
    for number, run in enumerate(runs):
        run.path = path / name / str(number)
    return ModelRow.of(name, runs)


@pytest.fixture(scope="module")
def report(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> MapsReport:
    root = tmp_path_factory.mktemp("runs")
    rows = (
        _row(root, "honest", HazeRun(root), HazeRun(root)),
        _row(root, "lying", HazeRun(root, honest=False)),
        _row(root, "same", HazeRun(root)),
    )
    return measure_maps(MapsJob(rows, (folder,), phantoms=0, resamples=200))


@pytest.fixture(scope="module")
def group(report: MapsReport) -> GroupReport:
    (group,) = report.groups
    return group


def _measures(group: GroupReport, name: str, subset: str = EVERYTHING) -> dict[str, Any]:
    (model,) = (model for model in group.models if model.name == name)
    (figures,) = (figures for figures in model.figures if figures.subset == subset)
    return dict(figures.measures)


def test_what_was_measured(group: GroupReport) -> None:
    assert (group.name, group.slices, group.patients) == ("untouched", 10, 5)
    assert group.paintings + group.too_small == 10 * 16
    assert {model.name: model.seen for model in group.models} == dict.fromkeys(
        ("honest", "lying", "same"), "not known"
    )


def test_an_honest_map_beats_chance_and_a_lying_one_does_not(group: GroupReport) -> None:
    honest, lying = _measures(group, "honest"), _measures(group, "lying")
    assert honest["energy_of_rise"].mean > 1.5 * honest["lesion_of_lungs"].mean
    assert honest["energy_of_rise_beyond"].low > 0
    assert honest["pointing_of_rise"].mean > honest["lesion_of_lungs"].mean > lying["pointing_of_rise"].mean
    assert honest["energy"].mean > lying["energy"].mean
    assert lying["energy_of_rise_beyond"].high < 0
    assert honest["energy"].mean <= honest["best_energy"].mean


def test_noticing_is_the_logits_business(group: GroupReport) -> None:
    honest, lying = _measures(group, "honest"), _measures(group, "lying")
    for measure in ("noticed", "auc", "gain", "called", "twin_called"):
        assert honest[measure].mean == lying[measure].mean
    assert honest["noticed"].mean > 0.9
    assert honest["auc"].mean > 0.8
    assert honest["called"].mean > honest["twin_called"].mean


def test_equal_seeds_spread_nothing(group: GroupReport) -> None:
    honest, same = _measures(group, "honest"), _measures(group, "same")
    assert honest["energy"].sd == 0
    assert same["energy"].sd is None
    assert (honest["energy"].mean, honest["energy"].low) == (same["energy"].mean, same["energy"].low)


def test_subsets_add_up(group: GroupReport) -> None:
    (model,) = (model for model in group.models if model.name == "honest")
    for start, total in (("severity", 4), ("kind", 4)):
        parts = [figures for figures in model.figures if figures.subset.startswith(start)]
        assert len(parts) == total
        assert sum(figures.paintings for figures in parts) == group.paintings
        mean = sum(f.paintings * f.measures["energy"].mean for f in parts) / group.paintings
        assert mean == pytest.approx(_measures(group, "honest")["energy"].mean)
    shares = [
        _measures(group, "honest", f"severity {severity:g}")["lesion_of_lungs"].mean
        for severity in (0.1, 0.25, 0.5, 0.75)
    ]
    assert shares == sorted(shares)


def test_differences_are_between_the_first_and_the_others(group: GroupReport) -> None:
    found = {(each.second, each.measure): each for each in group.differences}
    assert {each.first for each in group.differences} == {"honest"}
    worse, equal = found["lying", f"energy{RISE}"], found["same", f"energy{RISE}"]
    honest, lying = _measures(group, "honest"), _measures(group, "lying")
    assert worse.value == pytest.approx(honest[f"energy{RISE}"].mean - lying[f"energy{RISE}"].mean)
    assert worse.low is not None
    assert worse.low > 0
    assert worse.p is not None
    assert worse.p < 0.05
    assert (equal.value, equal.low, equal.high, equal.p) == (0, 0, 0, 1)
    assert found["lying", "auc"].value == 0


def test_answers_are_about_the_copy_they_stand_for(folder: Path, tmp_path: Path) -> None:
    piece = next(paint_records(load_dataset(folder).records, 1))
    run = HazeRun(tmp_path)
    answer = ask(run, piece)[""]
    predictions = run.predict([piece.pixels, *(painting.pixels for painting in piece.paintings)])
    assert answer.twin["logit"] == pytest.approx(float(predictions.logit[0]))
    for index, score in enumerate(answer.scores, start=1):
        assert score["logit"] == pytest.approx(float(predictions.logit[index]))
        assert score["gain"] == pytest.approx(float(predictions.logit[index] - predictions.logit[0]))


def test_an_untouched_copy_adds_nothing(folder: Path, tmp_path: Path) -> None:
    piece = next(paint_records(load_dataset(folder).records, 1))
    painting = piece.paintings[0]
    copy = type(painting)(painting.kind, painting.severity, piece.pixels, painting.lesion)
    answer = ask(HazeRun(tmp_path), PaintedSlice(piece.patient, piece.pixels, piece.lungs, (copy,)))[""]
    (score,) = answer.scores
    assert (score[f"blank{RISE}"], score["gain"], score["noticed"]) == (1, 0, 0)


def test_a_second_output_is_a_row_of_its_own(folder: Path, tmp_path: Path) -> None:
    row = _row(tmp_path, "both", HazeRun(tmp_path, honest=False, second=True))
    (group,) = measure_maps(MapsJob((row,), (folder,), phantoms=0, most=3, resamples=20)).groups
    assert [model.name for model in group.models] == ["both", "both, opacity"]
    assert _measures(group, "both, opacity")["energy"].mean > _measures(group, "both")["energy"].mean
    assert group.slices == 3


def test_one_series_has_no_interval(folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for path in folder.glob("series0_*.png"):
        (alone / path.name).write_bytes(path.read_bytes())
    row = _row(tmp_path, "run", HazeRun(tmp_path))
    (group,) = measure_maps(MapsJob((row,), (alone,), phantoms=0, resamples=20)).groups
    assert group.patients == 1
    assert _measures(group, "run")["energy"].mean is not None
    assert _measures(group, "run")["energy"].low is None


@pytest.mark.parametrize(
    ("info", "seen"),
    [
        ({"training_sha256": ["0" * 64], "lesion_free": None}, "no"),
        ({"training_sha256": ["0" * 64], "lesion_free": "untouched"}, "yes"),
        ({"training_sha256": ["0" * 64], "lesion_free": "elsewhere"}, "no"),
        ({"training_sha256": "own"}, "yes"),
        ({}, "not known"),
    ],
)
def test_what_was_trained_on_is_marked(folder: Path, tmp_path: Path, info: dict[str, Any], seen: str) -> None:
    if info.get("training_sha256") == "own":
        info = {"training_sha256": [content_hash(record) for record in load_dataset(folder)]}
    row = _row(tmp_path, "run", HazeRun(tmp_path, info={"finished": True, **info}))
    (group,) = measure_maps(MapsJob((row,), (folder,), phantoms=0, most=1, resamples=20)).groups
    assert [model.seen for model in group.models] == [seen]


def test_nothing_to_paint_into(tmp_path: Path) -> None:
    row = _row(tmp_path, "run", HazeRun(tmp_path))
    with pytest.raises(DataError, match="nothing to paint into"):
        measure_maps(MapsJob((row,), phantoms=0))
    blank = tmp_path / "blank"
    blank.mkdir()
    cv2.imwrite(str(blank / "a.png"), np.full((90, 90), 130, np.uint8))
    with pytest.raises(DataError, match="blank: none of its slices shows enough lung"):
        measure_maps(MapsJob((row,), (blank,), phantoms=0))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    write_bundle(path, *tiny_parts())
    return path


def _run(*words: str) -> Result:
    return CliRunner().invoke(app, ["maps", *words, "--bootstrap", "20"], catch_exceptions=False)


def test_the_command_writes_tables_that_say_what_the_json_says(
    bundle: Path, folder: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- maps:begin -->\nold\n<!-- maps:end -->\nafter\n")
    done = _run(
        f"one={bundle}",
        f"two={bundle}",
        *("--slices", str(folder), "--most", "2", "--phantoms", "0"),
        *("--output", str(tmp_path / "out"), "--docs", str(page)),
    )
    assert done.exit_code == 0
    document = json.loads((tmp_path / "out" / "maps.json").read_text())
    assert [row["name"] for row in document["rows"]] == ["one", "two"]
    (group,) = document["groups"]
    everything = group["models"][0]["figures"][0]
    assert everything["subset"] == EVERYTHING
    tables = (tmp_path / "out" / "maps.md").read_text()
    assert f"{100 * everything['measures']['energy']['mean']:.1f} (" in tables
    assert "one less two" in tables
    assert "0.0 (0.0 to 0.0) | 1.000" in tables
    assert all(line.count("|") == 0 or line.startswith("|") for line in tables.splitlines())
    assert page.read_text() == f"before\n<!-- maps:begin -->\n{tables}<!-- maps:end -->\nafter\n"


@pytest.mark.slow
def test_phantoms_and_their_picture(bundle: Path, tmp_path: Path) -> None:
    picture, page = tmp_path / "images" / "phantoms.jpg", tmp_path / "page.md"
    page.write_text("<!-- maps:begin -->\n<!-- maps:end -->\n")
    options = ("--output", str(tmp_path / "out"), "--picture", str(picture), "--docs", str(page))
    done = _run(str(bundle), "--phantoms", "2", *options)
    assert done.exit_code == 0
    (group,) = json.loads((tmp_path / "out" / "maps.json").read_text())["groups"]
    assert (group["name"], group["slices"], group["patients"]) == ("phantoms", 2, 2)
    assert group["models"][0]["seen"] == "no"
    assert [each["subset"] for each in group["models"][0]["figures"]][1:] == [
        f"severity {severity:g}" for severity in (0.1, 0.25, 0.5, 0.75)
    ]
    assert "](images/phantoms.jpg)" in page.read_text()
    drawn = cv2.imread(str(picture))
    assert drawn.shape[0] == 3 * 200 + 2 * 6
    assert drawn.shape[1] == 4 * 200 + 3 * 6
    assert picture.stat().st_size < 200_000


def test_no_torch_is_asked_for(bundle: Path, folder: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom groundglass.cli.main import main\n"
        f"sys.argv = ['groundglass', 'maps', {str(bundle)!r}, '--slices', {str(folder)!r}, '--most', '1', "
        f"'--phantoms', '0', '--output', {str(tmp_path / 'out')!r}, '--bootstrap', '20']\n"
        "main()\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_loads_nothing_heavy() -> None:
    check = (
        "import sys, groundglass.cli.maps, groundglass.cli.robustness; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'sklearn', 'matplotlib', 'cv2')))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
