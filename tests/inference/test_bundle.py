"""Bundles are verified before anything in them is used; the one that comes with the installation is as its card says."""

import hashlib
import io
import json
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import Patch, accept_all, tiny_model, tiny_parts

import groundglass
from groundglass.data.load import load_dataset
from groundglass.data.manifest import read_record
from groundglass.errors import BundleError
from groundglass.evaluation.bundled import BundledRun
from groundglass.evaluation.metrics import compute_metrics
from groundglass.evaluation.part import select_part
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.phantom import make_phantom
from groundglass.inference.bundle import DEFAULT, Bundle, identity, save_arrays, write_bundle
from groundglass.inference.calibration import UNCERTAIN
from groundglass.inference.prediction import Status

PICKLED = io.BytesIO()
np.savez(PICKLED, slice=np.array([{"an": "object"}], dtype=object))
CALIBRATION = {"temperature": 1, "coverage": 0.9, "quantiles": {"COVID": 0.5, "NonCOVID": 1}}
PREPROCESSING = {"size": 64, "crop": True, "margin": 0.06, "normalisation": "zero-mean"}
HALF_A_REFERENCE = accept_all(channels=64).as_arrays() | {"embedding.centre": np.zeros(64)}
IMPOSSIBLE = [
    {"threshold": 0.5},
    {"precision": "int4"},
    {"files": {"classifier.onnx": {"sha256": "0", "bytes": 1}}},
    {"preprocessing": PREPROCESSING | {"size": 10**9}},
    {"preprocessing": PREPROCESSING | {"normalisation": "unheard-of"}},
    {"calibration": CALIBRATION | {"temperature": 0}},
    {"calibration": CALIBRATION | {"quantiles": {"COVID": 2, "NonCOVID": 1}}},
]


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def rewrite(path: Path, changes: dict[str, Any]) -> None:
    """Change files and fields and make hashes and id fit again, as somebody who knows how would."""
    document = json.loads((path / "bundle.json").read_text())
    for name, content in changes.items():
        if isinstance(content, bytes):
            (path / name).write_bytes(content)
            document["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        else:
            document[name] = content
    (path / "bundle.json").write_text(json.dumps(document | {"id": identity(document)}))


def test_a_zip_is_as_good_as_a_folder_and_always_the_same(tiny_bundle: Path, tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        write_bundle(tmp_path / name, *tiny_parts())
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert {each.compress_type for each in zipfile.ZipFile(tmp_path / "a.zip").infolist()} == {zipfile.ZIP_DEFLATED}
    bundle = Bundle.open(tiny_bundle)
    assert Bundle.open(tmp_path / "a.zip").id == bundle.id == f"{bundle.info.id[:12]}-fp32"
    fields, contents = tiny_parts()
    write_bundle(tmp_path / "odd.zip", fields | {"training": {"run": "caf\udce9"}}, contents)
    assert Bundle.open(tmp_path / "odd.zip").info.training == {"run": "caf\udce9"}, "a name that is no UTF-8"
    assert bundle.preprocessing == Preprocessing(size=64, normalisation="min-max")
    assert Bundle.open("default").path == Bundle.open().path == DEFAULT
    with pytest.raises(BundleError, match="no such bundle"):
        Bundle.open(Path("default"))


@pytest.mark.parametrize("name", ["classifier.onnx", "reference.npz", "selftest.npz"])
def test_what_is_missing_or_damaged_is_named(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    for changed in (content[:-7], content + b"x", content[:50] + bytes([content[50] ^ 1]) + content[51:]):
        (copy / name).write_bytes(changed)
        with pytest.raises(BundleError, match=f"{name} was changed or damaged"):
            Bundle.open(copy)
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Bundle.open(copy)
    text = (copy / "bundle.json").read_text().replace('"coverage": 0.9', '"coverage": 0.1')
    (copy / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match="was changed after it was written"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classifier.onnx": tiny_model(gain=-1.0)}, "self-test gives another result"),
        ({"classifier.onnx": b"nonsense"}, "cannot load the model"),
        ({"selftest.npz": PICKLED.getvalue()}, r"damaged selftest\.npz"),
        ({"reference.npz": save_arrays(HALF_A_REFERENCE)}, "embedding reference is damaged"),
        *(({"format": each}, "format .* is not 3.*export the run again") for each in (4, 2, "1", None, True)),
        *((changes, r"damaged bundle\.json") for changes in IMPOSSIBLE),
    ],
)
def test_what_was_exchanged_or_cannot_be_is_told(copy: Path, changes: dict[str, Any], words: str) -> None:
    rewrite(copy, changes)
    with pytest.raises(BundleError, match=words):
        Bundle.open(copy)


def test_what_is_no_bundle_is_told(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    for name, words in (
        *((name, "no such bundle") for name in ("nowhere", "x" * 300)),
        ("file", "neither a bundle's folder nor a zip"),
        ("empty.zip", r"bundle\.json is missing"),
    ):
        with pytest.raises(BundleError, match=words):
            Bundle.open(tmp_path / name)
    for content in (b"", b"{", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b" " * (2**20 + 1)):
        (copy / "bundle.json").write_bytes(content)
        with pytest.raises(BundleError, match=r"damaged bundle\.json"):
            Bundle.open(copy)


def test_no_flipped_bit_of_a_zip_goes_unnoticed_or_crashes(tmp_path: Path) -> None:
    whole, broken, rng = tmp_path / "whole.zip", tmp_path / "broken.zip", np.random.default_rng(0)
    write_bundle(whole, *tiny_parts())
    intact, content = Bundle.open(whole), whole.read_bytes()
    for place in (*range(0, 60, 2), *range(-60, 0, 2), *rng.integers(len(content), size=20)):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.integers(8)
        broken.write_bytes(changed)
        with suppress(BundleError):
            opened = Bundle.open(broken)
            # A bit of the zip's own bookkeeping, such as a date: what was read is what was written.
            assert (opened.info, opened.model) == (intact.info, intact.model)


def test_a_logit_that_is_no_number_is_an_error(tiny_bundle: Path) -> None:
    engine = Bundle.open(tiny_bundle).engine()
    for images, words in ((np.full((1, 64, 64), np.nan), "no number"), (np.zeros((1, 32, 32)), "cannot be run")):
        with pytest.raises(BundleError, match=words):
            engine.run(images.astype(np.float32))


def test_the_installed_bundle_is_small_and_needs_no_network(monkeypatch: Patch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked for something"))
    chest = make_phantom(np.random.default_rng(0), level=0.5).slice
    assert groundglass.load().predict(chest).status.value == "ok"
    assert sum(path.stat().st_size for path in DEFAULT.rglob("*") if path.is_file()) <= 10e6


@pytest.mark.slow
def test_its_figures_are_measured_again_and_few_lung_slices_refused(covid_ct: Path) -> None:
    run, manifest = BundledRun(Bundle.open()), load_dataset(covid_ct)
    for name in ("val", "test"):
        part = select_part(manifest, run.info["split"], name, run.info["seed"])
        predictions = run.predict(read_record(record) for record in part.records)
        assert sum(reason is not None for reason in predictions.refused) <= 0.03 * len(part.label), name
    measured = compute_metrics(part.label, predictions.probability)
    reported = run.bundle.info.metrics["test"]["metrics"]
    # INT8 kernels of other processors round otherwise: a slice at the threshold may fall to its other side.
    assert measured["auc"].value == pytest.approx(reported["auc"]["value"], abs=0.01)
    assert measured["accuracy"].value == pytest.approx(reported["accuracy"]["value"], abs=0.02)


def test_it_refuses_other_planes_and_parts_of_the_body(dicom_samples: Path) -> None:
    by_name = {Path(each.file).stem: each for each in groundglass.load().predict_all([dicom_samples])}
    ends = [each for each in by_name.values() if "lung-series" in each.file and each.status is not Status.OK]
    assert (len(ends), all(each.outside_lungs for each in ends)) == (6, True)
    # From 1-025 to 1-097 the lungs are in view; above lies the neck.
    axial = ["axial-ge", "axial-toshiba", "1-053", "1-130", *(f"1-{number:03d}" for number in range(25, 98, 4))]
    other = ["coronal-ge", "coronal-toshiba-616", "sagittal-ge"]
    found = {name: by_name[name].status.value for name in (*axial, *other)}
    assert found == dict.fromkeys(axial, "ok") | dict.fromkeys(other, "refused")
    # A rim of lung above the liver: too little for a firm label.
    assert by_name["abdomen-toshiba"].label in {None, UNCERTAIN}
    severe = by_name["axial-toshiba"]
    assert severe.label != "NonCOVID", "both lungs are full of disease"
    assert severe.opacity > 30
