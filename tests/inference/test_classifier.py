"""From files, and whatever else Python holds a slice in, to predictions; results tell what notebooks ask."""

import io
import multiprocessing
import os
import pickle
import shutil
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import onnxruntime
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image
from tests.conftest import Patch, change_dicom

import groundglass
from groundglass import Classifier, Prediction, Predictions
from groundglass.errors import BundleError, ImageError, PredictionError
from groundglass.imaging.crop import CroppedSlice, in_slice, lesion_mask
from groundglass.imaging.phantom import make_phantom, write_dicom, write_png
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.inference.prediction import COLUMNS, Status

PHANTOM = make_phantom(np.random.default_rng(1), 0.4, 0.5, size=128)
PIXELS, HU = PHANTOM.slice.pixels, np.rint(PHANTOM.slice.hounsfield).astype(np.int16)
PICTURE, RGB = Image.fromarray(PIXELS), np.stack([PIXELS] * 3, axis=2)
PHOTOGRAPH = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
REFUSED = {"without a pixel": PIXELS[:0], "colour photograph": PHOTOGRAPH, "in colour": PHOTOGRAPH / 255}
REFUSED["(8, 0), without a pixel"] = Image.new("L", (0, 8))
GREY: dict[str, Any] = {
    "uint16": PIXELS.astype(np.uint16) * 257, "RGB": RGB, "one channel": PIXELS[..., None], "one plane": PIXELS[None],
    "float": RGB / 255, "not contiguous": np.asfortranarray(PIXELS), "slice": CTSlice(PIXELS, Origin("x", "PNG")),
    "Pillow L": PICTURE, "Pillow P": PICTURE.convert("P"), "bytes": cv2.imencode(".png", PIXELS)[1].tobytes(),
    "open file": io.BytesIO(cv2.imencode(".bmp", RGB)[1].tobytes()),
}  # fmt: skip
UNREADABLE = {
    "bytes: not an image": b"damaged",
    r"array: an array of float64, shape \(9,\)": np.zeros(9),
    "array: .*not one finite value": np.full((8, 8), np.nan),
    "pydicom: ": pydicom.Dataset(),
    "nibabel: it has no affine": nibabel.Nifti1Image(PIXELS[..., None], None),
    "SimpleITK: .*several components": sitk.Image(8, 8, sitk.sitkVectorUInt8),
    r"nowhere\.png: no such file": "nowhere.png",
    "neither a file nor a folder": "",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A series of four slices."""
    folder = tmp_path_factory.mktemp("series")
    for number in range(4):
        path = folder / f"{number}.dcm"
        write_dicom(PHANTOM, path)
        own = {"SOPInstanceUID": f"1.2.3.{number}", "ImagePositionPatient": [0, 0, 10.0 * number]}
        change_dicom(path, SeriesInstanceUID="1.2.3", **own)
    return folder


@pytest.mark.parametrize("kind", GREY)
def test_grey_values_are_those_of_the_array(classifier: Classifier, kind: str) -> None:
    found = classifier.predict(GREY[kind])
    assert isinstance(found, Prediction)
    assert (found.status, found.probability) == (Status.OK, classifier.predict(PIXELS).probability)


def test_hounsfield_units_are_those_of_the_file(classifier: Classifier, folder: Path) -> None:
    dataset, expected = pydicom.dcmread(folder / "0.dcm"), classifier.predict(folder / "0.dcm")
    before = dataset.to_json()
    arrays = {"array": HU, "Pillow": Image.fromarray(HU.astype(np.int32))}
    others = {
        "data set": dataset,
        "data set without meta": pydicom.Dataset(dataset),  # as a program has put it together
        "nibabel": nibabel.Nifti1Image(HU.T[::-1, ::-1, None].astype(np.float32), np.eye(4)),
        "SimpleITK": sitk.GetImageFromArray(HU[None]),
        "SimpleITK in 2D": sitk.GetImageFromArray(HU),
        "bytes": (folder / "0.dcm").read_bytes(),
    }
    for kind, source in (arrays | others).items():
        found = classifier.predict(source, hu=kind in arrays)
        assert found.probability == pytest.approx(expected.probability, abs=1e-3), kind
        assert np.abs(found.evidence.slice.pixels.astype(int) - expected.evidence.slice.pixels).max() <= 1
        assert found.evidence.slice.hounsfield is None
    assert dataset.to_json() == before, "the caller's stays as it is"


def test_probability_and_label_follow_the_calibration(classifier: Classifier, folder: Path) -> None:
    found = classifier.predict(folder / "2.dcm")
    assert found.bundle == classifier.bundle.id
    logit = found.evidence.lesion_map.mean()  # as the tiny model has it
    assert found.probability == pytest.approx(1 / (1 + np.exp(-logit / 2)), abs=1e-5)
    likely = {"COVID": found.probability, "NonCOVID": 1 - found.probability}
    assert found.prediction_set == tuple(label for label, p in likely.items() if 1 - p <= 0.6)
    assert found.label == (found.prediction_set[0] if len(found.prediction_set) == 1 else "uncertain")
    assert classifier.predict(folder / "2.dcm", evidence=False).evidence is None


def test_two_threads_classify_in_order(classifier: Classifier, tmp_path: Path, monkeypatch: Patch) -> None:
    for number in range(12):
        write_png(make_phantom(np.random.default_rng(number), 0.4, 0.5, size=128), tmp_path / f"{number}.png")
    (tmp_path / "3b.png").write_bytes((tmp_path / "3.png").read_bytes()[:500])
    Image.fromarray(PHOTOGRAPH).save(tmp_path / "5b.png")
    (tmp_path / "notes.txt").write_text("no image")
    threads: set[str] = set()
    run = classifier.bundle.engine().run

    def slow(images: np.ndarray) -> object:
        threads.add(threading.current_thread().name)
        time.sleep(0.02)
        return run(images)

    alone = [classifier.predict(tmp_path / f"{number}.png", evidence=False) for number in range(12)]
    monkeypatch.setattr(classifier.bundle.engine(), "run", slow)
    predictions = list(classifier.predict_all([tmp_path]))
    assert len(threads - {threading.current_thread().name}) == 2
    broken, photograph = predictions.pop(4), predictions.pop(6)  # where the files stand
    assert [Path(each.file).name for each in (broken, photograph)] == ["3b.png", "5b.png"], "a bad file stops nothing"
    assert [each.status.value for each in (broken, photograph)] == ["failed", "refused"]
    assert predictions == alone, "neighbours change nothing"
    started = threading.active_count()
    stopped = classifier.predict_all([tmp_path])
    next(stopped)
    stopped.close()
    assert threading.active_count() == started, "stopping early ends them"


def test_lists_folders_volumes_and_manifests(classifier: Classifier, folder: Path, tmp_path: Path) -> None:
    slices = [str(folder / "0.dcm"), PIXELS, [PICTURE], b"damaged", PIXELS[:0]]
    mixed = classifier.predict(slices)
    assert isinstance(mixed, Predictions)
    assert [each.status.value for each in mixed] == ["ok", "ok", "ok", "failed", "refused"]
    assert [each.file for each in mixed] == [slices[0], "array[1]", "PIL[0]", "bytes[3]", "array[4]"]
    assert [each.position for each in classifier.predict(folder)] == [0, 10, 20, 30]
    assert len(classifier.predict(np.stack([HU] * 3), hu=True)) == 3
    assert classifier.predict([]) == []
    assert [each.file for each in classifier.predict_all(slices[0])] == slices[:1], "a path, not its letters"
    (tmp_path / "files.csv").write_text(f"path,label\n{folder}/1.dcm,COVID\ngone.png,\n{folder}/0.dcm,\n")
    listed = classifier.predict(tmp_path / "files.csv")
    assert [Path(each.file).name for each in listed] == ["1.dcm", "gone.png", "0.dcm"]
    assert [each.status.value for each in listed] == ["ok", "failed", "ok"]
    Image.fromarray((HU + 3000).astype(np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "deep.csv").write_text("path,unit\ndeep.png,HU+3000\n")
    expected = classifier.predict(HU.round(), hu=True).probability
    assert classifier.predict(tmp_path / "deep.csv").probability == pytest.approx(expected)
    assert classifier.predict(tmp_path / "deep.png").probability != pytest.approx(expected), "a wrong guess"


def test_a_refusal_is_a_result_that_can_be_shown(classifier: Classifier, folder: Path, tmp_path: Path) -> None:
    for words, source in REFUSED.items():
        found = classifier.predict(source)
        assert (found.status, found.probability) == (Status.REFUSED, None)
        assert words in found.reason
    coronal = Path(shutil.copy(folder / "0.dcm", tmp_path))
    change_dicom(coronal, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    found = classifier.predict(coronal)
    assert (found.status, found.evidence.lesion_map) == (Status.REFUSED, None)
    assert found.evidence.slice.pixels.shape == PIXELS.shape


@pytest.mark.parametrize("words", UNREADABLE)
def test_what_cannot_be_read_is_an_error_naming_it(classifier: Classifier, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        classifier.predict(UNREADABLE[words])
    assert classifier.predict([UNREADABLE[words]])[0].status is Status.FAILED
    with pytest.raises(TypeError, match="dict: no slice"):
        classifier.predict({})


def test_a_series_has_one_answer(classifier: Classifier, folder: Path) -> None:
    by_folder = classifier.predict_series(folder)
    assert (by_folder.series, by_folder.counts.ok, by_folder.curve.at) == ("1.2.3", 4, (0, 10, 20, 30))
    assert classifier.predict_series([folder, folder]).counts.ok == 4, "copies count once"
    assert classifier.predict_series(list(map(pydicom.dcmread, folder.iterdir()))).curve == by_folder.curve
    assert classifier.predict_series(classifier.predict(folder)) == by_folder, "nothing is classified twice"
    assert f"<b>{by_folder.label or 'no label'}</b>, series score" in by_folder._repr_html_()
    apart = [CTSlice(PIXELS, Origin(f"{name}/0.png", "PNG")) for name in "ab"]
    for source, count, axis in ((np.stack([HU] * 3), 3, "frame"), ([PIXELS] * 2, 2, "order"), (apart, 2, "order")):
        found = classifier.predict_series(source, hu=axis == "frame")
        assert (found.series, found.counts.ok, found.curve.axis) == (None, count, axis)
    for two in ([folder, np.stack([PIXELS] * 2)], [PIXELS, np.stack([PIXELS] * 3)]):
        with pytest.raises(PredictionError, match="here are 2"):
            classifier.predict_series(two)


def test_masks_lie_in_the_image(classifier: Classifier, folder: Path) -> None:
    one = classifier.predict(folder / "0.dcm")
    assert one.lung_mask.shape == one.lesion_mask.shape == PIXELS.shape
    assert one.lung_mask.any()
    assert not (one.lesion_mask & ~one.lung_mask).any()
    assert classifier.predict(folder / "0.dcm", evidence=False).lung_mask is None
    np.testing.assert_array_equal(classifier.predict(folder).lung_mask, np.stack([one.lung_mask] * 4))
    voxels = np.stack([HU.T] * 3, axis=2)
    upside_down = nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, -4.0, 1.0]))
    for image in (upside_down, sitk.GetImageFromArray(voxels.T)):
        mask = (found := classifier.predict(image)).lung_mask
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, np.stack([one.lung_mask.T] * 3, axis=2))
        found[0].lung_mask[:] = False
        before = found.lung_mask
        found.sort(key=lambda each: -each.frame)
        np.testing.assert_array_equal(found.lung_mask, before)


def test_a_lesion_map_lies_where_the_crop_lay_and_lesions_inside_the_lungs() -> None:
    lungs, lesion = np.zeros((2, 10, 16), bool)
    lungs[2:8, 4:12] = lesion[3:, 8:15] = True
    # The crop reaches two rows beyond the slice above and below; the lesion is its lower right.
    grey, lesion_map = np.zeros((14, 14), np.uint8), np.full((14, 14), -3, np.float32)
    cropped = CroppedSlice(grey, (1, -2, 15, 12), lungs, True, grey)
    lesion_map[5:, 7:] = 3
    placed = in_slice(lesion_map, cropped)
    assert np.isneginf(placed[:, [0, 15]]).all()
    np.testing.assert_array_equal(placed > 0, lesion)
    np.testing.assert_array_equal(lesion_mask(lesion_map, cropped), lesion & lungs)


def test_results_are_shown(classifier: Classifier, folder: Path, tmp_path: Path) -> None:
    several = classifier.predict([folder, "<b>.png"])
    assert [(tuple(row), row["status"]) for row in several.to_dict()][3:] == [(COLUMNS, "ok"), (COLUMNS, "failed")]
    html = several._repr_html_()
    assert html.count("data:image/png;base64,") == 4
    assert "&lt;b&gt;.png" in html
    assert "more" in Predictions([several[4]] * 30)._repr_html_()
    several[0].save_overlay(tmp_path / "0.png")
    assert Image.open(tmp_path / "0.png").size == PIXELS.shape
    for prediction, path in ((several[4], "no.png"), (several[0], "no.suffix"), (several[0], "read-only.psd")):
        with pytest.raises(PredictionError):
            prediction.save_overlay(tmp_path / path)


def probability(classifier: Classifier, path: Path) -> float | None:
    return classifier.predict(path).probability


def test_threads_and_processes_share_it(classifier: Classifier, tiny_bundle: Path, folder: Path) -> None:
    path = folder / "0.dcm"
    expected = probability(classifier, path)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(probability, [classifier] * 4, [path] * 4)) == [expected] * 4
    assert len(pickle.dumps(classifier)) < 1000, "its bundle's path, not its networks"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(probability, (classifier, path)) == expected
    # What is inherited, not sent: ONNX Runtime's threads are gone in a forked process.
    several = groundglass.load(tiny_bundle, threads=2)
    assert probability(several, path) == expected
    forked = multiprocessing.get_context("fork")
    process = forked.Process(target=lambda: os._exit(probability(several, path) != expected))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_the_process_stays_the_callers(classifier: Classifier, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither warnings nor file descriptor 2 are switched while the library works."""
    packed = cv2.imencode(".tiff", PIXELS)[1].tobytes()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        for _ in classifier.predict_all([folder] * 4):
            warnings.warn("mine", stacklevel=1)
            os.write(2, b"x")
            classifier.predict(packed)
        assert warnings.filters == before
    assert sum(str(each.message) == "mine" for each in caught) == capfd.readouterr().err.count("x") == 16


def test_a_provider_has_names_and_may_be_missing(classifier: Classifier, tiny_bundle: Path, monkeypatch: Patch) -> None:
    # Beside CPU in its wheels.
    others = {"AzureExecutionProvider"} & set(onnxruntime.get_available_providers())
    for names in ((), "CPU", ["CPUExecutionProvider"], ("azure", "cpu") if others else ("cpu",), *others):
        assert groundglass.load(tiny_bundle, providers=names).predict(PIXELS) == classifier.predict(PIXELS)
    with pytest.raises(BundleError, match=r"tpu: .* choose of .*cpu"):
        groundglass.load(tiny_bundle, providers="tpu")
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: listed)
    with pytest.raises(BundleError, match=r"CUDA.* does not start on this"):
        groundglass.load(tiny_bundle, providers="cuda")  # ONNX Runtime would fall back without a word
