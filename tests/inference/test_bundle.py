"""Bundles are verified before anything in them is used."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conftest import tiny_model, tiny_parts

from groundglass.errors import BundleError
from groundglass.evaluation.calibration import fit_reference
from groundglass.imaging.crop import Preprocessing
from groundglass.inference.bundle import DEFAULT, Bundle, identity
from groundglass.inference.bundle_writer import save_arrays, write_bundle


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
    bundle = Bundle.open(tiny_bundle)
    assert Bundle.open(tmp_path / "a.zip").id == bundle.id == f"{bundle.info.id[:12]}-fp32"
    assert bundle.preprocessing == Preprocessing(size=64, normalisation="min-max")
    assert Bundle.open("default").path == Bundle.open().path == DEFAULT


@pytest.mark.parametrize("name", ["classifier.onnx", "reference.npz", "selftest.npz"])
def test_what_is_missing_or_damaged_is_named(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    flipped = content[:50] + bytes([content[50] ^ 1]) + content[51:]
    for changed, words in (
        (content[:-7], "changed or damaged"),
        (content + b"x", "changed or damaged"),
        (flipped, "changed or damaged"),
    ):
        (copy / name).write_bytes(changed)
        with pytest.raises(BundleError, match=f"{name}.*{words}"):
            Bundle.open(copy)
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Bundle.open(copy)
    text = (copy / "bundle.json").read_text().replace('"coverage": 0.9', '"coverage": 0.1')
    (copy / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match="was changed after it was written"):
        Bundle.open(copy)


def pickled() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, cropped=np.array([{"an": "object"}], dtype=object))
    return stream.getvalue()


CALIBRATION = {"temperature": 1, "coverage": 0.9, "quantiles": {"COVID": 0.5, "NonCOVID": 1}}
PREPROCESSING = {"size": 64, "crop": True, "margin": 0.06, "normalisation": "zero-mean"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classifier.onnx": tiny_model(gain=-1.0)}, "self-test gives another result"),
        ({"classifier.onnx": b"nonsense"}, "cannot load the model"),
        ({"selftest.npz": pickled()}, r"damaged selftest\.npz"),
        *(
            ({"format": each}, "format .* is not 3.*export the run again")
            for each in (4, 2, -1, "1", None, 1.5, True)
        ),
        ({"threshold": 0.5}, r"damaged bundle\.json"),
        ({"precision": "int4"}, r"damaged bundle\.json"),
        ({"positive": "NonCOVID"}, r"damaged bundle\.json"),
        ({"files": {"classifier.onnx": {"sha256": "0", "bytes": 1}}}, r"damaged bundle\.json"),
        ({"preprocessing": PREPROCESSING | {"size": 10**9}}, r"damaged bundle\.json"),
        ({"preprocessing": PREPROCESSING | {"normalisation": "unheard-of"}}, r"damaged bundle\.json"),
        ({"calibration": CALIBRATION | {"temperature": 0}}, r"damaged bundle\.json"),
        ({"calibration": CALIBRATION | {"quantiles": {"COVID": 0.5}}}, r"damaged bundle\.json"),
        ({"calibration": CALIBRATION | {"quantiles": {"COVID": 0.5, "CAP": 0.5}}}, r"damaged bundle\.json"),
        ({"calibration": CALIBRATION | {"quantiles": {"COVID": 2, "NonCOVID": 1}}}, r"damaged bundle\.json"),
    ],
)
def test_what_was_exchanged_or_cannot_be_is_told(copy: Path, changes: dict[str, Any], words: str) -> None:
    rewrite(copy, changes)
    with pytest.raises(BundleError, match=words):
        Bundle.open(copy)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b" " * (2**20 + 1)]
)
def test_nonsense_for_an_info_is_told(copy: Path, content: bytes) -> None:
    (copy / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"damaged bundle\.json|format"):
        Bundle.open(copy)


def test_what_is_no_bundle_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        Bundle.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="neither a bundle's folder nor a zip"):
        Bundle.open(tmp_path / "file")
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    with pytest.raises(BundleError, match=r"bundle\.json is missing"):
        Bundle.open(tmp_path / "empty.zip")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unnoticed_or_crashes(tmp_path: Path, place: float, bit: int) -> None:
    whole, broken = tmp_path / "whole.zip", tmp_path / "broken.zip"
    if not whole.exists():
        write_bundle(whole, *tiny_parts())
    content = bytearray(whole.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    broken.write_bytes(content)
    try:
        opened = Bundle.open(broken)
    except BundleError:
        return
    # A bit of the zip's own bookkeeping, such as a date: what was read is what was written.
    intact = Bundle.open(whole)
    assert (opened.info, opened.model) == (intact.info, intact.model)


def test_a_bundle_may_know_its_training_data_or_not(tiny_bundle: Path, copy: Path) -> None:
    assert Bundle.open(tiny_bundle).reference is None
    rng = np.random.default_rng(0)
    fitted = fit_reference(rng.normal(size=(40, 64)), rng.normal(size=(30, 64)))
    assert fitted is not None
    arrays = {**np.load(tiny_bundle / "reference.npz"), **fitted.as_arrays()}
    rewrite(copy, {"reference.npz": save_arrays(arrays)})
    reference = Bundle.open(copy).reference
    assert reference is not None
    embedding = rng.normal(size=(5, 64))
    np.testing.assert_array_equal(reference.percentile(embedding), fitted.percentile(embedding))
    del arrays["embedding.scale"]
    rewrite(copy, {"reference.npz": save_arrays(arrays)})
    with pytest.raises(BundleError, match="embedding reference is damaged"):
        Bundle.open(copy)


def test_a_logit_that_is_no_number_is_an_error(tiny_bundle: Path) -> None:
    engine = Bundle.open(tiny_bundle).engine()
    with pytest.raises(BundleError, match="no number"):
        engine.run(np.full((1, 64, 64), np.nan, np.float32))
    with pytest.raises(BundleError, match="cannot be run"):
        engine.run(np.zeros((1, 32, 32), np.float32))
