"""From files to predictions."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from groundglass.errors import DataError
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.inference.classifier import Classifier
from groundglass.inference.prediction import COLUMNS, Status


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty slices, a broken one, a photograph and a text."""
    folder = tmp_path_factory.mktemp("slices")
    for number in range(20):
        pixels = make_phantom(np.random.default_rng(number), 0.4, 0.5, size=128).slice.pixels
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
    (folder / "3b.png").write_bytes((folder / "3.png").read_bytes()[:500])
    photograph = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    cv2.imwrite(str(folder / "5b.png"), photograph)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_file_slice_and_pixels_give_the_same(classifier: Classifier, folder: Path) -> None:
    prediction = classifier.predict(folder / "1.png", evidence=False)
    assert (prediction.status, prediction.file) == (Status.OK, str(folder / "1.png"))
    assert prediction.bundle == classifier.bundle.id
    assert prediction.evidence is None
    assert set(prediction.to_dict()) == set(COLUMNS)
    pixels = cv2.imread(str(folder / "1.png"), cv2.IMREAD_GRAYSCALE)
    assert 0 < prediction.probability < 1
    assert classifier.predict(pixels).probability == prediction.probability
    assert classifier.predict(CTSlice(pixels, Origin("x", "PNG"))).probability == prediction.probability


def test_probability_follows_the_calibration(classifier: Classifier, folder: Path) -> None:
    prediction = classifier.predict(folder / "2.png", evidence=True)
    assert prediction.evidence is not None
    assert prediction.evidence.cropped.pixels.shape == (64, 64)
    assert prediction.evidence.lesion_map.shape == (8, 8)
    logit = prediction.evidence.logit
    assert prediction.probability == pytest.approx(1 / (1 + np.exp(-logit / 2)), abs=1e-6)
    assert prediction.evidence.lesion_map.mean() == pytest.approx(logit, abs=1e-4)
    expected = tuple(
        label
        for label, p in (("COVID", prediction.probability), ("NonCOVID", 1 - prediction.probability))
        if 1 - p <= 0.6
    )
    assert prediction.prediction_set == expected
    assert prediction.label == (expected[0] if len(expected) == 1 else "uncertain")


def test_a_folder_is_classified_in_order_and_a_bad_file_stops_nothing(
    classifier: Classifier, folder: Path
) -> None:
    predictions = list(classifier.predict_all([folder]))
    names = [Path(prediction.file).name for prediction in predictions]
    assert len(predictions) == 22
    assert [name for name in names if "b" not in name] == [f"{number}.png" for number in range(20)]
    by_name = dict(zip(names, predictions, strict=True))
    assert by_name["3b.png"].status is Status.FAILED
    assert by_name["3b.png"].reason
    assert by_name["5b.png"].status is Status.REFUSED
    assert "photograph" in str(by_name["5b.png"].reason)
    assert sum(prediction.status is Status.OK for prediction in predictions) == 20
    assert names.index("3b.png") == 4, "a failure stands where the file stood"
    for number in (0, 7, 19):
        assert classifier.predict(folder / f"{number}.png") == by_name[f"{number}.png"], (
            "neighbours change nothing"
        )


def test_a_manifest_is_classified_file_by_file(classifier: Classifier, folder: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "files.csv"
    manifest.write_text(f"path,label\n{folder}/1.png,COVID\ngone.png,\n{folder}/0.png,\n")
    predictions = list(classifier.predict_all([manifest]))
    assert [Path(prediction.file).name for prediction in predictions] == ["1.png", "gone.png", "0.png"]
    assert [prediction.status for prediction in predictions] == [Status.OK, Status.FAILED, Status.OK]
    manifest.write_text("file\n1.png\n")
    with pytest.raises(DataError, match="path"):
        list(classifier.predict_all([manifest]))


def test_two_threads_read_and_ask_the_network(
    classifier: Classifier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()
    run = classifier.bundle.engine().run

    def slow(images: np.ndarray) -> object:
        threads.add(threading.current_thread().name)
        time.sleep(0.02)
        return run(images)

    alone = list(map(classifier.classify, classifier.read_files([folder])))
    monkeypatch.setattr(classifier.bundle.engine(), "run", slow)
    assert list(classifier.predict_all([folder])) == alone, "the same predictions in the same order"
    assert len(threads - {threading.current_thread().name}) == 2


def test_stopping_early_ends_the_threads(classifier: Classifier, folder: Path) -> None:
    before = threading.active_count()
    predictions = classifier.predict_all([folder])
    next(predictions)
    predictions.close()
    assert threading.active_count() == before
