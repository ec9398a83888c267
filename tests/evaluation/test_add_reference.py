"""A bundle is told where its training data lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.inference.conftest import tiny_parts
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.load import load_dataset
from groundglass.errors import BundleError, DataError
from groundglass.evaluation.add_reference import add_reference
from groundglass.evaluation.part import content_hash
from groundglass.inference.bundle import Bundle, write_bundle

from .conftest import draw

MakeBundle = Callable[..., Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = ["path,label,patient_id,source,split"]
    for number in range(48):
        draw(folder / f"{number}.png", (40, 95)[number % 2], number)
        part = "train" if number < 24 else "val"
        lines.append(f"{number}.png,{('NonCOVID', 'COVID')[number % 2]},p{number},drawn,{part}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


@pytest.fixture
def make_bundle(data: Path, tmp_path: Path) -> MakeBundle:
    """A tiny bundle that says it was trained on the data set's training part."""

    def make(name: str = "bundle", **training: Any) -> Path:
        fields, contents = tiny_parts()
        known = [content_hash(record) for record in load_dataset(data) if record.split == "train"]
        fields["training"] = {"split": "official", "seed": 0, "sha256": known, **training}
        write_bundle(tmp_path / name, fields, contents)
        return tmp_path / name

    return make


@pytest.mark.parametrize(("old", "new"), [("old", "new"), ("old.zip", "new.zip"), ("same", "same")])
def test_it_knows_and_answers_as_before(
    make_bundle: MakeBundle, data: Path, tmp_path: Path, old: str, new: str
) -> None:
    bundle = make_bundle(old)
    before = Bundle.open(bundle)
    words = ["reference", str(bundle), "--data", str(data), "--output", str(tmp_path / new)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    after = Bundle.open(tmp_path / new)
    assert after.id in result.stdout
    assert after.reference is not None
    assert int(after.reference.slices) == 24
    assert len(after.reference.held_out) == 24
    assert after.model == before.model
    assert after.info.model_dump(exclude={"id", "files"}) == before.info.model_dump(exclude={"id", "files"})
    for name, array in before.trust.items():
        np.testing.assert_array_equal(after.trust[name], array)


def test_other_data_are_refused(make_bundle: MakeBundle, data: Path, tmp_path: Path) -> None:
    bundle = make_bundle(sha256=["0" * 64])
    with pytest.raises(DataError, match="not the data that"):
        add_reference(bundle, data, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_bundle_that_says_nothing_of_its_training_is_refused(
    make_bundle: MakeBundle, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="does not say which slices"):
        add_reference(make_bundle(sha256=[]), data, tmp_path / "new")


def test_too_few_validation_slices_are_refused(make_bundle: MakeBundle, data: Path, tmp_path: Path) -> None:
    few = data.parent / "few.csv"
    few.write_text("\n".join(data.read_text().splitlines()[:-10]) + "\n")
    with pytest.raises(DataError, match="too few to say"):
        add_reference(make_bundle(), few, tmp_path / "new")
