"""Many workers say what one process says, whatever happens to them."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from tests.conftest import wait_for

from groundglass.cluster.ray import RayClassifier
from groundglass.errors import PredictionError
from groundglass.inference.bundle import MODEL, Bundle
from groundglass.inference.classifier import Classifier
from groundglass.inference.prediction import Status

pytestmark = pytest.mark.slow


def workers(*doing: str) -> list[int]:
    """Process ids of Ray's workers that do one of these."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_text(errors="replace")
        except OSError:
            continue
        if command.startswith(doing):
            found.append(int(place.name))
    return found


def test_the_same_predictions_as_one_process_in_the_order_of_the_files(
    two_workers: None, bundle: Bundle, folder: Path, tmp_path: Path
) -> None:
    paths = [folder, tmp_path, folder / "0.png", folder / "notes.txt", tmp_path / "gone.png"]
    expected = list(Classifier(bundle).predict_all(paths))
    assert {prediction.status for prediction in expected} == set(Status)
    found = list(RayClassifier(bundle).predict_all(paths))
    assert found == expected
    assert [prediction for prediction in found if prediction.file == str(tmp_path)], "an empty folder is told"
    again = list(RayClassifier(bundle, workers=1).predict_all(paths))
    assert again == found, "the number of workers changes nothing"


def test_identifiers_are_kept_only_where_they_are_asked_for(
    two_workers: None, bundle: Bundle, folder: Path
) -> None:
    paths = [folder / "series", folder / "empty.png"]
    kept = list(RayClassifier(bundle, keep_identifiers=True).predict_all(paths))
    assert kept == list(Classifier(bundle, keep_identifiers=True).predict_all(paths))
    plain = RayClassifier(bundle).predict_all(paths, skip=lambda file, frame: file.endswith("/1.dcm"))
    assert [(Path(each.file).name, each.patient) for each in plain] == [
        ("0.dcm", None), ("2.dcm", None), ("empty.png", None),
    ]  # fmt: skip


def test_a_killed_worker_loses_and_doubles_nothing(
    two_workers: None, bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundglass.cluster.ray.LARGEST", 8)
    paths = [folder / "many", folder / "many"]
    expected = list(Classifier(bundle).predict_all(paths))
    found, killed = [], []
    for each in RayClassifier(bundle, workers=2).predict_all(paths):
        found.append(each)
        if len(found) in {1, 200}:
            victim = workers("ray::_classify", "ray::IDLE")[0]
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)
    assert len(set(killed)) == 2
    assert found == expected


def test_a_file_that_kills_its_reader_is_named_and_stops_nothing(
    two_workers: None, bundle: Bundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundglass.cluster.ray.LARGEST", 8)
    for number in range(30):
        shutil.copy(folder / f"{number % 10}.png", tmp_path / f"{number}.png")
    expected = list(Classifier(bundle).predict_all([tmp_path]))
    for name in ("5deadly.png", "6deadly.png", "20faulty.png"):
        shutil.copy(folder / "0.png", tmp_path / name)
    found = list(RayClassifier(bundle, workers=2).predict_all([tmp_path]))
    odd = {Path(each.file).name: each for each in found if each not in expected}
    assert [each for each in found if each in expected] == expected
    assert {name: each.status for name, each in odd.items()} == dict.fromkeys(odd, Status.FAILED)
    assert sorted(odd) == ["20faulty.png", "5deadly.png", "6deadly.png"]
    assert odd["5deadly.png"].reason == "reading it ended its process"
    assert odd["20faulty.png"].reason


def test_workers_that_always_die_end_the_run(
    two_workers: None, bundle: Bundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundglass.cluster.ray.LARGEST", 1)
    monkeypatch.setattr("groundglass.cluster.ray.MOST_LOST", 2)
    for number in range(4):
        shutil.copy(folder / "0.png", tmp_path / f"{number}deadly.png")
    with pytest.raises(PredictionError, match=r"workers died .* memory"):
        list(RayClassifier(bundle, workers=2).predict_all([tmp_path]))


def test_a_run_that_is_not_wanted_any_more_ends_and_one_that_is_too_large_never_begins(
    two_workers: None, bundle: Bundle, folder: Path
) -> None:
    predictions = RayClassifier(bundle, workers=2).predict_all([folder])
    next(predictions)
    predictions.close()
    with pytest.raises(PredictionError, match="--workers 3"):
        next(RayClassifier(bundle, workers=3).predict_all([folder]))
    wait_for(lambda: not workers("ray::_classify"))


def test_a_bundle_is_verified_by_the_workers_too_and_may_be_a_zip(
    two_workers: None, tiny_bundle: Path, bundle: Bundle, folder: Path, tmp_path: Path
) -> None:
    paths = [folder / "0.png"]
    archive = shutil.make_archive(str(tmp_path / "bundle"), "zip", tiny_bundle)
    zipped = RayClassifier(Bundle.open(Path(archive), threads=1), workers=1)
    assert list(zipped.predict_all(paths)) == list(Classifier(bundle).predict_all(paths))
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    opened = RayClassifier(Bundle.open(tmp_path / "bundle", threads=1), workers=1)
    (tmp_path / "bundle" / MODEL).write_bytes(b"something else")
    with pytest.raises(PredictionError, match=MODEL):
        list(opened.predict_all(paths))
    shutil.rmtree(tmp_path / "bundle")
    with pytest.raises(PredictionError, match="put the same bundle there"):
        list(opened.predict_all(paths))
